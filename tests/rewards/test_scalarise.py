"""Scalarisers: values by hand, what they do not depend on, and what raises them."""

import itertools

import numpy as np
import pytest

from jaxpref.errors import InputError
from jaxpref.rewards.scalarise import SCALARISERS, Scalariser, read_scalariser, scalarised

WEIGHTS = [1.0, 0.5, 2.0, 1.0]
REWARDS = np.array([[1.0, 4.0, 0.5, 4.0], [0.0, 0.0, 3.0, 1.0]])
"""Weighted: 1 2 1 4 and 0 0 6 1."""
BY_HAND = {
    "linear": [8.0, 7.0],
    "worst_case": [1.0, 0.0],
    "uncertainty": [2.0 - 0.5 * 6 / 4, 7 / 4 - 0.5 * (37 / 4 - 49 / 16)],
    "lower_third": [1.0, 0.0],
    "median": [1.0, 0.0],  # the lower of the two in the middle
    "nash": [8.0, 0.0],
    "soft_max_min": [
        (2 * np.exp(-1) + 2 * np.exp(-2) + 4 * np.exp(-4)) / (2 * np.exp(-1) + np.exp(-2) + np.exp(-4)),
        (6 * np.exp(-6) + np.exp(-1)) / (2 + np.exp(-6) + np.exp(-1)),
    ],
}
MONOTONE = [name for name in SCALARISERS if name not in ("soft_max_min", "uncertainty")]


@pytest.fixture
def random_rewards():
    return np.random.default_rng(0).uniform(0, 3, size=(40, 7))


def ones(name, r):
    return scalarised(r, name, np.ones(r.shape[-1]))


@pytest.mark.parametrize("name", SCALARISERS)
def test_by_hand(name):
    found = scalarised(REWARDS, name, WEIGHTS)
    assert found.dtype == np.float64 and found.shape == (2,)
    np.testing.assert_allclose(found, BY_HAND[name], rtol=1e-14)
    assert set(BY_HAND) == set(SCALARISERS)


def test_parameters_by_hand():
    two = np.array([1.0, 3.0])
    assert scalarised(two, "uncertainty", [1, 1], 2.0) == 2 - 2 * 1
    assert scalarised(two, "soft_max_min", [1, 1], 0.5) == pytest.approx((1 + 3 * np.exp(-4)) / (1 + np.exp(-4)))


@pytest.mark.parametrize("name", SCALARISERS)
def test_the_order_of_the_rewards_counts_for_nothing(name, random_rewards):
    shuffled = np.random.default_rng(1).permutation(random_rewards, axis=-1)
    np.testing.assert_allclose(ones(name, shuffled), ones(name, random_rewards), rtol=1e-13)
    assert (shuffled != random_rewards).any()


@pytest.mark.parametrize("name", MONOTONE)
def test_a_higher_reward_is_never_worse(name, random_rewards):
    rng = np.random.default_rng(2)
    for i in range(random_rewards.shape[-1]):
        higher = random_rewards.copy()
        higher[:, i] += rng.uniform(0, 2, len(higher))
        assert (ones(name, higher) >= ones(name, random_rewards) - 1e-12).all()


@pytest.mark.parametrize("name", ["soft_max_min", "uncertainty"])
def test_these_are_not_monotone(name):
    """As their docstrings say: what is far above the rest can cost."""
    assert ones(name, np.array([0.0, 9.0])) < ones(name, np.array([0.0, 1.0]))


def test_limits_of_soft_max_min(random_rewards):
    even = np.ones(7)
    np.testing.assert_allclose(
        scalarised(random_rewards, "soft_max_min", even, 1e9), random_rewards.mean(-1), rtol=1e-6
    )
    np.testing.assert_allclose(
        scalarised(random_rewards, "soft_max_min", even, 1e-4), random_rewards.min(-1), rtol=1e-6
    )
    huge = scalarised(np.array([-2000.0, 1e3]), "soft_max_min", [1, 1])
    assert huge == -2000.0


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_lower_third_takes_a_whole_number(n):
    r = np.arange(n, 0, -1.0)
    assert ones("lower_third", r) == (1.0 if n < 6 else 1.5)


@pytest.mark.parametrize("n", range(1, 8))
def test_median_is_the_lower_one(n):
    r = np.random.default_rng(n).normal(size=(5, n))
    np.testing.assert_array_equal(ones("median", r), np.quantile(r, 0.5, axis=-1, method="lower"))


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("best", [1, 1]), "worst_case"),
        (("linear", [1]), "for 2"),
        (("linear", [1, np.nan]), "finite weight"),
        (("linear", [1, 1], 2.0), "no parameter"),
        (("soft_max_min", [1, 1], 0.0), "temperature > 0"),
        (("uncertainty", [1, 1], -1.0), "penalty >= 0"),
        (("lower_third", [1, 1]), "three rewards"),
        (("nash", [1, -1]), "rewards >= 0"),
    ],
)
def test_what_is_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        scalarised(np.array([1.0, 2.0]), *arguments)


def test_by_name_and_from_text():
    made = read_scalariser("soft_max_min@0.5:helpful=0.6,brief/a=0.4")
    assert made == Scalariser("soft_max_min", {"helpful": 0.6, "brief/a": 0.4}, 0.5)
    scores = {"brief/a": (1.0, 2.0), "helpful": (3.0, 0.0), "other": (9.0, 9.0)}
    expected = scalarised(np.array([[3.0, 1.0], [0.0, 2.0]]), "soft_max_min", [0.6, 0.4], 0.5)
    np.testing.assert_array_equal(made(scores), expected)
    for wrong in ("linear", "linear:", "linear:a", "linear:a=x", "linear:a=1,a=2", "mean:a=1", "nash@b:a=1"):
        with pytest.raises(InputError, match="KIND:SCORE=WEIGHT"):
            read_scalariser(wrong)


def test_weights_come_before():
    """Each reward is multiplied first: the worst case of w * r, not w * the worst case."""
    r = np.array([1.0, 5.0])
    found = [scalarised(r, "worst_case", w) for w in itertools.permutations([10.0, 1.0])]
    assert found == [5.0, 1.0]
