"""The length limit: what becomes of a prompt and completions that are longer than `max_length`."""

from dataclasses import dataclass

from jaxpref.errors import InputError

TRUNCATIONS = ("keep_start", "keep_end", "drop", "error")

Parts = tuple[list[int], list[list[int]]]
"""Token ids of a prompt, and of each of its completions."""


@dataclass(frozen=True)
class Dropped:
    """A row that the length limit leaves nothing of; `reason` is a short fixed text to count by."""

    reason: str
    where: str


def fit(
    parts: Parts, max_length: int | None, truncation: str, bos: int | None, where: str
) -> Parts | Dropped:
    """Prompt and completions within the limit, or why the row is dropped.

    Args:
        parts: whole prompt and completions.
        max_length: longest prompt + completion, in tokens; None for no limit.
        truncation: one of `TRUNCATIONS`, as `encode_groups` explains them.
        bos: id of the token that begins a text, where the tokenizer has one.

    Raises:
        InputError: a longer one, with `truncation="error"`.
    """
    prompt, completions = parts
    longest = len(prompt) + max(map(len, completions))
    if max_length is None or longest <= max_length:
        return prompt, completions
    if truncation == "error":
        raise InputError(
            f"prompt + completion within max_length={max_length} tokens",
            f"{where}: {longest} tokens, {len(prompt)} of them in the prompt",
            "raise `max_length`, shorten the row, or set `truncation` to keep_start, keep_end "
            "or drop",
        )
    if truncation == "drop":
        return Dropped("longer than max_length", where)
    if truncation == "keep_start":
        room = max_length - len(prompt)
        if room < 1:
            return Dropped("prompt as long as max_length", where)
        return prompt, [ids[:room] for ids in completions]
    # keep_end: one prompt serves all completions, so the longest decides.  At least one token of
    # the prompt stays, to predict the first token of the completions from.
    completions = [ids[: max_length - min(1, len(prompt))] for ids in completions]
    return _prompt_end(prompt, max_length - max(map(len, completions)), bos), completions


def _prompt_end(prompt: list[int], length: int, bos: int | None) -> list[int]:
    """The last `length` tokens; a BOS token in front stays, as models are trained to find one."""
    if length >= len(prompt):
        return prompt
    start = prompt[:1] if bos is not None and prompt[0] == bos else []
    return start + prompt[len(prompt) - (length - len(start)) :]
