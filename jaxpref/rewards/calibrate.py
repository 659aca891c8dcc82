"""A raw reward put on the Bradley-Terry scale: its temperature, fitted on pairs.

On that scale sigmoid(r_chosen - r_rejected) is the probability of the preference.  MODPO's rewards
and objective weights suppose it: a reward in other units acts as another objective weight.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxpref.data.rewrite import Source, as_source, read_pairs
from jaxpref.errors import InputError
from jaxpref.rewards.reward import WHOLE, Limits, Reward
from jaxpref.types import Group

_PART = 256
"""Pairs scored at a time, so that a reward that keeps its scores keeps them as it goes."""
_STEPS = 200
_PRECISION = 1e-12
"""Relative, of 1 / T."""


@dataclass(frozen=True)
class Temperature:
    """The maximum-likelihood temperature of a reward."""

    value: float
    """T > 0; r / T is on the Bradley-Terry scale."""
    error: float
    """Standard error of T, from the Fisher information at the estimate."""
    pairs: int
    ties: int
    """Pairs with equal rewards, which tell nothing about T."""


def fit_temperature(differences: np.ndarray) -> Temperature:
    """The T that maximises sum log sigmoid(d / T), d = r_chosen - r_rejected.

    The likelihood is concave in a = 1 / T; its maximum is found by Newton's method inside a
    bracket, in float64.

    Args:
        differences: [n] of pairs, finite.
    Errors: InputError where there is no maximum at a T > 0: the reward agrees with all pairs (T = 0
        is best), it agrees with them no more than it disagrees (no T > 0 is better than none), or
        all pairs tie.
    """
    d = np.asarray(differences, np.float64)
    _check_has_maximum(d)
    unit = float(np.abs(d).max())  # so that a is of ordinary size whatever the reward's units are
    x = d / unit
    a = _root(x)
    p = _sigmoid(-a * x)
    information = float(np.sum(x * x * p * (1 - p)))
    # T = unit / a, so dT = unit / a^2 da.
    return Temperature(
        unit / a, unit / (a * a * math.sqrt(information)), len(d), int((d == 0).sum())
    )


def calibrate(
    reward: Reward, pairs: str | Source | Sequence[Group], *, limits: Limits = WHOLE
) -> Reward:
    """The reward divided by the temperature that fits the pairs best; nothing else of it changes.

    Args:
        reward: higher is better.
        pairs: labelled by the preference that the reward stands for: a file, a source, or groups
            with chosen first.
        limits: as of `Reward.of`.
    Returns: a reward with `temperature`, its standard error `temperature_error`, and
        `bradley_terry` set.
    Errors: InputError as of `fit_temperature`.
    """
    if isinstance(pairs, str | Source):
        pairs = read_pairs(as_source(pairs), reward.columns)
    differences = []
    for first in range(0, len(pairs), _PART):
        for values in reward.of(pairs[first : first + _PART], limits):
            if values is not None:
                differences.append(values[0] - values[1])
    fitted = fit_temperature(np.array(differences))
    before = reward.temperature
    return dataclasses.replace(
        reward,
        temperature=before * fitted.value,
        temperature_error=before * fitted.error,
        bradley_terry=True,
    )


def _check_has_maximum(d: np.ndarray) -> None:
    higher, lower, ties = int((d > 0).sum()), int((d < 0).sum()), int((d == 0).sum())
    counts = (
        f"{len(d)} pairs: {higher} with the higher reward for chosen, {lower} for rejected, "
        f"{ties} ties"
    )
    if not higher and not lower:
        raise InputError(
            "pairs whose rewards differ", counts, "take pairs that the reward tells apart"
        )
    if not lower:
        raise InputError(
            "pairs of which the reward misjudges some; else every smaller temperature fits better",
            counts,
            "take more pairs, or noisier ones; a reward that never errs needs no probabilities",
        )
    if d.sum() <= 0:  # the slope of the likelihood at 1 / T = 0
        raise InputError(
            "a reward that is higher for the chosen answers on average",
            f"{counts}; mean difference {d.mean():.4g}",
            "change its sign, or calibrate it on pairs of the preference that it stands for",
        )


def _root(x: np.ndarray) -> float:
    """The a > 0 at which the slope sum x sigmoid(-a x) is 0.

    The slope falls with a, and is above 0 at a = 0.
    """
    low, high = 0.0, 1.0
    while float(np.sum(x * _sigmoid(-high * x))) > 0:
        low, high = high, 2 * high
    a = 0.5 * (low + high)
    for _ in range(_STEPS):
        p = _sigmoid(-a * x)
        value = float(np.sum(x * p))
        low, high = (a, high) if value > 0 else (low, a)
        curvature = float(np.sum(x * x * p * (1 - p)))
        newton = a + value / curvature if curvature else math.inf
        # A step that leaves the bracket is replaced by bisection.
        before, a = a, (newton if low < newton < high else 0.5 * (low + high))
        if abs(a - before) <= _PRECISION * a:
            break
    return a


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))
