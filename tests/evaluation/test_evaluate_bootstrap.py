"""Bootstrap intervals, and the statistics that they are made for."""

import numpy as np
import pytest
from scipy import stats

from jaxpref.errors import InputError
from jaxpref.evaluation import bootstrap as bs
from jaxpref.evaluation.bootstrap import Bootstrap, correlation, estimates, mean, ratio, roc_area, units_of


def weights_of(counts):
    """[1, B]: how often every group counts."""
    return np.array([counts], float)


# ---- statistics of weights are those of the data repeated so often


def repeated(counts, *arrays):
    return [np.repeat(array, counts) for array in arrays]


@pytest.fixture
def sample():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=40), rng.integers(0, 5, 40).astype(float)
    return x, y, x + y + rng.normal(size=40), rng.integers(0, 4, 40)


def test_mean_and_ratio(sample):
    x, y, _, counts = sample
    xs, ys = repeated(counts, x, y)
    np.testing.assert_allclose(mean(weights_of(counts), x), [xs.mean()])
    np.testing.assert_allclose(ratio(weights_of(counts), x, y), [xs.sum() / ys.sum()])
    assert np.isnan(ratio(weights_of([1, 1]), np.ones(2), np.zeros(2))).all()


def test_correlation_is_pearsons(sample):
    _, y, z, counts = sample
    ys, zs = repeated(counts, y, z)
    found = correlation(np.stack([counts, np.ones(40)]).astype(float), y, 1e6 + z)
    np.testing.assert_allclose(found, [stats.pearsonr(ys, zs).statistic, stats.pearsonr(y, z).statistic], rtol=1e-9)
    assert np.isnan(correlation(weights_of([1, 1, 1]), np.array([1.0, 2.0, 3.0]), np.full(3, 0.1))).all()
    # One group alone has no spread, also where the others differ.
    assert np.isnan(correlation(weights_of([3, 0, 0]), np.array([1.0, 2.0, 3.0]), np.array([1.0, 5.0, 2.0]))).all()


def test_roc_area_is_mann_whitneys(sample):
    _, y, _, counts = sample  # whole numbers: many ties
    positive = np.arange(40) % 3 == 0
    ys, at = repeated(counts, y, positive)
    expected = stats.mannwhitneyu(ys[at], ys[~at]).statistic / (at.sum() * (~at).sum())
    np.testing.assert_allclose(roc_area(weights_of(counts), y, positive.astype(float)), [expected])
    assert np.isnan(roc_area(weights_of([1, 1]), np.array([1.0, 2.0]), np.ones(2))).all()
    assert roc_area(weights_of([1, 1]), np.array([2.0, 1.0]), np.array([0.0, 1.0])) == [0.0]


# ---- intervals


def test_units_are_drawn_with_all_their_groups():
    unit_B = units_of(["p", "q", "p", "r"])
    assert unit_B.tolist() == [0, 1, 0, 2]
    weight_WB = np.concatenate(list(bs.resampled_weights(unit_B, Bootstrap(resamples=500))))
    assert weight_WB.shape == (500, 4)
    np.testing.assert_array_equal(weight_WB[:, 0], weight_WB[:, 2])
    np.testing.assert_array_equal(weight_WB[:, [0, 1, 3]].sum(1), 3)  # as many units as there are
    np.testing.assert_allclose(weight_WB.mean(0), 1, atol=0.15)


def test_resamples_depend_on_the_seed_and_not_on_the_size_of_blocks(monkeypatch):
    unit_B = np.arange(50)
    draw = lambda seed: np.concatenate(list(bs.resampled_weights(unit_B, Bootstrap(resamples=300, seed=seed))))
    whole = draw(1)
    monkeypatch.setattr(bs, "_CELLS", 50 * 7)
    np.testing.assert_array_equal(draw(1), whole)
    assert not np.array_equal(draw(2), whole)


def test_percentile_interval_agrees_with_scipys():
    x_B = np.random.default_rng(0).exponential(size=200)
    found = estimates(lambda w: {"mean": mean(w, x_B)}, np.arange(200), Bootstrap(4000, 0.9))["mean"]
    theirs = stats.bootstrap((x_B,), np.mean, n_resamples=4000, confidence_level=0.9, method="percentile", rng=7)
    assert found.value == pytest.approx(x_B.mean(), rel=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.1 * x_B.std() / 200**0.5)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """300 data sets of 60 prompts with two equal groups each: 90% intervals of the mean hold the true one in 90%.

    Of as many trials the share lies within 0.05 of 0.9 but for odds of 1 : 500.  Intervals that took the two groups of
    a prompt for independent would be narrower by the root of 2 and hold it in 76%.
    """
    rng, unit_B, held = np.random.default_rng(11), np.repeat(np.arange(60), 2), {"prompts": 0, "groups": 0}
    for trial in range(300):
        x_B = np.repeat(rng.normal(1.0, 2.0, 60), 2)
        for name, units in (("prompts", unit_B), ("groups", np.arange(120))):
            e = estimates(lambda w, x_B=x_B: {"m": mean(w, x_B)}, units, Bootstrap(400, 0.9, seed=trial))["m"]
            held[name] += e.low <= 1.0 <= e.high
    assert abs(held["prompts"] / 300 - 0.9) < 0.05
    assert held["groups"] / 300 < 0.85


def test_no_interval_where_a_resample_is_undefined():
    """Of three groups one resample in nine is one group three times, without a correlation."""
    x_B, y_B = np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0, 5.0])
    found = estimates(lambda w: {"r": correlation(w, x_B, y_B), "m": mean(w, x_B)}, np.arange(3), Bootstrap())
    assert found["r"].value == pytest.approx(stats.pearsonr(x_B, y_B).statistic)
    assert found["r"].low is None and found["r"].high is None
    assert found["m"].low < found["m"].value < found["m"].high
    alone = estimates(lambda w: {"m": mean(w, x_B)}, np.zeros(3, int), Bootstrap())["m"]
    assert alone.value == pytest.approx(7 / 3) and alone.low is None


@pytest.mark.parametrize("wrong", [{"resamples": 10}, {"level": 1.0}, {"level": 95}, {"seed": -1}])
def test_options_out_of_bounds(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        Bootstrap(**wrong)
