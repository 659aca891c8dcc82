"""Objectives on rankings: probabilities of all orders, hand values, the pairwise limits, missing completions."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.models.logprobs import Logps
from jaxpref.objectives.pairwise import dpo
from jaxpref.objectives.ranked import info_nca, plackett_luce


def logps(sums, counts=None):
    total = jnp.asarray(sums, jnp.float32)
    count = jnp.ones_like(total) if counts is None else jnp.asarray(counts, jnp.float32)
    return Logps(total, count, jnp.zeros_like(total), jnp.zeros_like(total))


RHO = np.array([2.0, -1.0, 0.5, 3.5])
ORDERS = np.array(list(itertools.permutations(range(4))))
REF_SUM = np.array([-4.0, -7.0, -2.0, -9.0])


@partial(jax.jit, static_argnums=0, static_argnames=("alpha", "beta"))
def of(objective, rho, counts=None, ref=None, **more):
    """The objective on log-ratios `rho`, [B, K]; the reference's own log-probs do not matter."""
    rho = jnp.asarray(rho, jnp.float32)
    ref = jnp.zeros_like(rho) if ref is None else jnp.asarray(ref, jnp.float32)
    return objective(logps(rho + ref, counts), logps(ref, counts), **more)


def test_the_orders_of_four_completions_have_probabilities():
    """They sum to 1, and each is the product of softmax draws without replacement."""
    probability = np.exp(-np.asarray(of(plackett_luce, RHO[ORDERS], ref=REF_SUM[ORDERS], beta=0.5).loss_B, np.float64))
    assert probability.sum() == pytest.approx(1.0, rel=1e-6)
    strength = np.exp(0.5 * RHO)
    for order, p in zip(ORDERS, probability, strict=True):
        drawn = [strength[order[k]] / strength[order[k:]].sum() for k in range(4)]
        assert p == pytest.approx(np.prod(drawn), rel=1e-5)


def test_policy_equal_to_reference():
    """ln K! and ln K for groups of 2, 3 and 5 completions."""
    sizes = [2, 3, 5]
    counts = (np.arange(5)[None] < np.array(sizes)[:, None]).astype(np.float32)
    factorials = [math.log(math.factorial(K)) for K in sizes]
    np.testing.assert_allclose(of(plackett_luce, np.zeros((3, 5)), counts).loss_B, factorials, rtol=1e-6)
    score = np.arange(15.0).reshape(3, 5)
    np.testing.assert_allclose(of(info_nca, np.zeros((3, 5)), counts, score=score).loss_B, np.log(sizes), rtol=1e-6)


def test_two_completions_are_dpo():
    """The scores' differences are far above alpha."""
    counts = jnp.array([[2.0, 4.0], [1.0, 3.0]])
    ref = jnp.array([[-4.0, -5.0], [-4.5, -3.5]])
    rho = jnp.array([[1.0, -2.0], [0.5, 1.5]])
    hard = jnp.array([[1.0, 0.0], [0.3, 0.2]])

    def loss_and_metrics(rho, objective, **more):
        out = of(objective, rho, counts, ref, beta=0.3, **more)
        return out.loss_B.sum(), out.metrics

    want = jax.value_and_grad(loss_and_metrics, has_aux=True)(rho, dpo)
    for objective, more in ((plackett_luce, {}), (info_nca, {"score": hard, "alpha": 1e-3})):
        got = jax.value_and_grad(loss_and_metrics, has_aux=True)(rho, objective, **more)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, want)


def test_missing_completions_are_left_out():
    """Slots 1 and 4 of 5 hold nothing; a wholly empty group is finite and weighs 0."""
    there = np.array([0, 2, 3])
    rho = np.array([[2.0, 0.0, -1.0, 0.5, 0.0], [0.0] * 5], np.float32)
    counts = np.array([[3.0, 0.0, 1.0, 2.0, 0.0], [0.0] * 5])
    score = np.array([[5.0, 90.0, 2.0, 1.0, -90.0], [0.0] * 5])

    def loss(rho, objective, more):
        out = of(objective, rho, counts, **more)
        return out.loss_B.sum(), out

    for objective, more, dense in (
        (plackett_luce, {}, {}),
        (info_nca, {"score": score}, {"score": score[:1, there]}),
    ):
        (_, out), grad = jax.value_and_grad(loss, has_aux=True)(rho, objective, more)
        dense = of(objective, rho[:1, there], **dense)
        assert out.loss_B[0] == pytest.approx(float(dense.loss_B[0]), rel=1e-6)
        assert out.weight_B.tolist() == [1, 0] and np.isfinite(out.loss_B[1])
        for name, metric in dense.metrics.items():
            assert out.metrics[name][0] == pytest.approx(float(metric[0]), rel=1e-6), name
        assert np.all(np.isfinite(grad)) and np.all(grad[0, there]) and np.count_nonzero(grad) == 3


def test_info_nca_by_hand():
    """Targets softmax(score / 2) = (2, 1, 1) / 4; its gradient is beta * (softmax(beta rho) - target)."""
    target = np.array([0.5, 0.25, 0.25])
    score = np.array([[2 * math.log(2.0), 0.0, 0.0]])
    softmax = np.exp([0.4, -0.8, 0.2]) / np.exp([0.4, -0.8, 0.2]).sum()
    loss = lambda rho, score=score: of(info_nca, rho, score=score, alpha=2.0, beta=0.4).loss_B.sum()
    value, grad = jax.value_and_grad(loss)(np.array([[1.0, -2.0, 0.5]], np.float32))
    assert float(value) == pytest.approx(-(target * np.log(softmax)).sum(), rel=1e-6)
    np.testing.assert_allclose(grad[0], 0.4 * (softmax - target), rtol=1e-5)
    entropy = -(target * np.log(target)).sum()
    assert float(loss(np.log(target)[None] / 0.4)) == pytest.approx(entropy, rel=1e-6), "the least value"
    assert float(loss(np.array([[1.0, -2.0, 0.5]]), score + 40.0)) == pytest.approx(float(value), rel=1e-5)


def test_weights_and_a_common_shift():
    rho = np.stack([RHO, -RHO])
    out = of(plackett_luce, rho, weight=jnp.array([3.0, 0.0]))
    assert out.weight_B.tolist() == [3, 0]
    shifted = of(plackett_luce, rho + 50.0, weight=jnp.array([3.0, 0.0]))
    np.testing.assert_allclose(shifted.loss_B, out.loss_B, rtol=1e-5)


def test_metrics_compare_the_best_with_the_others_and_all_pairs():
    """Rewards 2, -1, 0.5, 3.5: of 6 pairs, 0>1 and 0>2 are in order."""
    metrics = of(plackett_luce, RHO[None], beta=1.0).metrics
    assert (
        metrics["rewards/chosen"][0] == 2 and metrics["rewards/rejected"][0] == 1 and metrics["rewards/margins"][0] == 1
    )
    assert metrics["rewards/accuracies"][0] == pytest.approx(2 / 6)


def test_far_apart_completions_stay_finite():
    rho = jnp.array([[1e3, -1e3, 1e3], [-1e3, 1e3, 0.0]])
    score = jnp.array([[1e3, 0.0, -1e3]] * 2)
    for objective, more in ((plackett_luce, {}), (info_nca, {"score": score, "alpha": 1e-3})):
        loss = lambda r, f=objective, m=more: of(f, r, beta=10.0, **m).loss_B.sum()
        value, grad = jax.value_and_grad(loss)(rho)
        assert np.isfinite(value) and np.all(np.isfinite(grad)) and np.any(grad)
