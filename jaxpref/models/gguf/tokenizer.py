"""The tokenizer that a GGUF file's metadata describes, rebuilt with the `tokenizers` library.

The file names how text is split before merging (`tokenizer.ggml.pre`) and leaves out what else the
original tokenizer does.  So only those are built whose definition is known; every other is refused,
for a tokenizer that is nearly right trains a model on text that it never meets again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from jaxpref.errors import InputError

_FIX = (
    "put the original model's tokenizer.json and tokenizer_config.json beside the file: they are "
    "read instead"
)

# Of OpenAI's cl100k and o200k, Qwen 2 and Mistral's Tekken.
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`; the other values are ordinary vocabulary."""

    CONTROL = 3
    USER_DEFINED = 4


@dataclass(frozen=True)
class Split:
    """What comes before the merges of a byte-level BPE."""

    steps: Callable[[], list[pre_tokenizers.PreTokenizer]]
    normalizer: Callable[[], normalizers.Normalizer] | None = None
    whole_words: bool = False
    """Whether a word of the vocabulary is taken whole even where its merges do not lead there.

    tiktoken does so.
    """
    add_bos: bool = False
    """Where the file does not say."""


def _gpt2() -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]


def _digits() -> list[pre_tokenizers.PreTokenizer]:
    # Digits first: it also parts whitespace from a digit behind it, so "\n\n3" begins with the
    # "\n\n" token.
    return [pre_tokenizers.Digits(individual_digits=True), *_gpt2()]


def _regex(pattern: str) -> Callable[[], list[pre_tokenizers.PreTokenizer]]:
    def steps() -> list[pre_tokenizers.PreTokenizer]:
        return [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]

    return steps


_LLAMA3 = Split(_regex(_CL100K), whole_words=True, add_bos=True)
# "default" is left out on purpose: llama.cpp means by it a split that no model was trained with,
# and writes it when the converter did not know the tokenizer.
SPLITS: dict[str, Split] = {
    "gpt-2": Split(_gpt2),
    "smollm": Split(_digits),
    "starcoder": Split(_digits),
    "refact": Split(_digits),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "dbrx": Split(_regex(_CL100K)),  # OLMo 2 and Phi-4 among others
    "qwen2": Split(_regex(_QWEN2), normalizers.NFC),
    "tekken": Split(_regex(_TEKKEN), whole_words=True, add_bos=True),
    "gpt-4o": Split(_regex(_O200K)),  # Phi-4-mini among others
}


def build_tokenizer(metadata: Mapping[str, Any], where: str) -> PreTrainedTokenizerFast:
    """The transformers tokenizer of a GGUF file, with special tokens and chat template.

    Two kinds are built: byte-level BPE with a split of `SPLITS`, and the SentencePiece BPE of Llama
    1 and 2, TinyLlama and Mistral.  The SentencePiece tokenizers of Gemma and Phi-3 are not, for
    what their added tokens do to the text around them is not in the file.

    Args:
        metadata: the file's, key -> value.
        where: the file, for error messages.

    Errors: InputError for another kind of tokenizer, a vocabulary with repeated tokens, and lists
        or special tokens that are missing or do not fit it.
    """
    model, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    architecture = metadata.get("general.architecture")
    add_eos = metadata.get("tokenizer.ggml.add_eos_token", False)
    sentencepiece = model == "llama" and architecture == "llama"
    byte_level = model == "gpt2" and isinstance(split, str) and split in SPLITS
    if add_eos or not (sentencepiece or byte_level):
        raise InputError(
            "byte-level BPE (tokenizer.ggml.model gpt2) with tokenizer.ggml.pre among "
            f"{', '.join(SPLITS)}, or SentencePiece BPE (tokenizer.ggml.model llama) of a Llama",
            f"model {model!r}, pre {split!r}, add_eos_token {add_eos}, "
            f"architecture {architecture!r} in {where}",
            _FIX,
        )
    tokens = _listed(metadata, "tokens", str, where)
    vocab = {token: number for number, token in enumerate(tokens)}
    if not vocab or len(vocab) != len(tokens):
        got = f"{len(tokens)} tokens, {len(tokens) - len(vocab)} of them repeated"
        raise InputError("distinct tokens", f"{got}, in {where}", _FIX)
    if sentencepiece:
        tokenizer = _sentencepiece(metadata, vocab, where)
    else:
        tokenizer = _byte_level(metadata, vocab, SPLITS[split], where)
    kinds = []
    if "tokenizer.ggml.token_type" in metadata:
        kinds = _listed(metadata, "token_type", int, where)
    _add_special_tokens(tokenizer, tokens, kinds)
    special = _special_tokens(metadata, tokens, where)
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", sentencepiece or SPLITS[split].add_bos)
    if add_bos and "bos_token" in special:
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, vocab[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=_chat_template(metadata, where),
        model_max_length=metadata[f"{architecture}.context_length"],
        clean_up_tokenization_spaces=False,
        **special,
    )


def _chat_template(metadata: Mapping[str, Any], where: str) -> str | dict[str, str] | None:
    """The template or, where there are further ones (`tool_use`), all by name."""
    default = metadata.get("tokenizer.chat_template")
    names = metadata.get("tokenizer.chat_templates", [])
    named = {name: metadata.get(f"tokenizer.chat_template.{name}") for name in names}
    if not all(isinstance(template, str) for template in (default or "", *named.values())):
        raise InputError(
            "chat templates as text", f"{[default, *named.values()]!r:.100} in {where}", _FIX
        )
    return {"default": default} | named if default and named else default


def _listed(metadata: Mapping[str, Any], name: str, kind: type, where: str) -> list[Any]:
    """A list of the tokenizer, of one kind.  Errors: InputError where it is something else."""
    key = f"tokenizer.ggml.{name}"
    value = metadata.get(key)
    if isinstance(value, list) and all(isinstance(item, kind) for item in value):
        return value
    got = "none" if value is None else f"{value!r:.100}"
    raise InputError(f"{key}, a list of {kind.__name__}", f"{got} in {where}", _FIX)


def _special_tokens(
    metadata: Mapping[str, Any], tokens: Sequence[str], where: str
) -> dict[str, str]:
    """`bos_token` and the others -> the token, for those that the file names."""
    special = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        key = f"tokenizer.ggml.{key}_token_id"
        if key not in metadata:
            continue
        number = metadata[key]
        if type(number) is not int or not 0 <= number < len(tokens):
            raise InputError(
                f"{key} among the {len(tokens)} tokens of the file", f"{number!r} in {where}", _FIX
            )
        special[f"{name}_token"] = tokens[number]
    return special


def _byte_level(
    metadata: Mapping[str, Any], vocab: dict[str, int], split: Split, where: str
) -> Tokenizer:
    merges = [merge.split(" ") for merge in _listed(metadata, "merges", str, where)]
    for pair in merges:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
            raise InputError(
                "tokenizer.ggml.merges of two tokens into a third",
                f"{' '.join(pair)!r} in {where}",
                _FIX,
            )
    pairs = [(left, right) for left, right in merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=split.whole_words))
    if split.normalizer is not None:
        tokenizer.normalizer = split.normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split.steps())
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any], vocab: dict[str, int], where: str) -> Tokenizer:
    """As Llama 2's tokenizer.json: a space before the text, then merges by the tokens' scores."""
    if metadata.get("tokenizer.ggml.remove_extra_whitespaces", False):
        raise InputError(
            "a tokenizer that keeps whitespace", f"remove_extra_whitespaces in {where}", _FIX
        )
    tokens, unknown_id = list(vocab), metadata.get("tokenizer.ggml.unknown_token_id", 0)
    unknown = tokens[unknown_id] if 0 <= unknown_id < len(tokens) else None
    scores = _listed(metadata, "scores", float, where)
    if len(scores) != len(tokens):
        raise InputError(
            f"tokenizer.ggml.scores of {len(tokens)} tokens", f"{len(scores)} in {where}", _FIX
        )
    merges = _merges(vocab, scores)
    bpe = models.BPE(
        vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(bpe)
    spaces: normalizers.Normalizer = normalizers.Replace(" ", "▁")
    words = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        spaces = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        words.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer, tokenizer.decoder = spaces, decoders.Sequence(words)
    return tokenizer


def _merges(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, the highest score of the result first.

    Pairs that make the same token are in the order in which transformers' conversion of
    SentencePiece files has them.
    """
    pairs = [
        (scores[number], token[:cut], token[cut:])
        for token, number in vocab.items()
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    ordered = sorted(pairs, key=lambda pair: (pair[0], len(pair[1]), len(pair[2])), reverse=True)
    return [(left, right) for _, left, right in ordered]


def _add_special_tokens(tokenizer: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    """They are in the vocabulary already, so their ids stay."""

    def added(kind: TokenType) -> list[AddedToken]:
        special = kind == TokenType.CONTROL
        chosen = [token for token, k in zip(tokens, kinds, strict=False) if k == kind]
        # `normalized=False` matches them as written.
        return [AddedToken(token, special=special, normalized=False) for token in chosen]

    tokenizer.add_special_tokens(added(TokenType.CONTROL))
    tokenizer.add_tokens(added(TokenType.USER_DEFINED))
