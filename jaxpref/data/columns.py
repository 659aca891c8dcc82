"""The columns of a row: which are read, and the numbers among them that objectives ask for."""

import math
import numbers
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jaxpref.data.checks import shown
from jaxpref.errors import InputError

KNOWN_COLUMNS = {
    "prompt": "what the answers reply to; left out of a pair or of messages, it is their start",
    "chosen": "the preferred answer",
    "rejected": "the other answer",
    "reference": "beside a pair: the gold answer, for objectives on triples",
    "completion": "the only answer, in place of chosen and rejected",
    "label": "beside completion: true or 1 where it is desirable, false or 0 where not",
    "completions": "two or more answers in a list, best first unless `scores` says otherwise",
    "tools": "tool descriptions for the chat template: a list, or that list as JSON text",
    "chat_template_kwargs": "further variables for the chat template: an object",
    "weight": "number, 0 or more: weight of the row in the loss",
    "baseline": "number: expected reward of an answer to the prompt",
    "margin": "number: by how much chosen is better",
    "probability": "number from 0 to 1: that chosen is better",
    "score_chosen": "number, with score_rejected: the column `score` of objectives",
    "score_rejected": "number, with score_chosen",
    "scores_chosen": "object of numbers, with scores_rejected: the columns `scores/NAME`",
    "scores_rejected": "object of numbers, with scores_chosen",
    "other_rewards_chosen": "list of numbers, as long in every row, with other_rewards_rejected: "
    "the column `other_rewards`",
    "other_rewards_rejected": "list of numbers, with other_rewards_chosen",
    "margins_chosen": "former name of other_rewards_chosen",
    "margins_rejected": "former name of other_rewards_rejected",
    "score": "beside completion: number, the column `score`",
    "reward": "another name of score",
    "scores": "beside completions: a number for each, `score`; beside completion: object of "
    "numbers, `scores/NAME`",
    "scores_completions": "beside completions: object of lists, a number for each one, the columns "
    "`scores/NAME`",
}
"""The columns that are read, with their meaning; all others are ignored."""

Columns = dict[str, Any]
"""Name -> a number of the group, or a tuple with one entry per completion: a number, or a tuple of
numbers."""


_OTHER_REWARDS = ("other_rewards_chosen", "other_rewards_rejected")
_FORMER_OTHER_REWARDS = ("margins_chosen", "margins_rejected")
"""What these two were called before; still read, with a notice."""
_SCORES = ("scores_chosen", "scores_rejected", "scores", "scores_completions")
_KEYS = {
    "score": ("score_chosen", "score_rejected", "score", "reward"),
    "other_rewards": (*_OTHER_REWARDS, *_FORMER_OTHER_REWARDS),
}
"""Column -> the keys of rows that make it, where they are others than those of `keys_of`."""


def keys_of(column: str) -> tuple[str, ...]:
    """The keys of rows that a column may be read from."""
    if column.startswith("scores/"):
        return _SCORES
    return _KEYS.get(column, (column, f"{column}_chosen", f"{column}_rejected"))


def asked_numbers(row: Mapping[str, Any], columns: Collection[str] | None) -> Mapping[str, Any]:
    """What of a row makes these columns: the rest is not looked at, whatever it holds.

    Args:
        columns: names; None: all of them.
    """
    if columns is None:
        return row
    names = {name.removeprefix("scores/") for name in columns if name.startswith("scores/")}
    numbers = {}
    for key in (key for column in columns for key in keys_of(column) if key in row):
        value = row[key]
        # Where one is missing, all stay, for the error to name them.
        if key in _SCORES and isinstance(value, dict) and names <= value.keys():
            value = {name: score for name, score in value.items() if name in names}
        numbers[key] = value
    return numbers


def number_columns(row: Mapping[str, Any], where: str) -> Columns:
    """The numbers of a pair, under the names by which objectives ask for them.

    `weight`, `baseline`, `margin` and `probability` are numbers of the pair; `score_chosen` and
    `score_rejected` make `score`, the objects `scores_chosen` and `scores_rejected` make
    `scores/NAME`, the lists `other_rewards_chosen` and `other_rewards_rejected` make
    `other_rewards`, each (chosen, rejected).  A null is an absent number.

    Raises:
        InputError: a value is not a finite number, a probability lies outside 0 to 1, or one side
            has what the other has not.
    """
    columns = group_columns(row, where) | _numbers(row, ("margin", "probability"), where)
    if not 0 <= columns.get("probability", 0) <= 1:
        raise InputError(
            "a probability from 0 to 1",
            f'{where}, key "probability": {row["probability"]}',
            "write the probability that chosen is better, not a percentage",
        )
    columns |= _both(
        "score", row.get("score_chosen"), row.get("score_rejected"), "score_chosen", where
    )
    chosen, rejected = (
        _scores(row.get(key), key, where) for key in ("scores_chosen", "scores_rejected")
    )
    for name in chosen | rejected:
        columns |= _both(
            f"scores/{name}", chosen.get(name), rejected.get(name), f"scores_chosen.{name}", where
        )
    return columns | _other_rewards(row, where)


def completion_columns(row: Mapping[str, Any], where: str) -> Columns:
    """The numbers of a row with one completion.

    `weight` and `baseline`; `score` and `scores/NAME`, each (value,).

    Raises:
        InputError: a value is not a finite number, or the score stands there under both its names.
    """
    columns = group_columns(row, where)
    score = _numbers(row, ("score", "reward"), where)
    if len(score) == 2:
        raise InputError(
            "one score",
            f'{where}, keys "score" and "reward": two names of one column',
            'remove "reward"',
        )
    if score:
        columns["score"] = tuple(score.values())
    scores = _scores(row.get("scores"), "scores", where)
    for name, value in scores.items():
        number = _number(value, f"scores.{name}", where)
        if number is not None:
            columns[f"scores/{name}"] = (number,)
    return columns


def ranked_columns(row: Mapping[str, Any], count: int, where: str) -> Columns:
    """The numbers of a row with `count` completions.

    `weight` and `baseline`; `scores/NAME`, one for each completion in their order.

    Raises:
        InputError: a value is not a finite number, or a list of another length.
    """
    columns = group_columns(row, where)
    for name, value in _scores(row.get("scores_completions"), "scores_completions", where).items():
        scores = number_list(value, f"scores_completions.{name}", where)
        if scores is None:
            continue
        if len(scores) != count:
            raise InputError(
                f"a score for each of the {count} completions",
                f'{where}, key "scores_completions.{name}": {len(scores)}',
                "mend or drop the row",
            )
        columns[f"scores/{name}"] = scores
    return columns


def group_columns(row: Mapping[str, Any], where: str) -> Columns:
    """The numbers that any row may have: `weight` and `baseline`."""
    return _numbers(row, ("weight", "baseline"), where)


def own_columns(row: Mapping[str, Any], names: Sequence[str], where: str) -> Columns:
    """Numbers that an objective of one's own asks for: NAME, or NAME_chosen and NAME_rejected.

    Raises:
        InputError: a value is not a finite number, or a pair's number stands on one side only.
    """
    columns: Columns = {}
    for name in names:
        columns |= _both(
            name, row.get(f"{name}_chosen"), row.get(f"{name}_rejected"), f"{name}_chosen", where
        )
        if name not in columns:
            columns |= _numbers(row, (name,), where)
    return columns


def padded(columns: Mapping[str, Any], completions: int) -> Columns:
    """The same columns with zeros for completions beyond those that they have numbers for."""

    def with_zeros(values: tuple) -> tuple:
        first = values[0]
        zero = tuple(0.0 for _ in first) if isinstance(first, tuple) else 0.0
        return values + (zero,) * (completions - len(values))

    return {
        name: with_zeros(value) if isinstance(value, tuple) else value
        for name, value in columns.items()
    }


def columns_of_one(columns: Mapping[str, Any], k: int) -> Columns:
    """The columns of completion k alone; numbers of the group stay."""
    return picked_columns(columns, (k,))


def picked_columns(columns: Mapping[str, Any], order: Sequence[int]) -> Columns:
    """The columns of completions `order`, in that order; numbers of the group stay."""
    return {
        name: tuple(value[k] for k in order) if isinstance(value, tuple) else value
        for name, value in columns.items()
    }


def _both(column: str, chosen: Any, rejected: Any, key: str, where: str) -> Columns:
    other = key.replace("_chosen", "_rejected", 1)
    pair = _number(chosen, key, where), _number(rejected, other, where)
    _refuse_one_side(pair, (key, other), where)
    return {} if pair == (None, None) else {column: pair}


def _other_rewards(row: Mapping[str, Any], where: str) -> Columns:
    keys = _keys_of_other_rewards(row, where)
    pair = tuple(number_list(row.get(key), key, where) for key in keys)
    _refuse_one_side(pair, keys, where)
    if pair == (None, None):
        return {}
    if len(pair[0]) != len(pair[1]) or not pair[0]:
        raise InputError(
            "as many other rewards for chosen as for rejected, at least one",
            f'{where}: {len(pair[0])} in "{keys[0]}", {len(pair[1])} in "{keys[1]}"',
            "give each answer its reward under every other objective",
        )
    return {"other_rewards": pair}


def _keys_of_other_rewards(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Today's keys, or the former ones where the row has those."""
    former = [key for key in _FORMER_OTHER_REWARDS if row.get(key) is not None]
    if not former:
        return _OTHER_REWARDS
    if any(row.get(key) is not None for key in _OTHER_REWARDS):
        raise InputError(
            "the other objectives' rewards under one name",
            f"{where}: {', '.join(former)} beside {' or '.join(_OTHER_REWARDS)}",
            f"remove {', '.join(former)}, the former names",
        )
    warnings.warn(
        "the data columns margins_chosen and margins_rejected are called other_rewards_chosen and "
        "other_rewards_rejected now; they are read as these",
        FutureWarning,
        stacklevel=2,
    )
    return _FORMER_OTHER_REWARDS


def _refuse_one_side(pair: Sequence[Any], keys: Sequence[str], where: str) -> None:
    if (pair[0] is None) != (pair[1] is None):
        present, missing = keys if pair[1] is None else reversed(keys)
        raise InputError(
            "numbers for both answers or for neither",
            f'{where}: "{present}" has a number, "{missing}" has none',
            f'add "{missing}" or remove "{present}"',
        )


def _scores(value: Any, key: str, where: str) -> dict:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(
            "an object of numbers",
            f'{where}, key "{key}": {shown(value)}',
            'write {"helpful": 1.0, ...}',
        )
    return value


def number_list(value: Any, key: str, where: str) -> tuple[float, ...] | None:
    """Raises: InputError where it is neither null nor a list of finite numbers."""
    if value is None:
        return None
    if not isinstance(value, list):
        raise InputError(
            "a list of numbers", f'{where}, key "{key}": {shown(value)}', "write [1.0, ...]"
        )
    items = tuple(_number(item, f"{key}[{i}]", where) for i, item in enumerate(value))
    if None in items:
        raise InputError(
            "a number",
            f'{where}, key "{key}[{items.index(None)}]": null',
            "fill it in or drop the row",
        )
    return items


def _numbers(row: Mapping[str, Any], keys: Sequence[str], where: str) -> Columns:
    values = {key: _number(row.get(key), key, where) for key in keys}
    return {key: value for key, value in values.items() if value is not None}


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
