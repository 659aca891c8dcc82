"""Data with several preference dimensions: every answer has a score in each, and a run takes its
pairs from one.

    data.prefer: NAME          the answer with the higher `scores/NAME` is the chosen one
    data.other_rewards: [NAME, ...]  the column `other_rewards` (MODPO) is made of these scores, in this order

Both happen to texts, before groups are made into another kind.  Pairs that an objective has
labelled already need no `prefer`.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxpref.data.columns import Columns
from jaxpref.data.forms import RowError
from jaxpref.errors import InputError
from jaxpref.types import Group

OTHER_REWARDS = "other_rewards"
"""The column that `data.other_rewards` makes."""


@dataclass
class Preferred:
    """What became of the pairs when one score decided which answer is chosen."""

    name: str
    """Of the score."""
    kept: int = 0
    swapped: int = 0
    made: int = 0
    """Pairs made of rows with `completions`."""
    tied: int = 0
    """Pairs whose scores are equal: dropped."""

    @property
    def only_ties(self) -> bool:
        return bool(self.tied) and not self.kept + self.swapped + self.made

    def __str__(self) -> str:
        made = f", {self.made} made of ranked rows" if self.made else ""
        return (
            f"preferred by {self.name}: {self.kept} pairs as they stood, {self.swapped} turned round{made}, "
            f"{self.tied} dropped as ties"
        )


def kind_of_pairs(kind: str, where: str) -> str:
    """The kind of group that a row of this kind becomes where a score decides.

    Raises:
        InputError: a row of one answer.
    """
    if kind in ("pair", "triple"):
        return kind
    if kind == "ranked":
        return "pair"
    raise InputError(
        "rows of two answers or more, for data.prefer",
        f"{where}: one answer",
        "leave data.prefer out, or the file",
    )


def preferred_pairs(group: Group, kind: str, report: Preferred) -> list[Group]:
    """The pairs of a group, the answer with the higher score chosen; counted in `report`, which
    names the score.

    A pair is kept, swapped with all its columns, or dropped as a tie.  A ranked row gives every
    pair of its answers with different scores, as the authors of MODPO prepare UltraFeedback and
    HelpSteer (Zhou et al., arXiv 2310.03708, their code); its own order counts for nothing then.

    Args:
        kind: of the row that the group was made from: pair, triple or ranked.

    Raises:
        RowError: an answer without the score.
    """
    scores = scores_of(group, report.name)
    if kind == "ranked":
        pairs = list(_all_pairs(group, scores))
        report.made += len(pairs)
        report.tied += len(scores) * (len(scores) - 1) // 2 - len(pairs)
        return pairs
    if scores[0] == scores[1]:
        report.tied += 1
        return []
    if scores[0] > scores[1]:
        report.kept += 1
        return [group]
    report.swapped += 1
    return [_swapped(group)]


def with_other_rewards(group: Group, names: Sequence[str]) -> Group:
    """The group with the column `other_rewards`, [K, len(names)] of the scores of these names; of
    no names: as it is.

    Raises:
        RowError: an answer without one of the scores.
        InputError: the row has other_rewards of its own.
    """
    if not names:
        return group
    if OTHER_REWARDS in group.columns:
        raise InputError(
            "other_rewards from one place",
            f'{group.where}: "other_rewards_chosen" and "other_rewards_rejected", and data.other_rewards=[{", ".join(names)}]',
            "remove them from the rows, or leave data.other_rewards out",
        )
    other_rewards = tuple(zip(*(scores_of(group, name) for name in names), strict=True))
    return dataclasses.replace(group, columns={**group.columns, OTHER_REWARDS: other_rewards})


def other_reward_contradictions(
    other_rewards: Sequence[str], parts: Sequence[Any]
) -> Iterator[str]:
    """What of `data.other_rewards` does not fit the bound objectives."""
    names, readers = (
        ", ".join(other_rewards),
        [part for part in parts if OTHER_REWARDS in part.all_columns],
    )
    if not other_rewards:
        return
    if not readers:
        yield f"data.other_rewards=[{names}] is set but no objective reads `other_rewards`"
    if len(set(other_rewards)) < len(other_rewards):
        yield f"data.other_rewards=[{names}] names a score twice"
    for part in readers:
        w = part.hyperparameters.get("w")
        if w is not None and len(w) != len(other_rewards) + 1:
            yield f"{part.name}.w has {len(w)} weights; with data.other_rewards=[{names}]: {len(other_rewards) + 1}, base first"


def scores_of(group: Group, name: str) -> tuple[float, ...]:
    """[K] scores of a group's answers.  Raises: RowError, naming the row and the scores that it
    has."""
    found = group.columns.get(f"scores/{name}")
    if found is None:
        have = [
            column.removeprefix("scores/")
            for column in group.columns
            if column.startswith("scores/")
        ]
        raise RowError(
            f"no score {name}",
            f"the score {name!r} of every answer",
            f"{group.where}: "
            + (f"the scores there are: {', '.join(have)}" if have else "no scores"),
            "name one of them" if have else "add scores with `jaxpref score`",
        )
    return found


def _all_pairs(group: Group, scores: Sequence[float]) -> Iterator[Group]:
    for i, j in itertools.combinations(range(len(scores)), 2):
        if scores[i] != scores[j]:
            yield _picked(group, (i, j) if scores[i] > scores[j] else (j, i))


def _swapped(pair: Group) -> Group:
    """Chosen and rejected change places; a gold answer stays.  Numbers that tell how much better
    chosen is turn too."""
    turned = _picked(pair, (1, 0, *range(2, len(pair.completions))))
    columns = dict(turned.columns)
    if "margin" in columns:
        columns["margin"] = -columns["margin"]
    if "probability" in columns:
        columns["probability"] = 1 - columns["probability"]
    return dataclasses.replace(turned, columns=columns)


def _picked(group: Group, order: Sequence[int]) -> Group:
    completions = tuple(group.completions[k] for k in order)
    return dataclasses.replace(
        group, completions=completions, columns=_picked_columns(group.columns, order)
    )


def _picked_columns(columns: Mapping[str, Any], order: Sequence[int]) -> Columns:
    return {
        name: tuple(value[k] for k in order) if isinstance(value, tuple) else value
        for name, value in columns.items()
    }
