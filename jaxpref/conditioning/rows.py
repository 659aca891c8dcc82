"""The rows that are conditioned, and the pairs that are made of them: what all methods share."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxpref.conditioning.prompts import Prompt
from jaxpref.data.dimensions import Preferred, preferred_pairs, scores_of
from jaxpref.data.pictures.rows import COLUMNS as PICTURES
from jaxpref.data.pictures.rows import as_column
from jaxpref.data.rewrite import Source, group_of, rows_of
from jaxpref.errors import InputError, RowError
from jaxpref.types import Group

_GOAL = " asked for"
"""Name of the score by which pairs are labelled; no score of the data is called so."""

_KEYS_OF_ANSWERS = {
    "prompt",
    "messages",
    "chosen",
    "rejected",
    "completions",
    "scores",
    "scores_completions",
    "scores_chosen",
    "scores_rejected",
    "score_chosen",
    "score_rejected",
    "other_rewards_chosen",
    "other_rewards_rejected",
    "margins_chosen",
    "margins_rejected",
    "margin",
    "probability",
    *PICTURES,
}
"""Keys of a row that a pair made of it has anew; it keeps the others."""


@dataclass
class ConditionReport:
    """What became of the rows."""

    rows: int = 0
    written: int = 0
    tied: int = 0
    """Pairs that the preference does not tell apart: dropped."""
    swapped: int = 0
    """Pairs in which the preference chose the other answer than the row."""
    dropped: Counter = field(default_factory=Counter)
    """Unusable rows, by reason."""

    def __str__(self) -> str:
        drops = [f"{count} dropped: {reason}" for reason, count in sorted(self.dropped.items())]
        pairs = f"{self.swapped} pairs turned round, {self.tied} dropped as ties"
        head = f"{self.rows} rows in, {self.written} out; {pairs}"
        return "\n".join([head, *drops])


def usable_rows(
    source: Source, scores: Sequence[str], report: ConditionReport
) -> Iterator[tuple[dict, Group, str]]:
    """(row under our names, group, kind) of the rows that have all these scores.

    Raises:
        RowError: another row, unless the source drops (and the report counts) such rows.
    """
    for i, (row, where, kind) in enumerate(rows_of(source)):
        report.rows += 1
        group: Any = group_of(source, row, where, kind, i)
        error = group if isinstance(group, RowError) else _missing(group, scores)
        if error is None:
            yield source.own(row, where).values, group, kind
        elif source.on_bad_row == "error":
            raise error
        else:
            report.dropped[error.reason] += 1


def _missing(group: Group, scores: Sequence[str]) -> RowError | None:
    try:
        for name in scores:
            scores_of(group, name)
    except RowError as error:
        return error
    return None


def usable_pairs(
    source: Source, scores: Sequence[str], report: ConditionReport
) -> Iterator[tuple[dict, Group, str]]:
    """The same of rows with two answers or more.  Raises: InputError for one answer."""
    for row, group, kind in usable_rows(source, scores, report):
        if kind not in ("pair", "ranked"):
            raise InputError(
                "rows of two answers or more", f"{group.where}: one answer", "name data of pairs"
            )
        yield row, group, kind


def labelled_pairs(
    row: Mapping[str, Any],
    group: Group,
    kind: str,
    prompt: Prompt,
    goal: Sequence[float],
    report: ConditionReport,
) -> Iterator[dict]:
    """Rows of the pairs of a group, the answer with the higher goal chosen.

    Args:
        row, group, kind: as `usable_pairs` gives them.
        prompt: of the rows.
        goal: of every answer; ties are dropped.
        report: counts.
    """
    scored = dataclasses.replace(group, columns={**group.columns, f"scores/{_GOAL}": tuple(goal)})
    counts = Preferred(_GOAL)
    for pair in preferred_pairs(scored, kind, counts):
        report.written += 1
        yield _row_of_pair(row, pair, prompt)
    report.tied += counts.tied
    report.swapped += counts.swapped


def _row_of_pair(row: Mapping[str, Any], pair: Group, prompt: Prompt) -> dict[str, Any]:
    """A pair as a row: its own texts and numbers, and what else the row had."""
    columns = {name: value for name, value in pair.columns.items() if name != f"scores/{_GOAL}"}
    made = {key: value for key, value in row.items() if key not in _KEYS_OF_ANSWERS}
    made |= {"prompt": prompt, **as_column(pair.pictures)}
    made["chosen"], made["rejected"] = pair.completions[:2]
    for k, side in enumerate(("chosen", "rejected")):
        scores = {
            name.removeprefix("scores/"): value[k]
            for name, value in columns.items()
            if name.startswith("scores/")
        }
        if scores:
            made[f"scores_{side}"] = scores
        if "score" in columns:
            made[f"score_{side}"] = columns["score"][k]
        if "other_rewards" in columns:
            made[f"other_rewards_{side}"] = list(columns["other_rewards"][k])
    for name in ("margin", "probability"):
        if name in columns:
            made[name] = columns[name]
    return made
