"""Token-wise variants of DPO: hand values, reductions to DPO, gradients by hand, TRL's values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trl_batch

from jaxpref.models.logprobs import Logps
from jaxpref.objectives import bind
from jaxpref.objectives.pairwise import dpo
from jaxpref.objectives.tokenwise import ld_dpo, sampo, tdpo1, tdpo2, wpo, wpo_clamped

ALL = [wpo, wpo_clamped, ld_dpo, sampo, tdpo1, tdpo2]
FIELDS = ("common", "sampled", "collision", "kl")


def logps(sums, counts, **optional):
    total = jnp.asarray(sums, jnp.float32)
    fields = {name: jnp.asarray(x, jnp.float32) for name, x in optional.items()}
    return Logps(total, jnp.asarray(counts, jnp.float32), jnp.zeros_like(total), jnp.zeros_like(total), **fields)


# rho = (1, -1): D = 2.  Means of log p(y) - log sum p^2: (-4 + 3)/2 = -0.5 and (-6 + 8)/4 = 0.5.
POLICY = logps(
    [[-4.0, -6.0]],
    [[2, 4]],
    common=[[-4.0, -3.0]],
    sampled=[[-4.0, -2.5]],
    collision=[[-3.0, -8.0]],
    kl=[[0.3, 0.8]],
)
REF = logps([[-5.0, -5.0]], [[2, 4]], common=[[-5.0, -2.0]], sampled=[[-5.0, -3.0]], collision=[[-3.0, -6.0]])


def dpo_loss(logit):
    return math.log1p(math.exp(-logit))


def gradient(function, field="sum", policy=POLICY, **hyper):
    loss = lambda x: function(policy._replace(**{field: x}), REF, **hyper).loss_B.sum()
    return jax.grad(loss)(getattr(policy, field))


def test_ld_dpo_by_hand():
    """L'(rejected) = -3 - 3 / 4 under the policy, -2 - 3 / 4 under the reference; then -2 - 4 / 4 under the policy."""
    out = ld_dpo(POLICY, REF, beta=0.5, alpha=0.25)
    np.testing.assert_allclose(out.loss_B, [dpo_loss(0.5 * (1.0 + 1.0))], rtol=1e-6)
    np.testing.assert_allclose(out.metrics["rewards/rejected"], [-0.5], rtol=1e-6)
    shifted = POLICY._replace(common=jnp.array([[-4.0, -2.0]]))
    np.testing.assert_allclose(ld_dpo(shifted, REF, beta=0.5, alpha=0.25).loss_B, [dpo_loss(0.5 * 1.25)], rtol=1e-6)


def test_sampo_by_hand():
    """rho of the drawn tokens: 1 and 0.5."""
    out = sampo(POLICY, REF, beta=0.5)
    np.testing.assert_allclose(out.loss_B, [dpo_loss(0.25)], rtol=1e-6)
    np.testing.assert_allclose(out.metrics["rewards/margins"], [0.25], rtol=1e-6)


def test_tdpo_by_hand():
    """D - (0.8 - 0.3) = 1.5 and D - 0.5 * (0.8 - 0.3) = 1.75."""
    np.testing.assert_allclose(tdpo1(POLICY, REF, beta=0.2).loss_B, [dpo_loss(0.3)], rtol=1e-6)
    out = tdpo2(POLICY, REF, beta=0.2, alpha=0.5)
    np.testing.assert_allclose(out.loss_B, [dpo_loss(0.35)], rtol=1e-6)
    np.testing.assert_allclose(out.metrics["rewards/margins"], [0.4], rtol=1e-6)
    assert [round(float(out.metrics[f"kl/{side}"][0]), 6) for side in ("chosen", "rejected")] == [0.3, 0.8]


def test_gradient_of_tdpo_by_hand():
    """d/dD = -beta sigmoid(-logit); K_chosen has the sign of the chosen's log-ratio, and in tdpo2 no gradient."""
    slope = 0.2 / (1 + math.exp(0.3))
    np.testing.assert_allclose(gradient(tdpo1, beta=0.2), [[-slope, slope]], rtol=1e-5)
    np.testing.assert_allclose(gradient(tdpo1, "kl", beta=0.2), [[-slope, slope]], rtol=1e-5)
    slope = 0.2 / (1 + math.exp(0.35))
    np.testing.assert_allclose(gradient(tdpo2, beta=0.2), [[-slope, slope]], rtol=1e-5)
    np.testing.assert_allclose(gradient(tdpo2, "kl", beta=0.2), [[0.0, 0.5 * slope]], rtol=1e-5)


def test_wpo_by_hand():
    """w = e^-0.5 and e^0.5: the product is 1; a likelier chosen makes it e^0.5, which only wpo_clamped clamps."""
    np.testing.assert_allclose(wpo(POLICY, REF, beta=0.1).loss_B, [dpo_loss(0.2)], rtol=1e-6)
    likelier = POLICY._replace(collision=jnp.array([[-4.0, -8.0]]))
    np.testing.assert_allclose(wpo(likelier, REF, beta=0.1).loss_B, [math.exp(0.5) * dpo_loss(0.2)], rtol=1e-6)
    np.testing.assert_allclose(wpo_clamped(likelier, REF, beta=0.1).loss_B, [dpo_loss(0.2)], rtol=1e-6)
    rarer = POLICY._replace(collision=jnp.array([[-2.0, -8.0]]))
    for function in (wpo, wpo_clamped):
        out = function(rarer, REF, beta=0.1)
        np.testing.assert_allclose(out.loss_B, [math.exp(-0.5) * dpo_loss(0.2)], rtol=1e-6)
        np.testing.assert_allclose(out.metrics["wpo/weight"], [math.exp(-0.5)], rtol=1e-6)
        assert out.weight_B.tolist() == [1.0], "the weights are not normalised away"


def test_the_weight_of_wpo_has_no_gradient():
    """DPO's gradient times the weight, and none through the collision."""
    rarer = POLICY._replace(collision=jnp.array([[-2.0, -8.0]]))
    slope = math.exp(-0.5) * 0.1 / (1 + math.exp(0.2))
    for function in (wpo, wpo_clamped):
        np.testing.assert_allclose(gradient(function, policy=rarer, beta=0.1), [[-slope, slope]], rtol=1e-5)
        assert not np.any(gradient(function, "collision", policy=rarer))


@pytest.mark.parametrize(
    "function, hyper, policy",
    [
        (ld_dpo, {"alpha": 1.0}, POLICY),
        (tdpo2, {"alpha": 0.0}, POLICY),
        (tdpo1, {}, POLICY._replace(kl=jnp.array([[0.6, 0.6]]))),
        (wpo, {}, POLICY),
        (sampo, {}, POLICY._replace(count=jnp.array([[3.0, 3.0]]), sampled=POLICY.sum)),
    ],
    ids=["ld(1)", "tdpo2(0)", "tdpo1 of equal divergences", "wpo of weight 1", "sampo of equal lengths"],
)
def test_reductions_to_dpo(function, hyper, policy):
    """Value and gradient.  With equal lengths all tokens are drawn, so `sampled` is `sum`."""
    ref = REF._replace(sampled=REF.sum) if function is sampo else REF

    def loss(function, **hyper):
        of = lambda total: function(policy._replace(sum=total, sampled=total), ref, beta=0.3, **hyper).loss_B.sum()
        return jax.value_and_grad(of)(policy.sum)

    for got, expected in zip(loss(function, **hyper), loss(dpo), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("function", ALL, ids=lambda f: f.__name__)
def test_constant_where_policy_equals_reference(function):
    """ln 2, times the pair's weight in wpo: (-5 + 3)/2 and (-5 + 6)/4."""
    policy = REF._replace(kl=jnp.zeros((1, 2)))
    weight = math.exp(-0.75) if function in (wpo, wpo_clamped) else 1.0
    np.testing.assert_allclose(function(policy, REF).loss_B, [weight * math.log(2)], rtol=1e-6)


@pytest.mark.parametrize("function", ALL, ids=lambda f: f.__name__)
def test_fields_that_are_not_asked_for_may_be_missing(function):
    (part,) = bind([{"name": function.__name__}], {function.__name__: function})
    absent = {name: None for name in FIELDS if name not in part.needs.logps}
    out = part(POLICY._replace(**absent), REF._replace(**absent), {})
    assert np.isfinite(out.loss_B).all() and len(part.needs.logps) == 1


@pytest.mark.parametrize("function", ALL, ids=lambda f: f.__name__)
@pytest.mark.parametrize("ratio", [1e3, -1e3])
def test_finite_at_extremes(function, ratio):
    """Log-ratios of 1,000 nats, which no probabilities have on the upper side, and 4,000 tokens beside 1 and 0."""
    total = jnp.array([[ratio - 5.0, -5.0], [-5.0, -9000.0 + ratio], [0.0, 0.0]])
    counts, flat = [[1, 4000], [4000, 1], [0, 0]], jnp.zeros((3, 2))
    ref = logps(jnp.where(jnp.array(counts) > 0, -5.0, 0.0), counts, common=flat, sampled=flat)

    def loss(x):
        policy = ref._replace(sum=x, common=x, sampled=x, collision=flat, kl=jnp.abs(x))
        out = function(policy, ref, beta=10.0)
        return jnp.sum(out.weight_B * out.loss_B), out.weight_B

    (value, weight_B), slope = jax.value_and_grad(loss, has_aux=True)(total)
    assert np.isfinite(value) and np.isfinite(slope).all() and weight_B.tolist() == [1, 1, 0]


# The case of TRL, its loss in float64, the objective here.
TRL = [
    ("sigmoid[wpo]", 0.17718719997606794, wpo, {}),
    ("sigmoid[wpo]", 0.17718719997606794, wpo_clamped, {}),  # no product of that batch exceeds 1
    ("sigmoid[ld_alpha=0.0]", 0.680556276511241, ld_dpo, {"alpha": 0.0}),
    ("sigmoid[ld_alpha=0.5]", 0.6861478809591656, ld_dpo, {"alpha": 0.5}),
    ("sigmoid[ld_alpha=1.0]", 0.6923822056173361, ld_dpo, {"alpha": 1.0}),
]


@pytest.mark.parametrize("case, loss, function, hyper", TRL, ids=[f"{c[2].__name__}-{c[0]}" for c in TRL])
def test_golden_values_of_trl(case, loss, function, hyper):
    with jax.enable_x64(True):
        policy, ref = trl_batch.batch()
        assert trl_batch.value(function(policy, ref, beta=0.1, **hyper)) == pytest.approx(loss, rel=1e-9)


def test_golden_rewards_of_trl():
    """Of the shortened sums, ld_alpha 0."""
    with jax.enable_x64(True):
        metrics = ld_dpo(*trl_batch.batch(), beta=0.1, alpha=0.0).metrics
        assert float(metrics["rewards/chosen"].mean()) == pytest.approx(0.041904810537116526, rel=1e-9)
        assert float(metrics["rewards/rejected"].mean()) == pytest.approx(0.013432275891741473, rel=1e-9)
