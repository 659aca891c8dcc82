"""Objectives on single completions with a label, 1 desirable or 0 undesirable, and a reference.

In the log `rewards/chosen` is the mean reward of the desirable groups of a batch,
`rewards/rejected` that of the undesirable ones, each 0 in a batch without any.  Their difference is
the margin, which is not logged: it is not a mean over groups.  `rewards/signed` (the reward, with a
minus where label is 0) and `rewards/accuracies` are means over all.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import (
    NotNegative,
    Positive,
    RowWeight,
    log_ratios,
    mean,
    mean_so_far,
    pair_weight,
)
from jaxpref.objectives.contract import JUDGED, ObjectiveOutput, Term, needs


@needs(groups=("judged_other",), coupled=True)
def kto(
    policy: Logps,
    ref: Logps,
    label: jax.Array,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
    desirable_weight: NotNegative = 1.0,
    undesirable_weight: NotNegative = 1.0,
) -> ObjectiveOutput:
    """KTO: w_d * (1 - sigmoid(beta * (rho - z0))), or w_u * (1 - sigmoid(beta * (z0 - rho))).

    Kahneman-Tversky optimisation; the first form where label is 1, the second where it is 0.  z0 =
    max(0, mean of rho(y') over the whole batch), y' an answer to another prompt: an estimate of the
    KL divergence from the reference, without gradient.

    Args:
        policy, ref: summed log-probs in nats and token counts, [B, 2]: the judged answer, the
            answer to another prompt; the reference gets no gradient.
        label: [B] 1 for a desirable answer, 0 for an undesirable one.
        weight: [B] weight of every group, >= 0, in the loss and in z0: 2 is the same as having the
            group twice.
        beta: strength of the pull towards the reference, > 0; 0.1 is usual.
        desirable_weight, undesirable_weight: w_d and w_u, >= 0.  They multiply the loss and are not
            divided out.
    Returns: loss_B in [0, w], w / 2 where policy equals reference.
    Source: Ethayarajh et al., arXiv 2402.01306; TRL's `loss_type: kto`, but z0 over the whole
        batch.
    Use: where answers were judged one by one.  Choose the weights so that w_d * desirable / (w_u *
        undesirable) is 1 to 1.33; learning rate 5e-7 to 5e-6, batches of at least 16, for z0 is an
        estimate.
    Curves: `kl` (z0) stays small against the rewards and rises slowly; `rewards/chosen` rises,
        `rewards/rejected` falls.
    """
    rho_BK = log_ratios(policy, ref)
    weight_B = pair_weight(policy, weight)
    z0 = jnp.maximum(mean(jax.lax.stop_gradient(rho_BK[:, 1]), weight_B), 0.0)
    side_B = label * desirable_weight + (1.0 - label) * undesirable_weight
    loss_B = side_B * jax.nn.sigmoid(-_sign(label) * beta * (rho_BK[:, 0] - z0))
    metrics = _metrics(beta * rho_BK[:, 0], label, policy)
    metrics["kl"] = jnp.broadcast_to(z0, loss_B.shape)
    return ObjectiveOutput(loss_B, weight_B, metrics)


@needs(groups=JUDGED)
def apo_zero_unpaired(
    policy: Logps,
    ref: Logps,
    label: jax.Array,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
) -> ObjectiveOutput:
    """Anchored preference optimisation, unpaired: 1 - sigmoid(R) where label is 1, else sigmoid(R).

    R = beta * rho is the reward.

    Args:
        policy, ref: summed log-probs in nats and token counts, [B, K]; completions after the first
            are not used; the reference gets no gradient.
        label: [B] 1 for a desirable answer, 0 for an undesirable one.
        weight: [B] weight of every group, >= 0.
        beta: strength of the pull towards the reference, > 0; 0.1 is usual.
    Returns: loss_B in [0, 1], 1/2 where policy equals reference.
    Source: D'Oosterlinck et al., arXiv 2408.06266; TRL's `loss_type: apo_zero_unpaired`.
    Use: where desirable answers are better than the model's own; needs no answers to other prompts.
        Learning rate as for KTO.
    Curves: `rewards/chosen` rises from 0, `rewards/rejected` falls; `rewards/accuracies`, the share
        of rewards with the right sign, rises towards 1.
    """
    reward_B = beta * log_ratios(policy, ref)[:, 0]
    loss_B = jax.nn.sigmoid(-_sign(label) * reward_B)
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), _metrics(reward_B, label, policy))


@needs(groups=JUDGED, coupled=True, running={"mean": 0.0, "count": 0.0})
def bco(
    policy: Logps,
    ref: Logps,
    label: jax.Array,
    running: Mapping[str, jax.Array],
    weight: RowWeight = None,
    *,
    beta: Positive = 0.01,
) -> ObjectiveOutput:
    """BCO: -log sigmoid(R - delta) where label is 1, else -log sigmoid(delta - R), R = beta * rho.

    Binary classifier optimisation.  delta is the mean of all rewards R so far, this batch's
    included, without gradient.

    Args:
        policy, ref: summed log-probs in nats and token counts, [B, K]; completions after the first
            are not used; the reference gets no gradient.
        label: [B] 1 for a desirable answer, 0 for an undesirable one.
        running: `mean` and `count` of the rewards before this batch; 0 at the start.
        weight: [B] weight of every group, >= 0, in the loss and in delta: 2 is the same as having
            the group twice.
        beta: strength of the pull towards the reference, > 0; 0.01 is usual.
    Returns: loss_B in nats, ln 2 where policy equals reference and did so far.
    Source: Jung et al., arXiv 2404.04656, with the running mean that TRL's BCOTrainer had; its
        weighting by prompt density is left out.
    Use: where answers were judged one by one, KTO's alternative without answers to other prompts;
        learning rate 5e-7.
    Curves: `bco/delta` drifts slowly; `rewards/chosen` stays above it, `rewards/rejected` below.
    """
    reward_B = beta * log_ratios(policy, ref)[:, 0]
    weight_B = pair_weight(policy, weight)
    after = mean_so_far(running, jax.lax.stop_gradient(reward_B), weight_B)
    loss_B = -jax.nn.log_sigmoid(_sign(label) * (reward_B - after["mean"]))
    metrics = _metrics(reward_B, label, policy)
    metrics["bco/delta"] = jnp.broadcast_to(after["mean"], loss_B.shape)
    return ObjectiveOutput(loss_B, weight_B, metrics, running=after)


def _sign(label: jax.Array) -> jax.Array:
    return 2.0 * label - 1.0


def _metrics(reward_B: jax.Array, label: jax.Array, policy: Logps) -> dict[str, jax.Array | Term]:
    reward_B, present_B = jax.lax.stop_gradient(reward_B), pair_weight(policy, None)
    signed_B = _sign(label) * reward_B
    return {
        "rewards/chosen": Term(reward_B, label * present_B),
        "rewards/rejected": Term(reward_B, (1.0 - label) * present_B),
        "rewards/signed": signed_B,
        "rewards/accuracies": (signed_B > 0).astype(jnp.float32),
    }
