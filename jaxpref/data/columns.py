"""The columns of a row beside its texts: numbers for objectives, and what the chat template is given."""

import json
import math
import numbers
from collections.abc import Mapping
from typing import Any

from jaxpref.errors import InputError

# `apply_chat_template` has these as parameters of its own; as template variables they would change what it
# returns.
_TEMPLATE_PARAMETERS = {
    "conversation", "tools", "documents", "chat_template", "tokenize", "add_generation_prompt",
    "continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "sanitize_control_tokens", "tokenizer_kwargs",
}  # fmt: skip


def number_columns(row: Mapping[str, Any], where: str) -> dict[str, float | tuple[float, float]]:
    """The numbers of a row, under the names by which objectives ask for them.

    `weight` and `margin` are numbers of the pair; `score_chosen` and `score_rejected` make `score`, and the
    objects `scores_chosen` and `scores_rejected` make `scores/NAME`, each (chosen, rejected).  A null is an
    absent number.

    Raises:
        InputError: a value is not a finite number, or a score stands on one side only.
    """
    columns: dict[str, float | tuple[float, float]] = {}
    for key in ("weight", "margin"):
        if (value := _number(row.get(key), key, where)) is not None:
            columns[key] = value
    columns |= _both("score", row.get("score_chosen"), row.get("score_rejected"), "score_chosen", where)
    chosen, rejected = (_scores(row.get(key), key, where) for key in ("scores_chosen", "scores_rejected"))
    for name in chosen | rejected:
        columns |= _both(f"scores/{name}", chosen.get(name), rejected.get(name), f"scores_chosen.{name}", where)
    return columns


def _both(column: str, chosen: Any, rejected: Any, key: str, where: str) -> dict[str, tuple[float, float]]:
    other = key.replace("_chosen", "_rejected", 1)
    pair = _number(chosen, key, where), _number(rejected, other, where)
    if pair == (None, None):
        return {}
    if None in pair:
        present, missing = (key, other) if pair[1] is None else (other, key)
        raise InputError(
            "a score for both answers or for neither",
            f'{where}: "{present}" has a number, "{missing}" has none',
            f'add "{missing}" or remove "{present}"',
        )
    return {column: pair}


def _scores(value: Any, key: str, where: str) -> dict:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError("an object of numbers", f'{where}, key "{key}": {shown(value)}', 'write {"helpful": 1.0, ...}')
    return value


def _number(value: Any, key: str, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise InputError(
            "a finite number",
            f'{where}, key "{key}": {shown(value)}',
            "store a number, or null where there is none",
        )
    return float(value)


def template_columns(row: Mapping[str, Any], where: str) -> tuple[list | None, dict[str, Any]]:
    """`tools` and `chat_template_kwargs` of a row, as the chat template takes them; (None, {}) without them.

    Raises:
        InputError: one is of another type, or sets what the trainer sets itself.
    """
    return _tools(row.get("tools"), where), _template_kwargs(row.get("chat_template_kwargs"), where)


def _tools(value: Any, where: str) -> list | None:
    if isinstance(value, str):
        try:
            tools = json.loads(value)
        except json.JSONDecodeError as error:
            raise InputError(
                "tools as a list, or that list as JSON text",
                f'{where}, key "tools", column {error.colno} of the text: {error.msg}',
                "write the text with a JSON library",
            ) from error
    else:
        tools = value
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise InputError(
            "a list of tool descriptions (objects)",
            f'{where}, key "tools": {shown(tools)}',
            "write one object a tool",
        )
    return tools or None


def _template_kwargs(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(
            "an object with the template's variables",
            f'{where}, key "chat_template_kwargs": {shown(value)}',
            'write {"enable_thinking": false} or the like',
        )
    # Columnar files fill what a row lacks with null.
    kwargs = {name: item for name, item in value.items() if item is not None}
    if taken := sorted(_TEMPLATE_PARAMETERS & set(kwargs)):
        raise InputError(
            "variables of the chat template",
            f'{where}, key "chat_template_kwargs": {", ".join(taken)}, set by the trainer itself',
            'remove them; tools have their own column, "tools"',
        )
    return kwargs


def shown(value: Any) -> str:
    """Type and start of a value, for the middle part of an error."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"
