"""DPO under other divergences: hand values, limits, rewards, TRL's values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trl_batch

from jaxpref.models.logprobs import Logps
from jaxpref.objectives.divergences import f_dpo_alpha, f_dpo_forward_kl, f_dpo_js
from jaxpref.objectives.pairwise import dpo

ALL = [f_dpo_forward_kl, f_dpo_js, f_dpo_alpha]
ids = lambda function: function.__name__


def logps(sums):
    total = jnp.asarray(sums, float)
    return Logps(total, jnp.ones_like(total), jnp.zeros_like(total), jnp.zeros_like(total))


# u = pi / pi_ref: 2 for the chosen, 1/4 for the rejected.
POLICY, REF = logps([[math.log(2.0) - 3.0, math.log(0.25) - 3.0]]), logps([[-3.0, -3.0]])


def test_by_hand():
    """f': 1 - 1/2 and 1 - 4; log(4/3) and log(2/5); 2 (1 - 1/sqrt 2) and 2 (1 - 2)."""
    loss_of = lambda logit: math.log1p(math.exp(-logit))
    scores = {f_dpo_forward_kl: 3.5, f_dpo_js: math.log(10 / 3), f_dpo_alpha: 4 - math.sqrt(2)}
    for function, difference in scores.items():
        np.testing.assert_allclose(function(POLICY, REF, beta=0.5).loss_B, [loss_of(0.5 * difference)], rtol=1e-6)


def test_gradients_by_hand():
    """d loss / d rho = -+ beta sigmoid(-logit) f''(u) u: 1/u, 1 / (1 + u), u^-alpha."""
    for function, logit, slopes in (
        (f_dpo_forward_kl, 1.75, (0.5, 4.0)),
        (f_dpo_js, 0.5 * math.log(10 / 3), (1 / 3, 0.8)),
        (f_dpo_alpha, 0.5 * (4 - math.sqrt(2)), (math.sqrt(0.5), 2.0)),
    ):
        loss = lambda total, function=function: function(POLICY._replace(sum=total), REF, beta=0.5).loss_B.sum()
        outer = 0.5 / (1 + math.exp(logit))
        np.testing.assert_allclose(jax.grad(loss)(POLICY.sum), [[-outer * slopes[0], outer * slopes[1]]], rtol=1e-5)


@pytest.mark.parametrize("function", ALL, ids=ids)
def test_constant_and_rewards(function):
    same = function(REF, REF)
    np.testing.assert_allclose(same.loss_B, math.log(2.0), rtol=1e-6)
    assert same.metrics["rewards/accuracies"].tolist() == [0.0]
    out = function(POLICY, REF, beta=0.5)
    np.testing.assert_allclose(out.metrics["rewards/chosen"], [0.5 * math.log(2.0)], rtol=1e-6)
    np.testing.assert_allclose(out.metrics["rewards/rejected"], [0.5 * math.log(0.25)], rtol=1e-6)


def test_alpha_towards_0_is_dpo_and_at_1_the_forward_kl():
    with jax.enable_x64(True):
        policy, ref = trl_batch.batch()
        loss = lambda function, **kw: lambda total: function(policy._replace(sum=total), ref, **kw).loss_B.mean()
        near_0, dpo_loss = loss(f_dpo_alpha, alpha=1e-9), loss(dpo)
        np.testing.assert_allclose(near_0(policy.sum), dpo_loss(policy.sum), rtol=1e-8)
        np.testing.assert_allclose(jax.grad(near_0)(policy.sum), jax.grad(dpo_loss)(policy.sum), rtol=1e-7)
        assert abs(loss(f_dpo_alpha, alpha=0.5)(policy.sum) - dpo_loss(policy.sum)) > 1e-3
        one = loss(f_dpo_alpha, alpha=1.0)(policy.sum)
        np.testing.assert_allclose(one, loss(f_dpo_forward_kl)(policy.sum), rtol=1e-14)


@pytest.mark.parametrize("function", ALL, ids=ids)
def test_swapping_the_pair_flips_the_logit(function):
    """loss - swapped loss = -logit, as -log sigmoid(z) + log sigmoid(-z) = -z."""
    swap = lambda x: jax.tree.map(lambda part: part[:, ::-1], x)
    there, back = function(POLICY, REF).loss_B, function(swap(POLICY), swap(REF)).loss_B
    logit = math.log(jnp.expm1(back[0]))
    np.testing.assert_allclose(there - back, [-logit], rtol=1e-5)
    assert there[0] < back[0]


@pytest.mark.parametrize(
    "function, hyper, loss, tolerance",
    [
        (f_dpo_forward_kl, {}, 0.6872993113683711, 1e-9),
        (f_dpo_js, {}, 0.6905172358401448, 1e-9),
        (f_dpo_alpha, {"alpha": 0.5}, 0.688836932182312, 1e-6),  # TRL's float32: its float64 raises
    ],
    ids=["forward_kl", "js", "alpha"],
)
def test_golden_values_of_trl(function, hyper, loss, tolerance):
    with jax.enable_x64(True):
        policy, ref = trl_batch.batch()
        out = function(policy, ref, beta=0.1, **hyper)
        assert trl_batch.value(out) == pytest.approx(loss, rel=tolerance)
        assert float(out.metrics["rewards/chosen"].mean()) == pytest.approx(0.07098698720930993, rel=1e-9)
        assert float(out.metrics["rewards/rejected"].mean()) == pytest.approx(0.06737118525792214, rel=1e-9)


@pytest.mark.parametrize("function", ALL, ids=ids)
@pytest.mark.parametrize("ratio", [1e3, -1e3])
def test_finite_at_extremes(function, ratio):
    for sums in ([[ratio - 5.0, -5.0]], [[-5.0, ratio - 5.0]]):
        ref = logps([[-5.0, -5.0]])
        loss = lambda total, ref=ref: function(ref._replace(sum=total), ref, beta=10.0).loss_B.sum()
        value, slope = jax.value_and_grad(loss)(jnp.asarray(sums))
        assert np.isfinite(value) and np.isfinite(slope).all()
