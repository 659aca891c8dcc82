"""The measures of a front by hand, and their paired intervals over prompts and seeds."""

import fronts
import numpy as np
import pytest
from fronts import answered, point

from jaxpref.evaluation.bootstrap import Bootstrap
from jaxpref.pareto.measures import MEASURES, front_measures, rank_correlation, spacing

QUICK = Bootstrap(resamples=200)
REFERENCE = {"helpful": 0.0, "harmless": 0.0}


def measured(points, **others):
    methods, differences = front_measures(fronts.front(points, **others), REFERENCE, QUICK)
    return {m.method: m for m in methods}, differences


def test_measures_by_hand():
    """Three points of a method beside a better one of another; no intervals without answers."""
    points = [
        point("a1", (1, 4), (0.25, 0.75)), point("a2", (2, 2), (0.5, 0.5)), point("a3", (4, 1), (0.75, 0.25)),
        point("b", (3, 3), (0.5, 0.5), method="mod"),
    ]  # fmt: skip
    methods, (difference,) = measured(points)
    values = {name: estimate.value for name, estimate in methods["modpo"].measures.items()}
    assert values["hypervolume"] == 4 + 2 + 1 + 1
    assert values["mean_inner_product"] == pytest.approx((3.25 + 2 + 3.25) / 3)
    assert values["controllability"] == pytest.approx(1.0)
    assert values["worst_objective"] == 2 / 4
    assert values["regret"] == pytest.approx((0 + 1 + 0) / 3)
    assert values["spacing"] == pytest.approx(0, abs=1e-12)
    assert methods["modpo"].measures["regret"].low is None
    assert set(methods["mod"].measures) == set(MEASURES) - {"controllability", "spacing"}, "of one point"
    assert (difference.method, difference.baseline) == ("mod", "modpo")
    assert difference.measures["mean_inner_product"].value == pytest.approx(3 - 8.5 / 3)


def test_controllability_is_spearmans():
    rng = np.random.default_rng(0)
    weight, value = rng.dirichlet(np.ones(3), 6), rng.normal(size=(4, 6, 3))
    ranks = lambda x: np.argsort(np.argsort(x))
    expected = [np.mean([np.corrcoef(ranks(weight[:, k]), ranks(v[:, k]))[0, 1] for k in range(3)]) for v in value]
    np.testing.assert_allclose(rank_correlation(weight, value), expected)
    assert rank_correlation(weight, np.ones((1, 6, 3)))[0] == 0, "rewards that no weight moves"


def test_spacing_sees_a_gap():
    of = lambda *points: float(spacing(np.array([points], float))[0])
    even = [(0, 3), (1, 2), (2, 1), (3, 0)]
    assert of(*even) == 0
    uneven = of((0, 3), (0.1, 2.9), (2, 1), (3, 0))
    assert uneven == pytest.approx(np.std([0.2, 0.2, 2.0, 2.0], ddof=1))
    assert of(*even, (0.5, 0.5), (1, 2)) == 0, "dominated points do not count, equal ones once"
    assert np.isnan(of(*even[:2]))


def study(seeds, noise=0.0, gain=0.2):
    """Two methods at three weights, the second better by `gain` on every prompt."""
    rng, prompts = np.random.default_rng(0), 40
    of_prompt = rng.normal(0, 1, (prompts, 2))
    points = []
    for seed in seeds:
        luck = noise * rng.normal(size=2)
        for method, better in (("modpo", 0.0), ("mod", gain)):
            for share in (0.2, 0.5, 0.8):
                reward = of_prompt + np.sqrt([share, 1 - share]) + better + luck
                name = f"{method}_{share}_{seed}"
                made = answered(name, reward, fronts.OBJECTIVES, (share, 1 - share), "says", method=method, seed=seed)
                points.append(made)
    return points, {"prompts": [f"prompt {i}" for i in range(prompts)]}


def test_differences_are_paired_over_prompts():
    """Prompts differ much more than the methods, which differ alike on every one."""
    points, others = study([0])
    methods, (difference,) = measured(points, **others)
    inner = methods["modpo"].measures["mean_inner_product"]
    assert inner.high - inner.low > 0.3
    gained = difference.measures["mean_inner_product"]
    assert gained.value == pytest.approx(0.2) and gained.high - gained.low < 1e-9
    assert difference.measures["hypervolume"].low > 0


def test_seeds_are_resampled_too():
    """Luck of a seed, the same for all prompts, widens the interval of a method and not of the difference."""
    width = {}
    for noise in (0.0, 3.0):
        points, others = study([0, 1, 2], noise)
        methods, (difference,) = measured(points, **others)
        assert methods["modpo"].seeds == [0, 1, 2]
        inner = methods["modpo"].measures["mean_inner_product"]
        width[noise] = inner.high - inner.low
        gained = difference.measures["mean_inner_product"]
        assert gained.value == pytest.approx(0.2) and gained.high - gained.low < 1e-9
    assert width[3.0] > 2 * width[0.0]


def test_pairs_may_be_named():
    points, others = study([0])
    front = fronts.front(points, **others)
    _, (difference,) = front_measures(front, REFERENCE, QUICK, [("modpo", "mod")])
    assert difference.measures["regret"].value == pytest.approx(0.2)
