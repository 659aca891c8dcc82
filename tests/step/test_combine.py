"""Directions from the gradients of several objectives: the rules by hand, and the same step however it is split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import assert_same
from test_step_coupled import one_step, params, softmax_of_batch  # noqa: F401

from jaxpref.config import OptimConfig
from jaxpref.data.pack import Layout
from jaxpref.errors import InputError
from jaxpref.objectives import OBJECTIVES, bind
from jaxpref.step.combine import Combine, _least, _solve, check_combinable, inner_products

pytestmark = pytest.mark.usefixtures("quick_compile")

RACO = Combine("raco", 0.4)
W = jnp.array([0.6, 0.4])


def coefficients(combine, gradients, w=W, losses=(1.0, 1.0)):
    """The coefficients for gradients [O, D], and the direction."""
    gradients = jnp.asarray(gradients, jnp.float32)
    a = combine.coefficients(gradients @ gradients.T, jnp.asarray(w), jnp.asarray(losses))
    return np.asarray(a), np.asarray(a @ gradients)


# ---- the rules


def test_raco_by_hand():
    """g1 = (1, 0), g2 = (-2, 0): g0 = -0.2, and the second gradient is the one that g0 serves.

    <G_p, g0> + 0.4 |g0| |G_p| with G_p = p - 2 (1 - p) = 3 p - 2 is -0.2 (3 p - 2) + 0.08 |3 p - 2|, which is
    least at p = (1, 0). Clipped to (0.6, 0) the first gradient is added at length 0.4 |g0|.
    """
    a, direction = coefficients(RACO, [[1.0, 0.0], [-2.0, 0.0]])
    np.testing.assert_allclose(a, [0.6 + 0.08, 0.4], rtol=1e-5)
    np.testing.assert_allclose(direction, [-0.2 + 0.08, 0.0], atol=1e-6)


def test_raco_keeps_the_total_weight():
    gradients = np.random.default_rng(0).normal(size=(2, 5))
    a, _ = coefficients(RACO, gradients)
    doubled, _ = coefficients(RACO, gradients, 2 * W)
    np.testing.assert_allclose(doubled, 2 * a, rtol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_weights_solve_racos_problem(count):
    """No point of a fine grid on the simplex, nor a step from the solution to any corner, is better."""
    rng, solve = np.random.default_rng(count), jax.jit(_least)
    value_of = lambda p, gram, b, s: p @ b + s * np.sqrt(np.maximum(np.sum(p @ gram * p, -1), 0))
    for _ in range(20):
        g = rng.normal(size=(count, 3)) * rng.choice([0.3, 1.0, 3.0], (count, 1))
        gram = g @ g.T
        gram *= count / np.trace(gram)
        w = rng.dirichlet(np.ones(count))
        b, s = gram @ w, rng.choice([0.1, 0.4, 2.0]) * np.sqrt(w @ gram @ w)
        p = np.asarray(solve(*(jnp.asarray(x, jnp.float32) for x in (gram, b, s))), float)
        assert p.min() >= 0 and p.sum() == pytest.approx(1, abs=1e-5)
        others = np.concatenate([rng.dirichlet(np.ones(count), 4000), 0.99 * p + 0.01 * np.eye(count), np.eye(count)])
        assert value_of(p, gram, b, s) <= value_of(others, gram, b, s).min() + 2e-5


def test_elimination_solves_positive_definite_systems():
    rng = np.random.default_rng(4)
    factors, right = rng.normal(size=(3, 5, 8)), rng.normal(size=(3, 5, 2))
    matrices = factors @ factors.swapaxes(1, 2)
    solved = jax.vmap(_solve)(jnp.asarray(matrices, jnp.float32), jnp.asarray(right, jnp.float32))
    # Rounding times the condition of the matrices.
    allowed = 1e-7 * np.linalg.cond(matrices).max()
    np.testing.assert_allclose(solved, np.linalg.solve(matrices, right), rtol=allowed, atol=allowed)


def test_mgda_is_the_shortest_and_where_raco_goes_as_c_grows():
    gradients = np.random.default_rng(2).normal(size=(3, 4))
    w = np.array([0.2, 0.3, 0.5])
    p, direction = coefficients(Combine("mgda", 0.0), gradients, w, np.ones(3))
    points = np.random.default_rng(0).dirichlet(np.ones(3), 20000)
    assert np.linalg.norm(direction) <= np.linalg.norm(points @ gradients, axis=1).min() + 1e-5
    assert p.sum() == pytest.approx(1, abs=1e-5)
    gram = jnp.asarray(gradients @ gradients.T, jnp.float32)
    scaled = 3 * gram / jnp.trace(gram)
    length = jnp.sqrt(w @ scaled @ w)
    far = [np.abs(np.asarray(_least(scaled, scaled @ w, c * length)) - p).max() for c in (1.0, 10.0, 1000.0)]
    assert far[0] > 10 * far[2] and far[2] < 1e-3


def test_pcgrad_by_hand():
    """(1, 0) and (-1, 1) with weight 1 each: the first loses its part along the second, and the other way round."""
    _, direction = coefficients(Combine("pcgrad", 0.0), [[1.0, 0.0], [-1.0, 1.0]], [1.0, 1.0])
    np.testing.assert_allclose(direction, np.array([0.5, 0.5]) + np.array([0.0, 1.0]), rtol=1e-6)
    _, unopposed = coefficients(Combine("pcgrad", 0.0), [[1.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(unopposed, [1.0, 0.4], rtol=1e-6)


def test_tchebycheff_takes_the_largest_weighted_loss():
    combine = Combine("tchebycheff", 0.0)
    assert coefficients(combine, np.eye(2), losses=(1.0, 1.0))[0] == pytest.approx([0.6, 0.0])
    assert coefficients(combine, np.eye(2), losses=(1.0, 2.0))[0] == pytest.approx([0.0, 0.4])


@pytest.mark.parametrize("how", ["raco", "mgda", "pcgrad"])
def test_opposite_gradients_give_a_zero_step(how):
    g = np.random.default_rng(1).normal(size=7).astype(np.float32)
    _, direction = coefficients(Combine(how, 0.4), [g, -g], [0.5, 0.5])
    assert (direction == 0).all()


@pytest.mark.parametrize("how", ["raco", "mgda", "pcgrad", "tchebycheff"])
def test_gradients_of_zero_give_numbers(how):
    for gradients in (np.zeros((2, 3)), [[0.0, 0.0], [1.0, 2.0]]):
        assert np.isfinite(coefficients(Combine(how, 0.4), gradients)[1]).all()


def test_raco_stands_still_only_where_the_weighted_sum_does():
    """|G0| lies between (1 - c) |g0| and (1 + c) |g0|."""
    for seed in range(30):
        gradients = np.random.default_rng(seed).normal(size=(3, 4))
        w = np.random.default_rng(seed).dirichlet(np.ones(3))
        _, direction = coefficients(RACO, gradients, w, np.ones(3))
        ratio = np.linalg.norm(direction) / np.linalg.norm(w @ gradients)
        assert 0.6 - 1e-4 <= ratio <= 1.4 + 1e-4


def test_inner_products_are_over_all_leaves():
    tree = {"a": jnp.arange(12.0).reshape(2, 2, 3), "b": jnp.array([[1.0], [2.0]])}
    flat = np.concatenate([np.asarray(x).reshape(2, -1) for x in jax.tree.leaves(tree)], 1)
    np.testing.assert_allclose(inner_products(tree), flat @ flat.T)


# ---- the step


SIGNED = [{"name": "dpo", "beta": 0.5, "weight": 0.6}, {"name": "signed_dpo", "beta": 0.5, "weight": 0.4}]
COUPLED = [{"name": softmax_of_batch, "weight": 0.3}, *SIGNED]


@pytest.fixture(scope="module")
def whole(params):  # noqa: F811
    return one_step(*params, SIGNED, micro_rows=8, combine=RACO)


def test_the_direction_is_that_of_the_parts_own_gradients(params, whole):  # noqa: F811
    """Each part trained by itself gives its gradient; combined by hand they are the step's."""
    alone = [one_step(*params, [{**part, "weight": 1.0}], micro_rows=8)[1] for part in SIGNED]
    flat = np.stack([np.concatenate([x.ravel() for x in jax.tree.leaves(g)]) for g in alone])
    a, direction = coefficients(RACO, flat)
    assert whole[0]["gradient_cosine"] < 0, "they conflict"
    np.testing.assert_allclose([whole[0]["combined/dpo"], whole[0]["combined/signed_dpo"]], a, rtol=1e-4)
    np.testing.assert_allclose(
        np.concatenate([x.ravel() for x in jax.tree.leaves(whole[1])]), direction, atol=1e-5 * np.abs(direction).max()
    )
    assert np.abs(a - W).max() > 0.01, "and it is not the weighted sum"


SPLITS = [
    (1, (1, 1, 1), Layout(32)),
    (4, (2, 2, 2), Layout(32)),
    (2, (1, 1, 1), Layout(64, buckets=4)),
    (4, (1, 1, 1), Layout(32, share_prefix=False, pack=False)),
    (8, (8, 1, 1), Layout(32)),
    (4, (2, 1, 1, 2), Layout(64)),
]
SLOW = [pytest.param(*split, marks=pytest.mark.slow) for split in SPLITS[1:]]


@pytest.mark.parametrize("micro_rows, mesh_shape, layout", [SPLITS[0], *SLOW], ids=str)
def test_the_same_step_however_it_is_split(params, whole, micro_rows, mesh_shape, layout):  # noqa: F811
    split = one_step(*params, SIGNED, micro_rows=micro_rows, mesh_shape=mesh_shape, layout=layout, combine=RACO)
    assert_same(whole, split)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raco", "mgda", "pcgrad", "tchebycheff"])
def test_objectives_that_couple_the_batch(params, how):  # noqa: F811
    combine = Combine(how, 0.4)
    one, two = (one_step(*params, COUPLED, micro_rows=n, combine=combine) for n in (8, 2))
    assert two[3].micro_batches > 1
    assert_same(one, two)


def test_raco_with_c_0_is_the_weighted_sum():
    """Nothing is told apart then, so it is the same program, to the bit."""
    of = lambda **optim: Combine.of(OptimConfig(**optim))
    assert of() is None and of(combine="raco", combine_c=0.0) is None
    assert of(combine="raco") == RACO and of(combine="mgda") is not None


def test_the_arithmetic_of_raco_gives_the_weights_to_the_bit_with_c_0():
    rng, combine = np.random.default_rng(7), Combine("raco", 0.0)
    for count in (2, 3):
        gradients = jnp.asarray(rng.normal(size=(count, 5)), jnp.float32)
        gradients = gradients.at[0].set(-gradients[1])  # opposed, as at a stationary point
        w = jnp.asarray(rng.uniform(0.1, 2.0, count), jnp.float32)
        gram = inner_products({"x": gradients})
        assert np.array_equal(jax.jit(combine.coefficients)(gram, w, jnp.ones(count)), w)
        assert not np.array_equal(Combine("raco", 0.4).coefficients(gram, w, jnp.ones(count)), w)


@pytest.mark.slow
def test_a_small_c_is_close_to_the_weighted_sum(params):  # noqa: F811
    """The arithmetic of combined gradients, held against the gradient of the sum."""
    plain = one_step(*params, SIGNED, micro_rows=8)
    combined = one_step(*params, SIGNED, micro_rows=8, combine=Combine("raco", 1e-7))
    for name in ("combined/dpo", "combined/signed_dpo", "gradient_cosine"):
        del combined[0][name]
    assert_same(plain, combined)


def test_gradients_of_one_objective_have_nothing_to_combine():
    (part,) = bind([{"name": "dpo"}], OBJECTIVES)
    with pytest.raises(InputError, match="optim.combine=raco, and 1 of them"):
        check_combinable(OptimConfig(combine="raco"), [part])
    check_combinable(OptimConfig(), [part])
    check_combinable(OptimConfig(combine="raco"), [part, part])
