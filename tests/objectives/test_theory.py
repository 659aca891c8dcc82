"""What the objectives promise of their optima, on one prompt with six answers and all ordered pairs, in float64.

A policy is a table of six logits.  The pairs (i, j) with weight P(i beats j) are the whole population of Bradley-Terry
labels, so the optimum that L-BFGS finds through `jax.grad` can be held against the closed form.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq, minimize

from jaxpref.models.logprobs import Logps
from jaxpref.objectives.advantage import advantage_mle, hpo_dpo
from jaxpref.objectives.divergences import f_dpo_alpha, f_dpo_forward_kl, f_dpo_js
from jaxpref.objectives.margins import minor_dpo
from jaxpref.objectives.multiobjective import modpo, modpo_implicit, spo
from jaxpref.objectives.pairwise import dpo, ipo_sum, rdpo
from jaxpref.objectives.references import geometric_mrpo, mrpo, mrpo_fixed, multi_dpo

ARMS = 6
FIRST, SECOND = np.nonzero(~np.eye(ARMS, dtype=bool))  # all ordered pairs, (winner, loser)
BETA = 0.7
TOLERANCE = 1e-5  # of log-probs at the optimum, where the gradient is below 1e-9


def log_softmax(x):
    return np.asarray(x) - np.log(np.sum(np.exp(x)))


rng = np.random.default_rng(0)
REWARD, OTHER = rng.normal(size=(2, ARMS))
REF, REF_2 = (log_softmax(x) for x in rng.normal(size=(2, ARMS)))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def wins(reward):
    """P(winner beats loser) of every ordered pair."""
    return sigmoid(reward[FIRST] - reward[SECOND])


def tilted(log_prob, exponent):
    """log of pi * exp(exponent) / Z."""
    return log_softmax(log_prob + exponent)


def kl(log_p, log_q):
    return np.sum(np.exp(log_p) * (log_p - log_q))


def of_pairs(table):
    """[30, 2] of an array over arms (the last axes stay)."""
    return table[np.stack([FIRST, SECOND], axis=1)]


def as_logps(sums):
    """Completions of one token."""
    return Logps(sums, jnp.ones_like(sums), jnp.zeros_like(sums), jnp.zeros_like(sums))


def pairs(table):
    return as_logps(jnp.asarray(of_pairs(table)))


def value(out):
    return sum(jnp.sum(t.weight_B * t.loss_B) / jnp.sum(t.weight_B) for t in out.terms)


def optimum(objective, start=REF):
    """log-probs of the table that minimises `objective(log_probs)`, an ObjectiveOutput."""
    function = jax.jit(jax.value_and_grad(lambda logits: value(objective(jax.nn.log_softmax(logits)))))
    options = {"maxiter": 10_000, "maxfun": 20_000, "ftol": 0.0, "gtol": 1e-9, "maxcor": 20}
    both = lambda x: tuple(np.asarray(y, np.float64) for y in function(jnp.asarray(x)))
    return log_softmax(minimize(both, start, jac=True, method="L-BFGS-B", options=options).x)


def best(objective, weights, *arrays, **hyper):
    """Optimum of an objective on pairs with a reference, with `weights` on the ordered pairs."""
    return optimum(lambda log_prob: objective(pairs(log_prob), pairs(REF), *arrays, jnp.asarray(weights), **hyper))


def assert_close(one, other):
    np.testing.assert_allclose(one, other, atol=TOLERANCE, rtol=0)


# DPO and its relatives


def test_dpo_finds_the_tilted_reference():
    assert_close(best(dpo, wins(REWARD), beta=BETA), tilted(REF, REWARD / BETA))


def test_ipo_finds_the_reference_tilted_by_win_rates():
    """Azar et al., for answers that are drawn uniformly: exponent = mean over y' of P(y beats y') / tau."""
    rates = sigmoid(REWARD[:, None] - REWARD[None, :]).mean(axis=1)
    assert_close(best(ipo_sum, wins(REWARD), beta=BETA), tilted(REF, rates / BETA))


def test_the_margin_of_ipo_stops_at_half_of_one_over_tau():
    margin = 0.5 / BETA
    of = lambda m: ipo_sum(as_logps(m * jnp.array([[0.75, -0.25]])), as_logps(jnp.zeros((1, 2))), beta=BETA).loss_B[0]
    assert of(margin) == pytest.approx(0.0, abs=1e-15) and of(1.01 * margin) > 0 and of(0.99 * margin) > 0


def test_robust_dpo_sees_through_flipped_labels():
    flip = 0.2
    noisy = (1 - flip) * wins(REWARD) + flip * wins(-REWARD)
    truth = tilted(REF, REWARD / BETA)
    assert_close(best(rdpo, noisy, beta=BETA, eps=flip), truth)
    assert np.abs(best(dpo, noisy, beta=BETA) - truth).max() > 0.1


def test_robust_dpo_is_dpo_in_the_mean_over_flips():
    policy, swap = pairs(OTHER), lambda logps: jax.tree.map(lambda x: x[:, ::-1], logps)
    right = rdpo(policy, pairs(REF), beta=BETA, eps=0.2).loss_B
    wrong = rdpo(swap(policy), swap(pairs(REF)), beta=BETA, eps=0.2).loss_B
    np.testing.assert_allclose(0.8 * right + 0.2 * wrong, dpo(policy, pairs(REF), beta=BETA).loss_B, rtol=1e-12)


INVERSES = {
    "reverse KL": (dpo, {}, np.exp, np.inf),
    "forward KL": (f_dpo_forward_kl, {}, lambda z: -1 / z, 0.0),
    "Jensen-Shannon": (f_dpo_js, {}, lambda z: np.exp(z) / (2 - np.exp(z)), np.log(2)),
    "alpha": (f_dpo_alpha, {"alpha": 0.3}, lambda z: (1 - 0.3 * z) ** (-1 / 0.3), 1 / 0.3),
}
"""Objective, hyperparameters, the inverse of f'(u), and the upper end of what f' reaches."""


@pytest.mark.parametrize("divergence", INVERSES)
def test_f_dpo_finds_its_closed_form(divergence):
    """pi = pi_ref * (f')^-1((r - lambda) / beta), with lambda such that it sums to 1."""
    objective, hyper, inverse, upper = INVERSES[divergence]
    policy = lambda normaliser: np.exp(REF) * inverse((REWARD - normaliser) / BETA)
    low = REWARD.max() - BETA * min(upper, 30.0) + 1e-9
    normaliser = brentq(lambda x: policy(x).sum() - 1, low, low + 1e3, xtol=1e-13)
    found = best(objective, wins(REWARD), beta=BETA, **hyper)
    assert_close(found, np.log(policy(normaliser)))
    if objective is not dpo:
        assert np.abs(found - tilted(REF, REWARD / BETA)).max() > 0.05


# MODPO

W = (0.3, 0.7)
FRONT = (W[0] * REWARD + W[1] * OTHER) / BETA
"""Exponent of the optimum of the weighted sum of rewards."""


def margin(reward):
    return jnp.asarray(of_pairs(reward[:, None]))


def test_modpo_finds_the_reference_tilted_by_the_weighted_sum():
    assert_close(best(modpo, wins(REWARD), margin(OTHER), w=W, beta=BETA), tilted(REF, FRONT))


def test_modpo_does_not_care_which_objective_is_the_base():
    assert_close(best(modpo, wins(OTHER), margin(REWARD), w=W[::-1], beta=BETA), tilted(REF, FRONT))


def test_modpo_with_implicit_margins_wants_their_beta():
    expert = tilted(REF, OTHER / 0.2)  # what DPO finds with beta 0.2
    of = lambda **beta: best(modpo_implicit, wins(REWARD), margin(expert), w=W, beta=BETA, **beta)
    assert_close(of(betas=(0.2,)), tilted(REF, FRONT))
    assert np.abs(of() - tilted(REF, FRONT)).max() > 0.1


def test_modpo_is_the_geometric_mean_of_dpo_policies():
    experts = [best(dpo, wins(reward), beta=BETA) for reward in (REWARD, OTHER)]
    assert_close(log_softmax(W[0] * experts[0] + W[1] * experts[1]), tilted(REF, FRONT))


def test_spo_adds_its_dimension_to_the_stage_before():
    """Stage 2 with lambda: pi_1 tilted by (r_2 + lambda * r_1) / beta, r_1 the implicit reward of stage 1."""
    first = tilted(REF, REWARD / 0.5)
    stage = lambda log_prob: spo(
        pairs(log_prob), pairs(first), margin(REF), jnp.asarray(wins(OTHER)), lambdas=(0.4,), betas=(0.5,), beta=BETA
    )
    assert_close(optimum(stage), tilted(first, (OTHER + 0.4 * REWARD) / BETA))


# Several references

ALPHAS = (0.8, 0.2)


def test_geometric_mrpo_solves_the_sum_of_kl_penalties():
    """Closed form; and no other optimum of the family has a larger E[r] - beta * sum_k alpha_k KL(pi || pi_k)."""

    def objective(log_prob):
        penalty = sum(a * kl(log_prob, ref) for a, ref in zip(ALPHAS, (REF, REF_2), strict=True))
        return np.sum(np.exp(log_prob) * REWARD) - BETA * penalty

    geometric, harmonic, several, single = (
        best(geometric_mrpo, wins(REWARD), margin(REF_2), alphas=ALPHAS, beta=BETA),
        best(mrpo_fixed, wins(REWARD), margin(REF_2), alphas=ALPHAS, beta=BETA, eps=1.0),
        best(multi_dpo, wins(REWARD), margin(REF_2), alphas=ALPHAS, beta=BETA),
        best(dpo, wins(REWARD), beta=BETA),
    )
    assert_close(geometric, tilted(ALPHAS[0] * REF + ALPHAS[1] * REF_2, REWARD / BETA))
    for other in (harmonic, several, single):
        assert objective(geometric) > objective(other) + 1e-5


def harmonic_mean(alphas, refs):
    return -np.log(sum(a * np.exp(-ref) for a, ref in zip(alphas, refs, strict=True)))


def test_mrpo_finds_the_tilted_harmonic_mean():
    """No clip binds: log-probs of the second reference lie between 2 L_1 and 0."""
    second = np.maximum(REF_2, 1.9 * REF)
    found = best(mrpo_fixed, wins(REWARD), margin(second), alphas=ALPHAS, beta=BETA, eps=1.0)
    assert_close(found, tilted(harmonic_mean(ALPHAS, (REF, second)), REWARD / BETA))
    swapped = tilted(harmonic_mean(ALPHAS[::-1], (REF, second)), REWARD / BETA)
    assert np.abs(found - swapped).max() > 0.1, "the weights belong to their own references"


def test_the_harmonic_mean_penalises_more_than_the_sum_of_kls():
    """Jensen: KL(pi || harmonic mean) >= sum_k alpha_k KL(pi || pi_k)."""
    for log_prob in (log_softmax(x) for x in np.random.default_rng(1).normal(scale=2.0, size=(100, ARMS))):
        bound = sum(a * kl(log_prob, ref) for a, ref in zip(ALPHAS, (REF, REF_2), strict=True))
        assert kl(log_prob, harmonic_mean(ALPHAS, (REF, REF_2))) >= bound


def test_over_a_whole_answer_the_harmonic_mean_is_the_smallest():
    """Log-probs -150 and -120 with weight 0.01 on the first; the clip keeps a weak reference from deciding."""
    zero, ref, weak = (as_logps(jnp.array([x])) for x in ([0.0, 0.0], [-120.0, -90.0], [-150.0, -90.0]))

    def log_mean(objective, **hyper):
        """The mean of the chosen answer, from the reward of a policy of log-prob 0."""
        run = jax.jit(lambda: objective(zero, ref, weak.sum[:, :, None], beta=1.0, **hyper).metrics["rewards/chosen"])
        return -float(run()[0])

    assert log_mean(mrpo_fixed, alphas=(0.99, 0.01), eps=1.0) == pytest.approx(-150 - np.log(0.01), abs=1e-9)
    assert log_mean(mrpo_fixed, alphas=(0.01, 0.99), eps=1.0) == pytest.approx(-150 - np.log(0.99), abs=1e-9)
    assert log_mean(mrpo_fixed, alphas=(0.99, 0.01), eps=0.1) == pytest.approx(-132 - np.log(0.01), abs=1e-3)
    assert -132 < log_mean(mrpo, eps=0.1) < -120


# Advantage-weighted likelihood


def behaviour(baseline, w_max=1e6, tokens=(1,) * ARMS):
    """The population of single answers, drawn from REF, with REWARD as their score."""

    def objective(log_prob):
        baseline_B = jnp.full((ARMS,), baseline)
        scores = jnp.asarray(REWARD)[:, None, None]
        policy, weight = as_logps(log_prob[:, None]), jnp.exp(jnp.asarray(REF))
        policy = policy._replace(count=jnp.asarray(tokens, policy.sum.dtype)[:, None])
        return advantage_mle(policy, scores, baseline_B, weight, g=(1.0,), alpha=BETA, w_max=w_max)

    return objective


@pytest.mark.parametrize("baseline", (0.0, 0.9))
def test_the_weighted_likelihood_tilts_the_data(baseline):
    """mu * exp(A / alpha) / Z for answers of one length, whatever the baseline."""
    assert_close(optimum(behaviour(baseline)), tilted(REF, REWARD / BETA))


def test_the_weighted_likelihood_favours_short_answers():
    """mu * exp(A / alpha) / n, normalised: the token mean divides an answer's pull by its length."""
    tokens = np.array([1, 2, 3, 5, 8, 13])
    assert_close(optimum(behaviour(0.0, tokens=tokens)), tilted(REF, REWARD / BETA - np.log(tokens)))


def test_a_clip_that_binds_ends_the_invariance():
    low, high = (optimum(behaviour(baseline, w_max=1.5)) for baseline in (0.0, 0.9))
    assert np.abs(low - high).max() > 0.05


def test_hpo_trades_preference_for_reward():
    """E[auxiliary reward] grows with gamma, from its value under DPO."""
    of = lambda gamma: best(hpo_dpo, wins(REWARD), margin(OTHER), g=(1.0,), gamma=gamma, beta=BETA, alpha=0.5)
    at = [of(gamma) for gamma in (0.0, 0.1, 1.0)]
    assert_close(at[0], tilted(REF, REWARD / BETA))
    expected = [np.sum(np.exp(x) * OTHER) for x in at]
    assert expected[0] + 0.01 < expected[1] < expected[2] - 0.01


# MinorDPO


def test_minor_dpo_stays_closer_to_the_reference():
    truth = tilted(REF, REWARD / BETA)
    assert kl(best(minor_dpo, wins(REWARD), beta=BETA), REF) < 0.5 * kl(truth, REF)


@pytest.mark.parametrize("rejected", (0.2, 0.6))
def test_the_dead_zone_of_minor_dpo(rejected):
    """With two answers it moves only if P(chosen beats rejected) > 1 / (1 + pi_ref(rejected)).

    d loss / d logit at the reference is proportional to (1 - p) - p * pi_ref(rejected).
    """
    ref = np.log([1 - rejected, rejected])
    shift = jnp.linspace(0.0, 2.0, 201)
    policy = jax.nn.log_softmax(jnp.asarray(ref)[None, :] + jnp.stack([shift, jnp.zeros_like(shift)], axis=1))
    reference = jnp.broadcast_to(jnp.asarray(ref), policy.shape)

    def best_shift(objective, p):
        one_way = objective(as_logps(policy), as_logps(reference), beta=BETA).loss_B
        other_way = objective(as_logps(policy[:, ::-1]), as_logps(reference[:, ::-1]), beta=BETA).loss_B
        return float(shift[np.argmin(p * np.asarray(one_way) + (1 - p) * np.asarray(other_way))])

    edge = 1 / (1 + rejected)
    assert best_shift(minor_dpo, edge - 0.01) == 0.0 and best_shift(minor_dpo, edge + 0.01) > 0.0
    assert best_shift(dpo, edge - 0.01) > 0.1, "where DPO moves"


def test_one_certain_pair_among_a_thousand_answers():
    """5,000 gradient steps: both raise the chosen answer alike, DPO alone sinks the rejected one."""
    arms, steps, rate = 1000, 5000, 10.0
    ref = jax.nn.log_softmax(jnp.asarray(np.random.default_rng(2).normal(size=arms)))
    reference = as_logps(ref[None, :2])

    def log_ratios(objective):
        loss = lambda logits: objective(as_logps(jax.nn.log_softmax(logits)[None, :2]), reference, beta=0.1).loss_B[0]
        step = lambda _, logits: logits - rate * jax.grad(loss)(logits)
        return np.asarray(jax.nn.log_softmax(jax.jit(lambda x: jax.lax.fori_loop(0, steps, step, x))(ref)) - ref)[:2]

    by_dpo, by_minor = log_ratios(dpo), log_ratios(minor_dpo)
    assert by_dpo[0] == pytest.approx(by_minor[0], rel=0.05) and by_minor[0] > 5
    assert by_dpo[1] < 3 * by_minor[1] and by_minor[1] < 0


# Invariances


@pytest.mark.parametrize("objective", (dpo, ipo_sum, rdpo, modpo, modpo_implicit, spo, geometric_mrpo, multi_dpo, mrpo))
def test_only_differences_between_the_answers_count(objective):
    """A number that is added to both log-probs of a pair, by policy or data, changes nothing."""
    arrays, hyper = {
        modpo: ((margin(OTHER),), {"w": W}),
        modpo_implicit: ((margin(REF_2),), {"w": W}),
        spo: ((margin(REF_2),), {"lambdas": (0.4,)}),
        geometric_mrpo: ((margin(REF_2),), {}),
        multi_dpo: ((margin(REF_2),), {}),
        mrpo: ((margin(REF_2),), {}),
    }.get(objective, ((), {}))
    shift = jnp.linspace(-3.0, 3.0, len(FIRST))
    policy = pairs(OTHER)
    moved = policy._replace(sum=policy.sum + shift[:, None])
    of = jax.jit(lambda *arrays: objective(*arrays, **hyper).loss_B)
    loss = of(policy, pairs(REF), *arrays)
    np.testing.assert_allclose(of(moved, pairs(REF), *arrays), loss, rtol=1e-12)
    if objective is not mrpo:  # its clip is a share of the log-probs
        data = tuple(x + shift[:, None, None] for x in arrays)
        ref = pairs(REF)._replace(sum=pairs(REF).sum + shift[:, None])
        np.testing.assert_allclose(of(policy, ref, *data), loss, rtol=1e-12)
