"""The Bradley-Terry reward model: hand values, margin, centring, and what it asks for."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.models.logprobs import Logps
from jaxpref.objectives import asked_logps, bind
from jaxpref.objectives.reward import bradley_terry


def scored(reward, counts=((4, 2), (1, 3), (0, 0))):
    count = jnp.asarray(counts, jnp.float32)
    zero = jnp.zeros_like(count)
    return Logps(zero, count, zero, zero, reward=jnp.asarray(reward))


REWARD = jnp.array([[1.0, -0.5], [2.0, 3.0], [0.0, 0.0]])


def test_by_hand():
    """Differences 1.5 and -1, less margins 0.5 and 1; sums 0.5 and 5."""
    np.testing.assert_allclose(bradley_terry(scored(REWARD)).loss_B[:2], np.log1p(np.exp([-1.5, 1.0])), rtol=1e-6)
    margin = jnp.array([0.5, 1.0, 0.0])
    out = bradley_terry(scored(REWARD), margin, centering=0.1)
    np.testing.assert_allclose(out.loss_B[:2], np.log1p(np.exp([-1.0, 2.0])) + [0.025, 2.5], rtol=1e-6)
    assert out.weight_B.tolist() == [1, 1, 0]
    assert bradley_terry(scored(jnp.zeros((3, 2)))).loss_B == pytest.approx(math.log(2), rel=1e-6)


def test_metrics_are_of_the_rewards_as_they_are():
    metrics = bradley_terry(scored(REWARD), jnp.array([9.0, 9.0, 0.0])).metrics
    assert metrics["rewards/chosen"].tolist() == [1, 2, 0] and metrics["rewards/margins"].tolist() == [1.5, -1, 0]
    assert metrics["rewards/accuracies"].tolist() == [1, 0, 0]


def test_gradient_and_centring():
    """d loss / d r_chosen = -sigmoid(-difference) + 2 c (r_chosen + r_rejected); a shift moves the latter only."""
    loss = lambda r, c: bradley_terry(scored(r), centering=c).loss_B[0]
    wrong = 1 / (1 + math.exp(1.5))
    np.testing.assert_allclose(jax.grad(loss)(REWARD, 0.0)[0], [-wrong, wrong], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(REWARD, 0.1)[0], [-wrong + 0.1, wrong + 0.1], rtol=1e-5)
    assert loss(REWARD + 7.0, 0.0) == pytest.approx(float(loss(REWARD, 0.0)), rel=1e-6)
    assert loss(REWARD + 7.0, 0.1) - loss(REWARD, 0.1) == pytest.approx(0.1 * (14.5**2 - 0.5**2), rel=1e-5)


def test_what_it_asks_for():
    parts = bind([bradley_terry], {})
    assert asked_logps(parts) == ("reward",) and not parts[0].needs_reference and parts[0].columns == ()
    assert parts[0].all_columns == ("margin", "weight")
    out = parts[0](scored(REWARD), None, {"weight": jnp.array([0.0, 2.0, 5.0])})
    assert out.weight_B.tolist() == [0, 2, 0]


def test_far_apart_rewards_stay_finite():
    loss = lambda r: bradley_terry(scored(r), centering=0.01).loss_B.sum()
    value, grad = jax.value_and_grad(loss)(jnp.array([[1e3, -1e3], [-1e3, 1e3], [1e3, 1e3]]))
    assert np.isfinite(value) and np.all(np.isfinite(grad))
