"""Rows of every kind of group: which kind a row is, told by its keys, and its completions in order.

    pair      `chosen`, `rejected`                        TRL's preference rows
    triple    a pair with a `reference` answer            where objectives ask for triples
    single    `completion`                                prompt and answer
    judged    `completion` and `label`                    TRL's unpaired preference rows
    ranked    `completions`, best first, or in the order of their `scores`

each with `prompt`, and in each of the forms of `forms.py`.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from jaxpref.data.checks import GOLD, MISSING, present, shown
from jaxpref.data.column_names import as_named, nearest_column
from jaxpref.data.columns import (
    KNOWN_COLUMNS,
    asked_numbers,
    completion_columns,
    keys_of,
    number_columns,
    number_list,
    padded,
    picked_columns,
    ranked_columns,
)
from jaxpref.data.forms import make_group
from jaxpref.data.pictures.rows import COLUMNS as PICTURES
from jaxpref.errors import InputError, RowError
from jaxpref.types import Group

WRITTEN = {
    "pair": "`chosen` and `rejected`",
    "triple": "`chosen`, `rejected` and `reference` (the gold answer)",
    "single": "`prompt` and `completion`",
    "judged": "`prompt`, `completion` and `label`",
    "ranked": "`prompt` and `completions`",
}
"""The keys of the rows of a kind."""

_ANSWERS = {
    "pair": ("chosen", "rejected"),
    "triple": ("chosen", "rejected", GOLD),
    "single": ("completion",),
    "judged": ("completion", "label"),
    "ranked": ("completions", "scores"),
}
"""The keys that make the completions of a row of a kind, and their order."""

NAMES = {
    "pair": ("chosen", "rejected"),
    "triple": ("chosen", "rejected", "gold"),
    "pair_cropped": ("chosen", "rejected", "other_picture"),
    "pair_masked": ("chosen", "rejected", "other_picture"),
    "single": ("completion",),
    "judged": ("completion",),
    "judged_other": ("completion", "other"),
    "ranked": ("best",),
}
"""What the first completions of a group of a kind are called."""


def completion_name(kind: str, k: int) -> str:
    return NAMES[kind][k] if k < len(NAMES[kind]) else f"completion {k + 1}"


def kind_of_row(row: Mapping[str, Any], where: str, *, gold: bool = False) -> str:
    """The kind of group that the row's keys make.

    A key with null counts only where no other key tells the kind.

    Args:
        gold: a pair with `reference` is a triple.

    Raises:
        RowError: the row has the keys of no kind.
    """
    filled = {key for key in row if row[key] is not None}
    for keys in (filled, set(row)):
        if "chosen" in keys or "rejected" in keys:
            return "triple" if gold and GOLD in row else "pair"
        if "completions" in keys:
            return "ranked"
        if "completion" in keys:
            return "judged" if "label" in row else "single"
    near = {
        key: name
        for key in ("chosen", "rejected", "completion")
        if (name := nearest_column(row, key))
    }
    raise RowError(
        MISSING,
        "rows with " + ", or ".join(WRITTEN.values()),
        f'{where}: no key "chosen", "completion" or "completions"; the row has {_keys_of(row)}',
        as_named(near) if near else 'add "chosen" or the like, or rename the column that holds it',
    )


def _keys_of(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "no keys"


def unread_keys(
    row: Mapping[str, Any], kind: str, columns: Collection[str] | None
) -> Iterator[str]:
    """The filled keys of a row from which nothing is read.

    Args:
        kind: of the row.
        columns: that are asked for; None: all.
    """
    read = {"prompt", "tools", "chat_template_kwargs", *PICTURES, *_ANSWERS[kind]}
    if columns is None:
        read |= KNOWN_COLUMNS.keys()
    else:
        read |= {key for column in columns for key in keys_of(column)}
    return (key for key, value in row.items() if value is not None and key not in read)


def read_group(
    kind: str,
    row: Mapping[str, Any],
    where: str,
    row_id: int,
    format: str = "auto",
    columns: Collection[str] | None = None,
) -> Group:
    """The group of a row of that kind; arguments and errors as in `forms.make_group`.

    The completions of a ranked row are sorted by falling score where there are scores, those of
    equal score in the order of the row.

    Args:
        columns: that are asked for; others are neither read nor checked.  None: all.
    """
    numbers = asked_numbers(row, columns)
    if kind in ("pair", "triple"):
        return to_group(row, where, row_id, format, gold=kind == "triple", columns=columns)
    if kind == "ranked":
        return _ranked(row, numbers, where, row_id, format)
    label = {"label": _label(row["label"], where)} if kind == "judged" else {}
    group = make_group(row, {"completion": row["completion"]}, where, row_id, format)
    return dataclasses.replace(group, columns=completion_columns(numbers, where) | label)


def _label(value: Any, where: str) -> float:
    if not isinstance(present(value, "label", where), bool | int | float) or value not in (0, 1):
        raise InputError(
            "a label true or false (1 or 0)",
            f'{where}, key "label": {shown(value)}',
            "write true where the completion is desirable",
        )
    return float(value)


def _ranked(
    row: Mapping[str, Any], numbers: Mapping[str, Any], where: str, row_id: int, format: str
) -> Group:
    answers = present(row["completions"], "completions", where)
    if not isinstance(answers, list):
        raise InputError(
            "a list of completions",
            f'{where}, key "completions": {shown(answers)}',
            "write them in a list, best first, or name a single one `completion`",
        )
    if len(answers) < 2:
        raise RowError(
            "fewer than two completions",
            "at least two completions",
            f'{where}, key "completions": {len(answers)}',
            "add some or drop the row",
        )
    scores = number_list(row.get("scores"), "scores", where)
    if scores is not None and len(scores) != len(answers):
        raise RowError(
            "not as many scores as completions",
            "a score for every completion",
            f'{where}: {len(answers)} in "completions", {len(scores)} in "scores"',
            "mend or drop the row",
        )
    order, columns = list(range(len(answers))), ranked_columns(numbers, len(answers), where)
    if scores:
        order.sort(key=lambda i: -scores[i])
        columns["score"] = scores
    group = make_group(row, {f"completions[{i}]": answers[i] for i in order}, where, row_id, format)
    return dataclasses.replace(group, columns=picked_columns(columns, order))


def to_group(
    row: Mapping[str, Any],
    where: str,
    row_id: int,
    format: str = "auto",
    *,
    gold: bool = False,
    columns: Collection[str] | None = None,
) -> Group:
    """One raw pair as a group of two completions, chosen first; with `gold`, a third.

    Args:
        row: the columns, see `columns.KNOWN_COLUMNS`.
        where, row_id, format: as in `forms.make_group`.
        gold: read the gold answer too, which may be the chosen one once more.
        columns: as of `read_group`.

    Raises:
        RowError: the row has no usable pair; `reason` says why.
        InputError: columns have the wrong type, which other rows will share.
    """
    keys = ("chosen", "rejected", GOLD) if gold else ("chosen", "rejected")
    for key in keys:
        if key not in row:
            raise _no_column(row, key, where)
    group = make_group(row, {key: row[key] for key in keys}, where, row_id, format)
    numbers = number_columns(asked_numbers(row, columns), where)
    return dataclasses.replace(group, columns=padded(numbers, len(keys)))


def _no_column(row: Mapping[str, Any], key: str, where: str) -> RowError:
    expected = "the columns `chosen` and `rejected` (and, if not part of them, `prompt`)"
    if key == GOLD:
        expected = "the column `reference`, a gold answer, beside `chosen` and `rejected`"
    fix = f'add "{key}", or rename the column that holds it'
    if near := nearest_column(row, key):
        fix = as_named({key: near})
    return RowError(MISSING, expected, f'{where}: no key "{key}"; the row has {_keys_of(row)}', fix)
