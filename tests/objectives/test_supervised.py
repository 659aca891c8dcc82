"""Likelihood objectives: token means, the gold answer, and MinorSFT's coefficient."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.models.logprobs import Logps
from jaxpref.objectives.supervised import minor_sft, sft, sft_gold


def logps(sums, counts):
    total, count = jnp.asarray(sums, jnp.float32), jnp.asarray(counts, jnp.float32)
    return Logps(total, count, jnp.zeros_like(total), jnp.zeros_like(total))


POLICY = logps([[-3.0, -8.0, -6.0], [-4.0, -2.0, -1.0]], [[2, 4, 3], [1, 4, 2]])
REF = logps([[-5.0, -7.0, -6.5], [-3.5, -2.5, -1.0]], [[2, 4, 3], [1, 4, 2]])


def value(out):
    return float((out.weight_B * out.loss_B).sum() / out.weight_B.sum())


def test_tokens_are_pooled_over_the_batch():
    """Chosen: 3 + 4 nats over 2 + 1 tokens; gold: 6 + 1 nats over 3 + 2; the second prompt counted twice."""
    assert value(sft(POLICY)) == pytest.approx(7 / 3, rel=1e-6)
    assert value(sft_gold(POLICY)) == pytest.approx(7 / 5, rel=1e-6)
    assert value(sft_gold(POLICY, jnp.array([1.0, 2.0]))) == pytest.approx(8 / 7, rel=1e-6)
    np.testing.assert_allclose(sft_gold(POLICY).metrics["nll"], [2.0, 0.5])


def test_minor_sft_by_hand():
    """rho = 2 over 2 tokens and -0.5 over 1."""
    out = minor_sft(POLICY, REF, beta=0.5)
    np.testing.assert_allclose(out.loss_B, [2 * math.log1p(math.exp(-1.0)), 4 * math.log1p(math.exp(0.25))], rtol=1e-6)
    np.testing.assert_allclose(out.metrics["deviation"], [1.0, -0.5], rtol=1e-6)
    np.testing.assert_allclose(minor_sft(REF, REF, beta=0.5).loss_B, [2 * math.log(2), 4 * math.log(2)], rtol=1e-6)


def test_minor_sft_is_sft_where_policy_equals_reference():
    """Gradient -(2 / n) sigmoid(-beta rho): -1 / n at the reference, whatever beta, and in the limit of beta 0."""
    of = lambda policy, beta: jax.grad(lambda s: minor_sft(policy._replace(sum=s), REF, beta=beta).loss_B.sum())(
        policy.sum
    )
    plain = jax.grad(lambda s: sft(POLICY._replace(sum=s)).loss_B.sum())(POLICY.sum)
    np.testing.assert_allclose(of(REF, 0.7), plain, rtol=1e-6)
    np.testing.assert_allclose(of(POLICY, 1e-6), plain, rtol=1e-5)
    slower = 2 / (1 + math.exp(0.7 * 2.0))  # the completion that gained 2 nats
    assert of(POLICY, 0.7)[0, 0] == pytest.approx(-0.5 * slower, rel=1e-6)
