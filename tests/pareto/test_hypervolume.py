"""Dominance, hypervolumes and monotonicity against hand-derived values and against counting."""

import itertools

import fronts
import numpy as np
import pytest
from fronts import point

from jaxpref.errors import InputError
from jaxpref.evaluation.bootstrap import Bootstrap, Estimate, estimates, mean, units_of
from jaxpref.pareto.cost import Cost, Work, separate_work, total_work
from jaxpref.pareto.dominance import Sweep, dominated, sweeps, violations
from jaxpref.pareto.hypervolume import checked_reference, default_reference, hypervolume, sweep_volumes

QUICK = Bootstrap(resamples=200)


def test_equal_points_do_not_dominate_each_other():
    value_X2 = np.array([[1, 3], [2, 2], [2, 2], [3, 1], [1, 1], [1, 2], [3, 0.5]])
    assert dominated(value_X2).tolist() == [False, False, False, False, True, True, True]


@pytest.mark.parametrize("J", [2, 3, 4, 5])
def test_dominated_points_by_definition(J):
    value_XO = np.random.default_rng(J).integers(0, 4, (30, J))  # few values: many ties
    by_hand = [any((b >= a).all() and (b > a).any() for b in value_XO) for a in value_XO]
    assert 0 < sum(by_hand) < 30
    assert dominated(value_XO).tolist() == by_hand


def test_hypervolumes_by_hand():
    stairs_X2 = np.array([[1, 3], [2, 2], [3, 1]])
    assert hypervolume(stairs_X2, np.zeros(2)) == 3 + 2 + 1
    assert hypervolume(np.vstack([stairs_X2, [[1, 1], [2, 2]]]), np.zeros(2)) == 6  # dominated and repeated points
    assert hypervolume(stairs_X2, np.array([1.0, 1.0])) == 1  # only (2, 2) is above in both
    assert hypervolume(np.array([[2, 3, 4]]), np.array([1.0, 1.0, 1.0])) == 1 * 2 * 3
    assert hypervolume(np.array([[-1.0, 5.0]]), np.zeros(2)) == 0  # not above the reference


@pytest.mark.parametrize("J", [2, 3, 4])
def test_hypervolume_is_the_number_of_unit_cells(J):
    value_XO = np.random.default_rng(10 + J).integers(0, 6, (8, J))
    cells = itertools.product(range(6), repeat=J)
    counted = sum((value_XO >= np.array(cell) + 1).all(1).any() for cell in cells)
    assert hypervolume(value_XO, np.zeros(J)) == pytest.approx(counted, abs=1e-9)


def test_the_default_reference_is_a_tenth_of_the_range_below_the_worst():
    front = fronts.front([point("a", (1, 7)), point("b", (3, 7)), point("c", (2, 7))])
    assert default_reference(front) == pytest.approx({"helpful": 0.8, "harmless": 6.0})
    assert checked_reference(front, {"harmless": 1, "helpful": 2}) == {"helpful": 2.0, "harmless": 1.0}
    for wrong in ({"helpful": 1.0}, {"helpful": 1.0, "harmless": np.inf}, {"helpful": 1.0, "brief": 1.0}):
        with pytest.raises(InputError, match="helpful, harmless"):
            checked_reference(front, wrong)


ENDS = [
    point("dpo_helpful", (3, 0), (1, 0), method="dpo"),
    point("dpo_harmless", (0, 3), (0, 1), method="dpo"),
]


def test_single_objective_dpo_is_the_end_of_every_sweep():
    front = fronts.front(
        [
            point("reference", (0, 0), method="reference"),
            *ENDS,
            point("modpo", (2, 2), (0.5, 0.5)),
            point("mod", (1, 1), (0.5, 0.5), method="mod", seed=1),
            point("dpo_both", (1, 2), (0.4, 0.6), method="dpo", seed=1),
        ]
    )
    assert sweeps(front) == [
        Sweep("reference", 0, (0,)),
        Sweep("dpo", 0, (1, 2)),
        Sweep("modpo", 0, (3,), (1, 2)),
        Sweep("mod", 1, (4,), (1, 2)),  # of the other seed, for want of its own
        Sweep("dpo", 1, (5,)),
    ]
    found = {v.sweep.method: v for v in sweep_volumes(front, {"helpful": -1, "harmless": -1})[:4]}
    assert {name: v.volume.value for name, v in found.items()} == {
        "reference": 1,
        "dpo": 4 + 4 - 1,
        "modpo": 9 + 2,
        "mod": 4 + 2 + 2,
    }
    assert found["modpo"].share == pytest.approx(11 / 16)
    assert found["modpo"].volume.low is None  # no rewards of answers


def test_the_interval_of_a_single_point_is_that_of_its_mean():
    rng, prompts = np.random.default_rng(0), ["p", "p", "q", "r", "s", "t"]  # p was answered twice: one unit
    reward_B2 = np.stack([rng.normal(5, 1, 6), np.full(6, 3.0)], 1)
    single = fronts.answered("a", reward_B2, fronts.OBJECTIVES, (0.5, 0.5), "x")
    front = fronts.front([single], prompts=prompts)
    (found,) = sweep_volumes(front, {"helpful": 1, "harmless": 1}, QUICK)
    of_mean = estimates(lambda weight_WB: {"m": mean(weight_WB, reward_B2[:, 0])}, units_of(prompts), QUICK)["m"]
    ends = [2 * (x - 1) for x in (of_mean.value, of_mean.low, of_mean.high)]
    assert [found.volume.value, found.volume.low, found.volume.high] == pytest.approx(ends)
    assert found.volume.low < found.volume.value < found.volume.high


@pytest.mark.parametrize("broken", ["other means", "accuracy", "one objective"])
def test_no_interval_where_the_answers_are_not_what_the_values_are_of(broken):
    reward_B2 = np.random.default_rng(1).normal(0, 1, (5, 2))
    rewards = {"helpful": reward_B2[:, 0].tolist(), "harmless": reward_B2[:, 1].tolist()}
    values = reward_B2.mean(0) + (broken == "other means")
    if broken == "one objective":
        del rewards["harmless"]
    measure = "accuracy" if broken == "accuracy" else "reward"
    one = point("a", values, answers=["x"] * 5, rewards=rewards, measure=measure)
    (found,) = sweep_volumes(fronts.front([one], prompts=list("pqrst"), measure=measure), bootstrap=QUICK)
    assert found.volume.low is None and found.volume.value > 0


def test_a_fall_beyond_the_intervals_is_reported():
    rising = [point(f"m{w}", (w, 1 - w), (w, 1 - w), half=0.05) for w in (0.1, 0.5, 0.9)]
    assert violations(fronts.front(rising)) == []
    wrong = point("m0.7", (0.3, 0.4), (0.7, 0.3), half=0.05)
    (found,) = violations(fronts.front([*rising, wrong]))  # helpful 0.3 +- 0.05 at 0.7, but 0.5 +- 0.05 at 0.5
    assert (found.objective, found.less, found.more) == ("helpful", "m0.5", "m0.7")
    assert (found.found_less, found.found_more) == (Estimate(0.5, 0.45, 0.55), Estimate(0.3, 0.25, 0.35))
    values = [(0.1, 0.9), (0.5, 0.5), (0.9, 0.1), (0.3, 0.4)]
    wide = [
        point(p.name, v, tuple(p.weights.values()), half=0.11) for p, v in zip([*rising, wrong], values, strict=True)
    ]
    assert violations(fronts.front(wide)) == []
    none = [point("a", (0.5, 0.5), (1, 3)), point("b", (0.4, 0.4), (3, 1))]  # no intervals; weights sum to 4
    assert [(v.objective, v.less, v.more) for v in violations(fronts.front(none))] == [("helpful", "a", "b")]


def test_other_sweeps_and_mixed_moves_are_not_compared():
    apart = [point("a", (1, 1), (0.2, 0.8)), point("b", (0, 0), (0.8, 0.2), method="mod")]
    assert violations(fronts.front(apart)) == []
    names = ("x", "y", "z")
    three = lambda name, values, weights: point(name, values, weights, objectives=names)
    mixed = [three("a", (1, 1, 1), (0.2, 0.2, 0.6)), three("b", (0, 1, 1), (0.3, 0.5, 0.2))]  # x and y both gain
    assert violations(fronts.front(mixed, names)) == []
    moved = [mixed[0], three("b", (0, 1, 1), (0.4, 0.2, 0.4))]
    assert [v.objective for v in violations(fronts.front(moved, names))] == ["x"]


def test_shared_work_counts_once():
    work = {"scores": Work(10.0, 20.0), "labels": Work(2.0, 0.0)}
    costs = [Cost(Work(1.0, 2.0), {"scores": work["scores"]}), Cost(Work(3.0, 4.0), work), Cost(Work(None, 1.0), work)]
    assert total_work(costs[:2]) == Work(16.0, 26.0)
    assert total_work(costs) == Work(None, 27.0)
    assert separate_work(costs[:2]) == Work(26.0, 46.0)
    assert separate_work(costs) == Work(None, 67.0)
