"""Data with several preference dimensions: every answer has a score in each.

A run takes its pairs from one of them:

    data.prefer: NAME                the answer with the higher `scores/NAME` is the chosen one
    data.other_rewards: [NAME, ...]  these scores, in this order, make the column `other_rewards`
                                     (MODPO)

Both happen to texts, before groups are made into another kind.  Pairs that an objective has
labelled already need no `prefer`.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxpref.data.columns import picked_columns
from jaxpref.errors import InputError, RowError
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
        counts = [f"{self.kept} pairs as they stood", f"{self.swapped} turned round"]
        if self.made:
            counts.append(f"{self.made} made of ranked rows")
        counts.append(f"{self.tied} dropped as ties")
        return f"preferred by {self.name}: {', '.join(counts)}"


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
        "remove data.prefer, or the file from the data",
    )


def preferred_pairs(group: Group, kind: str, report: Preferred) -> list[Group]:
    """The pairs of a group, the answer with the higher score chosen.

    A pair is kept, swapped with all its columns, or dropped as a tie.  A ranked row gives every
    pair of its answers with different scores, as the authors of MODPO prepare UltraFeedback and
    HelpSteer (Zhou et al., arXiv 2310.03708, their code); its own order counts for nothing then.

    Args:
        kind: of the row that the group was made from: pair, triple or ranked.
        report: names the score, and counts the pairs.

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
    """The group with the column `other_rewards`, [K, len(names)]; of no names: as it is.

    Args:
        names: of the scores that make it.

    Raises:
        RowError: an answer without one of the scores.
        InputError: the row has other_rewards of its own.
    """
    if not names:
        return group
    if OTHER_REWARDS in group.columns:
        keys = '"other_rewards_chosen" and "other_rewards_rejected"'
        raise InputError(
            "other_rewards from one place",
            f"{group.where}: {keys}, and data.other_rewards=[{', '.join(names)}]",
            "remove the two keys from the rows, or data.other_rewards from the config",
        )
    other_rewards = tuple(zip(*(scores_of(group, name) for name in names), strict=True))
    return dataclasses.replace(group, columns={**group.columns, OTHER_REWARDS: other_rewards})


def scores_of(group: Group, name: str) -> tuple[float, ...]:
    """[K] scores of a group's answers.

    Raises:
        RowError: there is no such score; it names the row and the scores that it has.
    """
    scores = group.columns.get(f"scores/{name}")
    if scores is not None:
        return scores
    have = [key.removeprefix("scores/") for key in group.columns if key.startswith("scores/")]
    got, fix = "no scores", "add scores with `jaxpref score`"
    if have:
        got, fix = f"the scores there are: {', '.join(have)}", "name one of them"
    raise RowError(
        f"no score {name}", f"the score {name!r} of every answer", f"{group.where}: {got}", fix
    )


def _all_pairs(group: Group, scores: Sequence[float]) -> Iterator[Group]:
    for i, j in itertools.combinations(range(len(scores)), 2):
        if scores[i] != scores[j]:
            yield _picked(group, (i, j) if scores[i] > scores[j] else (j, i))


def _swapped(pair: Group) -> Group:
    """Chosen and rejected change places, and the numbers that say how much better chosen is turn.

    A gold answer stays.
    """
    turned = _picked(pair, (1, 0, *range(2, len(pair.completions))))
    columns = dict(turned.columns)
    if "margin" in columns:
        columns["margin"] = -columns["margin"]
    if "probability" in columns:
        columns["probability"] = 1 - columns["probability"]
    return dataclasses.replace(turned, columns=columns)


def _picked(group: Group, order: Sequence[int]) -> Group:
    completions = tuple(group.completions[k] for k in order)
    columns = picked_columns(group.columns, order)
    return dataclasses.replace(group, completions=completions, columns=columns)
