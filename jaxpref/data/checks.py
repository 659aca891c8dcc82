"""What any text or answer in the data has to be, whatever the form of its row."""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxpref.errors import InputError, RowError

GOLD = "reference"
"""Key of the gold answer beside a pair; it may be the same as another answer."""

MISSING = "missing value"
"""Reason of the error for what a row lacks: the key, or more than null under it."""


def present(value: Any, key: str, where: str) -> Any:
    """The value.  Raises: RowError where it is null."""
    if value is None:
        raise RowError(
            MISSING,
            "a value in every row",
            f'{where}, key "{key}": null',
            "fill it in or drop the row",
        )
    return value


def check_text(value: Any, key: str, where: str) -> None:
    """Raises: InputError for what is not text; RowError for broken Unicode."""
    if not isinstance(value, str):
        raise InputError("text", f'{where}, key "{key}": {shown(value)}', "store it as a string")
    if value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON's \\ud83d lets through
        raise RowError(
            "broken Unicode",
            "Unicode text",
            f'{where}, key "{key}", character {error.start}: {value[error.start]!r}',
            "write the text out again from its source, or drop the row",
        ) from error


def check_json(value: Any, key: str, where: str) -> None:
    """Raises: InputError for what JSON does not have (a time, bytes, NaN), for a chat template."""
    if isinstance(value, dict):
        for name, item in value.items():
            check_json(item, f"{key}.{name}", where)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            check_json(item, f"{key}[{i}]", where)
    elif not (value is None or isinstance(value, str | int) or _is_finite(value)):
        raise InputError(
            "text, finite numbers, true, false, null, and lists and objects of these",
            f'{where}, key "{key}": {shown(value)}',
            "write it as text",
        )


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def refuse_unusable(completions: Mapping[str, Any], where: str) -> None:
    """Raises: RowError for a completion without text or reply, or two that are the same.

    Args:
        completions: key to name in errors -> text or messages.
    """
    for key, completion in completions.items():
        if isinstance(completion, str):
            empty = not completion.strip()
        elif completion:
            last = completion[-1]
            empty = not last["content"].strip() and not last.get("tool_calls")
        else:
            empty = True
        if empty:
            raise empty_completion(key, where)
        if not isinstance(completion, str) and completion[-1]["role"] == "user":
            raise RowError(
                "no reply",
                "an answer that ends with a reply",
                f'{where}, key "{key}": its last message has role "user"',
                "add the reply or drop the row",
            )
    refuse_identical(completions, where)


def refuse_identical(answers: Mapping[str, Any], where: str) -> None:
    """Raises: RowError for two equal answers; the gold answer may be one of the others."""
    for first, second in itertools.combinations([key for key in answers if key != GOLD], 2):
        if answers[first] == answers[second]:
            raise RowError(
                "identical completions",
                "different answers",
                f'{where}: "{first}" and "{second}" are the same',
                "drop the row (`on_bad_row: drop`): it holds no preference between them",
            )


def empty_completion(key: str, where: str) -> RowError:
    """The error for an answer without text."""
    return RowError(
        "empty completion",
        "an answer with text in it",
        f'{where}, key "{key}": empty or only white space',
        "fill it in or drop the row (`on_bad_row: drop`)",
    )


def shown(value: Any) -> str:
    """Type and start of a value, for the middle part of an error."""
    text = repr(value)
    if len(text) >= 60:
        text = text[:57] + "..."
    return f"{type(value).__name__} {text}"


def quoted(keys: Iterable[str]) -> str:
    """The keys as an error names them: "chosen" and "rejected"."""
    return " and ".join(f'"{key}"' for key in keys)
