"""What is continued, read from files and Python; and what new tokens are as text, with stop strings found in it."""

import numpy as np
import pytest
import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxpref.errors import InputError
from jaxpref.generation.prompts import given_prompts, prompt_ids, read_prompts
from jaxpref.generation.text import Ending

USER = [{"role": "user", "content": "n 1"}]
REPLY = [{"role": "assistant", "content": "a"}]


@pytest.fixture(scope="module")
def byte_level():
    """One token a byte, as the rarest texts are for any byte-level tokenizer."""
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="!")


@pytest.fixture(scope="module")
def sentence_piece():
    """Words begin with the mark of a space, which the decoder drops in front of a text."""
    vocab = {"<unk>": 0, "</s>": 1, "▁once": 2, "▁upon": 3, "▁a": 4, "s": 5}
    backend = Tokenizer(models.WordLevel(vocab, "<unk>"))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def encode(tokenizer, text):
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"])


# ---- text


def test_stop_string_of_several_bytes(byte_level):
    prompt, new = encode(byte_level, "é"), encode(byte_level, "naïve 🙂, stop")
    for stop, before in (("🙂", "naïve "), ("ï", "na"), (" 🙂, st", "naïve")):
        ending = Ending(byte_level, frozenset(), ("absent", stop))
        count = ending.within(prompt)(new)
        assert count == len((before + stop).encode())
        assert ending.within(prompt)(new[: count - 1]) is None  # a part of its last character is not enough
        assert ending.cut(prompt, new[:count]) == (before, "stop_string")


def test_the_first_stop_string_counts(byte_level):
    prompt, new = encode(byte_level, "p"), encode(byte_level, "one two three")
    ending = Ending(byte_level, frozenset(), ("three", "two", "wo t", "o th"))
    assert ending.cut(prompt, new[: ending.within(prompt)(new)]) == ("one ", "stop_string")
    assert ending.within(prompt)(new) == len("one two")


def test_a_token_may_hold_more_than_the_stop_string(sentence_piece):
    ending = Ending(sentence_piece, frozenset(), ("po",))
    prompt, new = np.array([2]), np.array([3, 4, 5])
    assert ending.within(prompt)(new) == 1 and ending.cut(prompt, new[:1]) == (" u", "stop_string")


def test_a_text_that_ends_within_a_character(byte_level):
    new = encode(byte_level, "a🙂")[:-1]
    assert Ending(byte_level, frozenset(), ()).cut(encode(byte_level, "p"), new) == (
        "a\N{REPLACEMENT CHARACTER}",
        "length",
    )


def test_the_space_in_front_of_the_first_word_stays(sentence_piece):
    ending = Ending(sentence_piece, frozenset({1}), ())
    assert ending.cut(np.array([2]), np.array([3, 4])) == (" upon a", "length")
    assert ending.cut(np.array([2]), np.array([5, 4])) == ("s a", "length")
    assert sentence_piece.decode([3, 4]) == "upon a"  # decoded alone it would be lost


def test_only_the_last_stop_token_is_left_out(sentence_piece):
    ending = Ending(sentence_piece, frozenset({4}), ())
    assert ending.cut(np.array([2]), np.array([1, 3, 4])) == ("</s> upon", "stop_token")
    assert ending.cut(np.array([2]), np.array([4])) == ("", "stop_token")


def test_stop_string_beside_a_stop_token(sentence_piece):
    """The stop token's own text is no place for a stop string; the text before it is."""
    assert Ending(sentence_piece, frozenset({1}), ("</s>",)).within(np.array([2]))(np.array([3, 1])) is None
    assert Ending(sentence_piece, frozenset({1}), ("upon",)).within(np.array([2]))(np.array([3, 1])) == 1


# ---- prompts


def test_rows_of_every_form(tmp_path):
    rows = [
        {"prompt": "text", "anything": 1},
        {"prompt": USER},
        {"messages": USER},
        {"prompt": USER, "chosen": REPLY, "rejected": [{"role": "assistant", "content": "b"}]},
        {"chosen": "\n\nHuman: n 1\n\nAssistant: a", "rejected": "\n\nHuman: n 1\n\nAssistant: b"},
        {"prompt": "n 1", "chosen": USER + REPLY, "rejected": [*USER, {"role": "assistant", "content": "b"}]},
    ]
    prompts = read_prompts(tiny.write_rows(tmp_path / "p.jsonl", rows))
    assert [p.prompt for p in prompts] == ["text", *[USER] * 5]
    assert [p.row_id for p in prompts] == list(range(6)) and prompts[2].where.endswith("p.jsonl, row 3")
    assert [p.prompt for p in given_prompts(["text", USER, {"messages": USER}])] == ["text", USER, USER]
    [alpaca] = given_prompts([{"instruction": "Add.", "input": "1 2"}])
    assert alpaca.prompt == [{"role": "user", "content": "Add.\n1 2"}]
    with pytest.raises(InputError, match="{prompt: question}"):
        given_prompts([{"question": "q"}])


def test_lines_of_text(tmp_path):
    file = tmp_path / "p.txt"
    file.write_bytes("\N{ZERO WIDTH NO-BREAK SPACE}first\r\n  the second \nd’accord".encode())
    assert [p.prompt for p in read_prompts(file)] == ["first", "  the second ", "d’accord"]


def test_text_is_taken_as_it_is_and_messages_by_the_template():
    tokenizer = tiny.make_tokenizer()
    prompts = given_prompts(["n 1", USER, {"prompt": USER, "chat_template_kwargs": {"unused": 1}}])
    found = prompt_ids(prompts, tokenizer, vocabulary=128, positions=256, max_new_tokens=5)
    assert [tokenizer.decode(ids) for ids in found] == [
        "n 1",
        *["<|im_start|>user\nn 1<|im_end|>\n<|im_start|>assistant\n"] * 2,
    ]


BAD_ROWS = {
    "no prompt": ({"question": "q"}, ["question", '"prompt"']),
    "null": ({"prompt": None}, ['"messages"']),
    "a number": ({"prompt": 3}, ['key "prompt"', "3"]),
    "no message": ({"prompt": []}, ['key "prompt"']),
    "a malformed message": ({"messages": [{"role": "user"}]}, ['key "content"', "missing"]),
    "nothing to reply to": ({"messages": USER + REPLY}, ['key "messages"', '"assistant"', "remove that message"]),
    "broken Unicode": ('{"prompt": "\\ud83d"}', ['key "prompt"', "Unicode"]),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_row_is_named(kind, tmp_path):
    row, said = BAD_ROWS[kind]
    file = tiny.write_rows(tmp_path / "p.jsonl", [{"prompt": "fine"}, row])
    with pytest.raises(InputError) as error:
        read_prompts(file)
    assert f"{file}, row 2" in str(error.value) and all(part in str(error.value) for part in said)


def test_bad_lines_are_named(tmp_path):
    for content, said in ((b"a\n\nb", "row 2: blank"), (b"a\n\xff", "row 2: 'utf-8' codec")):
        (tmp_path / "p.txt").write_bytes(content)
        with pytest.raises(InputError, match=f"p.txt, {said}"):
            read_prompts(tmp_path / "p.txt")
    with pytest.raises(InputError, match="no such file"):
        read_prompts(tmp_path / "q.txt")


def test_tokens_that_the_model_does_not_have_are_refused():
    """A tokenizer may know more tokens than there are embeddings; that matters where one of them is used."""
    tokenizer = tiny.make_tokenizer()
    used = int(tokenizer("n 1")["input_ids"][0])
    ids = lambda vocabulary: prompt_ids(
        given_prompts(["n 1"]), tokenizer, vocabulary=vocabulary, positions=20, max_new_tokens=8
    )
    largest = max(ids(128)[0].tolist())
    assert ids(largest + 1)[0].tolist() == ids(128)[0].tolist() and used <= largest
    with pytest.raises(InputError, match=rf"(?s)model's {largest}.*prompts\[0\]: token {largest}"):
        ids(largest)


def test_prompts_that_no_model_could_continue():
    tokenizer = tiny.make_tokenizer()
    ids = lambda prompts, t=tokenizer: prompt_ids(
        given_prompts(prompts), t, vocabulary=128, positions=20, max_new_tokens=8
    )
    assert list(map(len, ids(["b" * 12]))) == [12]
    with pytest.raises(InputError, match=r"prompts\[1\]: 13 tokens \+ max_new_tokens=8"):
        ids(["a", "b" * 13])
    with pytest.raises(InputError, match=r"prompts\[0\]: no token"):
        ids([""])
    with pytest.raises(InputError, match="at least one prompt"):
        ids([])
    plain = tiny.make_tokenizer()
    plain.chat_template = None
    with pytest.raises(InputError, match=r"prompts\[0\]: messages"):
        ids([USER], plain)
    plain.chat_template, plain.eos_token = "{{ raise_exception('only pairs of turns') }}", None
    with pytest.raises(InputError, match="only pairs of turns"):
        ids([USER], plain)
    assert len(ids(["text"], plain)[0]) == 4  # no end-of-text token is needed to go on with a text
