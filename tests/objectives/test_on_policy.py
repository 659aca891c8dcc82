"""RLOO: its mean over all draws is the exact gradient of the expected reward less the KL."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.models.logprobs import Logps
from jaxpref.objectives.on_policy import rloo

LOGIT = jnp.array([0.3, -0.5, 0.9])
REF_LOGP = np.log([0.2, 0.5, 0.3]).astype(np.float32)
SCORE = np.array([1.0, -0.7, 0.4], np.float32)
OTHER_LOGP = np.log([0.4, 0.25, 0.35]).astype(np.float32)
BETA = 0.3


def of(sum_BK) -> Logps:
    zero = jnp.zeros_like(sum_BK)
    return Logps(sum_BK, zero + 1.0, zero, zero)


def mean_gradient(drawn_from, **settings):
    """Over all triples of answers, each with the probability of being drawn."""
    triples = np.array(list(itertools.product(range(3), repeat=3)))
    chance = np.exp(np.asarray(drawn_from)[triples].sum(-1))

    def loss(logit):
        policy = of(jax.nn.log_softmax(logit)[triples])
        ref, sampled = of(jnp.asarray(REF_LOGP[triples])), jnp.asarray(drawn_from)[triples]
        out = rloo(policy, ref, jnp.asarray(SCORE[triples]), sampled, beta=BETA, **settings)
        return jnp.sum(chance * out.loss_B)

    return jax.grad(loss)(LOGIT)


def exact_gradient():
    def worse(logit):
        logp = jax.nn.log_softmax(logit)
        return -jnp.sum(jnp.exp(logp) * (SCORE - BETA * (logp - REF_LOGP)))

    return jax.grad(worse)(LOGIT)


def test_draws_of_the_policy_give_the_exact_gradient():
    np.testing.assert_allclose(mean_gradient(jax.nn.log_softmax(LOGIT)), exact_gradient(), atol=1e-6)


def test_draws_of_another_policy_are_weighed():
    """Importance weights make up for it, unless they are cut."""
    np.testing.assert_allclose(mean_gradient(OTHER_LOGP, ratio_max=10.0), exact_gradient(), atol=1e-6)
    assert np.abs(mean_gradient(OTHER_LOGP, ratio_max=0.9) - exact_gradient()).max() > 1e-2


def test_a_policy_at_the_optimum_has_no_gradient_whatever_is_drawn():
    """There all answers have the same reward less KL, so that no draw moves it."""
    optimum = jax.nn.log_softmax(REF_LOGP + SCORE / BETA)
    policy, ref = of(optimum[None]), of(jnp.asarray(REF_LOGP)[None])
    out = rloo(policy, ref, jnp.asarray(SCORE)[None], policy.sum, beta=BETA)
    assert float(out.metrics["advantage"][0]) == pytest.approx(0.0, abs=1e-6)
    elsewhere = rloo(ref, ref, jnp.asarray(SCORE)[None], ref.sum, beta=BETA)
    assert float(elsewhere.metrics["advantage"][0]) > 0.1


def test_a_missing_answer_is_left_out():
    whole = of(jax.nn.log_softmax(LOGIT)[None])
    missing = whole._replace(sum=whole.sum.at[:, 2].set(0.0), count=whole.count.at[:, 2].set(0.0))
    ref = missing._replace(sum=jnp.asarray(REF_LOGP)[None].at[:, 2].set(0.0))
    out = rloo(missing, ref, jnp.asarray(SCORE)[None].at[:, 2].set(99.0), whole.sum, beta=BETA)
    reward = SCORE[:2] - BETA * (np.asarray(missing.sum)[0, :2] - REF_LOGP[:2])
    assert float(out.metrics["advantage"][0]) == pytest.approx(abs(reward[0] - reward[1]), rel=1e-5)
