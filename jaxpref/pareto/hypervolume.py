"""Hypervolumes: how much a set of points achieves, as one number with an interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import moocore
import numpy as np

from jaxpref.errors import InputError
from jaxpref.evaluation.bootstrap import DEFAULT, Bootstrap, Estimate, estimates, units_of
from jaxpref.pareto.dominance import Sweep, sweeps
from jaxpref.pareto.front import Front

_BELOW = 0.1
"""How far the default reference point lies below the worst value, in ranges of the values."""


def hypervolume(value_XO: np.ndarray, reference_O: np.ndarray) -> float:
    """Volume of what the points dominate above a reference point.

    A point that does not exceed the reference in every objective adds nothing.  The unit is the
    product of the objectives' units, so values compare only at the same reference and on the same
    data.

    Args:
        value_XO: more is better.
    Source: Zitzler and Thiele, 1998; computed exactly by moocore.
    """
    return float(moocore.hypervolume(np.asarray(value_XO, float), ref=reference_O, maximise=True))


def default_reference(front: Front) -> dict[str, float]:
    """For every objective the worst value of all points, less a tenth of the range of values.

    It is 1 less where all values are equal.  The tenth lets the ends of a front count, which are
    the worst in some objective.
    """
    worst_O, best_O = front.values.min(0), front.values.max(0)
    below_O = np.where(best_O > worst_O, _BELOW * (best_O - worst_O), 1.0)
    return dict(zip(front.objectives, (worst_O - below_O).tolist(), strict=True))


def checked_reference(front: Front, reference: Mapping[str, float] | None) -> dict[str, float]:
    """The reference point, or the default one, in the order of the objectives.

    Errors: InputError unless it has one finite number for every objective.
    """
    if reference is None:
        return default_reference(front)
    complete = set(reference) == set(front.objectives)
    if not complete or not all(np.isfinite(x) for x in reference.values()):
        raise InputError(
            f"a finite number for each of {', '.join(front.objectives)}",
            f"reference point {dict(reference)}",
            "give one number per objective",
        )
    return {name: float(reference[name]) for name in front.objectives}


@dataclass(frozen=True)
class SweepVolume:
    """The hypervolume of a sweep, its ends included.

    Args:
        volume: with its interval where rewards of every answer are known.
        share: of the box between the reference point and the best value of each objective over all
            points, 0 to 1.
    """

    sweep: Sweep
    volume: Estimate
    share: float


def sweep_volumes(
    front: Front, reference: Mapping[str, float] | None = None, bootstrap: Bootstrap = DEFAULT
) -> list[SweepVolume]:
    """The hypervolume of every sweep, its ends included.

    Intervals are over prompts: all points see the same resampled prompts.  There is one where the
    axes are mean rewards and every point of the sweep has the rewards that its means are of.  The
    reference point stays as it is.  Noise lifts the volume (it takes the best of several noisy
    points), so an interval may lie mostly above the value.

    Args:
        reference: objective -> value; otherwise `default_reference`.
    """
    reference_O = np.array(list(checked_reference(front, reference).values()))
    box = float(np.prod(np.maximum(front.values.max(0) - reference_O, 0.0)))
    all_sweeps = sweeps(front)
    intervals = _intervals(front, all_sweeps, reference_O, bootstrap)
    volumes = []
    for sweep in all_sweeps:
        volume = hypervolume(front.values[list(sweep.members)], reference_O)
        low, high = intervals.get(sweep, (None, None))
        share = volume / box if box > 0 else 0.0
        volumes.append(SweepVolume(sweep, Estimate(volume, low, high), share))
    return volumes


def _intervals(
    front: Front, all_sweeps: Sequence[Sweep], reference_O: np.ndarray, bootstrap: Bootstrap
) -> dict[Sweep, tuple[float | None, float | None]]:
    rewards = rewards_of_points(front)
    known = [sweep for sweep in all_sweeps if all(index in rewards for index in sweep.members)]
    if not known:
        return {}

    def statistics(weight_WB: np.ndarray) -> dict[Sweep, np.ndarray]:
        weight_WB = weight_WB / weight_WB.sum(1, keepdims=True)
        means = {index: weight_WB @ reward_BO for index, reward_BO in rewards.items()}
        return {sweep: _resampled_volumes(sweep, means, reference_O) for sweep in known}

    resampled = estimates(statistics, units_of(front.prompts), bootstrap)
    return {sweep: (estimate.low, estimate.high) for sweep, estimate in resampled.items()}


def _resampled_volumes(
    sweep: Sweep, means: Mapping[int, np.ndarray], reference_O: np.ndarray
) -> np.ndarray:
    """[W] hypervolumes.  Args: means: index of a point -> [W, O] means of resampled rewards."""
    mean_WXO = np.stack([means[index] for index in sweep.members], 1)
    return np.array([hypervolume(mean_XO, reference_O) for mean_XO in mean_WXO])


def rewards_of_points(front: Front) -> dict[int, np.ndarray]:
    """Index of a point -> [B, O] rewards of its answers, if the point's values are their means."""
    rewards = {}
    if front.measure != "reward":
        return rewards
    for index, point in enumerate(front.points):
        if point.answers and set(point.rewards) == set(front.objectives):
            reward_BO = np.array([point.rewards[name] for name in front.objectives], float).T
            if np.allclose(reward_BO.mean(0), front.values[index], rtol=1e-5, atol=1e-8):
                rewards[index] = reward_BO
    return rewards
