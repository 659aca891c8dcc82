"""Texts into token ids; of the pieces between special tokens, equal ones are tokenised once.

The texts of a group all hold its prompt, and the chat template gives all groups the same system
message.  Tokenizers cut a text at special tokens first and tokenise each piece for itself, so the
ids of a text are those of its pieces, one behind the other.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any


def token_ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Token ids of every text, without special tokens of the tokenizer's own around it."""
    separators = _separators(tokenizer)
    if separators is None:
        return _of_whole(texts, tokenizer)
    pieces_of_texts = [_cut(text, separators) for text in texts]
    pieces = list(dict.fromkeys(piece for pieces in pieces_of_texts for piece in pieces))
    known = dict(zip(pieces, _of_whole(pieces, tokenizer), strict=True))
    return [[token for piece in pieces for token in known[piece]] for pieces in pieces_of_texts]


def _of_whole(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no log line about `model_max_length`: the limit here is `max_length`
    )
    return encoded["input_ids"]


def _cut(text: str, separators: re.Pattern) -> list[str]:
    return [piece for piece in separators.split(text) if piece] or [text]


@lru_cache(maxsize=4)
def _separators(tokenizer: Any) -> re.Pattern | None:
    """The special tokens of messages, at which texts may be cut; None: ids would change, or none.

    A token that takes in the space around it, or lies over another one, is none of them; and some
    tokenizers treat the beginning of a text otherwise than that of a piece, which a probe shows.
    """
    added = list(tokenizer.added_tokens_decoder.values())
    written = f"{tokenizer.chat_template} {tokenizer.eos_token} {tokenizer.bos_token}"
    names = [
        token.content
        for token in added
        if token.special
        and token.content in written
        and not (token.normalized or token.lstrip or token.rstrip or token.single_word)
        and not any(_overlap(token.content, other.content) for other in added)
    ]
    if not names:
        return None
    separators = re.compile(f"({'|'.join(map(re.escape, names))})")
    probes = [name.join(("It's 1", " two\n", "\nThree ", "", "four.", "")) for name in names]
    whole = _of_whole(probes, tokenizer)
    cut = [_of_whole(_cut(probe, separators), tokenizer) for probe in probes]
    same = [sum(pieces, []) for pieces in cut] == whole
    return separators if same else None


def _overlap(token: str, other: str) -> bool:
    """Whether two different tokens may lie over each other in a text."""
    if token == other:
        return False
    return token in other or other in token or _meet(token, other) or _meet(other, token)


def _meet(first: str, second: str) -> bool:
    """Whether the end of one is the beginning of the other."""
    shorter = min(len(first), len(second))
    return any(first.endswith(second[:length]) for length in range(1, shorter))
