"""Objectives coupled over the batch: hand values, limits, order and empty slots, drawing, TRL's values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trl_batch

from jaxpref.models.logprobs import Logps
from jaxpref.objectives import bind
from jaxpref.objectives.coupled import _draw, aot, aot_unpaired, beta_dpo, dr_dpo
from jaxpref.objectives.pairwise import dpo

START = {"mean": jnp.zeros(()), "std": jnp.zeros(())}


def logps(sums, counts=None):
    total = jnp.asarray(sums, float)
    count = jnp.ones_like(total) if counts is None else jnp.asarray(counts, float)
    return Logps(total, count, jnp.zeros_like(total), jnp.zeros_like(total))


def with_running(uniform=None, running=START, **hyper):
    """beta_dpo with its further arrays, called like the others."""

    def call(policy, ref, weight=None, **more):
        u = jnp.full(policy.sum.shape[:1], 0.5, policy.sum.dtype) if uniform is None else jnp.asarray(uniform)
        return beta_dpo(policy, ref, running, u, weight, **(hyper | more))

    return call


ALL = {"aot": aot, "aot_unpaired": aot_unpaired, "dr_dpo": dr_dpo, "beta_dpo": with_running()}
value = trl_batch.value


def dpo_loss(logit):
    return math.log1p(math.exp(-logit))


# Margins: policy (3, -1, 0), reference (0, 2, 1); rho chosen (2, 0, 1), rejected (-1, 3, 2); D = (3, -3, -1).
POLICY = logps([[-2.0, -5.0], [-3.0, -2.0], [-2.0, -2.0]])
REF = logps([[-4.0, -4.0], [-3.0, -5.0], [-3.0, -4.0]])


def value_and_gradient(function, policy=POLICY, ref=REF, **kwargs):
    of = lambda total: value_of(function(policy._replace(sum=total), ref, **kwargs))
    return jax.jit(jax.value_and_grad(of))(policy.sum)


def value_of(out):
    return jnp.sum(out.weight_B * out.loss_B) / jnp.sum(out.weight_B)


def test_aot_by_hand():
    """Sorted margins (-1, 0, 3) over (0, 1, 2); the loss of a rank stands at the pair whose margin has it."""
    expected = [dpo_loss(0.5 * (3 - 2)), dpo_loss(0.5 * (-1 - 0)), dpo_loss(0.5 * (0 - 1))]
    np.testing.assert_allclose(aot(POLICY, REF, beta=0.5).loss_B, expected, rtol=1e-6)


def test_aot_unpaired_by_hand():
    """Sorted chosen (0, 1, 2) over rejected (-1, 2, 3)."""
    expected = [dpo_loss(0.5 * (2 - 3)), dpo_loss(0.5 * (0 + 1)), dpo_loss(0.5 * (1 - 2))]
    np.testing.assert_allclose(aot_unpaired(POLICY, REF, beta=0.5).loss_B, expected, rtol=1e-6)


def test_gradient_of_aot_unpaired_by_hand():
    """It reaches the rejected completion of the same rank: 3 stands in pair 1, -1 in pair 0, 2 in pair 2."""
    _, slope = value_and_gradient(aot_unpaired, beta=0.5)
    of = lambda logit: 0.5 / (1 + math.exp(logit)) / 3
    chosen, rejected = [-of(-0.5), -of(0.5), -of(-0.5)], [of(0.5), of(-0.5), of(-0.5)]
    np.testing.assert_allclose(slope, np.stack([chosen, rejected], axis=1), rtol=1e-5)


def test_gradient_of_aot_by_hand():
    _, slope = value_and_gradient(aot, beta=0.5)
    of = lambda logit: 0.5 / (1 + math.exp(logit)) / 3
    chosen = np.array([-of(0.5), -of(-0.5), -of(-0.5)])
    np.testing.assert_allclose(slope, np.stack([chosen, -chosen], axis=1), rtol=1e-5)


def test_aot_eps_by_hand():
    expected = [0.9 * dpo_loss(z) + 0.1 * dpo_loss(-z) for z in (0.5, -0.5, -0.5)]
    np.testing.assert_allclose(aot(POLICY, REF, beta=0.5, eps=0.1).loss_B, expected, rtol=1e-6)


def test_dr_dpo_by_hand():
    losses = np.array([dpo_loss(1.5), dpo_loss(-1.5), dpo_loss(-0.5)])
    out = dr_dpo(POLICY, REF, beta=0.5, beta_prime=2.0)
    np.testing.assert_allclose(out.loss_B, np.full(3, -2 * math.log(np.exp(-losses / 2).mean())), rtol=1e-6)
    np.testing.assert_allclose(out.metrics["dr_dpo/dpo_loss"], losses, rtol=1e-6)
    weight = jnp.array([1.0, 3.0, 0.0])
    expected = -2 * math.log(0.25 * math.exp(-losses[0] / 2) + 0.75 * math.exp(-losses[1] / 2))
    assert value(dr_dpo(POLICY, REF, weight, beta=0.5, beta_prime=2.0)) == pytest.approx(expected, rel=1e-6)


def test_gradient_of_dr_dpo_by_hand():
    """DPO's gradient of each pair times exp(-L / beta') over its sum."""
    losses = np.array([dpo_loss(1.5), dpo_loss(-1.5), dpo_loss(-0.5)])
    share = np.exp(-losses / 2) / np.exp(-losses / 2).sum()
    chosen = -share * 0.5 / (1 + np.exp([1.5, -1.5, -0.5]))
    _, slope = value_and_gradient(dr_dpo, beta=0.5, beta_prime=2.0)
    np.testing.assert_allclose(slope, np.stack([chosen, -chosen], axis=1), rtol=1e-5)


def test_dr_dpo_limits():
    """Towards the mean for a large beta', even in float32; towards the smallest loss for a small one."""
    losses = dpo(POLICY, REF, beta=0.5).loss_B
    assert value(dr_dpo(POLICY, REF, beta=0.5, beta_prime=1e7)) == pytest.approx(float(losses.mean()), rel=1e-6)
    _, slope = value_and_gradient(dr_dpo, beta=0.5, beta_prime=1e7)
    np.testing.assert_allclose(slope, value_and_gradient(dpo, beta=0.5)[1], rtol=1e-5)
    assert value(dr_dpo(POLICY, REF, beta=0.5, beta_prime=1e-4)) == pytest.approx(float(losses.min()), rel=1e-3)


def test_dr_dpo_far_from_the_smallest_loss():
    """Losses 0, 300, 100 in units of 0.1: a share of 1e-12 at the smallest counts, a weight of 0 does not."""
    of = lambda weight: value_and_gradient(
        lambda policy, ref: dr_dpo(policy, ref, jnp.array(weight), beta=100.0, beta_prime=0.1)
    )
    total, slope = of([1e-12, 1.0, 1.0])
    assert float(total) == pytest.approx(-0.1 * math.log(0.5e-12), rel=1e-5) and np.isfinite(slope).all()
    total, slope = of([0.0, 1.0, 1.0])
    assert float(total) == pytest.approx(100 + 0.1 * math.log(2), rel=1e-5)
    np.testing.assert_allclose(slope, [[0, 0], [0, 0], [-100, 100]], atol=1e-4)


@pytest.mark.parametrize(
    "function", [aot, aot_unpaired, dr_dpo, with_running()], ids=["aot", "aot_unpaired", "dr_dpo", "beta_dpo"]
)
def test_constants_and_batches_of_one(function):
    """ln 2 where policy equals reference; DPO for a batch of one, where beta_dpo's beta moves by 0.9 m D only."""
    np.testing.assert_allclose(function(REF, REF).loss_B, math.log(2), rtol=1e-6)
    one = lambda x: jax.tree.map(lambda part: part[:1], x)
    hyper = {"m": 0.0} if function not in (aot, aot_unpaired, dr_dpo) else {}
    got = value_and_gradient(function, one(POLICY), one(REF), beta=0.3, **hyper)
    for part, expected in zip(got, value_and_gradient(dpo, one(POLICY), one(REF), beta=0.3), strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_batch_order_and_empty_slots_change_nothing(name):
    """Six pairs and four empty slots in any order, in which a pair keeps its loss, gradient and draw."""
    generator = np.random.default_rng(0)
    count = np.repeat([[1.0, 1.0], [0.0, 0.0]], [6, 4], axis=0)
    sums, ref_sums = (-30 * generator.random((10, 2)) * count for _ in range(2))
    uniform = generator.random(10)

    @jax.jit
    def compiled(order):
        policy, ref = (logps(jnp.asarray(x)[order], jnp.asarray(count)[order]) for x in (sums, ref_sums))
        function = with_running(jnp.asarray(uniform)[order], filter=0.4) if name == "beta_dpo" else ALL[name]
        return function(policy, ref), value_and_gradient(function, policy, ref)

    with jax.enable_x64(True):
        run = lambda order: jax.tree.map(np.asarray, compiled(order))
        out, (total, slope) = run(np.arange(10))
        assert not out.weight_B[6:].any() and not slope[6:].any()
        for seed in range(5):
            order = np.random.default_rng(seed).permutation(10)
            moved, (total_moved, slope_moved) = run(order)
            np.testing.assert_allclose(total_moved, total, rtol=1e-12)
            np.testing.assert_allclose(slope_moved, slope[order], rtol=1e-10, atol=1e-15)
            np.testing.assert_allclose(moved.loss_B[order < 6], out.loss_B[order[order < 6]], rtol=1e-12)
            np.testing.assert_array_equal(moved.weight_B, out.weight_B[order])
    beta = 0.01 if "aot" in name else 0.1
    margins = (sums - ref_sums)[:6] @ [1, -1]
    assert abs(total / np.log1p(np.exp(-beta * margins)).mean() - 1) > 1e-3, "a case in which the others matter"


def test_beta_dpo_reduces_to_dpo_exactly():
    """Without filter and m, to the bit, value and gradient, whatever the running statistics and the draw."""
    function = with_running([0.9, 0.1, 0.0], {"mean": jnp.asarray(3.0), "std": jnp.asarray(0.2)}, m=0.0, filter=0.0)
    got, expected = value_and_gradient(function, beta=0.3), value_and_gradient(dpo, beta=0.3)
    for part, whole in zip(got, expected, strict=True):
        np.testing.assert_array_equal(part, whole)
    assert (function(POLICY, REF, beta=0.3).weight_B == 1).all()


def test_beta_dpo_by_hand():
    """D = (3, -3, -1): mean -1/3, std sqrt(28/3); all kept, so beta_B = beta (1 + m (-1/3 - M0)), M0 = 0.9 - 0.1/3."""
    running = {"mean": jnp.asarray(1.0), "std": jnp.asarray(2.0)}
    out = with_running(running=running, m=0.6, filter=0.0)(POLICY, REF, beta=0.5)
    m0 = 0.9 - 0.1 / 3
    beta = 0.5 * (1 + 0.6 * (-1 / 3 - m0))
    assert float(out.running["mean"]) == pytest.approx(m0, rel=1e-6)
    assert float(out.running["std"]) == pytest.approx(1.8 + 0.1 * math.sqrt(28 / 3), rel=1e-6)
    np.testing.assert_allclose(out.metrics["beta_dpo/beta"], beta, rtol=1e-6)
    np.testing.assert_allclose(out.loss_B, [dpo_loss(3 * beta), dpo_loss(-3 * beta), dpo_loss(-beta)], rtol=1e-6)
    np.testing.assert_allclose(out.metrics["rewards/margins"], [1.5, -1.5, -0.5], rtol=1e-6)


@pytest.mark.parametrize("mean, beta", [(1.0, 0.5 * (1 + 0.6 * (-1 / 3 - 0.9 + 0.1 / 3))), (100.0, 1e-3)])
def test_beta_of_a_batch_is_constant_and_bounded_below(mean, beta):
    """Value and gradient are those of DPO with the batch's beta."""
    running = {"mean": jnp.asarray(mean), "std": jnp.asarray(1.0)}
    got = value_and_gradient(with_running(running=running, m=0.6, filter=0.0), beta=0.5)
    for part, expected in zip(got, value_and_gradient(dpo, beta=beta), strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-5)


def test_the_draw_knows_this_batch():
    """M0 5 and spread 0.001 would keep D = 3; with this batch taken in they are 0.2 and 2.75, and noise decides."""
    running = {"mean": jnp.asarray(5.0), "std": jnp.asarray(1e-3)}
    out = with_running([0.1, 0.1, 0.99], running, filter=0.67, decay=0.1)(POLICY, REF)
    assert out.metrics["beta_dpo/kept"].tolist() == [0.0, 0.0, 1.0]


def test_beta_looks_at_kept_pairs_only():
    """Of D = (3, -3, -1) the first is out: M0 near -2, spread 0.5; kept mean -2."""
    running = {"mean": jnp.asarray(-2.0), "std": jnp.asarray(0.1)}
    out = with_running(running=running, m=0.5, filter=0.34)(POLICY, REF, beta=0.5)
    assert out.metrics["beta_dpo/kept"].tolist() == [0.0, 1.0, 1.0] == out.weight_B.tolist()
    m0 = -1.8 - 0.1 / 3
    np.testing.assert_allclose(out.metrics["beta_dpo/beta"], 0.5 * (1 + 0.5 * (-2 - m0)), rtol=1e-6)
    weighted = with_running(running=running, m=0.5, filter=0.34)(POLICY, REF, jnp.array([5.0, 2.0, 1.0]), beta=0.5)
    assert weighted.weight_B.tolist() == [0.0, 2.0, 1.0]


def test_how_many_pairs_are_kept():
    """ceil((1 - filter) n), at least 1, of the real ones only."""
    uniform = jnp.asarray(np.random.default_rng(1).random(128), jnp.float32)
    draw = jax.jit(lambda real_B, left_out: _draw(jnp.zeros(128), real_B, uniform, left_out))
    for n, left_out, kept in ((10, 0.2, 8), (4, 0.2, 4), (5, 0.2, 4), (1, 0.9, 1), (100, 0.53, 47), (7, 0.0, 7)):
        real = np.arange(128) < n
        drawn = draw(real, left_out)
        assert int(drawn.sum()) == kept and not (drawn & ~real).any()


def test_drawing_follows_the_weights():
    """One of three with weights 1 : 2 : 4; then two of three: the third is left out by two orders of the others."""
    weight = np.array([1.0, 2.0, 4.0])
    uniform = jax.random.uniform(jax.random.key(0), (20_000, 3))
    real = jnp.ones(3, bool)
    draw = jax.jit(jax.vmap(lambda u, out: _draw(jnp.log(weight), real, u, out), in_axes=(0, None)))
    np.testing.assert_allclose(draw(uniform, 0.67).mean(0), weight / 7, atol=0.012)
    third_out = (1 / 7) * (2 / 6) + (2 / 7) * (1 / 5)
    assert 1 - float(draw(uniform, 0.34)[:, 2].mean()) == pytest.approx(third_out, abs=0.01)


def test_a_far_outlier_leaves_the_draw_of_the_others_alone():
    """Log weights of -1e10 would swallow the noise if they were not taken relative to the largest."""
    log_weight, real = jnp.array([-1e10, -1e10, -3e10]), jnp.ones(3, bool)
    firsts = [_draw(log_weight, real, jnp.array(u), 0.67).tolist() for u in ([0.9, 0.1, 0.99], [0.1, 0.9, 0.99])]
    assert firsts == [[True, False, False], [False, True, False]]


def test_statistics_of_one_pair_and_of_none():
    """One pair moves the mean only; an empty batch moves nothing; both stay finite."""
    running = {"mean": jnp.asarray(1.0), "std": jnp.asarray(2.0)}
    counts = np.array([[1, 1], [0, 0], [0, 0]])
    out = with_running(running=running)(POLICY._replace(count=jnp.asarray(counts, float)), REF)
    assert [float(out.running[k]) for k in ("mean", "std")] == pytest.approx([0.9 + 0.1 * 3, 2.0])
    out = with_running(running=running)(POLICY._replace(count=jnp.zeros((3, 2))), REF)
    assert [float(out.running[k]) for k in ("mean", "std")] == [1.0, 2.0]
    assert np.isfinite(out.loss_B).all() and not out.weight_B.any()


def test_contract():
    for function in (aot, aot_unpaired, dr_dpo, beta_dpo):
        assert function.needs.coupled
    (part,) = bind([{"name": "beta_dpo"}], {"beta_dpo": beta_dpo})
    assert part.needs.running == {"mean": 0.0, "std": 0.0} and part.columns == ()
    out = part(POLICY, REF, {"running": START, "uniform": jnp.full(3, 0.5)})
    assert set(out.running) == {"mean", "std"}


@pytest.mark.parametrize("name", ALL)
def test_finite_at_extremes(name):
    counts = jnp.array([[1, 4000], [1, 1], [0, 0], [4000, 1]])
    ref = logps([[-5.0, -5.0], [-5.0, -5.0], [0.0, 0.0], [-5.0, -5.0]], counts)
    run = jax.jit(lambda sums, beta: value_and_gradient(ALL[name], ref._replace(sum=sums), ref, beta=beta))
    for ratio in (1e3, -1e3):
        for beta in (1e-3, 10.0):
            total, slope = run(ref.sum.at[0, 0].add(ratio).at[3, 1].add(ratio), beta)
            assert np.isfinite(total) and np.isfinite(slope).all() and not np.any(slope[2])


# The case of TRL, its loss in float64, the objective here.
TRL = [
    ("aot", 0.6920735945138186, aot, {}),
    ("aot[ls=0.1]", 0.6924351747089574, aot, {"eps": 0.1}),
    ("aot_unpaired", 0.691523305697425, aot_unpaired, {}),
    ("aot_unpaired[ls=0.1]", 0.6918848858925638, aot_unpaired, {"eps": 0.1}),
    ("sigmoid", 0.6923822056173362, with_running(m=0.0, filter=0.0), {}),
    ("sigmoid", 0.6923822056173362, dr_dpo, {"beta_prime": 1e9}),
]


@pytest.mark.parametrize("case, loss, function, hyper", TRL, ids=[f"{i}-{c[0]}" for i, c in enumerate(TRL)])
def test_golden_values_of_trl(case, loss, function, hyper):
    with jax.enable_x64(True):
        policy, ref = trl_batch.batch()
        total, _ = value_and_gradient(function, policy, ref, beta=0.1, **hyper)
        assert float(total) == pytest.approx(loss, rel=1e-9)
