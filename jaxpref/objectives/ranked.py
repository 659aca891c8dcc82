"""Objectives on K completions of a prompt, best first, with a reference.

A completion without tokens is left out.
"""

import jax
import jax.numpy as jnp

from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import Positive, RowWeight, log_ratios, mean, pair_weight
from jaxpref.objectives.contract import ObjectiveOutput, needs

_LEFT_OUT = -1e30
"""Logit of a completion that is not there: its probability is exactly 0, and a group without any
stays finite."""


@needs(groups=("ranked",))
def plackett_luce(
    policy: Logps, ref: Logps, weight: RowWeight = None, *, beta: Positive = 0.1
) -> ObjectiveOutput:
    """Plackett-Luce ranking: -sum_k log( exp(beta * rho_k) / sum_{j >= k} exp(beta * rho_j) ).

    Minus the log-probability of drawing the completions in their order, each among those that are
    left.

    Args:
        policy, ref: summed log-probs in nats and token counts, [B, K], K >= 2, best first; the
            reference gets no gradient.
        weight: [B] weight of every prompt, >= 0.
        beta: strength of the pull towards the reference, > 0.
    Returns: loss_B in nats, ln K! where policy equals reference; for K = 2 it is DPO.
    Source: Rafailov et al., arXiv 2305.18290, the form of DPO for rankings; Plackett, 1975; Luce,
        1959.
    Use: where whole rankings are known; beta and learning rate as for DPO (0.1 and 5e-7 to 1e-6).
    Curves: `rewards/accuracies`, the share of completion pairs in the right order, rises above 0.5;
        `rewards/chosen` is the best completion's, `rewards/rejected` the mean of the others.
    """
    reward_BK = beta * log_ratios(policy, ref)
    present_BK = policy.count > 0
    K = reward_BK.shape[1]
    ahead_BKK = reward_BK[:, None, :] - reward_BK[:, :, None]  # [b, k, j] of j over k
    later_1KK = jnp.triu(jnp.ones((1, K, K), bool), 1)
    left_BKK = (later_1KK & present_BK[:, None, :]) | jnp.eye(K, dtype=bool)[None]
    surprise_BK = jax.nn.logsumexp(jnp.where(left_BKK, ahead_BKK, _LEFT_OUT), axis=-1)
    loss_B = jnp.where(present_BK, surprise_BK, 0.0).sum(-1)
    metrics = _ranking_metrics(reward_BK, present_BK)
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), metrics)


@needs(groups=("ranked",))
def info_nca(
    policy: Logps,
    ref: Logps,
    score: jax.Array,
    weight: RowWeight = None,
    *,
    alpha: Positive = 1.0,
    beta: Positive = 0.01,
) -> ObjectiveOutput:
    """InfoNCA: -sum_k softmax(score / alpha)_k * log softmax(beta * rho)_k.

    Args:
        policy, ref: summed log-probs in nats and token counts, [B, K], best first; the reference
            gets no gradient.
        score: [B, K] score of every completion.
        weight: [B] weight of every prompt, >= 0.
        alpha: temperature of the scores, in their unit, > 0; towards 0 only the best completion is
            a target.
        beta: strength of the pull towards the reference, > 0; the authors use 0.01.
    Returns: loss_B in nats, ln K where policy equals reference; its least value is the entropy of
        softmax(score / alpha).  For K = 2 and alpha towards 0 it is DPO.
    Source: Chen et al., arXiv 2402.05369.
    Use: where the sizes of the scores mean something; alpha about the difference between a good and
        a fair answer, learning rate 5e-6 with adapters.
    Curves: the loss falls from ln K towards the entropy of the targets; `rewards/accuracies` is the
        share of completion pairs in the right order, `rewards/rejected` the mean of all but the
        best.
    """
    reward_BK = beta * log_ratios(policy, ref)
    present_BK = policy.count > 0
    present_only = lambda x_BK: jnp.where(present_BK, x_BK, _LEFT_OUT)
    target_BK = jax.nn.softmax(present_only(score / alpha), axis=-1)
    loss_BK = -target_BK * jax.nn.log_softmax(present_only(reward_BK), axis=-1)
    loss_B = jnp.where(present_BK, loss_BK, 0.0).sum(-1)
    metrics = _ranking_metrics(reward_BK, present_BK)
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), metrics)


def _ranking_metrics(reward_BK: jax.Array, present_BK: jax.Array) -> dict[str, jax.Array]:
    """The reward metrics of a pair, for K completions.

    `chosen` is the best one, `rejected` the mean of the others; accuracy is over all pairs of them.
    """
    reward_BK = jax.lax.stop_gradient(reward_BK)
    K = reward_BK.shape[1]
    best_B = reward_BK[:, 0]
    others_B = mean(reward_BK[:, 1:], present_BK[:, 1:], axis=-1)
    later_1KK = jnp.triu(jnp.ones((1, K, K), bool), 1)
    pairs_BKK = later_1KK & present_BK[:, None, :] & present_BK[:, :, None]
    right_BKK = reward_BK[:, :, None] > reward_BK[:, None, :]
    return {
        "rewards/chosen": best_B,
        "rewards/rejected": others_B,
        "rewards/margins": best_B - others_B,
        "rewards/accuracies": mean(right_BKK.astype(jnp.float32), pairs_BKK, axis=(-2, -1)),
    }
