"""Objectives on judged completions: hand values, what the batch shares, metrics by label, and TRL's own values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trl_batch

from jaxpref.models.logprobs import Logps
from jaxpref.objectives import bind
from jaxpref.objectives.unpaired import apo_zero_unpaired, bco, kto


def logps(sums, counts=None):
    total = jnp.asarray(sums)
    count = jnp.ones_like(total) if counts is None else jnp.asarray(counts, total.dtype)
    return Logps(total, count, jnp.zeros_like(total), jnp.zeros_like(total))


def value(out):
    return float((out.weight_B * out.loss_B).sum() / out.weight_B.sum())


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x)))


# rho of the judged answers (1, -2, 0.5, 0) and of the others (2, 0.4, -0.9, 0): the last slot is empty, z0 = 0.5
RHO = jnp.array([[1.0, 2.0], [-2.0, 0.4], [0.5, -0.9], [0.0, 0.0]])
COUNTS = [[3, 2], [1, 4], [2, 2], [0, 0]]
LABEL = jnp.array([1.0, 0.0, 1.0, 0.0])
REF = logps([[-3.0, -4.0], [-5.0, -1.0], [-2.0, -6.0], [0.0, 0.0]], COUNTS)
POLICY = logps(REF.sum + RHO, COUNTS)
START = {"mean": jnp.zeros(()), "count": jnp.zeros(())}


def test_kto_by_hand():
    out = kto(POLICY, REF, LABEL, beta=0.4, desirable_weight=1.5, undesirable_weight=0.5)
    expected = [1.5 * (1 - sigmoid(0.4 * 0.5)), 0.5 * (1 - sigmoid(0.4 * 2.5)), 1.5 * 0.5]
    np.testing.assert_allclose(out.loss_B[:3], expected, rtol=1e-6)
    assert out.weight_B.tolist() == [1, 1, 1, 0], "the weights of the sides are not divided out"
    np.testing.assert_allclose(out.metrics["kl"], 0.5, rtol=1e-6)
    assert value(kto(REF, REF, LABEL)) == pytest.approx(0.5)


def test_the_estimate_of_the_divergence_is_not_negative_and_has_no_gradient():
    low = POLICY._replace(sum=POLICY.sum - jnp.array([[0.0, 3.0]] * 3 + [[0.0, 0.0]]))
    assert not np.any(kto(low, REF, LABEL).metrics["kl"])
    anchored = apo_zero_unpaired(low, REF, LABEL, beta=0.1)
    np.testing.assert_allclose(kto(low, REF, LABEL, beta=0.1).loss_B, anchored.loss_B, rtol=1e-6)
    grad = jax.grad(lambda s: kto(POLICY._replace(sum=s), REF, LABEL, beta=0.4).loss_B.sum())(POLICY.sum)
    distance = np.array([0.5, -2.5, 0.0])
    slope = 0.4 * sigmoid(0.4 * distance) * sigmoid(-0.4 * distance)
    np.testing.assert_allclose(grad[:3, 0], np.array([-1, 1, -1]) * slope, rtol=1e-5)
    assert not np.any(grad[:, 1])


def test_apo_zero_by_hand():
    out = apo_zero_unpaired(POLICY, REF, LABEL, beta=0.4)
    np.testing.assert_allclose(out.loss_B[:3], [1 - sigmoid(0.4), sigmoid(-0.8), 1 - sigmoid(0.2)], rtol=1e-6)
    np.testing.assert_allclose(out.metrics["rewards/signed"][:3], [0.4, 0.8, 0.2], rtol=1e-6)
    assert out.metrics["rewards/accuracies"].tolist() == [1, 1, 1, 0]
    assert value(apo_zero_unpaired(REF, REF, LABEL)) == 0.5
    assert not np.any(apo_zero_unpaired(REF, REF, LABEL).metrics["rewards/accuracies"]), "a tie is not right"


def test_bco_by_hand():
    """Rewards 0.5 * (1, -2, 0.5), mean -1/12; then after 5 rewards of mean 0.7, (3.5 - 0.25) / 8."""
    out = bco(POLICY, REF, LABEL, START, beta=0.5)
    shifted = np.array([0.5, -1.0, 0.25]) + 1 / 12
    np.testing.assert_allclose(out.loss_B[:3], np.log1p(np.exp(shifted * [-1, 1, -1])), rtol=1e-6)
    assert out.running["mean"] == pytest.approx(-1 / 12, rel=1e-6) and out.running["count"] == 3
    later = bco(POLICY, REF, LABEL, {"mean": jnp.array(0.7), "count": jnp.array(5.0)}, beta=0.5)
    assert later.running["mean"] == pytest.approx(3.25 / 8, rel=1e-6) and later.running["count"] == 8
    np.testing.assert_allclose(later.metrics["bco/delta"], 3.25 / 8, rtol=1e-6)
    assert value(bco(REF, REF, LABEL, START)) == pytest.approx(math.log(2), rel=1e-6)


def test_bco_shift_has_no_gradient_and_survives_an_empty_batch():
    loss = lambda s: bco(POLICY._replace(sum=s), REF, LABEL, START, beta=0.5).loss_B[0]
    grad = jax.grad(loss)(POLICY.sum)
    assert grad[0, 0] == pytest.approx(-0.5 * float(sigmoid(-0.5 - 1 / 12)), rel=1e-6)
    assert np.count_nonzero(grad) == 1
    empty = jax.tree.map(lambda x: x[3:], POLICY)
    out = bco(empty, empty, LABEL[3:], START)
    assert out.running["mean"] == 0 and np.all(np.isfinite(out.loss_B)) and out.weight_B[0] == 0


def test_rewards_of_each_label_average_to_their_means():
    """Desirable rewards 0.4, 0.2, undesirable -0.8, whatever the data's weights; the empty slot counts nowhere."""
    weight = jnp.array([3.0, 1.0, 0.0, 1.0])
    for out in (
        kto(POLICY, REF, LABEL, weight, beta=0.4),
        apo_zero_unpaired(POLICY, REF, LABEL, weight, beta=0.4),
        bco(POLICY, REF, LABEL, START, weight, beta=0.4),
    ):
        assert value(out.metrics["rewards/chosen"]) == pytest.approx(0.3, rel=1e-6)
        assert value(out.metrics["rewards/rejected"]) == pytest.approx(-0.8, rel=1e-6)
        assert out.metrics["rewards/rejected"].weight_B.tolist() == [0, 1, 0, 0]
        assert "rewards/margins" not in out.metrics
    one_sided = kto(POLICY, REF, jnp.ones(4), beta=0.4).metrics
    assert value(one_sided["rewards/chosen"]) == pytest.approx(0.4 * (1 - 2 + 0.5) / 3, rel=1e-5)
    assert not np.any(one_sided["rewards/rejected"].weight_B)


def test_a_weight_of_2_is_the_same_as_having_the_group_twice():
    """Also in what the batch shares; a weight of 0 the same as not having it."""
    weight, repeat = jnp.array([2.0, 1.0, 0.0, 3.0]), jnp.array([0, 0, 1])
    twice = lambda logp: jax.tree.map(lambda x: x[repeat], logp)
    pick = lambda objective, *more: (
        value(objective(POLICY, REF, LABEL, *more, weight, beta=0.4)),
        value(objective(twice(POLICY), twice(REF), LABEL[repeat], *more, beta=0.4)),
    )
    for weighted, repeated in (pick(kto), pick(apo_zero_unpaired), pick(bco, START)):
        assert weighted == pytest.approx(repeated, rel=1e-6)


def test_bound_parts_ask_for_label_and_running_statistics():
    (part,) = bind([bco], {})
    assert part.columns == ("label",) and part.needs.coupled and part.needs.running == {"mean": 0.0, "count": 0.0}
    out = part(POLICY, REF, {"label": LABEL, "running": START, "weight": jnp.array([0.0, 1.0, 0.0, 1.0])})
    assert out.weight_B.tolist() == [0, 1, 0, 0]
    assert bind([kto], {})[0].needs.groups == ("judged_other",)


# TRL 1.16.0 in float64, beta 0.1: the 4 chosen completions are desirable, the 4 rejected ones undesirable.
TRL_KL = 0.4270083391430898
OTHER_RHO = [  # each prompt with the completion of the row before, from the closed forms of `trl_batch`
    [-0.6126562239075106, 3.4369357382031005, 0.8870314930264618, 0.8387246288929333],
    [0.13490058510563685, 0.3270369601159029, -0.7172604409882872, -0.8786460273035197],
]
TRL = [
    (kto, {}, 0.4995443642631877),
    (kto, {"desirable_weight": 1.33, "undesirable_weight": 0.7}, 0.5049543081189931),
    (apo_zero_unpaired, {}, 0.49953951541661906),
]


@pytest.mark.parametrize("objective, hyperparameters, loss", TRL)
def test_golden_values_of_trl(objective, hyperparameters, loss):
    with jax.enable_x64(True):
        policy, ref = trl_batch.batch()
        other = jnp.array(OTHER_RHO).reshape(-1)
        sums = lambda logp, extra: logps(jnp.stack([logp.sum.T.reshape(-1), extra], axis=1))
        label = jnp.repeat(jnp.array([1.0, 0.0]), 4)
        out = objective(sums(policy, other), sums(ref, jnp.zeros(8)), label, **hyperparameters)
        assert value(out) == pytest.approx(loss, rel=1e-9)
        if objective is kto:
            assert float(out.metrics["kl"].mean()) == pytest.approx(TRL_KL, rel=1e-9)
            assert value(out.metrics["rewards/chosen"]) == pytest.approx(0.07098698720930993, rel=1e-9)
            assert value(out.metrics["rewards/rejected"]) == pytest.approx(0.06737118525792214, rel=1e-9)
