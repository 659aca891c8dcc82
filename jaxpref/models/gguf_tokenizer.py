"""The tokenizer that a GGUF file's metadata describes, rebuilt with the `tokenizers` library."""

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from jaxpref.errors import InputError

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`; the other values are ordinary vocabulary."""

    CONTROL = 3
    USER_DEFINED = 4


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> pre_tokenizers.PreTokenizer:
    # Digits first: it also parts whitespace from a digit behind it, so "\n\n3" begins with the "\n\n" token.
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _llama3() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# `tokenizer.ggml.pre` -> how text is split before merging.  "default" is left out on purpose: llama.cpp means
# by it a split that no model was trained with, and writes it when the converter did not know the tokenizer.
_SPLITS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _gpt2,
    "smollm": _smollm,
    "llama-bpe": _llama3,
}


def build_tokenizer(metadata: Mapping[str, Any], where: str) -> PreTrainedTokenizerFast:
    """The transformers tokenizer of a GGUF file, with special tokens and chat template.

    Args:
        metadata: the file's, key -> value.
        where: the file, for error messages.

    Errors: InputError for a tokenizer that is not byte-level BPE, a way of splitting text that is not known,
        and a vocabulary with repeated tokens.
    """
    model, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    add_eos = metadata.get("tokenizer.ggml.add_eos_token", False)
    if model != "gpt2" or split not in _SPLITS or add_eos:
        raise InputError(
            f"byte-level BPE (tokenizer.ggml.model gpt2) with tokenizer.ggml.pre among {', '.join(_SPLITS)}",
            f"model {model!r}, pre {split!r}, add_eos_token {add_eos} in {where}",
            "name the original model's Hugging Face directory as the tokenizer",
        )
    tokens = metadata["tokenizer.ggml.tokens"]
    vocab = {token: number for number, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise InputError("distinct tokens", f"{len(tokens) - len(vocab)} repeated in {where}", "use another file")
    llama3 = split == "llama-bpe"
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=llama3))
    tokenizer.pre_tokenizer = _SPLITS[split]()
    tokenizer.decoder = decoders.ByteLevel()
    _add_special_tokens(tokenizer, tokens, metadata.get("tokenizer.ggml.token_type", ()))

    special = {
        f"{name}_token": tokens[metadata[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if f"tokenizer.ggml.{key}_token_id" in metadata
    }
    if metadata.get("tokenizer.ggml.add_bos_token", llama3) and "bos_token" in special:
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, vocab[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=metadata.get("tokenizer.chat_template"),
        model_max_length=metadata["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **special,
    )


def _add_special_tokens(tokenizer: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    # They are in the vocabulary already, so their ids stay.  `normalized=False` matches them as written.
    by_kind = {kind: [t for t, k in zip(tokens, kinds, strict=False) if k == kind] for kind in TokenType}
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in by_kind[TokenType.CONTROL]])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in by_kind[TokenType.USER_DEFINED]])
