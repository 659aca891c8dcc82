"""Objectives with several references, by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.errors import InputError
from jaxpref.models.logprobs import Logps
from jaxpref.objectives import bind
from jaxpref.objectives.pairwise import dpo
from jaxpref.objectives.references import geometric_mrpo, mrpo, mrpo_fixed, multi_dpo

ALL = (mrpo, mrpo_fixed, geometric_mrpo, multi_dpo)


def logps(sums, count=1.0):
    total = jnp.asarray(sums, jnp.float32)
    zeros = jnp.zeros_like(total)
    return Logps(total, jnp.full_like(total, count), zeros, zeros)


POLICY = logps([[-9.0, -21.0], [-7.0, -6.0]])
REF = logps([[-10.0, -20.0], [-8.0, -5.0]])
EXTRA = jnp.asarray([[[-14.0], [-18.0]], [[-8.2], [-5.1]]], jnp.float32)


def minus_log_sigmoid(x):
    return math.log1p(math.exp(-x))


def harmonic(weights, log_probs):
    return -math.log(sum(a * math.exp(-x) for a, x in zip(weights, log_probs, strict=True)))


def test_mrpo_by_hand():
    """First pair: means (-12, -19), so eps is 0.1 * 12/31 and 0.1 * 19/31; weights 10/14 and 4/14.

    -14 is raised to -10 * (1 + 1.2/31), and -18 is lowered to -20 * (1 - 1.9/31).
    """
    weights = (10 / 14, 4 / 14)
    chosen = -9.0 - harmonic(weights, (-10.0, -10.0 * (1 + 1.2 / 31)))
    rejected = -21.0 - harmonic(weights, (-20.0, -20.0 * (1 - 1.9 / 31)))
    out = mrpo(POLICY, REF, EXTRA, beta=0.3, eps=0.1)
    assert out.loss_B[0] == pytest.approx(minus_log_sigmoid(0.3 * (chosen - rejected)), rel=1e-5)
    assert out.metrics["rewards/chosen"][0] == pytest.approx(0.3 * chosen, rel=1e-4)
    assert out.metrics["rewards/margins"][0] == pytest.approx(0.3 * (chosen - rejected), rel=1e-4)


def test_mrpo_where_no_clip_binds():
    """Second pair: the extra reference lies inside the clip, weights 3/6.1 and 3.1/6.1."""
    weights = (3 / 6.1, 3.1 / 6.1)
    chosen = -7.0 - harmonic(weights, (-8.0, -8.2))
    rejected = -6.0 - harmonic(weights, (-5.0, -5.1))
    out = mrpo(POLICY, REF, EXTRA, beta=0.3, eps=0.1)
    assert out.loss_B[1] == pytest.approx(minus_log_sigmoid(0.3 * (chosen - rejected)), rel=1e-5)


def test_references_that_cannot_tell_the_answers_apart_weigh_the_same():
    """All |L(chosen) - L(rejected)| are 0: the weights are 1/2, and eps is 0.1/2 on both sides."""
    out = mrpo(logps([[-4.0, -6.0]]), logps([[-5.0, -5.0]]), jnp.asarray([[[-6.0], [-6.0]]]), beta=1.0, eps=0.1)
    reward = -4.0 - harmonic((0.5, 0.5), (-5.0, -5.25))
    assert out.metrics["rewards/chosen"][0] == pytest.approx(reward, rel=1e-5)
    assert out.loss_B[0] == pytest.approx(minus_log_sigmoid(2.0), rel=1e-5)


def test_given_weights_by_hand():
    """Weights 3:1; -14 is raised to -11 and -18 to -18 (inside 10 %), the second pair is not clipped."""
    rewards = [
        [-9.0 - harmonic((0.75, 0.25), (-10.0, -11.0)), -21.0 - harmonic((0.75, 0.25), (-20.0, -18.0))],
        [-7.0 - harmonic((0.75, 0.25), (-8.0, -8.2)), -6.0 - harmonic((0.75, 0.25), (-5.0, -5.1))],
    ]
    expected = [minus_log_sigmoid(0.3 * (chosen - rejected)) for chosen, rejected in rewards]
    for alphas in ((0.75, 0.25), (6.0, 2.0)):
        out = mrpo_fixed(POLICY, REF, EXTRA, alphas=alphas, beta=0.3, eps=0.1)
        np.testing.assert_allclose(out.loss_B, expected, rtol=1e-5)


def test_geometric_mean_by_hand():
    """0.75 * (-10, -20) + 0.25 * (-14, -18) = (-11, -19.5): rho = (2, -1.5)."""
    out = geometric_mrpo(POLICY, REF, EXTRA, alphas=(3.0, 1.0), beta=0.3)
    assert out.loss_B[0] == pytest.approx(minus_log_sigmoid(0.3 * 3.5), rel=1e-5)
    assert out.metrics["rewards/chosen"][0] == pytest.approx(0.6, rel=1e-5)


def test_multi_dpo_is_the_weighted_sum_of_dpo():
    """Margins of the first pair: (1 + 1) = 2 against the first reference, (5 + 3) = 8 against the second."""
    out = multi_dpo(POLICY, REF, EXTRA, alphas=(3.0, 1.0), beta=0.3)
    expected = 0.75 * minus_log_sigmoid(0.6) + 0.25 * minus_log_sigmoid(2.4)
    assert out.loss_B[0] == pytest.approx(expected, rel=1e-5)
    assert out.metrics["rewards/margins"][0] == pytest.approx(0.3 * (0.75 * 2 + 0.25 * 8), rel=1e-5)


@pytest.mark.parametrize("objective", ALL)
def test_equal_or_no_other_references_are_dpo(objective):
    def value_and_grad(function):
        return jax.value_and_grad(lambda s: function(POLICY._replace(sum=s)).loss_B.sum())(POLICY.sum)

    expected = value_and_grad(lambda policy: dpo(policy, REF, beta=0.3))
    for extra in (REF.sum[:, :, None], jnp.zeros((2, 2, 0))):
        loss, grad = value_and_grad(lambda policy, extra=extra: objective(policy, REF, extra, beta=0.3))
        np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
        np.testing.assert_allclose(grad, expected[1], rtol=1e-5)
    assert not np.allclose(objective(POLICY, REF, EXTRA, beta=0.3).loss_B.sum(), expected[0], rtol=1e-3)


@pytest.mark.parametrize("objective", (mrpo, mrpo_fixed))
def test_a_clip_of_no_width_is_dpo(objective):
    np.testing.assert_allclose(objective(POLICY, REF, EXTRA, eps=0.0).loss_B, dpo(POLICY, REF).loss_B, rtol=1e-6)


@pytest.mark.parametrize("objective", ALL)
def test_references_are_constant(objective):
    of_ref = lambda ref, extra: objective(POLICY, REF._replace(sum=ref), extra).loss_B.sum()
    for gradient in jax.grad(of_ref, argnums=(0, 1))(REF.sum, EXTRA):
        assert not np.any(gradient)


@pytest.mark.parametrize("objective", ALL)
def test_a_gold_answer_is_left_out(objective):
    third = lambda x: jnp.concatenate([x, jnp.full_like(x[:, :1], -3.0)], axis=1)
    triple = objective(*(jax.tree.map(third, x) for x in (POLICY, REF)), third(EXTRA))
    np.testing.assert_allclose(triple.loss_B, objective(POLICY, REF, EXTRA).loss_B, rtol=1e-6)


@pytest.mark.parametrize("objective", ALL)
def test_finite_far_away(objective):
    """Policy and references a thousand nats apart, on either side."""
    policy, ref = logps([[-2e3, -2e3], [-1.0, -2e3]]), logps([[-1e3, -2e3], [-3e3, -2e3]])
    extra = jnp.asarray([[[-5e3], [-1.0]], [[-0.5], [-4e3]]])
    for beta in (1e-3, 10.0):
        of = lambda s, beta=beta: objective(policy._replace(sum=s), ref, extra, beta=beta).loss_B.sum()
        loss, gradient = jax.value_and_grad(of)(policy.sum)
        assert np.isfinite(loss) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize("objective", (mrpo_fixed, geometric_mrpo, multi_dpo))
def test_the_number_of_weights_is_checked(objective):
    with pytest.raises(InputError, match="alphas with 2 entries"):
        objective(POLICY, REF, EXTRA, alphas=(1.0, 1.0, 1.0))
    registry = {objective.__name__: objective}
    with pytest.raises(InputError, match="greater than 0"):
        bind([{"name": objective.__name__, "alphas": [0.5, 0.0]}], registry)
    (part,) = bind([{"name": objective.__name__, "alphas": [3, 1]}], registry)
    out = part(POLICY, REF, {"extra_refs": EXTRA})
    np.testing.assert_array_equal(out.loss_B, objective(POLICY, REF, EXTRA, alphas=(3.0, 1.0)).loss_B)
