"""Rows of every kind of group: which kind a row is, told by its keys, and its completions in order.

    pair      `chosen`, `rejected`                        TRL's preference rows
    triple    a pair with a `reference` answer            where objectives ask for triples
    single    `completion`                                prompt and answer
    judged    `completion` and `label`                    TRL's unpaired preference rows
    ranked    `completions`, best first, or in the order of their `scores`

each with `prompt`, and in each of the forms of `schema.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxpref.data.columns import (
    completion_columns,
    nearest_column,
    number_columns,
    number_list,
    padded,
    ranked_columns,
    shown,
)
from jaxpref.data.forms import _GOLD, RowError, _no_column, make_group, present
from jaxpref.errors import InputError
from jaxpref.types import Group

WRITTEN = {
    "pair": "`chosen` and `rejected`",
    "triple": "`chosen`, `rejected` and `reference` (the gold answer)",
    "single": "`prompt` and `completion`",
    "judged": "`prompt`, `completion` and `label`",
    "ranked": "`prompt` and `completions`",
}
"""The keys of the rows of a kind."""

NAMES = {
    "pair": ("chosen", "rejected"),
    "triple": ("chosen", "rejected", "gold"),
    "single": ("completion",),
    "judged": ("completion",),
    "judged_other": ("completion", "other"),
    "ranked": ("best",),
}
"""What the first completions of a group of a kind are called."""


def completion_name(kind: str, k: int) -> str:
    return NAMES[kind][k] if k < len(NAMES[kind]) else f"completion {k + 1}"


def kind_of_row(row: Mapping[str, Any], where: str, *, gold: bool = False) -> str:
    """The kind of group that the row's keys make; what is null counts only where nothing else is
    there.

    Args:
        gold: a pair with `reference` is a triple.

    Raises:
        InputError: the row has the keys of no kind.
    """
    for has in (lambda key: row.get(key) is not None, row.__contains__):
        if has("chosen") or has("rejected"):
            return "triple" if gold and "reference" in row else "pair"
        if has("completions"):
            return "ranked"
        if has("completion"):
            return "judged" if "label" in row else "single"
    near = {
        key: name
        for key in ("chosen", "rejected", "completion")
        if (name := nearest_column(row, key))
    }
    raise InputError(
        "rows with " + ", or ".join(WRITTEN.values()),
        f'{where}: no key "chosen", "completion" or "completions"; the row has {", ".join(map(str, row)) or "no keys"}',
        " and ".join(f'rename "{name}" to "{key}"' for key, name in near.items())
        or 'add "chosen" or the like, or rename the column that holds it',
    )


def read_group(
    kind: str, row: Mapping[str, Any], where: str, row_id: int, format: str = "auto"
) -> Group:
    """The group of a row of that kind; arguments and errors as in `schema.to_group`.

    The completions of a ranked row are sorted by falling score where there are scores, those of
    equal score in the order of the row.
    """
    if kind in ("pair", "triple"):
        return to_group(row, where, row_id, format, gold=kind == "triple")
    if kind == "ranked":
        return _ranked(row, where, row_id, format)
    label = {"label": _label(row["label"], where)} if kind == "judged" else {}
    group = make_group(row, {"completion": row["completion"]}, where, row_id, format)
    return dataclasses.replace(group, columns=completion_columns(row, where) | label)


def _label(value: Any, where: str) -> float:
    if not isinstance(present(value, "label", where), bool | int | float) or value not in (0, 1):
        raise InputError(
            "a label true or false (1 or 0)",
            f'{where}, key "label": {shown(value)}',
            "write true where the completion is desirable",
        )
    return float(value)


def _ranked(row: Mapping[str, Any], where: str, row_id: int, format: str) -> Group:
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
    order = sorted(range(len(answers)), key=lambda i: -scores[i]) if scores else range(len(answers))
    group = make_group(row, {f"completions[{i}]": answers[i] for i in order}, where, row_id, format)
    columns = ranked_columns(row, len(answers), where) | ({"score": scores} if scores else {})
    ordered = {
        name: tuple(x[i] for i in order) if isinstance(x, tuple) else x
        for name, x in columns.items()
    }
    return dataclasses.replace(group, columns=ordered)


def to_group(
    row: Mapping[str, Any], where: str, row_id: int, format: str = "auto", *, gold: bool = False
) -> Group:
    """Turns one raw pair into a group of two completions, chosen first; with `gold`, a third from
    `reference`.

    Args:
        row: the columns, see `columns.KNOWN_COLUMNS`.
        where: file and row, for errors.
        row_id: becomes `Group.row_id`.
        format: one of `FORMATS`; anything but `auto` refuses rows of another form.
        gold: read the gold answer too, which may be the chosen one once more.

    Raises:
        RowError: the row has no usable pair (an empty or missing answer, twice the same answer,
            answers to different prompts, text that is not Unicode, ...); `reason` says which.
        InputError: the columns are missing or have the wrong type, which other rows will share.
    """
    keys = ("chosen", "rejected", _GOLD) if gold else ("chosen", "rejected")
    for key in keys:
        if key not in row:
            raise _no_column(row, key, where)
    group = make_group(row, {key: row[key] for key in keys}, where, row_id, format)
    return dataclasses.replace(group, columns=padded(number_columns(row, where), len(keys)))
