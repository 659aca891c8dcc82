"""Texts as token ids: the same as of whole texts, with each different piece between special tokens tokenised once."""

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxpref.data import tokenise
from jaxpref.data.tokenise import token_ids

WORDS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|im_end|>x",
    "user\n",
    "It's",
    " ",
    "\n",
    "yes",
    " no",
    "12",
    "é",
    "<|im",
    "|>",
)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def make_tokenizer(special, pre_tokenizer, normalizer=None):
    """BPE whose merges are pairs of letters, so that what stands before a letter changes its token."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "▁", "\n", " ", "é"]
    merges = [(a, b) for a in "▁Ġ ensotu" for b in "ensotuy"]
    tokens = dict.fromkeys([*letters, *(a + b for a, b in merges)])
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def texts(count):
    rng = random.Random(0)
    return ["".join(rng.choices(WORDS, k=rng.randrange(12))) for _ in range(count)]


PLAIN = ["<|im_start|>", "<|im_end|>"]
BYTES = pre_tokenizers.ByteLevel


@pytest.mark.parametrize(
    "special, pre_tokenizer, normalizer, cut_at",
    [
        (PLAIN, BYTES(add_prefix_space=False), None, PLAIN),
        (PLAIN, BYTES(add_prefix_space=True), None, PLAIN),
        (PLAIN, pre_tokenizers.Metaspace(prepend_scheme="always"), None, PLAIN),
        (PLAIN, pre_tokenizers.Metaspace(prepend_scheme="first"), None, None),
        (PLAIN, BYTES(add_prefix_space=False), normalizers.Prepend("▁"), PLAIN),
        ([*PLAIN, "<|im_end|>x"], BYTES(add_prefix_space=False), None, PLAIN[:1]),
        ([*PLAIN, "|>yes"], BYTES(add_prefix_space=False), None, None),
        ([AddedToken("<|im_start|>", rstrip=True), "<|im_end|>"], BYTES(add_prefix_space=False), None, PLAIN[1:]),
    ],
)
def test_ids_are_those_of_whole_texts(special, pre_tokenizer, normalizer, cut_at):
    tokenizer = make_tokenizer(special, pre_tokenizer, normalizer)
    given = texts(200)
    assert token_ids(given, tokenizer) == tokenizer(given, add_special_tokens=False)["input_ids"]
    separators = tokenise._separators(tokenizer)
    assert (None if separators is None else sorted(separators.findall(" ".join(PLAIN)))) == (
        None if cut_at is None else sorted(cut_at)
    )


def test_pieces_that_repeat_are_tokenised_once():
    tokenizer = make_tokenizer(PLAIN, BYTES(add_prefix_space=False))
    prompt = "<|im_start|>user\nyes<|im_end|>"
    given = [prompt, f"{prompt} no", f"{prompt} 12", prompt]
    wanted = token_ids(given, tokenizer)
    asked = []

    def counting(texts, **options):
        asked.extend(texts)
        return type(tokenizer).__call__(tokenizer, texts, **options)

    class Counted:
        __call__ = staticmethod(counting)
        added_tokens_decoder = tokenizer.added_tokens_decoder
        chat_template, eos_token, bos_token = tokenizer.chat_template, tokenizer.eos_token, None

    counted = Counted()
    tokenise._separators(counted)
    asked.clear()
    assert token_ids(given, counted) == wanted
    assert asked == ["<|im_start|>", "user\nyes", "<|im_end|>", " no", " 12"]
