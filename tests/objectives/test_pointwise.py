"""Pointwise objectives in float64: golden values of TRL, values and gradients by hand, the running mean of BCO."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trl_batch

from jaxpref.models.logprobs import Logps
from jaxpref.objectives.pairwise import dpo
from jaxpref.objectives.pointwise import (
    apo_down,
    apo_zero,
    bco_pair,
    bco_pair_centred,
    cal_dpo,
    mdpo_anchor,
    nca,
    sppo_hard,
    sppo_soft,
)

# TRL 1.16.0's DPOTrainer in float64 on the pairs of trl_batch.py, beta 0.1: the batch's loss.
TRL_LOSSES = [
    (nca, 1.387154246376982),
    (bco_pair, 1.3864684216757455),
    (sppo_hard, 51.22517860468392),
    (apo_zero, 0.9990790308332381),
    (apo_down, 1.016821130325326),
]

PAIRS = 16
"""Most tests run on so many pairs, their own over and over, because each new shape is compiled."""
LN2, LN3 = math.log(2), math.log(3)
RIGHT, WRONG = math.log(4 / 3), math.log(4)  # -log sigmoid(log 3) and -log sigmoid(-log 3)
START = {"mean": 0.0, "count": 0.0}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def rows(x):
    x = np.asarray(x, float)
    return np.resize(x, (PAIRS, *x.shape[1:]))


def logps(sums, counts=None):
    total = jnp.asarray(sums, float)
    zeros = np.zeros_like(total)
    return Logps(total, zeros + 1.0 if counts is None else np.asarray(counts, float), zeros, zeros)


def exactly(rho, counts=None):
    """Policy and reference with these log-ratios, a list of pairs."""
    return logps(np.array(rho) - 40.0, counts), logps(np.full(np.shape(rho), -40.0), counts)


def at(rho):
    """The same for one pair or a list, repeated."""
    return exactly(rows(np.atleast_2d(rho)))


def repeated(columns):
    return [column if isinstance(column, dict) else rows(column) for column in columns]


def loss(function, pairs, *columns, **hyper):
    return np.asarray(function(*pairs, *repeated(columns), **hyper).loss_B)


def gradient(function, pairs, *columns, **hyper):
    """[B, 2] with respect to the policy's summed log-probs."""
    (policy, ref), columns = pairs, repeated(columns)
    of_sum = lambda total: function(policy._replace(sum=total), ref, *columns, **hyper).loss_B.sum()
    return np.asarray(jax.grad(of_sum)(policy.sum))


@pytest.mark.parametrize("function, expected", TRL_LOSSES)
def test_golden_values_of_trl(function, expected):
    out = function(*(logps(rows(side.sum)) for side in trl_batch.batch()), beta=0.1)
    assert np.all(out.weight_B == 1)
    np.testing.assert_allclose(np.mean(out.loss_B), expected, rtol=1e-9)
    np.testing.assert_allclose(out.metrics["rewards/chosen"].mean(), 0.07098698720930993, rtol=1e-9)
    np.testing.assert_allclose(out.metrics["rewards/rejected"].mean(), 0.06737118525792214, rtol=1e-9)


BY_HAND = [
    (nca, (LN3, -LN3), (), {}, RIGHT + 0.5 * WRONG + 0.5 * RIGHT),
    (sppo_hard, (2, 3), (), {}, 1.5**2 + 3.5**2),
    (sppo_soft, (2, 3), ([0.8],), {}, 1.7**2 + 3.3**2),
    (cal_dpo, (LN3, 0), (), {"beta": 0.5, "lam": 2.0}, RIGHT + 2 * ((LN3 - 1) ** 2 + 1)),
    (mdpo_anchor, (LN3, 7), (), {}, RIGHT),
    (mdpo_anchor, (2 * LN3, 7), (), {"beta": 0.5, "delta": 2 * LN3}, WRONG),
    (apo_zero, (LN3, -LN3), (), {}, 0.5),
    (apo_down, (LN3, 0), (), {}, 0.75 + 0.25),
    (apo_down, (-LN3, -2 * LN3), (), {}, 0.25 + 0.25),
    (bco_pair, (LN3, LN3), (), {}, RIGHT + WRONG),
    (bco_pair_centred, (LN3, -LN3), (START,), {}, 2 * RIGHT),
    (bco_pair_centred, (2 * LN3, 0), (START,), {}, 2 * RIGHT),  # delta = log 3
]


@pytest.mark.parametrize("function, rho, columns, hyper, expected", BY_HAND)
def test_by_hand(function, rho, columns, hyper, expected):
    np.testing.assert_allclose(loss(function, at(rho), *columns, **({"beta": 1.0} | hyper)), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "function, columns, hyper, expected",
    [
        (nca, (), {}, 2 * LN2),
        (bco_pair, (), {}, 2 * LN2),
        (bco_pair_centred, (START,), {}, 2 * LN2),
        (sppo_hard, (), {"beta": 0.01}, 5000),
        (sppo_soft, ([0.9],), {"beta": 0.01}, 2 * 40**2),
        (cal_dpo, (), {"beta": 0.01, "lam": 0.5}, LN2 + 2500),
        (mdpo_anchor, (), {}, LN2),
        (apo_zero, (), {}, 1),
        (apo_down, (), {}, 1),
    ],
)
def test_constant_where_policy_equals_reference(function, columns, hyper, expected):
    np.testing.assert_allclose(loss(function, at((0, 0)), *columns, **hyper), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "function, expected",
    [
        (nca, (-0.25, 0.25)),
        (bco_pair, (-0.5, 0.5)),
        (apo_zero, (-0.25, 0.25)),
        (apo_down, (0, 0.25)),
        (mdpo_anchor, (-0.5, 0)),
        (sppo_hard, (-1 / 0.04, 1 / 0.04)),
        (cal_dpo, (-1 / 0.04 - 0.5 / 0.2, 1 / 0.04 + 0.5 / 0.2)),
    ],
)
def test_gradient_where_policy_equals_reference(function, expected):
    """Per unit of beta, here 0.2."""
    np.testing.assert_allclose(gradient(function, at((0, 0)), beta=0.2)[0], np.multiply(expected, 0.2), rtol=1e-12)


def test_reductions():
    pairs = at([[1.0, -2.0], [0.5, 4.0]])
    same = lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-12)
    for what in (loss, gradient):
        same(what(sppo_soft, pairs, [1.0]), what(sppo_hard, pairs))
        same(what(sppo_soft, pairs, [0.5], beta=0.1), what(sppo_soft, pairs, [0.5], beta=9.0))
        same(what(cal_dpo, pairs, lam=0.0), what(dpo, pairs, beta=1.0))
    one_sided = gradient(mdpo_anchor, pairs)
    assert not one_sided[:, 1].any() and np.all(one_sided[:, 0] < 0)


def test_sppo_soft_under_swapped_labels():
    """P of the pair and 1 - P of the swapped pair are the same information."""
    left = loss(sppo_soft, at((1, -2)), [0.8], beta=0.3)
    np.testing.assert_allclose(left, loss(sppo_soft, at((-2, 1)), [0.2], beta=0.3), rtol=1e-12)
    assert np.all(left != loss(sppo_soft, at((-2, 1)), [0.8], beta=0.3))


def test_nca_ends_at_log_2():
    grad = gradient(nca, at([[LN2 - 0.1, -1], [LN2, -1], [LN2 + 0.1, -1]]), beta=1.0)
    assert grad[0, 0] < -1e-3 and abs(grad[1, 0]) < 1e-15 and grad[2, 0] > 1e-3


def test_bco_bounds_dpo_from_above():
    pairs = at([[x, y] for x in (-5.0, -0.3, 0.0, 2.0) for y in (-4.0, 0.0, 0.5, 6.0)])
    assert np.all(loss(bco_pair, pairs, beta=1.0) > loss(dpo, pairs, beta=1.0))
    assert np.all(loss(bco_pair_centred, pairs, START, beta=1.0) > loss(dpo, pairs, beta=1.0))


def test_delta_is_the_mean_of_all_rewards_so_far():
    """Two batches of three slots, some of them empty, and the same three pairs at once."""
    first = exactly([[4.0, 2.0], [0.0, -2.0], [0.0, 0.0]], [[1, 1], [1, 1], [0, 0]])
    second = exactly([[0.0, 0.0], [10.0, 6.0], [0.0, 0.0]], [[0, 0], [1, 1], [0, 0]])
    one = bco_pair_centred(*first, START, beta=0.5)
    assert one.running == {"mean": 0.5, "count": 4.0}
    two = bco_pair_centred(*second, one.running, beta=0.5)
    np.testing.assert_allclose([two.running["mean"], two.running["count"]], [10 / 6, 6.0], rtol=1e-12)
    assert two.metrics["bco/delta"].tolist() == [two.running["mean"]] * 3
    at_once = bco_pair_centred(*exactly([[4.0, 2.0], [0.0, -2.0], [10.0, 6.0]]), START, beta=0.5)
    np.testing.assert_allclose(at_once.loss_B[2], two.loss_B[1], rtol=1e-12)


def test_delta_has_no_gradient():
    pairs = at([[4.0, 2.0], [1.0, -2.0]])
    fixed = lambda rho: -jax.nn.log_sigmoid(rho[:, 0] - 1.25) - jax.nn.log_sigmoid(1.25 - rho[:, 1])
    expected = jax.grad(lambda rho: fixed(rho).sum())(pairs[0].sum - pairs[1].sum)
    np.testing.assert_allclose(gradient(bco_pair_centred, pairs, START, beta=1.0), expected, rtol=1e-12)


def test_delta_counts_pairs_by_weight_and_no_empty_slots():
    counts = [[1, 1], [1, 1], [0, 0]]
    padded = exactly([[4.0, 2.0], [1.0, -2.0], [0.0, 0.0]], counts)
    weighted = bco_pair_centred(*padded, START, jnp.array([2.0, 1.0, 5.0]), beta=1.0)
    listed = bco_pair_centred(*exactly([[4.0, 2.0], [4.0, 2.0], [1.0, -2.0]]), START, beta=1.0)
    assert weighted.weight_B.tolist() == [2.0, 1.0, 0.0]
    assert weighted.running == listed.running == {"mean": pytest.approx(11 / 6), "count": 6.0}
    mean = lambda out: np.average(out.loss_B, weights=out.weight_B)
    np.testing.assert_allclose(mean(weighted), mean(listed), rtol=1e-12)
    nothing = bco_pair_centred(*exactly([[0.0, 0.0]] * 3, [[0, 0]] * 3), {"mean": 3.0, "count": 2.0})
    assert nothing.running == {"mean": 3.0, "count": 2.0}
