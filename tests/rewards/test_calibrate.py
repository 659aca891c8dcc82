"""Temperatures: recovered from data of a known one, against a fine grid, and refused where there is none."""

import numpy as np
import pytest

from jaxpref.errors import InputError
from jaxpref.rewards import Reward, calibrate, fit_temperature
from jaxpref.types import Group


def differences(temperature, count=4000, seed=0, spread=2.0):
    """r_chosen - r_rejected where chosen is drawn with probability sigmoid(d / T)."""
    rng = np.random.default_rng(seed)
    d = rng.normal(size=count) * spread * temperature
    return np.where(rng.random(count) < 1 / (1 + np.exp(-d / temperature)), d, -d)


def log_likelihood(d, temperature):
    return -np.logaddexp(0, -d / temperature).sum()


@pytest.mark.parametrize("temperature", [1e-4, 0.3, 1.0, 25.0, 1e5])
def test_the_temperature_that_drew_the_data(temperature):
    found = fit_temperature(differences(temperature))
    assert abs(found.value - temperature) < 3 * found.error
    assert 0.01 < found.error / found.value < 0.1


def test_it_is_where_a_fine_grid_has_its_maximum():
    d = differences(0.7, count=300, seed=3)
    grid = np.exp(np.linspace(np.log(0.2), np.log(3), 200001))
    best = grid[np.argmax([log_likelihood(d, t) for t in grid[::1000]]) * 1000]
    near = np.linspace(best * 0.9, best * 1.1, 4001)
    best = near[np.argmax([log_likelihood(d, t) for t in near])]
    found = fit_temperature(d)
    assert found.value == pytest.approx(best, rel=1e-4)
    # The slope is zero to rounding, which no grid shows.
    a = 1 / found.value
    assert abs(np.sum(d / (1 + np.exp(a * d)))) < 1e-9 * np.abs(d).sum()


def test_the_standard_error_is_the_spread_of_estimates():
    found = [fit_temperature(differences(2.0, count=400, seed=seed)) for seed in range(300)]
    spread = np.std([fit.value for fit in found])
    assert np.mean([fit.error for fit in found]) == pytest.approx(spread, rel=0.15)


def test_units_go_through_and_ties_count_for_nothing():
    d = differences(1.0, count=500)
    base, scaled = fit_temperature(d), fit_temperature(1e6 * d)
    assert scaled.value == pytest.approx(1e6 * base.value) and scaled.error == pytest.approx(1e6 * base.error)
    tied = fit_temperature(np.concatenate([d, np.zeros(70)]))
    assert (tied.value, tied.error) == pytest.approx((base.value, base.error)) and (tied.pairs, tied.ties) == (570, 70)


def test_hard_data_is_solved():
    """One strong mistake among many tiny agreements, and nearly separable data."""
    for d in (np.array([1e-6] * 1000 + [-1e-4]), np.array([1.0] * 100000 + [-1e-9]), np.array([3.0, 2.0, -4.9])):
        found = fit_temperature(d)
        values = [log_likelihood(d, t) for t in found.value * np.array([0.99, 1.0, 1.01])]
        assert values[1] >= max(values)


@pytest.mark.parametrize(
    "d, said",
    [
        ([1.0, 2.0, 0.0], "2 with the higher reward for chosen, 0 for rejected, 1 ties"),
        ([1.0, -2.0], "change its sign"),
        ([1.0, -1.0], "change its sign"),
        ([-1.0, -2.0], "change its sign"),
        ([0.0, 0.0], "rewards differ"),
        ([], "rewards differ"),
    ],
)
def test_where_no_temperature_fits(d, said):
    with pytest.raises(InputError, match=said):
        fit_temperature(np.array(d))


def test_a_calibrated_reward_gives_probabilities():
    rng = np.random.default_rng(1)
    value = {f"{i}": float(x) for i, x in enumerate(rng.normal(size=2000) * 50)}
    probability = lambda a, b: 1 / (1 + np.exp(-(value[a] - value[b]) / 40.0))
    pairs = []
    for i in range(0, 2000, 2):
        a, b = str(i), str(i + 1)
        pairs.append(Group("q", (a, b) if rng.random() < probability(a, b) else (b, a), i, "w"))
    raw = Reward("r", lambda prompts, answers: [value[answer] for answer in answers])
    made = calibrate(raw, pairs)
    assert made.bradley_terry and not raw.bradley_terry and made.name == "r"
    assert abs(made.temperature - 40) < 3 * made.temperature_error < 20
    np.testing.assert_allclose(made(["q"], ["7"]), value["7"] / made.temperature)
    assert made.of(pairs[:1]) == [tuple(value[x] / made.temperature for x in pairs[0].completions)]
    # It is on the scale now: a second time there is nothing left to do.
    again = calibrate(made, pairs)
    assert again.temperature == pytest.approx(made.temperature)
