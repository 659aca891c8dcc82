"""Percentile bootstrap: intervals for any statistic of how often each group counts.

What is drawn, with replacement, are units that are independent of each other: prompts with all
their groups.  A statistic takes weights [W, B], how often every group counts in each resample, and
gives its value in each; with all weights 1 that is the value on the data.  All statistics of an
evaluation see the same resamples.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpref.errors import InputError

Statistics = Callable[[np.ndarray], Mapping[Any, np.ndarray]]
"""weight_WB -> {name: [W]}; NaN where a resample leaves a value undefined."""

_CELLS = 2**22
"""Weights held at a time."""


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Args:
        resamples: how many, at least 100.
        level: share of the resamples' values that an interval holds, between 0 and 1.
        seed: of the draws.
    Errors: InputError for numbers outside these bounds.
    Source: Efron, 1979; the percentile interval: Efron and Tibshirani, 1993, chapter 13.
    """

    resamples: int = 2000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        counts = all(isinstance(x, int | np.integer) for x in (self.resamples, self.seed))
        in_bounds = counts and self.resamples >= 100 and self.seed >= 0
        if not (in_bounds and isinstance(self.level, float) and 0 < self.level < 1):
            raise InputError(
                "at least 100 resamples, a level between 0 and 1, a seed of 0 or more",
                f"resamples={self.resamples!r}, level={self.level!r}, seed={self.seed!r}",
                "2000 resamples at level 0.95 with seed 0 are usual",
            )

    def note(self, units: str) -> str:
        """How intervals were made, for a report.

        Args:
            units: what is resampled, with their number.
        """
        return (
            f"intervals: percentile bootstrap at {self.level:.0%}, "
            f"{self.resamples} resamples of {units}"
        )


DEFAULT = Bootstrap()


def check_bootstrap(bootstrap: Any) -> None:
    """Errors: InputError for anything but a `Bootstrap`."""
    if not isinstance(bootstrap, Bootstrap):
        raise InputError(
            "a jaxpref.evaluation.Bootstrap",
            f"bootstrap={bootstrap!r}",
            "write bootstrap=Bootstrap(resamples=2000)",
        )


@dataclass(frozen=True)
class Estimate:
    """A statistic on the data and the ends of its interval.

    The ends are None where some resample leaves the statistic undefined, or there is only one unit
    to draw.
    """

    value: float
    low: float | None = None
    high: float | None = None


def units_of(keys: Sequence[Hashable]) -> np.ndarray:
    """[B] numbers from 0: groups with equal keys are one unit."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def estimates(
    statistics: Statistics, unit_B: np.ndarray, bootstrap: Bootstrap
) -> dict[Any, Estimate]:
    """Every statistic with its interval.

    Args:
        unit_B: unit of every group, numbered from 0 without gaps.
    """
    values = statistics(np.ones((1, len(unit_B))))
    blocks = [statistics(weight_WB) for weight_WB in resampled_weights(unit_B, bootstrap)]
    tails = (1.0 - bootstrap.level) / 2.0, (1.0 + bootstrap.level) / 2.0
    several_units = len(np.unique(unit_B)) > 1
    made = {}
    for name, value in values.items():
        drawn_W = np.concatenate([block[name] for block in blocks])
        if several_units and np.isfinite(drawn_W).all():
            low, high = np.quantile(drawn_W, tails)
            made[name] = Estimate(float(value[0]), float(low), float(high))
        else:
            made[name] = Estimate(float(value[0]))
    return made


def resampled_weights(unit_B: np.ndarray, bootstrap: Bootstrap) -> Iterator[np.ndarray]:
    """Blocks [W, B] of weights, `resamples` rows in all, the same whatever the blocks' size."""
    units, rng = int(unit_B.max()) + 1, np.random.default_rng(bootstrap.seed)
    rows = max(1, _CELLS // max(units, len(unit_B)))
    for first in range(0, bootstrap.resamples, rows):
        n = min(rows, bootstrap.resamples - first)
        drawn = rng.integers(units, size=(n, units)) + units * np.arange(n)[:, None]
        count = np.bincount(drawn.ravel(), minlength=n * units).reshape(n, units)
        yield count[:, unit_B].astype(np.float64)


# ---- weighted statistics, [W] of weights [W, B]


def ratio(weight_WB: np.ndarray, numerator_B: np.ndarray, denominator_B: np.ndarray) -> np.ndarray:
    """sum(w * numerator) / sum(w * denominator); NaN where nothing weighs."""
    total_W, weight_W = weight_WB @ numerator_B, weight_WB @ denominator_B
    return np.divide(total_W, weight_W, out=np.full_like(total_W, np.nan), where=weight_W != 0)


def mean(weight_WB: np.ndarray, x_B: np.ndarray) -> np.ndarray:
    return ratio(weight_WB, x_B, np.ones_like(x_B))


def correlation(weight_WB: np.ndarray, x_B: np.ndarray, y_B: np.ndarray) -> np.ndarray:
    """Pearson's; NaN where one of the two is constant."""
    x_B, y_B = x_B - x_B.mean(), y_B - y_B.mean()  # before the squares, against cancellation
    mean_of = lambda z_B: mean(weight_WB, z_B)
    x_W, y_W = mean_of(x_B), mean_of(y_B)
    xx_W = mean_of(x_B * x_B) - x_W**2
    yy_W = mean_of(y_B * y_B) - y_W**2
    xy_W = mean_of(x_B * y_B) - x_W * y_W
    varies_W = (xx_W > 1e-12 * np.mean(x_B * x_B)) & (yy_W > 1e-12 * np.mean(y_B * y_B))
    spread_W = np.sqrt(np.where(varies_W, xx_W * yy_W, 1.0))
    return np.where(varies_W, xy_W / spread_W, np.nan)


def roc_area(weight_WB: np.ndarray, score_B: np.ndarray, positive_B: np.ndarray) -> np.ndarray:
    """P(score of a positive > score of a negative), ties counted half.

    NaN where there are no positives or no negatives.
    """
    order = np.argsort(score_B, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score_B[order]) > 0])
    weight_WB, positive_B = weight_WB[:, order], positive_B[order]
    # [W, distinct scores] weight of the groups with a score; of each score's ties half lies below.
    per_score = lambda mask_B: np.add.reduceat(weight_WB * mask_B, starts, axis=1)
    positive, negative = per_score(positive_B), per_score(1.0 - positive_B)
    below = np.cumsum(negative, axis=1) - 0.5 * negative
    pairs_W = positive.sum(1) * negative.sum(1)
    won_W = (positive * below).sum(1)
    return np.divide(won_W, pairs_W, out=np.full_like(won_W, np.nan), where=pairs_W != 0)
