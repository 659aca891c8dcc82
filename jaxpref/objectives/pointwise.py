"""Objectives on pairs that set the reward of each completion, not only the distance of the two.

rho is a completion's log-ratio, log pi(y|x) - log pi_ref(y|x), summed over its tokens; R = beta *
rho is its reward.  An index c means the chosen completion, r the rejected one; D = rho_c - rho_r.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import (
    Finite,
    NotNegative,
    Positive,
    RowWeight,
    difference,
    log_ratios,
    mean_so_far,
    pair_output,
    pair_weight,
    plus_metrics,
)
from jaxpref.objectives.contract import PAIRS, ObjectiveOutput, needs


@needs(groups=PAIRS)
def nca(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.01
) -> ObjectiveOutput:
    """Noise-contrastive alignment: -log sigmoid(R_c) - (log sigmoid(-R_c) + log sigmoid(-R_r)) / 2.

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference gets no gradient.
        weight: [B] weight of every pair, >= 0.
        beta: scale of the rewards, > 0; 0.01 in the authors' recipe, 0.1 in TRL.
    Returns: loss_B in nats, 2 ln 2 where policy equals reference.
    Source: Chen et al., arXiv 2402.05369, for two completions; TRL's `loss_type: nca_pair`.
    Use: the chosen answer must not lose likelihood; beta 0.01, learning rate 5e-6.
    Curves: loss falls from 1.386; rewards/chosen goes to log 2 (0.69) and stays; rewards/rejected
        falls.
    """
    reward_BK = beta * log_ratios(policy, ref)
    noise_BK = jax.nn.log_sigmoid(-reward_BK)
    loss_B = -jax.nn.log_sigmoid(reward_BK[:, 0]) - 0.5 * (noise_BK[:, 0] + noise_BK[:, 1])
    return pair_output(loss_B, reward_BK, policy, weight)


@needs(groups=PAIRS)
def sppo_hard(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.001
) -> ObjectiveOutput:
    """Self-play preference optimisation, hard labels: (rho_c - t)^2 + (rho_r + t)^2.

    t = 1 / (2 beta) is the target of the log-ratios.

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference gets no gradient.
        weight: [B] weight of every pair, >= 0.
        beta: 1 / eta of the paper, > 0; log-ratios are driven to +-1 / (2 beta), 500 for 0.001.
    Returns: loss_B in square nats, 1 / (2 beta^2) where policy equals reference.
    Source: Wu et al., arXiv 2405.00675, eq. 4.7 with P = 1; TRL's `loss_type: sppo_hard`, twice the
        authors' code.
    Use: rounds of answers sampled from the policy itself; beta 0.001, learning rate
        5e-7, with clipped gradients.
    Curves: the loss falls little from its large start; rewards go towards +1/2 and -1/2.
    """
    return _regression(policy, ref, weight, 0.5, beta)


@needs(groups=PAIRS)
def sppo_soft(
    policy: Logps,
    ref: Logps,
    probability: jax.Array,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.001,
) -> ObjectiveOutput:
    """Self-play preference optimisation: (rho_c - t)^2 + (rho_r + t)^2, t = (P - 1/2) / beta.

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference gets no gradient.
        probability: [B] P, the probability that the chosen completion beats the rejected one, in
            [0, 1].
        weight: [B] weight of every pair, >= 0.
        beta: 1 / eta of the paper, > 0; 0.001.
    Returns: loss_B in square nats, 2 ((P - 1/2) / beta)^2 where policy equals reference.
    Source: Wu et al., arXiv 2405.00675, eq. 4.7, with P of this pair for the chosen one and 1 - P
        for the rejected one, as `sppo_single` of the authors' code (which takes half of it).
    Use: as sppo_hard, when a preference model gives probabilities.
    Curves: rewards go towards P - 1/2 and 1/2 - P.
    """
    return _regression(policy, ref, weight, probability - 0.5, beta)


@needs(groups=PAIRS)
def cal_dpo(
    policy: Logps,
    ref: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.002,
    lam: NotNegative = 1.0,
) -> ObjectiveOutput:
    """Calibrated DPO: -log sigmoid(D) + lam * ((rho_c - t)^2 + (rho_r + t)^2), t = 1 / (2 beta).

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference gets no gradient.
        weight: [B] weight of every pair, >= 0.
        beta: > 0; log-ratios are driven to +-1 / (2 beta); 0.002 in the authors' recipe.
        lam: weight of the calibration, >= 0; 1, and 0.5 in the authors' code.
    Returns: loss_B, ln 2 + lam / (2 beta^2) where policy equals reference.
    Source: Xiao et al., arXiv 2412.14516; the first term has no beta, as in its code.
    Use: the chosen answer loses likelihood under dpo; beta 0.002, learning rate 5e-7,
        with clipped gradients.
    Curves: the loss falls little from its large start; rewards go towards +1/2 and -1/2.
    """
    out, rho_BK = sppo_hard(policy, ref, weight, beta=beta), log_ratios(policy, ref)
    return out._replace(loss_B=lam * out.loss_B - jax.nn.log_sigmoid(difference(rho_BK)))


@needs(groups=PAIRS)
def mdpo_anchor(
    policy: Logps,
    ref: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
    delta: Finite = 0.0,
) -> ObjectiveOutput:
    """Anchor of mDPO: -log sigmoid(R_c - delta).

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference gets no gradient; the rejected
            completion is not used.
        weight: [B] weight of every pair, >= 0.
        beta: scale of the rewards, > 0; 0.1 in the authors' code.
        delta: reward that chosen completions should have; 0 in the authors' code.
    Returns: loss_B in nats, log(1 + exp(delta)) where policy equals reference: ln 2 for delta 0.
    Source: Wang et al., arXiv 2406.11839, the third of its terms alone.
    Use: a second objective beside dpo, of the same beta and weight 1, when rewards/chosen falls.
    Curves: rewards/chosen stays above delta.
    """
    reward_BK = beta * log_ratios(policy, ref)
    loss_B = -jax.nn.log_sigmoid(reward_BK[:, 0] - delta)
    return pair_output(loss_B, reward_BK, policy, weight)


@needs(groups=PAIRS)
def apo_zero(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """Anchored preference optimisation, zero: 1 - sigmoid(R_c) + sigmoid(R_r).

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference gets no gradient.
        weight: [B] weight of every pair, >= 0.
        beta: scale of the rewards, > 0; 0.1 in TRL, 0.05 for SmolLM3.
    Returns: loss_B, 1 where policy equals reference.
    Source: D'Oosterlinck et al., arXiv 2408.06266; TRL's `loss_type: apo_zero`.
    Use: chosen answers better than the policy's own: it makes them likelier; beta 0.05 to 0.1,
        learning rate 2e-7.
    Curves: loss falls from 1 towards 0; rewards/chosen rises and rewards/rejected falls.
    """
    reward_BK = beta * log_ratios(policy, ref)
    loss_B = jax.nn.sigmoid(-reward_BK[:, 0]) + jax.nn.sigmoid(reward_BK[:, 1])
    return pair_output(loss_B, reward_BK, policy, weight)


@needs(groups=PAIRS)
def apo_down(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """Anchored preference optimisation, down: sigmoid(R_c) + 1 - sigmoid(R_c - R_r).

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference gets no gradient.
        weight: [B] weight of every pair, >= 0.
        beta: scale of the rewards, > 0; 0.1 in TRL.
    Returns: loss_B, 1 where policy equals reference.
    Source: D'Oosterlinck et al., arXiv 2408.06266; TRL's `loss_type: apo_down`.
    Use: chosen answers worse than the policy's own: both become less likely, the rejected more so;
        learning rate 2e-7.
    Curves: loss falls from 1 towards 0; both rewards fall, rewards/rejected faster.
    """
    reward_BK = beta * log_ratios(policy, ref)
    loss_B = jax.nn.sigmoid(reward_BK[:, 0]) + jax.nn.sigmoid(reward_BK[:, 1] - reward_BK[:, 0])
    return pair_output(loss_B, reward_BK, policy, weight)


@needs(groups=PAIRS)
def bco_pair(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.01
) -> ObjectiveOutput:
    """Binary classifier optimisation of pairs, no shift: -log sigmoid(R_c) - log sigmoid(-R_r).

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference gets no gradient.
        weight: [B] weight of every pair, >= 0.
        beta: scale of the rewards, > 0; 0.01 is usual, 0.1 in TRL.
    Returns: loss_B in nats, 2 ln 2 where policy equals reference.
    Source: Jung et al., arXiv 2404.04656, with its shift delta = 0, as TRL's `loss_type: bco_pair`
        since 0.29.
    Use: an upper bound of dpo that keeps rewards/chosen above 0; beta 0.01, learning rate
        5e-7.
    Curves: loss falls from 1.386; rewards/chosen rises above 0 and rewards/rejected falls below.
    """
    reward_BK = beta * log_ratios(policy, ref)
    return pair_output(_classified(reward_BK), reward_BK, policy, weight)


@needs(groups=PAIRS, coupled=True, running={"mean": 0.0, "count": 0.0})
def bco_pair_centred(
    policy: Logps,
    ref: Logps,
    running: Mapping[str, jax.Array],
    weight: RowWeight = None,
    *,
    beta: Positive = 0.01,
) -> ObjectiveOutput:
    """Binary classifier, centred: -log sigmoid(R_c - delta) - log sigmoid(-(R_r - delta)).

    Binary classifier optimisation of pairs.  delta is the mean of the rewards of all completions
    seen so far, this batch included; it has no gradient.

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference gets no gradient.
        running: `mean` and `count` of the rewards before this batch; 0 at the start.
        weight: [B] weight of every pair, >= 0, in the loss and in delta: 2 is the same as having
            the pair twice.
        beta: scale of the rewards, > 0; 0.01 is usual.
    Returns: loss_B in nats, 2 ln 2 where policy equals reference from the start; `running` after
        this batch.
    Source: Jung et al., arXiv 2404.04656; TRL's `loss_type: bco_pair` before 0.29 and
        LLaMA-Factory.
    Use: as bco_pair, a closer bound of dpo; beta 0.01, learning rate 5e-7.
    Curves: as bco_pair, around bco/delta instead of 0.
    """
    reward_BK, weight_B = beta * log_ratios(policy, ref), pair_weight(policy, weight)
    both_BK = jnp.broadcast_to(weight_B[:, None], (len(weight_B), 2))
    after = mean_so_far(running, jax.lax.stop_gradient(reward_BK[:, :2]), both_BK)
    out = pair_output(_classified(reward_BK - after["mean"]), reward_BK, policy, weight)
    logged = {"bco/delta": jnp.broadcast_to(after["mean"], weight_B.shape)}
    return plus_metrics(out, logged)._replace(running=after)


def _regression(
    policy: Logps, ref: Logps, weight: RowWeight, target_B: jax.Array | float, beta: float
) -> ObjectiveOutput:
    """Drives the rewards to +-target: (R_c - target)^2 + (R_r + target)^2, over beta^2."""
    rho_BK = log_ratios(policy, ref)
    loss_B = (rho_BK[:, 0] - target_B / beta) ** 2 + (rho_BK[:, 1] + target_B / beta) ** 2
    return pair_output(loss_B, beta * rho_BK, policy, weight)


def _classified(logit_BK: jax.Array) -> jax.Array:
    """Cross-entropy to the labels "chosen" and "rejected"."""
    return -jax.nn.log_sigmoid(logit_BK[:, 0]) - jax.nn.log_sigmoid(-logit_BK[:, 1])
