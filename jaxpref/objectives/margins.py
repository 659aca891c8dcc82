"""Objectives on pairs with a reference: DPO with something else in the margin.

Completion 0 is chosen, completion 1 rejected.  rho is a completion's log-ratio, log pi(y|x) - log
pi_ref(y|x), summed over its tokens; D = rho_c - rho_r; n is a completion's number of tokens.  What
joins D in the margin is a length, a score of the data, or a limit on one of the completions.
"""

import jax
import jax.numpy as jnp

from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import (
    NotNegative,
    Positive,
    RowWeight,
    cross_entropy,
    difference,
    log_ratios,
    pair_output,
    plus_metrics,
)
from jaxpref.objectives.contract import PAIRS, ObjectiveOutput, needs


@needs(groups=PAIRS, transformable=True)
def r_dpo(
    policy: Logps,
    ref: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
    alpha: NotNegative = 0.01,
) -> ObjectiveOutput:
    """Length-regularised DPO (R-DPO): -log sigmoid(beta * D + alpha * (n_c - n_r)).

    What is fitted to the labels is beta * rho + alpha * n, so a long answer ends with a smaller rho
    than under dpo.

    Args:
        policy, ref: summed log-probs (nats) and token counts [B, 2]; the reference gets no
            gradient.
        weight, beta: as in dpo.
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
    return pair_output(loss_B, beta * rho_BK, policy, weight)


@needs(groups=PAIRS, transformable=True)
def dpop(
    policy: Logps,
    ref: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.3,
    lam: NotNegative = 50.0,
) -> ObjectiveOutput:
    """DPO-positive (Smaug): -log sigmoid(beta * (D - lam * max(0, -rho_c))).

    At rho_c = 0, where a run starts, the max has no gradient.

    Args:
        policy, ref, weight: as in dpo.
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
    return pair_output(loss_B, beta * rho_BK, policy, weight)


@needs(groups=PAIRS, transformable=True)
def minor_dpo(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """MinorDPO: -log sigmoid(beta * (rho_c - max(0, rho_r))).

    At rho_r = 0, where a run starts, the gradient is dpo's.

    Args:
        policy, ref, weight, beta: as in dpo.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Xie et al., arXiv 2408.09834.
    Use: to push a rejected answer down no further than the reference has it; reported to be stable
        at higher learning rates.  Under Bradley-Terry labels its optimum is not dpo's tilted
        reference but lies closer to the reference.  Dead zone: where there are only two answers it
        moves only if P(chosen beats rejected) > 1 / (1 + pi_ref(rejected)); with others to take
        probability from, that bound is 1/2.
    Curves: rewards/rejected (not clamped) stays near 0 where dpo's dives; the margin comes from the
        chosen answers.
    """
    rho_BK = log_ratios(policy, ref)
    pushed_B = jnp.where(rho_BK[:, 1] >= 0, rho_BK[:, 1], 0.0)
    loss_B = -jax.nn.log_sigmoid(beta * (rho_BK[:, 0] - pushed_B))
    return pair_output(loss_B, beta * rho_BK, policy, weight)


@needs(groups=PAIRS, transformable=True)
def odpo(
    policy: Logps,
    ref: Logps,
    score: jax.Array,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
    alpha: Positive = 1.0,
) -> ObjectiveOutput:
    """DPO with an offset (ODPO): -log sigmoid(beta * D - alpha * log(score_c - score_r)).

    Args:
        policy, ref, weight: as in dpo.
        score: [B, 2] scores of the completions; a pair whose chosen one does not score higher has
            weight 0.
        beta: as in dpo, > 0; 0.7 for IMDb in the authors' code.
        alpha: weight of the offset, > 0; 1, and 0.5 for IMDb.
    Returns: loss_B in nats, log(1 + (score_c - score_r)^alpha) where policy equals reference.
    Source: Amini et al., arXiv 2402.10571, and its code.
    Use: scored answers, when a clear win should make a large margin; beta and learning rate of dpo.
    Curves: as dpo, from another start; odpo/without_order, the share of pairs left out, should be
        near 0.
    """
    rho_BK, gap_B = log_ratios(policy, ref), difference(score)
    offset_B = alpha * jnp.log(jnp.where(gap_B > 0, gap_B, 1.0))
    loss_B = -jax.nn.log_sigmoid(beta * difference(rho_BK) - offset_B)
    out = pair_output(loss_B, beta * rho_BK, policy, weight)
    out = out._replace(weight_B=out.weight_B * (gap_B > 0))
    return plus_metrics(out, {"odpo/without_order": (gap_B <= 0).astype(jnp.float32)})


@needs(groups=PAIRS, transformable=True)
def margin_dpo(
    policy: Logps, ref: Logps, margin: jax.Array, weight: RowWeight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """DPO with a margin from the data: -log sigmoid(beta * D - margin).

    Args:
        policy, ref, weight, beta: as in dpo.
        margin: [B] margin of rewards to be reached, of any sign.
    Returns: loss_B in nats, log(1 + exp(margin)) where policy equals reference.
    Source: MODPO (Zhou et al., arXiv 2310.03708) with weights (1, 1); odpo with alpha * log(score_c
        - score_r).
    Use: pairs with a grade of how clear they are, or a reward to be traded off; beta and learning
        rate of dpo.
    Curves: as dpo, from another start; the margin of rewards grows beyond the data's.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = -jax.nn.log_sigmoid(beta * difference(rho_BK) - margin)
    return pair_output(loss_B, beta * rho_BK, policy, weight)


@needs(groups=PAIRS, transformable=True)
def mmpo(
    policy: Logps,
    ref: Logps,
    score: jax.Array,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.01,
    gamma: Positive = 1.0,
) -> ObjectiveOutput:
    """Margin matching (MMPO): -p log sigmoid(beta * D) - (1 - p) log sigmoid(-beta * D).

    p = sigmoid(gamma * (s_c - s_r)) is the preference that the scores s stand for.

    Args:
        policy, ref, weight: as in dpo.
        score: [B, 2] scores s of the completions; the chosen one may score lower.
        beta: as in dpo, > 0; the default is the authors'.
        gamma: scale of the scores, > 0; 1 when they are Bradley-Terry rewards.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Kim et al., arXiv 2410.03145, and its code.
    Use: scored answers, against overfitting; beta 0.01 to 0.1, learning rate of dpo.
    Curves: the margin of rewards goes to gamma * (s_c - s_r); the loss ends at the labels' entropy.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = cross_entropy(beta * difference(rho_BK), jax.nn.sigmoid(gamma * difference(score)))
    return pair_output(loss_B, beta * rho_BK, policy, weight)


@needs(groups=PAIRS)
def hypo(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """Hybrid DPO (HyPO): -log sigmoid(beta * (M - max(0, M_ref))).

    M = L_c - L_r is the difference of the summed log-probs under the policy, M_ref that under the
    reference.

    Args:
        policy, ref, weight, beta: as in dpo.
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
    out = pair_output(loss_B, beta * rho_BK, policy, weight)
    return plus_metrics(out, {"hypo/pessimistic": (ref_margin_B < 0).astype(jnp.float32)})
