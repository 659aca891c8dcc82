"""Pairwise objectives in float64: golden values of TRL, values and gradients by hand, reductions to DPO, minimisers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trl_batch

from jaxpref.errors import InputError
from jaxpref.models.logprobs import Logps
from jaxpref.objectives import bind
from jaxpref.objectives.divergences import chi_po
from jaxpref.objectives.margins import dpop, hypo, margin_dpo, minor_dpo, mmpo, odpo, r_dpo
from jaxpref.objectives.pairwise import cdpo, discopop, dpo, dpo_norm, exo, hinge, ipo, ipo_sum, rdpo

# TRL 1.16.0's DPOTrainer in float64 on the pairs of trl_batch.py: the loss of each `loss_type`, beta 0.1 where none is
# given.
TRL_LOSSES = [
    (dpo, {}, 0.6923822056173362),
    (dpo, {"beta": 0.5}, 0.709805204033694),
    (hinge, {}, 0.9963841980486121),
    (ipo, {}, 25.38905214740513),
    (rdpo, {}, 0.6919302303734126),
    (rdpo, {"eps": 0.0}, 0.6923822056173362),
    (exo, {}, 2.7559659184006637),
    (discopop, {"beta": 0.1}, 0.8462080173988713),
    (dpo_norm, {"beta": 0.1}, 0.6947785239556404),
    (dpo_norm, {}, 1.0075260337465186),
]

PAIRS = 36
"""Every test runs on so many pairs, its own over and over, because each new shape is compiled."""
LN2, LN3 = math.log(2), math.log(3)
RIGHT, WRONG = math.log(4 / 3), math.log(4)  # -log sigmoid(log 3) and -log sigmoid(-log 3)
GRID = [[x, y] for x in (-30.0, -2.0, -0.3, 0.0, 0.4, 5.0) for y in (-40.0, -1.0, -0.2, 0.0, 0.7, 6.0)]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def rows(x):
    x = np.asarray(x, float)
    return np.resize(x, (PAIRS, *x.shape[1:]))


def logps(sums, counts):
    zeros = np.zeros((PAIRS, 2))
    return Logps(jnp.asarray(rows(sums)), rows(counts), zeros, zeros)


def at(rho, counts=(1, 1), ref=(-40, -45)):
    """Policy and reference with these log-ratios, one pair or a list of them."""
    rho, counts, ref = (rows(np.atleast_2d(x)) for x in (rho, counts, ref))
    return logps(ref + rho, counts), logps(ref, counts)


def loss(function, pairs, *columns, **hyper):
    return np.asarray(function(*pairs, *map(rows, columns), **hyper).loss_B)


def gradient(function, pairs, *columns, **hyper):
    """[B, 2] with respect to the policy's summed log-probs."""
    (policy, ref), columns = pairs, list(map(rows, columns))
    of_sum = lambda total: function(policy._replace(sum=total), ref, *columns, **hyper).loss_B.sum()
    return np.asarray(jax.grad(of_sum)(policy.sum))


def assert_same(one, other):
    """The same loss and gradient of every pair; each side is (function, pairs, columns..., hyperparameters)."""
    for what in (loss, gradient):
        left, right = (what(*side[:-1], **side[-1]) for side in (one, other))
        np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("function, hyper, expected", TRL_LOSSES)
def test_golden_values_of_trl(function, hyper, expected):
    out = function(*(logps(side.sum, side.count) for side in trl_batch.batch()), **hyper)
    assert np.all(out.weight_B == 1)
    # TRL rounds exo's log(eps) to float32.
    np.testing.assert_allclose(np.mean(out.loss_B), expected, rtol=2e-8 if function is exo else 1e-9)
    scale = hyper.get("beta", {dpo_norm: 5.0}.get(function, 0.1)) / 0.1
    np.testing.assert_allclose(out.metrics["rewards/chosen"].mean(), 0.07098698720930993 * scale, rtol=1e-9)
    np.testing.assert_allclose(out.metrics["rewards/rejected"].mean(), 0.06737118525792214 * scale, rtol=1e-9)


BY_HAND = [
    (dpo, (LN3, 0), (), {}, RIGHT),
    (cdpo, (LN3, 0), (), {"eps": 0.25}, 0.75 * RIGHT + 0.25 * WRONG),
    (rdpo, (LN3, 0), (), {"eps": 0.25}, 1.5 * RIGHT - 0.5 * WRONG),
    (hinge, (0, LN3), (), {}, 1 + LN3),
    (hinge, (LN3, 0), (), {}, 0),
    (ipo, (LN3, 2), (), {}, (LN3 / 2 - 2 / 4 - 0.5) ** 2),
    (ipo_sum, (LN3, 2), (), {}, (LN3 - 2 - 0.5) ** 2),
    (dpo_norm, (2 * LN3, -4 * LN3), (), {"beta": 0.5}, RIGHT),
    (r_dpo, (2 * LN3, 0), (), {"beta": 0.5, "alpha": 0.5 * LN3}, LN2),  # 2 tokens shorter
    (dpop, (-2 * LN3, -4 * LN3), (), {"beta": 0.5, "lam": 2.0}, WRONG),
    (dpop, (LN3, 0), (), {"lam": 2.0}, RIGHT),
    (minor_dpo, (LN3, -5), (), {}, RIGHT),
    (minor_dpo, (0, LN3), (), {}, WRONG),
    (odpo, (2 * LN3, 0), ([[5.0, 2.0]],), {"beta": 0.5}, LN2),  # log(5 - 2)
    (odpo, (0, 0), ([[10.0, 1.0]],), {"alpha": 0.5}, WRONG),  # log(9) / 2
    (margin_dpo, (2 * LN3, 0), ([2 * LN3],), {"beta": 0.5}, WRONG),
    (mmpo, (LN3, 0), ([[2.0, 2.0 - 0.5 * LN3]],), {"gamma": 2.0}, 0.75 * RIGHT + 0.25 * WRONG),
    (exo, (LN3, 0), (), {"eps": 0.25}, 0),
    (exo, (LN3, 0), (), {"eps": 0.1}, 0.75 * math.log(0.75 / 0.9) + 0.25 * math.log(2.5)),
    (discopop, (LN3, 0), (), {"tau": 0.5}, 0.1 * RIGHT + 0.9 / 3),  # sigmoid(2 ln 3) = 9/10
    (discopop, (0, LN3), (), {"tau": 0.5}, 0.9 * WRONG + 0.1 * 3),
    (chi_po, (LN3, LN2), (), {}, math.log1p(math.exp(-(1 + LN3 - LN2)))),
    (chi_po, (LN3, LN2), (), {"r_max": 0.5 * LN3}, RIGHT),  # 1.41 cut to 1.10
    (chi_po, (LN2, LN3), (), {"r_max": 0.5 * LN3}, WRONG),
    (hypo, (LN3, 0), (), {}, RIGHT),
]


@pytest.mark.parametrize("function, rho, columns, hyper, expected", BY_HAND)
def test_by_hand(function, rho, columns, hyper, expected):
    out = loss(function, at(rho, (2, 4)), *columns, **({"beta": 1.0} | hyper))
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-15)


CONSTANTS = [
    *((function, {}, LN2) for function in (dpo, cdpo, rdpo, dpo_norm, dpop, minor_dpo, chi_po)),
    (ipo, {"beta": 0.2}, 6.25),
    (ipo_sum, {"beta": 0.2}, 6.25),
    (hinge, {}, 1),
    (exo, {"eps": 1e-3}, 0.5 * (math.log(0.5) - math.log(0.999)) + 0.5 * (math.log(0.5) - math.log(1e-3))),
    (discopop, {}, 0.5 * (LN2 + 1)),
    (r_dpo, {"alpha": LN3}, WRONG),  # a chosen answer one token shorter
    (hypo, {}, LN2),
]


@pytest.mark.parametrize("function, hyper, expected", CONSTANTS)
def test_constant_where_policy_equals_reference(function, hyper, expected):
    np.testing.assert_allclose(loss(function, at((0, 0), (3, 4)), **hyper), expected, rtol=1e-12)


@pytest.mark.parametrize("function", [dpo, dpo_norm, dpop, minor_dpo, hypo])
def test_gradient_where_policy_equals_reference(function):
    """-beta/2 and +beta/2: the ties of the clamped sides pass (minor_dpo) or drop (dpop) it as DPO does."""
    np.testing.assert_allclose(gradient(function, at((0, 0)), beta=0.3)[0], [-0.15, 0.15], rtol=1e-12)


def test_gradients_by_hand():
    """At margin log 3, sigmoid(-margin) is 1/4; smoothing by eps takes eps off it."""
    pairs = at((LN3 / 0.5, 0), (2, 4))
    expected = {dpo: (-0.125, 0.125), hinge: (0, 0)}
    for function, row in expected.items():
        np.testing.assert_allclose(gradient(function, pairs, beta=0.5)[0], row, rtol=1e-12)
    np.testing.assert_allclose(gradient(cdpo, pairs, beta=0.5, eps=0.1)[0], (-0.075, 0.075), rtol=1e-12)
    np.testing.assert_allclose(gradient(rdpo, pairs, beta=0.5, eps=0.1)[0], (-0.1875, 0.1875), rtol=1e-12)
    below = at((-1.0, -1.0 - 5 - LN3))  # D - 5 * 1 = log 3
    np.testing.assert_allclose(gradient(dpop, below, beta=1.0, lam=5.0)[0], (-0.25 * 6, 0.25), rtol=1e-12)
    chi = gradient(chi_po, at((LN2, LN3)), beta=0.2)  # phi' = 1 + exp(rho)
    slope = 0.2 / (1 + math.exp(0.2 * (2 + LN2 - 3 - LN3)))
    np.testing.assert_allclose(chi[0], (-3 * slope, 4 * slope), rtol=1e-12)
    assert not gradient(chi_po, at((LN2, LN3)), beta=0.2, r_max=0.1).any(), "beyond the cut"


def test_reductions_to_dpo():
    pairs, plain = at(GRID), {"beta": 0.3}
    same = lambda function, *columns, **hyper: assert_same((function, pairs, *columns, hyper), (dpo, pairs, plain))
    same(cdpo, beta=0.3, eps=0.0)
    same(rdpo, beta=0.3, eps=0.0)
    same(dpo_norm, beta=0.3)  # completions of one token
    same(r_dpo, beta=0.3, alpha=0.0)
    same(dpop, beta=0.3, lam=0.0)
    same(margin_dpo, [0.0], beta=0.3)
    same(odpo, [[3.0, 2.0]], beta=0.3, alpha=7.0)
    same(mmpo, [[900.0, 0.0]], beta=0.3)
    same(hypo, beta=0.3)  # the reference prefers the chosen answers
    assert_same((ipo, pairs, plain), (ipo_sum, pairs, plain))


def test_reductions_on_one_side_only():
    chosen_up, rejected_up = (at([pair for pair in GRID if pair[side] >= 0]) for side in (0, 1))
    assert_same((dpop, chosen_up, {"beta": 0.3}), (dpo, chosen_up, {"beta": 0.3}))
    assert_same((minor_dpo, rejected_up, {"beta": 0.3}), (dpo, rejected_up, {"beta": 0.3}))
    chosen_down = at([pair for pair in GRID if pair[0] < 0])
    assert np.all(loss(dpop, chosen_down, beta=0.3) > loss(dpo, chosen_down, beta=0.3))


def test_hypo_ignores_a_reference_that_prefers_the_rejected_answer():
    policy, ref = at(GRID, ref=(-45.0, -40.0))
    assert_same((hypo, (policy, ref), {}), (dpo, (policy, ref._replace(sum=np.zeros((PAIRS, 2)))), {}))
    assert np.all(loss(hypo, (policy, ref)) > loss(dpo, (policy, ref)))
    out = hypo(*at([(0, 0)] * 3, ref=[(-2, -1), (-1, -1), (-1, -2)]))
    assert out.metrics["hypo/pessimistic"][:3].tolist() == [1.0, 0.0, 0.0]


def test_offsets_and_lengths_are_margins():
    counts, score = [[7.0, 3.0], [2.0, 9.0]], [[5.0, 2.0], [0.3, 0.2]]
    pairs = at([[1.0, -2.0], [0.5, 4.0]], counts)
    offset = 0.7 * np.log([3.0, 0.3 - 0.2])
    assert_same((odpo, pairs, score, {"alpha": 0.7}), (margin_dpo, pairs, offset, {}))
    assert_same((r_dpo, pairs, {"alpha": 0.2}), (margin_dpo, pairs, [-0.8, 1.4], {}))


def test_r_dpo_makes_a_long_answer_less_likely():
    """A longer chosen answer is learnt less, a longer rejected one more; a coin's labels end at beta D = -alpha dn."""
    push = lambda counts: -float(gradient(r_dpo, at((0, 0), counts), alpha=0.1)[0, 0])
    assert push((20, 10)) < push((10, 10)) < push((10, 20))
    balance = lambda rho: (
        gradient(r_dpo, at((rho, 0), (20, 10)), alpha=0.1) + gradient(r_dpo, at((0, rho), (10, 20)), alpha=0.1)[:, ::-1]
    )
    np.testing.assert_allclose(balance(-0.1 * 10 / 0.1), 0, atol=1e-15)
    assert balance(0.0)[0, 0] > 0, "descent lowers the longer answer"


def test_rdpo_is_unbiased_under_flipped_labels():
    swapped = [pair[::-1] for pair in GRID]
    mean = 0.8 * loss(rdpo, at(GRID), eps=0.2) + 0.2 * loss(rdpo, at(swapped), eps=0.2)
    np.testing.assert_allclose(mean, loss(dpo, at(GRID)), rtol=1e-12, atol=1e-14)
    assert np.abs(0.8 * loss(cdpo, at(GRID)) + 0.2 * loss(cdpo, at(swapped)) - loss(dpo, at(GRID))).max() > 0.1


def test_minor_dpo_stops_at_the_reference():
    pairs = at(GRID)
    below = np.array(GRID)[:, 1] < 0
    grad = np.asarray(gradient(minor_dpo, pairs))
    assert not grad[below, 1].any() and grad[~below, 1].all() and grad[:, 0].all()
    assert np.all(loss(minor_dpo, pairs) >= loss(dpo, pairs))
    assert np.all(loss(minor_dpo, pairs)[below] > loss(dpo, pairs)[below])
    np.testing.assert_allclose(minor_dpo(*pairs).metrics["rewards/rejected"], 0.1 * np.array(GRID)[:, 1], rtol=1e-12)


@pytest.mark.parametrize(
    "function, margin, columns, hyper",
    [
        (cdpo, LN3, (), {"eps": 0.25}),
        (exo, LN3, (), {"eps": 0.25}),
        (mmpo, 0.6, ([[1.0, 0.7]],), {"beta": 0.1, "gamma": 2.0}),
        (mmpo, -0.6, ([[0.7, 1.0]],), {"beta": 0.1, "gamma": 2.0}),
        (ipo_sum, 0.5, (), {}),
    ],
)
def test_minimiser(function, margin, columns, hyper):
    """The gradient vanishes at this reward margin, and pulls towards it from both sides."""
    slope = lambda delta: float(gradient(function, at(((margin + delta) / 0.1, 0)), *columns, **hyper)[0, 0])
    assert slope(0.0) == pytest.approx(0, abs=1e-9)
    assert slope(-0.2) < -1e-4 and slope(0.2) > 1e-4


def test_discopop_starts_downhill_to_a_negative_margin():
    """The slope at a tie is m' (1 - ln 2) - 3/4 with m' = 1 / (4 tau); from h = -0.119 to 0.072 it is positive."""
    slope = lambda h: float(gradient(discopop, at((h / 0.05, 0)))[0, 0]) / 0.05
    assert slope(0.0) == pytest.approx(5 * (1 - LN2) - 0.75, rel=1e-9)
    assert slope(-0.1185) > 0 > slope(-0.1187) and slope(0.0719) > 0 > slope(0.0721)


def test_odpo_leaves_out_pairs_without_order():
    pairs, score = at((1, 0)), rows([[2.0, 1.0], [1.0, 1.0], [0.0, 3.0]])
    out = odpo(*pairs, score, rows([3.0, 1.0, 1.0]))
    assert out.weight_B[:3].tolist() == [3.0, 0.0, 0.0] and np.isfinite(out.loss_B).all()
    assert out.metrics["odpo/without_order"][:3].tolist() == [0.0, 1.0, 1.0]
    assert np.isfinite(gradient(odpo, pairs, score)).all()


def test_exponentials_stay_finite_in_float32():
    """Far below 0 discopop is dpo (m underflows long before exp(-h) would overflow); chi_po grows with exp(20)."""

    def of_far_pairs(function, **hyper):
        policy, ref = (
            jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), side) for side in at([[-1e3, 1e3], [1e3, -1e3]])
        )
        each = lambda total: (lambda loss_B: (loss_B.sum(), loss_B))(
            function(policy._replace(sum=total), ref, **hyper)[0]
        )
        grad, loss_B = jax.jit(jax.grad(each, has_aux=True))(policy.sum)
        assert loss_B.dtype == np.float32 and np.isfinite(grad).all()
        return np.asarray(loss_B[:2]), np.asarray(grad[:2])

    value, slope = of_far_pairs(discopop, beta=10.0)
    np.testing.assert_allclose(value, [2e4, 0], rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(slope, [[-10, 10], [0, 0]], rtol=1e-6, atol=1e-30)
    assert np.isfinite(of_far_pairs(discopop, beta=10.0, tau=4.0)[0]).all()
    value, slope = of_far_pairs(chi_po, beta=0.1)
    np.testing.assert_allclose(value, [0.1 * (math.exp(20) + 2e3), 0], rtol=1e-5)
    np.testing.assert_allclose(slope, [[-0.1, 0.1], [0, 0]], rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    "setting",
    [
        {"name": exo, "eps": 0.0},
        {"name": rdpo, "eps": 0.5},
        {"name": cdpo, "eps": 0.7},
        {"name": dpop, "lam": -1.0},
        {"name": r_dpo, "alpha": -0.1},
        {"name": chi_po, "r_max": 0.0},
        {"name": discopop, "tau": 0.0},
        {"name": dpo, "beta": 0.0},
    ],
)
def test_bounds_of_hyperparameters(setting):
    with pytest.raises(InputError):
        bind([setting], {})


def test_binding_reads_columns():
    (part,) = bind([{"name": chi_po, "r_max": None}], {})
    assert part.hyperparameters["r_max"] is None and part.columns == ()
    (part,) = bind([{"name": odpo, "alpha": 1, "columns": {"score": "helpfulness"}}], {})
    assert part.columns == ("helpfulness",) and part.needs_reference
    out = part(*at((LN3, 0)), {"helpfulness": rows([[5.0, 2.0]]), "weight": rows([2.0])})
    assert np.all(out.weight_B == 2) and float(out.loss_B[0]) == pytest.approx(math.log1p(3 * 3**-0.1))
