"""Which points are dominated, which belong together, and whether weights do what they should."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import moocore
import numpy as np

from jaxpref.evaluation.bootstrap import Estimate
from jaxpref.pareto.front import Front, Point

_SAME = 1e-9
"""Weights that differ by less are equal: rounding."""


def dominated(value_XO: np.ndarray) -> np.ndarray:
    """[X], whether another point is at least as good in every objective and better in one.

    Equal points do not dominate each other.

    Args:
        value_XO: more is better.
    Source: Pareto dominance; computed by moocore.
    """
    return ~moocore.is_nondominated(np.asarray(value_XO, float), maximise=True, keep_weakly=True)


@dataclass(frozen=True)
class Sweep:
    """The points of one method and seed, over weights.

    Args:
        points: indices in `Front.points` of its own points.
        ends: indices of single-objective DPO policies, which are the ends of every sweep: with all
            weight on one objective MODPO is DPO on it, and mixing or averaging the policies gives
            that policy.
    """

    method: str
    seed: int
    points: tuple[int, ...]
    ends: tuple[int, ...] = ()

    @property
    def members(self) -> tuple[int, ...]:
        """Its own points and the ends."""
        return self.points + self.ends


def split_method(method: str) -> tuple[str, str]:
    """How points were made, and of several fronts that are compared the one they are of.

    `modpo.first` is MODPO of the front `first`; the second is empty in a front by itself.
    """
    how, _, of_front = method.partition(".")
    return how, of_front


def sweeps(front: Front) -> list[Sweep]:
    """All of a front, in the order of their first points.

    Ends are DPO policies of the same seed, or of any seed where that one has none; of several
    fronts that are compared, those of the same one.
    """
    own: dict[tuple[str, int], list[int]] = {}
    for index, point in enumerate(front.points):
        own.setdefault((point.method, point.seed), []).append(index)
    all_sweeps = []
    for (method, seed), indices in own.items():
        how, of_front = split_method(method)
        ends: list[int] = []
        if how != "dpo" and any(front.points[index].weights for index in indices):
            every_end = _ends(front, of_front)
            ends = [index for index in every_end if front.points[index].seed == seed] or every_end
        all_sweeps.append(Sweep(method, seed, tuple(indices), tuple(ends)))
    return all_sweeps


def _ends(front: Front, of_front: str) -> list[int]:
    """Indices of the DPO policies of a single objective."""
    ends = []
    for index, point in enumerate(front.points):
        if split_method(point.method) == ("dpo", of_front) and point.weights is not None:
            if sum(weight > 0 for weight in point.weights.values()) == 1:
                ends.append(index)
    return ends


@dataclass(frozen=True)
class Violation:
    """An objective got worse although it got more weight, by more than the intervals allow.

    Args:
        less, more: names of the points with less and with more weight on `objective`.
    """

    method: str
    seed: int
    objective: str
    less: str
    more: str
    found_less: Estimate
    found_more: Estimate


def violations(front: Front) -> list[Violation]:
    """Pairs of points of a sweep where an objective's weight rises but its measure falls.

    The ends of the sweep are included.  No other objective's weight rises, and the two intervals do
    not overlap; without intervals the values themselves decide.

    With two objectives these are all pairs of different weights.  A violation is a reason to look,
    not proof of an error: what theory says of exact optima is (w - w') . (R(w) - R(w')) >= 0 for
    the vectors of weights and expected rewards, because the best weighted reward less beta KL is a
    convex function of w with gradient R(w).
    """
    return [violation for sweep in sweeps(front) for violation in _of_sweep(front, sweep)]


def _of_sweep(front: Front, sweep: Sweep) -> Iterator[Violation]:
    points = [front.points[index] for index in sweep.members]
    weighted = [point for point in points if point.weights]
    for objective in front.objectives:
        for less, more in itertools.permutations(weighted, 2):
            better = less.estimates[front.measure][objective]
            worse = more.estimates[front.measure][objective]
            if _moves_weight_to(objective, less, more) and _surely_below(worse, better):
                yield Violation(
                    sweep.method,
                    sweep.seed,
                    objective,
                    less.name,
                    more.name,
                    found_less=better,
                    found_more=worse,
                )


def _moves_weight_to(objective: str, less: Point, more: Point) -> bool:
    before, after = normalised(less.weights), normalised(more.weights)
    gains = {name: after[name] - before[name] for name in before}
    return gains.pop(objective) > _SAME and all(gain < _SAME for gain in gains.values())


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights divided by their sum."""
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _surely_below(worse: Estimate, better: Estimate) -> bool:
    upper = worse.value if worse.high is None else worse.high
    lower = better.value if better.low is None else better.low
    return worse.value < better.value and upper < lower
