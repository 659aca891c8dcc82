"""Which points are worth keeping, which belong together, and whether weights do what they should.

Dimension letters beside those of types.py: X points, J objectives.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import moocore
import numpy as np

from jaxpref.evaluation.bootstrap import Estimate
from jaxpref.pareto.front import Front, Point


def dominated(value_XJ: np.ndarray) -> np.ndarray:
    """[X], whether another point is at least as good in every objective and better in one.

    Equal points do not dominate each other.

    Args:
        value_XJ: more is better.
    Source: Pareto dominance; computed by moocore.
    """
    return ~moocore.is_nondominated(np.asarray(value_XJ, float), maximise=True, keep_weakly=True)


@dataclass(frozen=True)
class Sweep:
    """The points of one method and seed, over weights.

    Args:
        points: places in `Front.points` of its own points.
        ends: places of single-objective DPO policies, which are the ends of every sweep: with all
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


def sweeps(front: Front) -> list[Sweep]:
    """All of a front, in the order of their first points.

    Ends are DPO policies of the same seed, or of any seed where that one has none.
    """
    own: dict[tuple[str, int], list[int]] = {}
    for at, point in enumerate(front.points):
        own.setdefault((point.method, point.seed), []).append(at)
    single = [
        at
        for at, point in enumerate(front.points)
        if point.method == "dpo" and _single_objective(point)
    ]
    found = []
    for (method, seed), at in own.items():
        weighted = method != "dpo" and any(front.points[i].weights for i in at)
        ends = ([i for i in single if front.points[i].seed == seed] or single) if weighted else []
        found.append(Sweep(method, seed, tuple(at), tuple(ends)))
    return found


def _single_objective(point: Point) -> bool:
    return point.weights is not None and sum(weight > 0 for weight in point.weights.values()) == 1


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
    """Pairs of points of a sweep, its ends included, where an objective's weight rises and no
    other's does, but its measure falls and the two intervals do not overlap; without intervals the
    values themselves decide.

    With two objectives these are all pairs of different weights.  A reason to look, no proof of an
    error: what theory says of exact optima is (w - w') . (R(w) - R(w')) >= 0 for the vectors of
    weights and expected rewards, because the best weighted reward less beta KL is a convex function
    of w with gradient R(w).
    """
    return [violation for sweep in sweeps(front) for violation in _of_sweep(front, sweep)]


def _of_sweep(front: Front, sweep: Sweep) -> Iterator[Violation]:
    members = [front.points[at] for at in sweep.members if front.points[at].weights]
    for objective in front.objectives:
        for less in members:
            for more in members:
                worse, better = (p.estimates[front.measure][objective] for p in (more, less))
                if _moves_weight_to(objective, less, more) and _surely_below(worse, better):
                    yield Violation(
                        sweep.method, sweep.seed, objective, less.name, more.name, better, worse
                    )


def _moves_weight_to(objective: str, less: Point, more: Point) -> bool:
    before, after = normalised(less.weights), normalised(more.weights)
    gains = {name: after[name] - before[name] for name in before}
    return gains.pop(objective) > _SAME and all(gain < _SAME for gain in gains.values())


_SAME = 1e-9
"""Weights that differ by less are equal: rounding."""


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights divided by their sum."""
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _surely_below(worse: Estimate, better: Estimate) -> bool:
    upper = worse.value if worse.high is None else worse.high
    lower = better.value if better.low is None else better.low
    return worse.value < better.value and upper < lower
