"""Changes of the log-probs: hand values, limits, derivatives of the divergences, TRL's values, extremes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trl_batch

from jaxpref.errors import InputError
from jaxpref.models.logprobs import Logps
from jaxpref.objectives import bind
from jaxpref.objectives.pairwise import dpo, ipo
from jaxpref.objectives.supervised import sft
from jaxpref.objectives.transforms import (
    TRANSFORMS,
    alpha_divergence,
    forward_kl,
    js_divergence,
    ld,
    reference_free,
    sampled,
)

F_DIVERGENCES = {
    "forward_kl": (forward_kl, lambda u: -np.log(u)),
    "js_divergence": (js_divergence, lambda u: u * np.log(u) - (u + 1) * np.log((u + 1) / 2)),
    "alpha_divergence": (
        lambda policy, ref: alpha_divergence(policy, ref, alpha=0.3),
        lambda u: (u**0.7 - 0.7 * u - 0.3) / (0.3 * (0.3 - 1)),
    ),
}


def logps(sums, counts=None, common=None, drawn=None):
    total = jnp.asarray(sums, float)
    count = jnp.ones_like(total) if counts is None else jnp.asarray(counts, float)
    optional = [None if x is None else jnp.asarray(x, float) for x in (common, drawn)]
    return Logps(total, count, jnp.zeros_like(total), jnp.zeros_like(total), *optional)


def difference(scored) -> jax.Array:
    """What an objective sees of a pair: score of the chosen less that of the rejected."""
    policy, ref = scored
    rho_BK = policy.sum - ref.sum
    return rho_BK[:, 0] - rho_BK[:, 1]


POLICY = logps([[-6.0, -2.0]], [[4, 2]], common=[[-3.0, -2.0]], drawn=[[-2.5, -2.0]])
REF = logps([[-7.0, -1.5]], [[4, 2]], common=[[-3.2, -1.5]], drawn=[[-2.6, -1.5]])


def test_ld_by_hand():
    """Half of the 3 nats behind the second token: -4.5 for the policy, -3.2 - 1.9 for the reference."""
    policy, ref = ld(POLICY, REF, alpha=0.5)
    np.testing.assert_allclose(policy.sum, [[-4.5, -2.0]], rtol=1e-6)
    np.testing.assert_allclose(ref.sum, [[-5.1, -1.5]], rtol=1e-6)
    assert policy.count.tolist() == [[4, 2]], "the divisor of a token mean stays the whole length"


def test_ld_at_its_ends():
    assert (ld(POLICY, REF, alpha=1.0)[0].sum == POLICY.sum).all(), "exactly"
    assert (ld(POLICY, REF, alpha=0.0)[0].sum == POLICY.common).all()


def test_ld_splits_the_gradient():
    """1 - alpha to the tokens in front, the shares of both adding up to 1 there (a front token is in both sums)."""
    of = lambda total, common: ld(POLICY._replace(sum=total, common=common), REF, alpha=0.25)[0].sum.sum()
    to_sum, to_common = jax.grad(of, (0, 1))(POLICY.sum, POLICY.common)
    np.testing.assert_allclose(to_sum, 0.25)
    np.testing.assert_allclose(to_common, 0.75)


def test_sampled_takes_the_drawn_tokens_and_their_number():
    policy, ref = sampled(POLICY, REF)
    np.testing.assert_allclose(policy.sum - ref.sum, [[0.1, -0.5]], rtol=1e-5)
    assert policy.count.tolist() == ref.count.tolist() == [[2, 2]]


def test_reference_free_needs_no_reference():
    policy, ref = reference_free(POLICY, None)
    np.testing.assert_allclose(policy.sum - ref.sum, POLICY.sum)
    (part,) = bind([{"name": "dpo", "transform": "reference_free"}], {"dpo": dpo}, TRANSFORMS)
    assert not part.needs_reference


@pytest.mark.parametrize("name", F_DIVERGENCES)
def test_a_score_is_the_derivative_of_its_divergence(name):
    """Up to a constant, which a pair cancels: against a central difference of f, u from e^-3 to e^3."""
    transform, f = F_DIVERGENCES[name]
    with jax.enable_x64(True):
        rho = np.linspace(-3.0, 3.0, 25)
        u, h = np.exp(rho), 1e-6 * np.exp(rho)
        numeric = (f(u + h) - f(u - h)) / (2 * h)
        pairs = np.stack([rho, np.zeros_like(rho)], axis=1)
        got = difference(transform(logps(pairs), logps(np.zeros_like(pairs))))
        slope_at_1 = (f(1 + 1e-6) - f(1 - 1e-6)) / 2e-6
        np.testing.assert_allclose(got, numeric - slope_at_1, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("transform", [forward_kl, js_divergence, alpha_divergence])
def test_scores_start_as_log_ratios(transform):
    """Score 0 where policy equals reference, slope f''(1): 1 for the KLs and alpha, 1/2 for Jensen-Shannon."""
    score = lambda total: transform(POLICY._replace(sum=total), POLICY)[0].sum
    np.testing.assert_allclose(score(POLICY.sum), 0.0, atol=1e-7)
    slope = jax.grad(lambda total: score(total).sum())(POLICY.sum)
    np.testing.assert_allclose(slope, 0.5 if transform is js_divergence else 1.0, rtol=1e-6)


def test_small_scores_keep_their_digits():
    """1 - exp(-x) would round x = 1e-6 by 5 percent in float32."""
    for transform in (forward_kl, alpha_divergence):
        policy, _ = transform(logps([[1e-6, -1e-6]]), logps([[0.0, 0.0]]))
        np.testing.assert_allclose(policy.sum, [[1e-6, -1e-6]], rtol=2e-6)


def test_alpha_lies_between_the_log_ratio_and_the_forward_kl():
    with jax.enable_x64(True):
        policy, ref = trl_batch.batch()
        rho_BK = policy.sum - ref.sum
        np.testing.assert_allclose(alpha_divergence(policy, ref, alpha=1e-9)[0].sum, rho_BK, rtol=1e-7)
        np.testing.assert_array_equal(alpha_divergence(policy, ref, alpha=1.0)[0].sum, forward_kl(policy, ref)[0].sum)


@pytest.mark.parametrize("transform", [forward_kl, js_divergence, alpha_divergence])
@pytest.mark.parametrize("ratio", [1e3, -1e3])
def test_scores_are_finite_at_extremes(transform, ratio):
    """Also squared, as ipo does, in float32; the gradient stays finite too."""
    ref = logps([[-5.0, -5.0]])

    def loss(total):
        out = ipo(*transform(ref._replace(sum=total), ref), beta=10.0)
        return out.loss_B.sum()

    value, slope = jax.value_and_grad(loss)(jnp.array([[ratio - 5.0, -5.0]]))
    assert np.isfinite(value) and np.isfinite(slope).all()


@pytest.mark.parametrize("name", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_the_reference_is_constant(name):
    policy, ref = logps([[-3.0, -7.0]]), logps([[-4.0, -5.0]])
    of_ref = lambda total: difference(TRANSFORMS[name].function(policy, ref._replace(sum=total))).sum()
    assert not np.any(jax.grad(of_ref)(ref.sum))


# The case of TRL, its loss in float64, the objective and the transform here.
TRL = [
    ("sigmoid", 0.6923822056173362, "dpo", []),
    ("ipo", 25.38905214740513, "ipo", []),
    ("sigmoid[ld_alpha=0.0]", 0.680556276511241, "dpo", {"name": "ld", "alpha": 0.0}),
    ("sigmoid[ld_alpha=0.5]", 0.6861478809591656, "dpo", {"name": "ld", "alpha": 0.5}),
    ("sigmoid[ld_alpha=1.0]", 0.6923822056173361, "dpo", {"name": "ld", "alpha": 1.0}),
    ("ipo[ld_alpha=0.5]", 25.206586536564213, "ipo", {"name": "ld", "alpha": 0.5}),
    ("sigmoid[forward_kl]", 0.6872993113683711, "dpo", "forward_kl"),
    ("ipo[forward_kl]", 25.02275463144029, "ipo", "forward_kl"),
    ("sigmoid[js_divergence]", 0.6905172358401448, "dpo", "js_divergence"),
    ("ipo[js_divergence]", 25.047272792821452, "ipo", "js_divergence"),
]
# TRL raises in float64 here, so its float32 has to do.
TRL_FLOAT32 = [
    ("sigmoid[alpha_divergence]", 0.688836932182312, "dpo", {"name": "alpha_divergence", "alpha": 0.5}),
    ("ipo[alpha_divergence]", 25.154518127441406, "ipo", {"name": "alpha_divergence", "alpha": 0.5}),
]
OBJECTIVES = {"dpo": dpo, "ipo": ipo, "sft": sft}


@pytest.mark.parametrize("case, loss, name, transform", TRL + TRL_FLOAT32, ids=[c[0] for c in TRL + TRL_FLOAT32])
def test_golden_values_of_trl(case, loss, name, transform):
    (part,) = bind([{"name": name, "beta": 0.1, "transform": transform}], OBJECTIVES, TRANSFORMS)
    with jax.enable_x64(True):
        policy, ref = trl_batch.batch()
        np.testing.assert_allclose(policy.sum, trl_batch.SUMS, rtol=1e-12)
        exact = case not in [c[0] for c in TRL_FLOAT32]
        assert trl_batch.value(part(policy, ref, {})) == pytest.approx(loss, rel=1e-9 if exact else 1e-6)


def test_transforms_apply_in_their_order():
    """ld makes rho 0.6 and -0.5, and the divergence scores those."""
    (part,) = bind(
        [{"name": "dpo", "beta": 1.0, "transform": [{"name": "ld", "alpha": 0.5}, "forward_kl"]}],
        OBJECTIVES,
        TRANSFORMS,
    )
    assert part.needs.logps == ("common",)
    margin = (1 - math.exp(-0.6)) - (1 - math.exp(0.5))
    np.testing.assert_allclose(part(POLICY, REF, {}).loss_B, [math.log1p(math.exp(-margin))], rtol=1e-6)


@pytest.mark.parametrize("name, chain", [("sft", ["ld"]), ("dpo", ["forward_kl", "ld"]), ("dpo", ["ld", "sampled"])])
def test_transforms_that_make_no_sense_are_refused(name, chain):
    """Before a likelihood; tokens left out after the log-ratios are gone; tokens left out twice."""
    with pytest.raises(InputError):
        bind([{"name": name, "transform": chain}], OBJECTIVES, TRANSFORMS)


def test_a_gold_answer_is_not_drawn_from():
    gold = lambda x: jnp.concatenate([x, x[:, :1]], axis=1)
    policy, _ = sampled(jax.tree.map(gold, POLICY), None)
    assert policy.count.tolist() == [[2, 2, 4]]
