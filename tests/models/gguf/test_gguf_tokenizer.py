"""Tokenizers rebuilt from GGUF metadata, against those that llama.cpp, transformers and SentencePiece make of it."""

import json
from pathlib import Path

import pytest
import regex
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxpref.errors import InputError
from jaxpref.models.gguf.tokenizer import SPLITS, build_tokenizer

SPM = json.loads((Path(__file__).parents[2] / "golden" / "sentencepiece.json").read_text(encoding="utf-8"))
TEXTS = [
    "I'LL pay\n\n1234 x, don't  worry;  it's 3.14 or 10,000,000!", "  leading, trailing  \n \n\n\t x \r\n",
    "def f(x):\n\n    return {'a': [1, 2], \"b\": x**2}  # squared\n", "naïve café — Größe über Straße, ĲSSEL",
    "漢字とかな混じり文、１２３と四五六。", "Привет, мир! Ελληνικά ١٢٣ हिन्दी ไทย", "🙂🙃 e\u0301 \u00a0nbsp\u2003em",
    "CamelCaseAndABBREVIATIONS mixedUp iPhone's HTML5/CSS3//\r\n", "...!!!  ??\n\n\n", "\n\n3", "'s 'S 't x'Ve",
]  # fmt: skip

# llama.cpp's src/llama-vocab.cpp: what it splits by, one expression after another, each piece further.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+"
    r"|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SUFFIX = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?((?=[\p{{L}}])([^a-z]))*((?=[\p{{L}}])([^A-Z]))+{_SUFFIX}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?((?=[\p{{L}}])([^a-z]))+((?=[\p{{L}}])([^A-Z]))*{_SUFFIX}|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_CPP = {
    "gpt-2": [_GPT2],
    **dict.fromkeys(("smollm", "starcoder", "refact"), [r"\p{N}", _GPT2]),
    **dict.fromkeys(("llama-bpe", "llama-v3", "llama3", "dbrx"), [_LLAMA3]),
    "qwen2": [_LLAMA3.replace("{1,3}", "")],
    "tekken": [_TEKKEN],
    "gpt-4o": [_O200K],
}


def pieces_of_llama_cpp(expressions, text):
    parts = [text]
    for expression in expressions:
        cut = []
        for part in parts:
            end = 0
            for match in regex.finditer(expression, part):
                cut += [part[end : match.start()], match[0]]
                end = match.end()
            cut.append(part[end:])
        parts = [part for part in cut if part]
    return parts


def pieces(split, text):
    found = pre_tokenizers.Sequence(SPLITS[split].steps()).pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in found]


@pytest.mark.parametrize("split", SPLITS)
def test_text_is_split_as_llama_cpp_does(split):
    assert LLAMA_CPP.keys() == SPLITS.keys()
    for text in TEXTS:
        # Its stand-ins for upper and lower case hold for ASCII only.
        if split in ("tekken", "gpt-4o") and not text.isascii():
            continue
        assert pieces(split, text) == pieces_of_llama_cpp(LLAMA_CPP[split], text), text


def test_splits_differ():
    found = {split: tuple(tuple(pieces(split, text)) for text in TEXTS) for split in SPLITS}
    same = {("smollm", "starcoder", "refact"), ("llama-bpe", "llama-v3", "llama3", "dbrx")}
    groups = {tuple(s for s in SPLITS if found[s] == pieces) for pieces in found.values()}
    assert groups == same | {("gpt-2",), ("qwen2",), ("tekken",), ("gpt-4o",)}


def test_case_beyond_ascii():
    """Upper-case letters in front of lower-case ones begin a word, in any script."""
    assert pieces("tekken", "ĲSSELMeerÜber") == ["ĲSSELMeer", "Über"]
    assert pieces("gpt-4o", "ÉcoleÉTÉ's 1234") == ["École", "ÉTÉ's", " ", "123", "4"]


# ---- byte-level BPE as a whole


def byte_level(tokens, merges, split="qwen2", **more):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {
        "general.architecture": "qwen2", "qwen2.context_length": 64, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split, "tokenizer.ggml.tokens": alphabet + tokens, "tokenizer.ggml.merges": merges,
    } | more  # fmt: skip


def test_qwen2_as_transformers_builds_it():
    """It composes characters first: "e" with an accent behind it is the token of the accented letter."""
    from transformers import Qwen2Tokenizer

    metadata = byte_level(["Ã©", "Ġc", "ca", "fÃ©", "12", "ĠÃ©"], ["Ã ©", "Ġ c", "c a", "f Ã©", "1 2", "Ġ Ã©"])
    vocab = {token: number for number, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    theirs, ours = Qwen2Tokenizer(vocab=vocab, merges=merges), build_tokenizer(metadata, "m.gguf")
    for text in [*TEXTS, "cafe\u0301 12"]:
        assert ours(text).input_ids == theirs(text, add_special_tokens=False).input_ids, text
    assert ours("cafe\u0301").input_ids == ours("café").input_ids
    plain = build_tokenizer(metadata | {"tokenizer.ggml.pre": "dbrx"}, "m.gguf")
    assert plain("cafe\u0301").input_ids != plain("café").input_ids, "the others do not compose"


@pytest.mark.parametrize("split, whole", [("llama-bpe", True), ("tekken", True), ("gpt-2", False), ("dbrx", False)])
def test_words_of_the_vocabulary(split, whole):
    """ "abc" is a token to which no merge leads."""
    tokenizer = build_tokenizer(byte_level(["ab", "abc"], ["a b"], split), "m.gguf")
    assert tokenizer.tokenize("abc") == (["abc"] if whole else ["ab", "c"])


# ---- SentencePiece


def sentencepiece(**more):
    return {
        "general.architecture": "llama", "llama.context_length": 64, "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": SPM["tokens"], "tokenizer.ggml.scores": SPM["scores"],
        "tokenizer.ggml.token_type": SPM["types"], "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | more  # fmt: skip


def test_sentencepiece_encodes_as_the_library():
    tokenizer = build_tokenizer(sentencepiece(), "m.gguf")
    assert any(0 < token["ids"].count(i) for token in SPM["texts"] for i in range(3, 259)), "bytes are used"
    for case in SPM["texts"]:
        assert tokenizer(case["text"], add_special_tokens=False).input_ids == case["ids"], case["text"]
        assert tokenizer.decode(case["ids"]) == case["text"].replace("▁", " ")


def test_sentencepiece_special_tokens():
    tokenizer = build_tokenizer(sentencepiece(), "m.gguf")
    assert tokenizer("a").input_ids == [1, *tokenizer("a", add_special_tokens=False).input_ids]
    assert build_tokenizer(sentencepiece(**{"tokenizer.ggml.add_bos_token": False}), "m.gguf")("a").input_ids[0] != 1
    assert tokenizer("x</s>", add_special_tokens=False).input_ids[-1] == 2
    unprefixed = build_tokenizer(sentencepiece(**{"tokenizer.ggml.add_space_prefix": False}), "m.gguf")
    assert unprefixed("the").input_ids == [1, *tokenizer.convert_tokens_to_ids(unprefixed.tokenize("the"))]
    assert "".join(unprefixed.tokenize("the")) == "the" and "".join(tokenizer.tokenize("the")) == "▁the"
    assert unprefixed.decode(unprefixed(" the", add_special_tokens=False).input_ids) == " the"


def test_stories260k(shared_dir):
    """A real tokenizer of this kind: the merges that follow from the order of its tokens are its own."""
    stored = json.loads((shared_dir / "models" / "stories260k" / "tokenizer.json").read_text())
    original = Tokenizer.from_str(json.dumps(stored))
    tokens = sorted(stored["model"]["vocab"], key=stored["model"]["vocab"].get)
    special = {token["id"] for token in stored["added_tokens"]}
    kinds = [3 if i in special else 6 if token.startswith("<0x") else 1 for i, token in enumerate(tokens)]
    scores = {"tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))]}
    metadata = sentencepiece(**{"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds} | scores)
    ours = build_tokenizer(metadata, "m.gguf")
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.\n"
    for text in [*TEXTS, story * 3]:
        assert ours(text).input_ids == original.encode(text).ids, text


# ---- refused


@pytest.mark.parametrize(
    "change, named",
    [
        ({"tokenizer.ggml.pre": "default"}, "pre 'default'"),
        ({"tokenizer.ggml.pre": "command-r"}, "pre 'command-r'"),
        ({"tokenizer.ggml.model": "t5"}, "model 't5'"),
        ({"tokenizer.ggml.model": "llama", "general.architecture": "gemma2"}, "architecture 'gemma2'"),
        ({"tokenizer.ggml.model": "llama", "general.architecture": "phi3"}, "architecture 'phi3'"),
        ({"tokenizer.ggml.add_eos_token": True}, "add_eos_token True"),
        ({"tokenizer.ggml.pre": ["gpt-2"]}, "pre ['gpt-2']"),
        ({"tokenizer.ggml.tokens": None}, "none in m.gguf"),
        ({"tokenizer.ggml.tokens": []}, "0 tokens"),
        ({"tokenizer.ggml.tokens": ["a", 1]}, "['a', 1] in m.gguf"),
        ({"tokenizer.ggml.merges": None}, "none in m.gguf"),
        ({"tokenizer.ggml.merges": ["a b"]}, "'a b' in m.gguf"),
        ({"tokenizer.ggml.merges": ["a"]}, "'a' in m.gguf"),
        ({"tokenizer.ggml.token_type": 3}, "3 in m.gguf"),
        ({"tokenizer.ggml.padding_token_id": 256}, "256 in m.gguf"),
        ({"tokenizer.ggml.padding_token_id": -1}, "-1 in m.gguf"),
        ({"tokenizer.ggml.bos_token_id": "1"}, "'1' in m.gguf"),
        ({"tokenizer.chat_template": 7}, "[7] in m.gguf"),
    ],
)
def test_refused(change, named):
    metadata = {key: value for key, value in (byte_level([], []) | change).items() if value is not None}
    with pytest.raises(InputError) as error:
        build_tokenizer(metadata, "m.gguf")
    assert named in str(error.value) and "tokenizer.json" in error.value.fix


@pytest.mark.parametrize("scores", [None, [0.5], ["0.5"]])
def test_sentencepiece_needs_a_score_for_every_token(scores):
    metadata = sentencepiece()
    del metadata["tokenizer.ggml.scores"]
    with pytest.raises(InputError, match=r"tokenizer\.ggml\.scores"):
        build_tokenizer(metadata | ({} if scores is None else {"tokenizer.ggml.scores": scores}), "m.gguf")


def test_whitespace_must_be_kept():
    with pytest.raises(InputError, match="remove_extra_whitespaces"):
        build_tokenizer(sentencepiece(**{"tokenizer.ggml.remove_extra_whitespaces": True}), "m.gguf")
    assert isinstance(build_tokenizer(sentencepiece(), "m.gguf").backend_tokenizer.model, models.BPE)
