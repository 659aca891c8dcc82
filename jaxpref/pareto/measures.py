"""What a method's front is worth, in several numbers, and by how much two methods differ.

All are of mean rewards.  Intervals are over prompts and, where a method was trained with several
seeds, over seeds: every resample draws both, and all methods see the same draws, so that their
differences are paired.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxpref.evaluation.bootstrap import (
    DEFAULT,
    Bootstrap,
    Estimate,
    resampled_weights,
    units_of,
)
from jaxpref.pareto.dominance import Sweep, normalised, split_method, sweeps
from jaxpref.pareto.front import Front
from jaxpref.pareto.hypervolume import hypervolume, rewards_of_points

MEASURES = {
    "hypervolume": "above the reference point, of the sweep with its ends",
    "mean_inner_product": "mean over the points of <weights, rewards>",
    "controllability": "rank correlation of an objective's weight and its reward over the points, "
    "mean over the objectives",
    "spacing": "standard deviation of the distances from each point that is not dominated to the "
    "nearest other, in boxes from the reference point to the best values; 0: evenly spaced",
    "worst_objective": "the largest that a point's smallest reward is, 0 at the reference point, 1 "
    "at the best value of any point",
    "regret": "mean over the points of how much more <weights, rewards> the best known point has",
}
"""Measure -> what it is.  Of spacing and regret less is better, of all others more."""
LESS_IS_BETTER = ("spacing", "regret")


@dataclass(frozen=True)
class Box:
    """The scales of a front: its reference point, and the best value of each objective."""

    reference_O: np.ndarray
    best_O: np.ndarray

    def scaled(self, value_XO: np.ndarray) -> np.ndarray:
        """0 at the reference point, 1 at the best."""
        size_O = self.best_O - self.reference_O
        return (value_XO - self.reference_O) / np.where(size_O > 0, size_O, 1.0)


@dataclass(frozen=True)
class MethodMeasures:
    """The measures of one method; of several seeds their mean."""

    method: str
    seeds: Sequence[int]
    measures: Mapping[str, Estimate]


@dataclass(frozen=True)
class Difference:
    """The measures of a method less those of another, on the same prompts and seeds."""

    method: str
    baseline: str
    measures: Mapping[str, Estimate]


def front_measures(
    front: Front,
    reference: Mapping[str, float],
    bootstrap: Bootstrap = DEFAULT,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> tuple[list[MethodMeasures], list[Difference]]:
    """The measures of every method with weights, and the differences of pairs of methods.

    A measure that is not defined (spacing of two points, say) is left out.

    Args:
        reference: point of the hypervolumes.
        pairs: (method, baseline); None: all methods against MODPO, or the first one without it.
    """
    by_method: dict[str, list[Sweep]] = {}
    for sweep in sweeps(front):
        weighted = all(front.points[i].weights for i in sweep.points)
        if weighted and split_method(sweep.method)[0] != "dpo":
            by_method.setdefault(sweep.method, []).append(sweep)
    if not by_method:
        return [], []
    if pairs is None:
        baseline = "modpo" if "modpo" in by_method else next(iter(by_method))
        pairs = [(method, baseline) for method in by_method if method != baseline]
    at = _Resamples(front, by_method, reference).estimates(bootstrap, pairs)
    methods = [
        MethodMeasures(method, [sweep.seed for sweep in own], _defined(at, method))
        for method, own in by_method.items()
    ]
    return methods, [Difference(*pair, _defined(at, *pair)) for pair in pairs]


def _defined(at: Mapping[tuple[str, ...], Estimate], *key: str) -> dict[str, Estimate]:
    return {name: at[*key, name] for name in MEASURES if (*key, name) in at}


class _Resamples:
    """The measures of all methods on any weighting of prompts and seeds."""

    def __init__(
        self,
        front: Front,
        by_method: Mapping[str, Sequence[Sweep]],
        reference: Mapping[str, float],
    ):
        self._front, self._by_method = front, by_method
        self._seeds = sorted({sweep.seed for own in by_method.values() for sweep in own})
        reference_O = np.array([reference[name] for name in front.objectives])
        self._box = Box(reference_O, front.values.max(0))
        self._rewards = rewards_of_points(front)

    def estimates(
        self, bootstrap: Bootstrap, pairs: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, ...], Estimate]:
        """(method, measure) and (method, baseline, measure) -> estimate, where it is defined."""
        seeds = len(self._seeds)
        values = self._values(self._front.values[None], np.ones((1, seeds)), pairs)
        blocks = list(self._drawn(bootstrap, pairs))
        tails = (1.0 - bootstrap.level) / 2.0, (1.0 + bootstrap.level) / 2.0
        made = {}
        for key, (value,) in values.items():
            drawn_W = np.concatenate([block[key] for block in blocks]) if blocks else np.empty(0)
            if len(drawn_W) and np.isfinite(drawn_W).all():
                made[key] = Estimate(float(value), *map(float, np.quantile(drawn_W, tails)))
            elif np.isfinite(value):
                made[key] = Estimate(float(value))
        return made

    def _drawn(
        self, bootstrap: Bootstrap, pairs: Sequence[tuple[str, str]]
    ) -> Iterator[dict[tuple[str, ...], np.ndarray]]:
        """Blocks of resamples; none where the answers' rewards are not known for all points."""
        if len(self._rewards) < len(self._front.points):
            return
        prompt_B, seeds = units_of(self._front.prompts), len(self._seeds)
        if prompt_B.max() == 0 and seeds == 1:
            return
        reward_XBO = np.stack([self._rewards[i] for i in range(len(self._front.points))])
        rng = np.random.default_rng((bootstrap.seed, seeds))
        for weight_WB in resampled_weights(prompt_B, bootstrap):
            weight_WB = weight_WB / weight_WB.sum(1, keepdims=True)
            value_WXO = np.einsum("WB,XBO->WXO", weight_WB, reward_XBO, optimize=True)
            seed_WS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(weight_WB))
            yield self._values(value_WXO, seed_WS, pairs)

    def _values(
        self, value_WXO: np.ndarray, seed_WS: np.ndarray, pairs: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, ...], np.ndarray]:
        """Every measure and difference, [W] each.

        Args:
            value_WXO: of all points of the front.
            seed_WS: how often each seed counts.
        """
        found: dict[tuple[str, ...], np.ndarray] = {}
        for method, own in self._by_method.items():
            of_seeds = [self._of_sweep(sweep, value_WXO) for sweep in own]
            count_WS = seed_WS[:, [self._seeds.index(sweep.seed) for sweep in own]]
            drawn_W = count_WS.sum(1)
            for name in MEASURES:
                value_WS = np.stack([measures[name] for measures in of_seeds], 1)
                # A resample may draw none of the seeds of a method that was not run with all.
                with np.errstate(invalid="ignore"):
                    found[method, name] = np.sum(count_WS * value_WS, 1) / drawn_W
        for method, baseline in pairs:
            for name in MEASURES:
                difference_W = found[method, name] - found[baseline, name]
                found[method, baseline, name] = difference_W
        return found

    def _of_sweep(self, sweep: Sweep, value_WXO: np.ndarray) -> dict[str, np.ndarray]:
        points = [self._front.points[i] for i in sweep.points]
        weights = [normalised(point.weights) for point in points]
        weight_XO = np.array([[w[name] for name in self._front.objectives] for w in weights])
        own_WXO, members_WXO = value_WXO[:, sweep.points], value_WXO[:, sweep.members]
        inner_WX = np.sum(own_WXO * weight_XO, -1)
        best_WX = (value_WXO @ weight_XO.T).max(1)
        box = self._box
        return {
            "hypervolume": np.array([hypervolume(x, box.reference_O) for x in members_WXO]),
            "mean_inner_product": inner_WX.mean(1),
            "controllability": rank_correlation(weight_XO, own_WXO),
            "spacing": spacing(box.scaled(members_WXO)),
            "worst_objective": box.scaled(own_WXO).min(-1).max(-1),
            "regret": (best_WX - inner_WX).mean(1),
        }


def rank_correlation(weight_XO: np.ndarray, value_WXO: np.ndarray) -> np.ndarray:
    """[W] Spearman's correlation of weight and value over the points, mean over the objectives.

    An objective whose value is the same at all weights counts 0; NaN where weights do not differ.
    """
    weight_rank_XO, value_rank_WXO = _centred_ranks(weight_XO), _centred_ranks(value_WXO)
    if not np.all(np.any(weight_rank_XO, axis=0)):
        return np.full(len(value_WXO), np.nan)
    products_WO = np.sum(weight_rank_XO * value_rank_WXO, 1)
    squares_WO = np.sum(weight_rank_XO**2, 0) * np.sum(value_rank_WXO**2, 1)
    return np.mean(products_WO / np.sqrt(np.where(squares_WO > 0, squares_WO, 1.0)), axis=1)


def _centred_ranks(x_XO: np.ndarray) -> np.ndarray:
    """Ranks over the points, ties sharing theirs, less the mean rank."""
    return np.sign(x_XO[..., :, None, :] - x_XO[..., None, :, :]).sum(-2) / 2


def spacing(value_WXO: np.ndarray) -> np.ndarray:
    """[W] Schott's spacing (1995) of the points that no other of them dominates.

    Equal points count once; NaN for fewer than three.
    """
    one, other = value_WXO[:, :, None], value_WXO[:, None, :]
    no_better_WXX, no_worse_WXX = np.all(other <= one, -1), np.all(other >= one, -1)
    earlier_XX = np.tri(value_WXO.shape[1], k=-1, dtype=bool)
    dominated_WXX = no_worse_WXX & ~no_better_WXX
    repeated_WXX = no_worse_WXX & no_better_WXX & earlier_XX
    kept_WX = ~np.any(dominated_WXX | repeated_WXX, -1)
    distance_WXX = np.abs(one - other).sum(-1)
    usable_WXX = kept_WX[:, None, :] & ~np.eye(value_WXO.shape[1], dtype=bool)
    nearest_WX = np.where(usable_WXX, distance_WXX, np.inf).min(-1)
    count_W = kept_WX.sum(1)
    enough_W = count_W >= 3
    nearest_WX = np.where(kept_WX & enough_W[:, None], nearest_WX, 0.0)
    mean_W = nearest_WX.sum(1) / np.maximum(count_W, 1)
    squares_W = np.sum(np.where(kept_WX, (nearest_WX - mean_W[:, None]) ** 2, 0.0), 1)
    return np.where(enough_W, np.sqrt(squares_W / np.maximum(count_W - 1, 1)), np.nan)
