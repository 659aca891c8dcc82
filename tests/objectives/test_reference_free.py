"""Objectives without a reference: hand values, the odds of ORPO against long decimals, and TRL's own values."""

import math
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trl_batch

from jaxpref.errors import InputError
from jaxpref.models.logprobs import Logps
from jaxpref.objectives import bind
from jaxpref.objectives.reference_free import (
    _log_odds,
    alphapo,
    cpo,
    cpo_simpo,
    orpo,
    orpo_with_prompt,
    simpo,
    slic_hf,
    tpo,
    tpo_l,
)
from jaxpref.objectives.supervised import sft


def logps(sums, counts, dtype=jnp.float32, **more):
    total, count = jnp.asarray(sums, dtype), jnp.asarray(counts, dtype)
    return Logps(total, count, jnp.zeros_like(total), jnp.zeros_like(total), **more)


def mean_of(term):
    return float((term.weight_B * term.loss_B).sum() / term.weight_B.sum())


def value(out):
    return sum(mean_of(term) for term in out.terms)


PAIRS = logps([[-3.0, -8.0], [-4.0, -2.0]], [[2, 4], [1, 4]])  # mean log-probs (-1.5, -2), (-4, -0.5)
MEAN_NLL = 7 / 3  # 3 + 4 nats over 2 + 1 chosen tokens
SWAPPED = logps([[-8.0, -3.0], [-2.0, -4.0]], [[4, 2], [4, 1]])


def logit(a):
    return a - math.log1p(-math.exp(a))


# --- ORPO


def test_orpo_by_hand():
    out = orpo(PAIRS, lam=0.5)
    log_ratio = np.array([logit(-1.5) - logit(-2.0), logit(-4.0) - logit(-0.5)])
    np.testing.assert_allclose(out.loss_B, 0.5 * np.log1p(np.exp(-log_ratio)), rtol=1e-6)
    np.testing.assert_allclose(out.metrics["log_odds_chosen"], log_ratio, rtol=1e-6)
    np.testing.assert_allclose(out.metrics["log_odds_ratio"], -np.log1p(np.exp(-log_ratio)), rtol=1e-6)
    np.testing.assert_allclose(out.metrics["rewards/chosen"], [-0.75, -2.0])
    np.testing.assert_allclose(out.metrics["nll_loss"], [1.5, 4.0])


def test_nll_terms_are_means_over_the_tokens_of_the_batch():
    for out in (orpo(PAIRS), cpo(PAIRS), cpo_simpo(PAIRS), sft(PAIRS)._replace(plus=sft(PAIRS).terms)):
        assert mean_of(out.plus[0]) == pytest.approx(MEAN_NLL, rel=1e-6)
    weighted = orpo(PAIRS, jnp.array([3.0, 1.0]))
    assert mean_of(weighted.plus[0]) == pytest.approx((3 * 3 + 4) / (3 * 2 + 1), rel=1e-6)
    assert mean_of(weighted) == pytest.approx(float(orpo(PAIRS).loss_B @ jnp.array([0.75, 0.25])), rel=1e-6)


def test_the_prompt_counts_in_the_likelihood_only():
    """Prompts of 4 and 3 tokens with 5 and 2 nats beside 2 + 1 tokens with 7 nats."""
    policy = PAIRS._replace(prompt=jnp.array([-5.0, -2.0]), prompt_count=jnp.array([4.0, 3.0]))
    out = orpo_with_prompt(policy)
    np.testing.assert_array_equal(out.loss_B, orpo(PAIRS).loss_B)
    assert mean_of(out.plus[0]) == pytest.approx(14 / 10, rel=1e-6)
    (part,) = bind([orpo_with_prompt], {})
    assert part.needs.logps == ("prompt",) and not part.needs_reference


def test_the_odds_ratio_is_a_logit_difference():
    """a - log(1 - e^a) = logit P, and -log sigmoid(log OR) = -log(odds_w / (odds_w + odds_l))."""
    p_w, p_l = np.array([0.3, 0.9, 0.02]), np.array([0.6, 0.1, 0.02])
    out = orpo(logps(np.log(np.stack([p_w, p_l], 1)), np.ones((3, 2))), lam=1.0)
    odds_w, odds_l = p_w / (1 - p_w), p_l / (1 - p_l)
    np.testing.assert_allclose(out.loss_B, -np.log(odds_w / (odds_w + odds_l)), rtol=2e-6)
    assert out.loss_B[2] == pytest.approx(math.log(2), rel=1e-6)


def test_swapping_the_pair_changes_the_odds_loss_by_the_log_odds():
    there, back = orpo(PAIRS, lam=1.0), orpo(SWAPPED, lam=1.0)
    np.testing.assert_allclose(there.loss_B - back.loss_B, -there.metrics["log_odds_chosen"], rtol=1e-5)
    np.testing.assert_array_equal(there.metrics["log_odds_chosen"], -back.metrics["log_odds_chosen"])


MEANS = -np.logspace(-12, math.log10(700), 80)


def exact_log1mexp(a: float) -> Decimal:
    with localcontext() as context:
        context.prec = 400
        return (1 - Decimal(a).exp()).ln()


def test_log1mexp_and_log_odds_against_400_digits():
    """In float64 to a few units in the last place, from -1e-12 to -700; above -1e-6 the odds stay where they are."""
    with jax.enable_x64(True):
        exact = np.array([float(exact_log1mexp(a)) for a in MEANS])
        np.testing.assert_allclose(jax.nn.log1mexp(-jnp.asarray(MEANS)), exact, rtol=2e-15)
        np.testing.assert_allclose(
            _log_odds(jnp.asarray(MEANS))[MEANS <= -1e-6], (MEANS - exact)[MEANS <= -1e-6], 1e-14
        )
        assert np.ptp(_log_odds(jnp.asarray(MEANS))[MEANS > -1e-6]) == 0.0


def test_odds_have_finite_float32_gradients():
    a = jnp.asarray(np.r_[0.0, MEANS], jnp.float32)
    odds, slope = jax.jit(jax.vmap(jax.value_and_grad(_log_odds)))(a)
    assert odds.dtype == jnp.float32 and np.all(np.isfinite(odds)) and np.all(np.isfinite(slope))
    inside = np.asarray(a) <= -2e-6
    np.testing.assert_allclose(slope[inside], -1.0 / np.expm1(np.asarray(a, np.float64)[inside]), rtol=1e-5)
    assert not np.any(slope[np.asarray(a) > -1e-6])
    pairs = jnp.stack(jnp.meshgrid(a, a), -1).reshape(-1, 2)
    of_sums = jax.jit(jax.grad(lambda s: orpo(logps(s, np.ones(s.shape))).loss_B.sum()))(pairs)
    assert np.all(np.isfinite(of_sums))


def test_descent_on_the_odds_lowers_the_rejected_completion():
    """d loss / d a_l = lam * sigmoid(-log OR) / (1 - P_l), positive; of the chosen one, the same with P_w, negative."""
    loss = lambda s: orpo(PAIRS._replace(sum=s), lam=0.5).loss_B.sum()
    got = jax.grad(loss)(PAIRS.sum) * PAIRS.count
    a = np.array([[-1.5, -2.0], [-4.0, -0.5]])
    wrong = 1 / (1 + np.exp([logit(-1.5) - logit(-2.0), logit(-4.0) - logit(-0.5)]))
    np.testing.assert_allclose(got, 0.5 * wrong[:, None] * np.array([[-1.0, 1.0]]) / (1 - np.exp(a)), rtol=1e-5)
    assert np.all(got[:, 0] < 0) and np.all(got[:, 1] > 0)


# --- the others by hand


def test_cpo_simpo_and_slic_by_hand():
    np.testing.assert_allclose(cpo(PAIRS, beta=0.1).loss_B, np.log1p(np.exp([-0.5, 0.2])), rtol=1e-6)
    assert value(cpo(PAIRS, alpha=3.0)) - value(cpo(PAIRS, alpha=1.0)) == pytest.approx(2 * MEAN_NLL, rel=1e-6)
    np.testing.assert_allclose(simpo(PAIRS, beta=2.0, gamma=0.7).loss_B, np.log1p(np.exp([-0.3, 7.7])), rtol=1e-6)
    assert value(cpo_simpo(PAIRS, alpha=0.5)) == pytest.approx(value(simpo(PAIRS)) + 0.5 * MEAN_NLL, rel=1e-6)
    # margins 5 and -2 against delta 1: relu(-4), relu(3); likelihoods 3 and 4 times 0.1
    np.testing.assert_allclose(slic_hf(PAIRS, delta=1.0, lam=0.1).loss_B, [0.3, 3.4], rtol=1e-6)


def test_alphapo_by_hand_and_towards_simpo():
    """r = (1 - exp(-a / 2)) * 2 at a = (-1.5, -2)."""
    reward = lambda a: 2.0 * (1.0 - math.exp(-0.5 * a))
    out = alphapo(PAIRS, beta=3.0, gamma=1.0, alpha=0.5)
    assert out.metrics["rewards/chosen"][0] == pytest.approx(3 * reward(-1.5), rel=1e-6)
    assert out.loss_B[0] == pytest.approx(math.log1p(math.exp(1 - 3 * (reward(-1.5) - reward(-2.0)))), rel=1e-5)
    with jax.enable_x64(True):
        policy = logps([[-3.0, -8.0], [-4.0, -2.0]], [[2, 4], [1, 4]], jnp.float64)
        gap = lambda alpha: np.abs(alphapo(policy, alpha=alpha).loss_B - simpo(policy).loss_B).max()
        assert gap(0.25) > 0.1 and 5 < gap(1e-4) / gap(1e-5) < 20 and gap(1e-7) < 1e-5


def test_alphapo_of_a_negative_alpha_bounds_the_reward():
    """r = (1 - exp(a / 2)) / (-1/2): -1 at a = -2 ln 2, towards -2 where a completion is hopeless."""
    out = alphapo(logps([[-2 * math.log(2), -900.0]], [[1, 1]]), beta=3.0, alpha=-0.5)
    np.testing.assert_allclose(out.metrics["rewards/chosen"], [-3.0], rtol=1e-6)
    np.testing.assert_allclose(out.metrics["rewards/rejected"], [-6.0], rtol=1e-6)
    assert bind([{"name": alphapo, "alpha": -0.5}], {})[0].hyperparameters["alpha"] == -0.5
    with pytest.raises(InputError, match="should not be 0, which is simpo"):
        bind([{"name": alphapo, "alpha": 0.0}], {})


def test_alphapo_stays_finite_for_hopeless_completions():
    loss = lambda s: alphapo(logps(s, [[1, 1]]), beta=10.0, alpha=1.0).loss_B.sum()
    grads = jax.vmap(jax.grad(loss))(jnp.array([[[-700.0, -1.0]], [[-1.0, -700.0]], [[-39.0, -1.0]]]))
    assert np.all(np.isfinite(grads)) and np.isfinite(jnp.linalg.norm(grads)) and grads[2, 0, 0] < 0


def test_tpo_learns_the_gold_answer():
    triples = logps([[-3.0, -8.0, -6.0], [-4.0, -2.0, -1.0]], [[2, 4, 3], [1, 4, 2]])
    out = tpo(triples, beta=0.1, alpha=2.0)
    np.testing.assert_allclose(out.loss_B, cpo(PAIRS, beta=0.1).loss_B, rtol=1e-6)
    assert mean_of(out.plus[0]) == pytest.approx(2 * 7 / 5, rel=1e-6)
    by_length = tpo_l(triples, beta=2.0, gamma=0.7)
    np.testing.assert_allclose(by_length.loss_B, simpo(PAIRS, beta=2.0, gamma=0.7).loss_B, rtol=1e-6)
    assert mean_of(by_length.plus[0]) == pytest.approx(7 / 5, rel=1e-6)
    grad = jax.grad(lambda s: sum(t.loss_B[0] for t in tpo(triples._replace(sum=s)).plus))(triples.sum)
    np.testing.assert_allclose(grad, [[0, 0, -1 / 3], [0, 0, 0]], rtol=1e-6)


def test_an_empty_slot_weighs_nothing_in_any_term():
    grown = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:1])]), PAIRS)
    for objective in (orpo, cpo, simpo, alphapo, cpo_simpo, slic_hf):
        assert value(objective(grown)) == pytest.approx(value(objective(PAIRS)), rel=1e-6)


# --- TRL 1.16.0 in float64 (the gold answer is the chosen one); ORPO's odds are float32 there

PROMPT_SUMS = [-6.189219934224074, -5.221636757445564, -4.920573203629623, -4.7088113719500795]
"""Log-probs of the prompts of `trl_batch` under its policy, all tokens (2 b + t + 1) mod 11 but the first."""
TRL = [
    (orpo_with_prompt, {}, 2.631327673478733, 1e-7),
    (orpo_with_prompt, {"lam": 1.0}, 3.274555407150398, 1e-7),
    (cpo, {}, 3.385281054324558, 1e-9),
    (cpo, {"alpha": 0.0}, 0.8549693300948246, 1e-9),
    (cpo_simpo, {"beta": 0.1, "gamma": 0.5}, 3.5000249264006467, 1e-9),
    (simpo, {}, 1.3736540815771199, 1e-9),
    (simpo, {"beta": 0.1, "gamma": 0.5}, 0.9697132021709127, 1e-9),
    (alphapo, {}, 1.6825739151956447, 1e-9),
    (tpo, {}, 3.2300794602443643, 1e-9),
    (tpo, {"alpha": 0.0}, 0.6997677360146306, 1e-9),
    (tpo_l, {}, 3.5039026033713747, 1e-9),
]


def trl_policy() -> Logps:
    policy, _ = trl_batch.batch()
    gold = lambda x: jnp.concatenate([x, x[:, :1]], axis=1)
    return Logps(
        *(gold(x) for x in policy[:4]),
        prompt=jnp.asarray(PROMPT_SUMS),
        prompt_count=jnp.full(4, trl_batch.PROMPT - 1.0),
    )


@pytest.mark.parametrize("objective, hyperparameters, loss, relative", TRL)
def test_golden_values_of_trl(objective, hyperparameters, loss, relative):
    with jax.enable_x64(True):
        assert value(objective(trl_policy(), **hyperparameters)) == pytest.approx(loss, rel=relative)


def test_logged_values_of_trl():
    with jax.enable_x64(True):
        out = orpo_with_prompt(trl_policy())
        mean = {name: float(x.mean()) for name, x in out.metrics.items()}
        assert mean_of(out.plus[0]) == pytest.approx(2.559857926948677, rel=1e-9)
        assert mean["log_odds_ratio"] == pytest.approx(-0.7146974802017212, rel=1e-6)
        assert mean["log_odds_chosen"] == pytest.approx(0.0925581157207489, rel=1e-6)
        assert mean["rewards/margins"] == pytest.approx(0.007898226380348206, rel=1e-5)
        rewards = alphapo(trl_policy()).metrics
        assert float(rewards["rewards/chosen"].mean()) == pytest.approx(-6.869956414133037, rel=1e-9)
        assert float(rewards["rewards/accuracies"].mean()) == 0.5
