"""mDPO: its three terms in closed form, and rows without pictures."""

import arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.objectives.conditional import mdpo, mdpo_masked
from jaxpref.objectives.pairwise import dpo
from jaxpref.objectives.pointwise import mdpo_anchor

LN2, LN3 = np.log(2), np.log(3)
WRONG, RIGHT = np.log(4), np.log(4 / 3)  # -log sigmoid(-ln 3) and -log sigmoid(ln 3)


def logps(sum_BK, count_BK=None):
    sum_BK = jnp.asarray(sum_BK, jnp.float32)
    return arrays.logps(sum_BK, jnp.full(sum_BK.shape, 4.0) if count_BK is None else jnp.asarray(count_BK))


def losses(rho_BK, count_BK=None, objective=mdpo, **hyperparameters):
    zero = jnp.zeros_like(jnp.asarray(rho_BK, jnp.float32))
    return objective(logps(rho_BK, count_BK), logps(zero, count_BK), beta=1.0, **hyperparameters)


@pytest.mark.parametrize("objective", [mdpo, mdpo_masked])
@pytest.mark.parametrize(
    "rho, loss",
    [
        ((0, 0, 0), 3 * LN2),
        ((0, -LN3, 0), RIGHT + 2 * LN2),
        ((0, 0, -LN3), LN2 + RIGHT + LN2),
        ((0, 0, LN3), LN2 + WRONG + LN2),
        ((LN3, 0, 0), 3 * RIGHT),
        ((LN3, LN3, LN3), 2 * LN2 + RIGHT),
        ((-LN3, 0, -2 * LN3), WRONG + RIGHT + WRONG),
    ],
)
def test_its_terms(objective, rho, loss):
    assert losses([rho], objective=objective).loss_B[0] == pytest.approx(loss, rel=1e-6)


def test_weights_of_the_terms():
    rho = [(0.3, -0.2, 0.9)]
    ref = logps(np.zeros((1, 3)))
    two = logps(rho), ref
    base, anchor = dpo(*two, beta=1.0).loss_B[0], mdpo_anchor(*two, beta=1.0, delta=0.7).loss_B[0]
    conditional = np.log1p(np.exp(-(0.3 - 0.9)))
    got = losses(rho, conditional=2.0, anchor=0.5, delta=0.7).loss_B[0]
    assert got == pytest.approx(float(base + 2 * conditional + 0.5 * anchor), rel=1e-6)
    assert losses(rho, conditional=0.0, anchor=0.0).loss_B[0] == pytest.approx(float(base), rel=1e-6)


def test_a_row_without_pictures_has_no_second_term():
    rho, count = [(0.3, -0.2, 0.9), (0.3, -0.2, 0.0)], [(4.0, 4.0, 4.0), (4.0, 4.0, 0.0)]
    out = losses(rho, count)
    assert out.loss_B[1] == pytest.approx(float(losses(rho, conditional=0.0).loss_B[1]), rel=1e-6)
    assert losses([(0, 0, 0)], [(4.0, 4.0, 0.0)]).loss_B[0] == pytest.approx(2 * LN2, rel=1e-6)
    assert np.asarray(out.weight_B).tolist() == [1, 1]
    assert np.asarray(out.metrics["pictures/accuracies"].weight_B).tolist() == [1, 0]
    gradient = jax.grad(lambda x: losses(x, count).loss_B.sum())(jnp.asarray(rho, jnp.float32))
    assert gradient[0, 2] > 0 and gradient[1, 2] == 0


def test_the_reward_of_the_other_picture_falls():
    gradient = jax.grad(lambda x: losses(x).loss_B.sum())(jnp.zeros((1, 3)))
    assert np.asarray(gradient[0]).tolist() == [-1.5, 0.5, 0.5]
