"""Calibration of margins, and the sign test."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxpref.evaluation import calibration
from jaxpref.evaluation.bootstrap import Bootstrap
from jaxpref.evaluation.sign_test import sign_test

LOGIT = lambda p: math.log(p / (1 - p))


def on(margins, bins=10):
    margin_B = np.array(margins, float)
    found = calibration.statistics(np.ones((1, len(margin_B))), margin_B, calibration.predictions(margin_B, bins))
    return {name.removeprefix("calibration/"): float(value[0]) for name, value in found.items()}


def from_both_sides(margins, bins):
    """ECE over `bins` of [0, 1], as usually defined, of pairs seen from chosen (outcome 1) and from rejected (0)."""
    p = 1 / (1 + np.exp(-np.array(margins)))
    prediction, outcome = np.concatenate([p, 1 - p]), np.concatenate([np.ones_like(p), np.zeros_like(p)])
    place = np.minimum((prediction * bins).astype(int), bins - 1)
    gaps = [abs(np.sum((prediction - outcome)[place == b])) for b in range(bins)]
    return sum(gaps) / len(prediction)


def test_values_by_hand():
    # Confidences 0.9, 0.9 (one of them wrong) and 0.62: bins [0.9, 0.95) and [0.6, 0.65).
    found = on([LOGIT(0.9), -LOGIT(0.9), LOGIT(0.62)])
    assert found["ece"] == pytest.approx((abs(1.8 - 1) + abs(0.62 - 1)) / 3)
    assert found["brier"] == pytest.approx((0.1**2 + 0.9**2 + 0.38**2) / 3)
    assert found["nll"] == pytest.approx(-(math.log(0.9) + math.log(0.1) + math.log(0.62)) / 3)


def test_a_policy_equal_to_its_reference():
    """All margins are 0: confidence one half, half right."""
    assert on([0.0] * 5) == pytest.approx({"ece": 0.0, "brier": 0.25, "nll": math.log(2)})


def test_extreme_margins_stay_finite():
    found = on([1e4, -1e4])
    assert found == pytest.approx({"ece": 0.5, "brier": 0.5, "nll": 5e3})


def test_folding_is_the_same_as_both_sides():
    margins = np.random.default_rng(0).normal(0.4, 1.5, 500)
    assert on(margins, 10)["ece"] == pytest.approx(from_both_sides(margins, 20), rel=1e-9)
    # Seen from the chosen side alone, a model that is always sure of `chosen` would look calibrated.
    sure_of_its_own, label_free = np.full(100, 3.0), np.where(np.arange(100) % 2, 3.0, -3.0)
    assert on(sure_of_its_own)["ece"] < 0.05 < 0.4 < on(label_free)["ece"]


def test_weights_count_groups_more_than_once():
    margin_B = np.array([0.3, -1.0, 2.0])
    weighed = calibration.statistics(np.array([[2.0, 1.0, 0.0]]), margin_B, calibration.predictions(margin_B))
    again = on([0.3, 0.3, -1.0])
    for name, value in weighed.items():
        assert float(value[0]) == pytest.approx(again[name.removeprefix("calibration/")])


def test_reliability_bins():
    margins = [LOGIT(0.52), -LOGIT(0.54), 0.0, LOGIT(0.99), 50.0]
    first, last = calibration.reliability(calibration.predictions(np.array(margins), 10), 0.95)
    assert (first.low, first.high, first.pairs) == (0.5, pytest.approx(0.55), 3)
    assert first.confidence == pytest.approx((0.52 + 0.54 + 0.5) / 3)
    assert first.accuracy == pytest.approx((1 + 0 + 0.5) / 3)  # the tie is half right
    assert (last.low, last.high, last.pairs, last.accuracy) == (pytest.approx(0.95), 1.0, 2, 1.0)


def test_wilsons_interval_is_scipys():
    for right, n in ((7, 10), (3, 3), (0, 5)):
        theirs = stats.binomtest(right, n).proportion_ci(0.9, method="wilson")
        assert calibration.wilson(right / n, n, 0.9) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_chance_interval_holds_the_error_of_a_calibrated_model_and_not_that_of_an_overconfident_one():
    rng = np.random.default_rng(5)
    strength = rng.normal(0, 1.5, 400)
    margins = np.where(rng.random(400) < 1 / (1 + np.exp(-strength)), strength, -strength)  # the label agrees so often
    inside = {}
    for name, scale in (("calibrated", 1.0), ("overconfident", 4.0)):
        chance = calibration.ece_by_chance(calibration.predictions(scale * margins), Bootstrap(300))
        assert 0 < chance.low < chance.value < chance.high
        inside[name] = chance.low <= on(scale * margins)["ece"] <= chance.high
    assert inside == {"calibrated": True, "overconfident": False}
    ties = calibration.ece_by_chance(calibration.predictions(np.zeros(50)), Bootstrap(100))
    assert ties.value == 0.0


# ---- the sign test


def test_sign_test_by_hand():
    assert sign_test(0, 0) == 1.0
    assert sign_test(1, 0) == 1.0
    assert sign_test(5, 0) == 2 / 32
    assert sign_test(1, 5) == sign_test(5, 1) == 2 * (1 + 6) / 64
    assert sign_test(4, 4) == 1.0


@pytest.mark.parametrize("wins, losses", [(12, 5), (300, 250), (5000, 5200), (0, 3000)])
def test_sign_test_is_scipys(wins, losses):
    assert sign_test(wins, losses) == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, rel=1e-9)
