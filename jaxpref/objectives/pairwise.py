"""Objectives on pairs with a reference: completion 0 is chosen, completion 1 rejected.

rho is a completion's log-ratio, log pi(y|x) - log pi_ref(y|x), summed over its tokens; D = rho_c -
rho_r, chosen less rejected; n is a completion's number of tokens.
"""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
from pydantic import Field

from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import (
    LessThanHalf,
    NotNegative,
    Positive,
    cross_entropy,
    difference,
    log_ratios,
    pair_weight,
    per_token,
    reward_metrics,
)
from jaxpref.objectives.contract import PAIRS, ObjectiveOutput, needs

Weight = jax.Array | None
Smoothing = Annotated[float, Field(gt=0, lt=0.5, allow_inf_nan=False)]


@needs(groups=PAIRS, transformable=True)
def dpo(
    policy: Logps, ref: Logps, weight: Weight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """Direct preference optimisation: -log sigmoid(beta * D).

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference is constant.
        weight: [B] weight of every pair, >= 0.
        beta: strength of the pull towards the reference, > 0; the paper uses 0.1 to 0.5.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Rafailov et al., arXiv 2305.18290, eq. 7; TRL's `loss_type: sigmoid`.
    Use: the first thing to try; beta 0.1 with lr 5e-7 to 1e-6, beta 0.5 for models of a few hundred
        million parameters.
    Curves: loss falls from 0.693; accuracy rises from 0 in step 1; both rewards often fall while
        their margin grows.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = -jax.nn.log_sigmoid(beta * difference(rho_BK))
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), reward_metrics(beta * rho_BK))


@needs(groups=PAIRS, transformable=True)
def cdpo(
    policy: Logps,
    ref: Logps,
    weight: Weight = None,
    *,
    beta: Positive = 0.1,
    eps: LessThanHalf = 0.1,
) -> ObjectiveOutput:
    """Conservative DPO: -(1 - eps) log sigmoid(beta * D) - eps log sigmoid(-beta * D).

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference is constant.
        weight: [B] weight of every pair, >= 0.
        beta: as in dpo, > 0.
        eps: probability that a label is wrong, 0 <= eps < 1/2; 0.1 is usual, HALOs has 0.2.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Mitchell, "A note on DPO with noisy preferences" (ericmitchell.ai/cdpo.pdf), eq. 3; not
        in TRL 1.16.
    Use: noisy labels, when margins shall stay bounded; beta and learning rate of dpo.
    Curves: margins level off at log((1 - eps) / eps), 2.2 for eps 0.1; the loss cannot reach 0.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = cross_entropy(beta * difference(rho_BK), 1.0 - eps)
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), reward_metrics(beta * rho_BK))


@needs(groups=PAIRS, transformable=True)
def rdpo(
    policy: Logps,
    ref: Logps,
    weight: Weight = None,
    *,
    beta: Positive = 0.1,
    eps: LessThanHalf = 0.1,
) -> ObjectiveOutput:
    """Robust DPO: (-(1 - eps) log sigmoid(beta * D) + eps log sigmoid(-beta * D)) / (1 - 2 eps).

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference is constant.
        weight: [B] weight of every pair, >= 0.
        beta: as in dpo, > 0.
        eps: probability that a label is wrong, 0 <= eps < 1/2; 0.1 is usual.
    Returns: loss_B in nats, ln 2 where policy equals reference; it has no lower bound.
    Source: Chowdhury et al., arXiv 2403.00409; TRL's `loss_type: robust`, whose eps is
        `label_smoothing`.
    Use: labels of a known error rate: its mean over such flips is the DPO loss of the true labels;
        as dpo otherwise.
    Curves: as dpo, but the loss may become negative.
    """
    rho_BK = log_ratios(policy, ref)
    margin_B = beta * difference(rho_BK)
    loss_B = ((eps - 1.0) * jax.nn.log_sigmoid(margin_B) + eps * jax.nn.log_sigmoid(-margin_B)) / (
        1.0 - 2.0 * eps
    )
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), reward_metrics(beta * rho_BK))


@needs(groups=PAIRS, transformable=True)
def ipo(
    policy: Logps, ref: Logps, weight: Weight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """Identity preference optimisation on token means: (rho_c / n_c - rho_r / n_r - 1 / (2
    beta))^2.

    Args:
        policy, ref: summed log-probs (nats) and token counts [B, 2]; the reference is constant.
        weight: [B] weight of every pair, >= 0.
        beta: the paper's tau, > 0: the margin per token is driven to 1 / (2 beta); TRL's default is
            0.1.
    Returns: loss_B, 1 / (4 beta^2) where policy equals reference.
    Source: Azar et al., arXiv 2310.12036, eq. 17, which sums log-probs over tokens; the token mean
        follows TRL's `loss_type: ipo` (its authors' advice).
    Use: labels that are almost certain, which dpo would overfit; beta 0.1 to 1, learning rate of
        dpo.
    Curves: loss falls from 25 (beta 0.1); logged rewards are beta * rho (summed), as TRL logs them.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = (difference(per_token(rho_BK, policy)) - 1.0 / (2.0 * beta)) ** 2
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), reward_metrics(beta * rho_BK))


@needs(groups=PAIRS, transformable=True)
def ipo_sum(
    policy: Logps, ref: Logps, weight: Weight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """Identity preference optimisation as published: (D - 1 / (2 beta))^2.

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference is constant.
        weight: [B] weight of every pair, >= 0.
        beta: the paper's tau, > 0: D is driven to 1 / (2 beta).
    Returns: loss_B, 1 / (4 beta^2) where policy equals reference.
    Source: Azar et al., arXiv 2310.12036, eq. 17; TRL takes token means, as ipo does.
    Use: as ipo, by the letter of the paper; beta 0.01 to 0.1, learning rate of dpo.
    Curves: the margin of rewards goes to 1/2, whatever beta is, and stays.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = (difference(rho_BK) - 1.0 / (2.0 * beta)) ** 2
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), reward_metrics(beta * rho_BK))


@needs(groups=PAIRS, transformable=True)
def hinge(
    policy: Logps, ref: Logps, weight: Weight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """Hinge on log-ratios: max(0, 1 - beta * D).

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference is constant.
        weight: [B] weight of every pair, >= 0.
        beta: > 0; a pair with D above 1 / beta has no gradient.  0.05 to 0.1 are usual.
    Returns: loss_B, 1 where policy equals reference.
    Source: Liu et al. (RSO), arXiv 2309.06657, "hinge-norm", after SLiC; TRL's `loss_type: hinge`.
    Use: to leave pairs alone once they are learnt; beta 0.05 to 0.1, learning rate of dpo.
    Curves: loss falls from 1 towards 0; the margin of rewards slows down at 1.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = jax.nn.relu(1.0 - beta * difference(rho_BK))
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), reward_metrics(beta * rho_BK))


@needs(groups=PAIRS, transformable=True)
def dpo_norm(
    policy: Logps, ref: Logps, weight: Weight = None, *, beta: Positive = 5.0
) -> ObjectiveOutput:
    """Length-normalised DPO: -log sigmoid(beta * (rho_c / n_c - rho_r / n_r)).

    Args:
        policy, ref: summed log-probs (nats) and token counts [B, 2]; the reference is constant.
        weight: [B] weight of every pair, >= 0.
        beta: > 0; it multiplies token means and so is larger than in dpo: 5 in Tulu 3.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Lambert et al. (Tulu 3), arXiv 2411.15124; TRL's `loss_type: sigmoid_norm`, which keeps
        dpo's default beta.
    Use: answers of very different lengths; beta 2 to 5, learning rate of dpo.
    Curves: as dpo; logged rewards are beta * rho (summed), as TRL logs them, and so are large.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = -jax.nn.log_sigmoid(beta * difference(per_token(rho_BK, policy)))
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), reward_metrics(beta * rho_BK))


@needs(groups=PAIRS, transformable=True)
def r_dpo(
    policy: Logps,
    ref: Logps,
    weight: Weight = None,
    *,
    beta: Positive = 0.1,
    alpha: NotNegative = 0.01,
) -> ObjectiveOutput:
    """Length-regularised DPO (R-DPO): -log sigmoid(beta * D + alpha * (n_c - n_r)).

    What is fitted to the labels is beta * rho + alpha * n, so a long answer ends with a smaller rho
    than under dpo.

    Args:
        policy, ref: summed log-probs (nats) and token counts [B, 2]; the reference is constant.
        weight: [B] weight of every pair, >= 0.
        beta: as in dpo, > 0.
        alpha: reward that a token costs, >= 0; 0.01 in SamPO's code.
    Returns: loss_B in nats, -log sigmoid(alpha * (n_c - n_r)) where policy equals reference.
    Source: Park et al., arXiv 2403.19159; it is MODPO with weights (1, alpha) and -n for the second
        reward.
    Use: answers grew longer under dpo; alpha 0.005 to 0.1, beta and learning rate of dpo.
    Curves: as dpo, from another start; accuracy rises less where the chosen answer is the longer
        one.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = -jax.nn.log_sigmoid(beta * difference(rho_BK) + alpha * difference(policy.count))
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), reward_metrics(beta * rho_BK))


@needs(groups=PAIRS, transformable=True)
def dpop(
    policy: Logps,
    ref: Logps,
    weight: Weight = None,
    *,
    beta: Positive = 0.3,
    lam: NotNegative = 50.0,
) -> ObjectiveOutput:
    """DPO-positive (Smaug): -log sigmoid(beta * (D - lam * max(0, -rho_c))); no gradient of the max
    at rho_c = 0.

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference is constant.
        weight: [B] weight of every pair, >= 0.
        beta: as in dpo, > 0; it multiplies the penalty too.
        lam: penalty on chosen answers less likely than under the reference, >= 0; the paper tries
            5, 50 and 500.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Pal et al., arXiv 2402.13228.
    Use: chosen and rejected differ in a few tokens, or rewards/chosen falls under dpo; beta 0.3,
        lam 5 to 50.
    Curves: rewards/chosen stays near 0 or above; the loss peaks where a large step pushes it below.
    """
    rho_BK = log_ratios(policy, ref)
    shortfall_B = jnp.where(rho_BK[:, 0] < 0, -rho_BK[:, 0], 0.0)
    loss_B = -jax.nn.log_sigmoid(beta * (difference(rho_BK) - lam * shortfall_B))
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), reward_metrics(beta * rho_BK))


@needs(groups=PAIRS, transformable=True)
def minor_dpo(
    policy: Logps, ref: Logps, weight: Weight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """MinorDPO: -log sigmoid(beta * (rho_c - max(0, rho_r))); at rho_r = 0, where a run starts,
    dpo's gradient.

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference is constant.
        weight: [B] weight of every pair, >= 0.
        beta: as in dpo, > 0.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Xie et al., arXiv 2408.09834.
    Use: to push a rejected answer down no further than the reference has it; reported stable at
        higher learning rates.  Under Bradley-Terry labels its optimum is not dpo's tilted reference
        but lies closer to the reference.  Dead zone: where there are only two answers it moves only
        if P(chosen beats rejected) > 1 / (1 + pi_ref(rejected)); with others to take probability
        from, that is 1/2.
    Curves: rewards/rejected (not clamped) stays near 0 where dpo's dives; the margin comes from the
        chosen answers.
    """
    rho_BK = log_ratios(policy, ref)
    pushed_B = jnp.where(rho_BK[:, 1] >= 0, rho_BK[:, 1], 0.0)
    loss_B = -jax.nn.log_sigmoid(beta * (rho_BK[:, 0] - pushed_B))
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), reward_metrics(beta * rho_BK))


@needs(groups=PAIRS, transformable=True)
def odpo(
    policy: Logps,
    ref: Logps,
    score: jax.Array,
    weight: Weight = None,
    *,
    beta: Positive = 0.1,
    alpha: Positive = 1.0,
) -> ObjectiveOutput:
    """DPO with an offset (ODPO): -log sigmoid(beta * D - alpha * log(score_c - score_r)).

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference is constant.
        score: [B, 2] scores of the completions; a pair whose chosen one does not score higher
            weighs 0.
        weight: [B] weight of every pair, >= 0.
        beta: as in dpo, > 0; 0.7 for IMDb in the authors' code.
        alpha: weight of the offset, > 0; 1, and 0.5 for IMDb.
    Returns: loss_B in nats, log(1 + (score_c - score_r)^alpha) where policy equals reference.
    Source: Amini et al., arXiv 2402.10571, and its code.
    Use: scored answers, when a clear win shall make a large margin; beta and learning rate of dpo.
    Curves: as dpo, from another start; odpo/without_order, the share of pairs left out, should be
        near 0.
    """
    rho_BK, gap_B = log_ratios(policy, ref), difference(score)
    offset_B = alpha * jnp.log(jnp.where(gap_B > 0, gap_B, 1.0))
    loss_B = -jax.nn.log_sigmoid(beta * difference(rho_BK) - offset_B)
    metrics = reward_metrics(beta * rho_BK) | {
        "odpo/without_order": (gap_B <= 0).astype(jnp.float32)
    }
    return ObjectiveOutput(loss_B, pair_weight(policy, weight) * (gap_B > 0), metrics)


@needs(groups=PAIRS, transformable=True)
def margin_dpo(
    policy: Logps, ref: Logps, margin: jax.Array, weight: Weight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """DPO with a margin from the data: -log sigmoid(beta * D - margin).

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference is constant.
        margin: [B] margin of rewards that is asked for, of any sign.
        weight: [B] weight of every pair, >= 0.
        beta: as in dpo, > 0.
    Returns: loss_B in nats, log(1 + exp(margin)) where policy equals reference.
    Source: MODPO (Zhou et al., arXiv 2310.03708) with weights (1, 1); odpo with alpha * log(score_c
        - score_r).
    Use: pairs with a grade of how clear they are, or a reward to be traded off; beta and learning
        rate of dpo.
    Curves: as dpo, from another start; the margin of rewards grows beyond the data's.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = -jax.nn.log_sigmoid(beta * difference(rho_BK) - margin)
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), reward_metrics(beta * rho_BK))


@needs(groups=PAIRS, transformable=True)
def mmpo(
    policy: Logps,
    ref: Logps,
    score: jax.Array,
    weight: Weight = None,
    *,
    beta: Positive = 0.01,
    gamma: Positive = 1.0,
) -> ObjectiveOutput:
    """Margin matching: -p log sigmoid(beta * D) - (1 - p) log sigmoid(-beta * D), p = sigmoid(gamma
    * (s_c - s_r)).

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference is constant.
        score: [B, 2] scores s of the completions; the chosen one may score lower.
        weight: [B] weight of every pair, >= 0.
        beta: as in dpo, > 0; the default is the authors'.
        gamma: scale of the scores, > 0; 1 when they are Bradley-Terry rewards.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Kim et al., arXiv 2410.03145, and its code.
    Use: scored answers, against overfitting; beta 0.01 to 0.1, learning rate of dpo.
    Curves: the margin of rewards goes to gamma * (s_c - s_r); the loss ends at the labels' entropy.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = cross_entropy(beta * difference(rho_BK), jax.nn.sigmoid(gamma * difference(score)))
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), reward_metrics(beta * rho_BK))


@needs(groups=PAIRS, transformable=True)
def exo(
    policy: Logps, ref: Logps, weight: Weight = None, *, beta: Positive = 0.1, eps: Smoothing = 1e-3
) -> ObjectiveOutput:
    """Efficient exact optimisation: q_c (log q_c - log(1 - eps)) + q_r (log q_r - log eps), q =
    sigmoid(+-beta * D).

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference is constant.
        weight: [B] weight of every pair, >= 0.
        beta: as in dpo, > 0.
        eps: smoothing of the labels, 0 < eps < 1/2; 1e-3 in the paper.
    Returns: loss_B in nats, -ln 2 - (log(1 - eps) + log eps) / 2 where policy equals reference:
        2.76 for eps 1e-3.
    Source: Ji et al., arXiv 2402.00856; TRL's `loss_type: exo_pair`, whose eps is
        `label_smoothing`.
    Use: the reverse KL divergence of the labels, where dpo takes the forward one; learning rate of
        dpo.
    Curves: loss falls towards 0; the margin of rewards goes to log((1 - eps) / eps), 6.9 for eps
        1e-3.
    """
    rho_BK = log_ratios(policy, ref)
    margin_B = beta * difference(rho_BK)
    divergence = lambda margin_B, label: (
        jax.nn.sigmoid(margin_B) * (jax.nn.log_sigmoid(margin_B) - math.log(label))
    )
    loss_B = divergence(margin_B, 1.0 - eps) + divergence(-margin_B, eps)
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), reward_metrics(beta * rho_BK))


@needs(groups=PAIRS, transformable=True)
def discopop(
    policy: Logps, ref: Logps, weight: Weight = None, *, beta: Positive = 0.05, tau: Positive = 0.05
) -> ObjectiveOutput:
    """DiscoPOP: -(1 - m) log sigmoid(h) + m exp(-h), h = beta * D, m = sigmoid(h / tau).

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference is constant.
        weight: [B] weight of every pair, >= 0.
        beta: as in dpo, > 0; 0.05 is usual.
        tau: temperature of the mixture m, > 0; 0.05 in the paper.  Above 1, log(m exp(-h)) is cut
            at 80.
    Returns: loss_B in nats, (ln 2 + 1) / 2 where policy equals reference.
    Source: Lu et al., arXiv 2406.08414, its log-ratio modulated loss; TRL's `loss_type: discopop`.
    Use: a loss that was found by search, in place of dpo; learning rate of dpo.  At tau 0.05 its
        slope at a tie is +0.784: alone, a pair's margin first falls, to a local minimum of the loss
        at h = -0.119; only above the maximum at h = 0.072 does it grow.
    Curves: loss starts at 0.847; rewards/margins may dip before it rises, or stay just below 0 if
        all steps are small.
    """
    rho_BK = log_ratios(policy, ref)
    h_B = beta * difference(rho_BK)
    # m exp(-h) as one exponential: exp(-h) alone is infinite where m is 0.
    exponential_B = jnp.exp(jnp.minimum(jax.nn.log_sigmoid(h_B / tau) - h_B, 80.0))
    loss_B = exponential_B - jax.nn.sigmoid(-h_B / tau) * jax.nn.log_sigmoid(h_B)
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), reward_metrics(beta * rho_BK))


@needs(groups=PAIRS, transformable=True)
def chi_po(
    policy: Logps,
    ref: Logps,
    weight: Weight = None,
    *,
    beta: Positive = 0.05,
    r_max: Positive | None = None,
) -> ObjectiveOutput:
    """Chi-squared preference optimisation: -log sigmoid(beta * (phi_c - phi_r)), phi = exp(rho) +
    rho.

    The exponential takes min(rho, 20), so that it stays finite.  The margin is cut to +-2 r_max, if
    that is given.

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference is constant.
        weight: [B] weight of every pair, >= 0.
        beta: strength of the pull towards the reference, > 0; 0.05 and 0.005 in the paper's
            experiments.
        r_max: bound on the true reward, > 0; pairs beyond the cut, also those ordered wrongly, have
            no gradient.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Huang et al., arXiv 2407.13399, algorithm 1; its cut of the margin is an option here;
        min(rho, 20) as oxRL.
    Use: several epochs or a small beta, where dpo overoptimises; learning rate of dpo.
    Curves: as dpo at first; then rewards/chosen hardly rises, for phi is steep above 0, and
        rewards/rejected falls.
    """
    rho_BK = log_ratios(policy, ref)
    margin_B = beta * difference(jnp.exp(jnp.minimum(rho_BK, 20.0)) + rho_BK)
    margin_B = margin_B if r_max is None else jnp.clip(margin_B, -2.0 * r_max, 2.0 * r_max)
    return ObjectiveOutput(
        -jax.nn.log_sigmoid(margin_B), pair_weight(policy, weight), reward_metrics(beta * rho_BK)
    )


@needs(groups=PAIRS)
def hypo(
    policy: Logps, ref: Logps, weight: Weight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """Hybrid DPO (HyPO): -log sigmoid(beta * (M - max(0, M_ref))), M = L_c - L_r, the difference of
    log-probs.

    Args:
        policy, ref: summed log-probs L [B, 2] in nats; the reference is constant.
        weight: [B] weight of every pair, >= 0.
        beta: as in dpo, > 0.
    Returns: loss_B in nats, -log sigmoid(beta * min(0, M_ref)) where policy equals reference: ln 2
        or more.
    Source: Yuan et al., arXiv 2602.11902.
    Use: a reference that often prefers the rejected answer, then taken as neutral; beta and
        learning rate of dpo.
    Curves: as dpo, from a higher start; hypo/pessimistic is the share of pairs where it differs
        from dpo.
    """
    rho_BK, ref_margin_B = log_ratios(policy, ref), jax.lax.stop_gradient(difference(ref.sum))
    loss_B = -jax.nn.log_sigmoid(beta * (difference(rho_BK) + jnp.minimum(ref_margin_B, 0.0)))
    metrics = reward_metrics(beta * rho_BK) | {
        "hypo/pessimistic": (ref_margin_B < 0).astype(jnp.float32)
    }
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), metrics)
