"""Variants of DPO that look at single tokens: which of them count, or the vocabulary at each."""

import jax
import jax.numpy as jnp

from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import (
    Fraction,
    NotNegative,
    Positive,
    RowWeight,
    difference,
    log_ratios,
    pair_output,
    per_token,
    plus_metrics,
)
from jaxpref.objectives.contract import PAIRS, ObjectiveOutput, needs
from jaxpref.objectives.pairwise import dpo
from jaxpref.objectives.transforms import ld, sampled

_LARGEST_LOG_WEIGHT = 40.0
"""Two completions reach at most 2 log V, 25 for a vocabulary of 2^18."""


@needs(groups=PAIRS, logps=("collision",))
def wpo(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.01
) -> ObjectiveOutput:
    """Weighted preference optimisation: w(chosen) * w(rejected) * the loss of DPO.

    w(y) = exp(mean over tokens of log p(y_t) - log sum_v p(v)^2): how likely the policy itself is
    to write y, relative to what it writes on average; no gradient flows through it.  The product
    may exceed 1; it is clipped at e^40, which a probability distribution cannot reach.

    Args:
        policy: summed log-probs, token counts and `collision`, the sum of log sum_v p(v)^2, [B, 2]
            in nats.
        ref: summed log-probs [B, 2] in nats, without gradient.
        weight: [B] weight of every pair, >= 0, besides the method's own.
        beta: as in DPO, > 0; the paper's code uses 0.01.
    Returns: loss_B in nats, w(chosen) * w(rejected) * ln 2 where policy equals reference.
    Source: Zhou et al., arXiv 2406.11827; TRL's `use_weighting`, which does not clamp the product
        as the paper's code does (that is `wpo_clamped`).
    Use: when the completions were written by other models.  The weights are below 1 for most such
        pairs and so shrink the gradient; beta 0.01 and DPO's learning rates (5e-7 to 1e-6).
    Curves: wpo/weight starts low for completions of other models and rises as the policy learns to
        write like them; the loss is the product of both and may rise with it, so judge by
        rewards/margins and rewards/accuracies.
    """
    return _weighted_dpo(policy, ref, weight, beta, _LARGEST_LOG_WEIGHT)


@needs(groups=PAIRS, logps=("collision",))
def wpo_clamped(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.01
) -> ObjectiveOutput:
    """WPO with weights of at most 1: min(w(chosen) * w(rejected), 1) * the loss of DPO.

    w(y) = exp(mean over tokens of log p(y_t) - log sum_v p(v)^2), no gradient through it.

    Args:
        policy: summed log-probs, token counts and `collision`, the sum of log sum_v p(v)^2, [B, 2]
            in nats.
        ref: summed log-probs [B, 2] in nats, without gradient.
        weight: [B] weight of every pair, >= 0, besides the method's own.
        beta: as in DPO, > 0; the paper's code uses 0.01.
    Returns: loss_B in nats, min(w(chosen) * w(rejected), 1) * ln 2 where policy equals reference.
    Source: Zhou et al., arXiv 2406.11827, as in its code; TRL's `use_weighting` leaves out the
        clamp (that is `wpo`).
    Use: as `wpo`; the clamp keeps pairs of very likely completions from counting more than a pair
        of DPO.
    Curves: as `wpo`, with wpo/weight at most 1.
    """
    return _weighted_dpo(policy, ref, weight, beta, 0.0)


def _weighted_dpo(
    policy: Logps, ref: Logps, weight: RowWeight, beta: float, largest_log_weight: float
) -> ObjectiveOutput:
    log_weight_BK = per_token(policy.sum - policy.collision, policy)
    log_weight_B = jnp.minimum(log_weight_BK[:, 0] + log_weight_BK[:, 1], largest_log_weight)
    own_B = jnp.exp(jax.lax.stop_gradient(log_weight_B))
    out = dpo(policy, ref, weight, beta=beta)
    return plus_metrics(out._replace(loss_B=own_B * out.loss_B), {"wpo/weight": own_B})


@needs(groups=PAIRS, logps=("common",))
def ld_dpo(
    policy: Logps,
    ref: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
    alpha: Fraction = 0.5,
) -> ObjectiveOutput:
    """Length-desensitised DPO: DPO on L'(y) = L(y[:n]) + alpha * L(y[n:]).

    n = min(|chosen|, |rejected|).

    Args:
        policy, ref: summed log-probs, and `common`, those of the first n tokens, [B, 2] in nats;
            the reference gets no gradient.
        weight: [B] weight of every pair, >= 0.
        beta: as in DPO, > 0.
        alpha: how much a token behind the shorter length counts, 0 to 1; 1 is DPO.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Liu et al., arXiv 2409.06411, eq. 9.  L' replaces L under the policy and under the
        reference, as TRL's `ld_alpha` does; some libraries shorten the policy's only, and then a
        policy equal to the reference has a margin.  Logged rewards are beta * rho of the shortened
        sums, as in TRL.
    Use: when DPO makes the answers longer.  beta and learning rate as for DPO; lower alpha, shorter
        answers.
    Curves: as DPO's; the generated length should grow less.
    """
    return dpo(*ld(policy, ref, alpha=alpha), weight, beta=beta)


@needs(groups=PAIRS, logps=("sampled",))
def sampo(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """Down-sampled DPO: DPO on the log-probs of n tokens of each completion, drawn anew every step.

    n = min(|chosen|, |rejected|); the shorter completion is taken whole.  Policy and reference use
    the same tokens.

    Args:
        policy, ref: token counts, and `sampled`, the log-prob of the drawn tokens, [B, 2] in nats;
            the reference gets no gradient.
        weight: [B] weight of every pair, >= 0.
        beta: as in DPO, > 0; the paper's code uses 0.1.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Lu et al., arXiv 2406.10957, eq. 7-8.  Its code draws other tokens for the reference
        than for the policy, which adds noise to every log-ratio and is not copied.
    Use: when chosen completions are systematically longer (or shorter) and the margin should not
        profit from it.  beta and learning rate as for DPO.
    Curves: as DPO's with more noise, as rewards are those of the drawn tokens; the generated length
        should grow less.
    """
    return dpo(*sampled(policy, ref), weight, beta=beta)


@needs(groups=PAIRS, logps=("kl",))
def tdpo1(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """Token-level DPO: -log sigmoid(beta * (rho_chosen - rho_rejected - (K_rejected - K_chosen))).

    K(y) = sum over tokens t of KL(pi_ref(. | y_<t) || pi(. | y_<t)), over the whole vocabulary;
    gradient flows through both.

    Args:
        policy: summed log-probs and `kl`, the sum K, [B, 2] in nats.
        ref: summed log-probs [B, 2] in nats, without gradient.
        weight: [B] weight of every pair, >= 0.
        beta: as in DPO, > 0; the paper's code uses 0.1.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Zeng et al., arXiv 2404.11999, and its code.  That code logs beta * (rho + K) as
        rewards; here they are beta * rho as everywhere, and K is logged apart.
    Use: when DPO moves too far from the reference on rejected completions.  The loss falls as
        K_chosen rises, which pushes the policy away from the reference on chosen ones; `tdpo2`
        stops that gradient and is the safer choice.  beta and learning rate as for DPO.
    Curves: rewards as in DPO with a smaller margin; kl/chosen and kl/rejected, both 0 at the start,
        grow with training.
    """
    return _token_dpo(policy, ref, weight, beta, policy.kl[:, 1] - policy.kl[:, 0])


@needs(groups=PAIRS, logps=("kl",))
def tdpo2(
    policy: Logps,
    ref: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
    alpha: NotNegative = 0.5,
) -> ObjectiveOutput:
    """Token-level DPO, second form: -log sigmoid(beta * (rho_c - rho_r - alpha * (K_r - sg(K_c)))).

    c and r are the chosen and the rejected completion, sg stops the gradient; K(y) = sum over
    tokens t of KL(pi_ref(. | y_<t) || pi(. | y_<t)), over the whole vocabulary.  Gradient flows
    through K_r only.

    Args:
        policy: summed log-probs and `kl`, the sum K, [B, 2] in nats.
        ref: summed log-probs [B, 2] in nats, without gradient.
        weight: [B] weight of every pair, >= 0.
        beta: as in DPO, > 0; the paper's code uses 0.1.
        alpha: weight of the divergence, >= 0; the paper's code uses 0.5; 0 is DPO.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Zeng et al., arXiv 2404.11999, and its code, whose configuration runs the first form
        unless told otherwise.  Logged rewards are beta * rho, and K is logged apart.
    Use: when DPO moves too far from the reference on rejected completions; a larger alpha holds it
        closer.  beta and learning rate as for DPO.
    Curves: rewards as in DPO with a smaller margin; kl/rejected grows more slowly than under DPO.
    """
    held_B = jax.lax.stop_gradient(policy.kl[:, 0])
    return _token_dpo(policy, ref, weight, beta, alpha * (policy.kl[:, 1] - held_B))


def _token_dpo(
    policy: Logps, ref: Logps, weight: RowWeight, beta: float, divergence_B: jax.Array
) -> ObjectiveOutput:
    rho_BK = log_ratios(policy, ref)
    loss_B = -jax.nn.log_sigmoid(beta * (difference(rho_BK) - divergence_B))
    out = pair_output(loss_B, beta * rho_BK, policy, weight)
    return plus_metrics(out, {"kl/chosen": policy.kl[:, 0], "kl/rejected": policy.kl[:, 1]})
