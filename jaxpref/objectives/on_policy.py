"""Objectives on answers that the policy itself has drawn."""

import jax
import jax.numpy as jnp

from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import (
    LARGEST_EXPONENT,
    NotNegative,
    Positive,
    RowWeight,
    log_ratios,
    mean,
    pair_weight,
)
from jaxpref.objectives.contract import ObjectiveOutput, needs


@needs(groups=("ranked",))
def rloo(
    policy: Logps,
    ref: Logps,
    score: jax.Array,
    sampled_logp: jax.Array,
    weight: RowWeight = None,
    *,
    beta: NotNegative = 0.05,
    ratio_max: Positive = 2.0,
) -> ObjectiveOutput:
    """REINFORCE with a leave-one-out baseline (RLOO): the gradient of -A_i * u_i * log pi(y_i).

    A_i = R_i - (mean of R over the prompt's other answers), R = score - beta * rho: the KL to the
    reference is a part of the reward.  u_i = min(pi(y_i) / mu(y_i), ratio_max) is the importance
    weight of an answer that was drawn with probability mu; A and u have no gradient.  The loss is
    the mean over a prompt's answers.

    Args:
        policy, ref: summed log-probs in nats and token counts, [B, K], K >= 2 answers of a prompt;
            the reference gets no gradient.
        score: [B, K] reward of every answer.
        sampled_logp: [B, K] log mu, the log-prob (nats) under which an answer was drawn.
        weight: [B] weight of every prompt, >= 0.
        beta: of the KL in the reward, >= 0.
        ratio_max: largest importance weight, > 0.
    Returns: loss_B = -mean of A * u; its value says little, it is there for its gradient.
    Source: Ahmadian et al., arXiv 2402.14740, eq. 8, whole answers as actions.  TRL's RLOO also
        clips the ratio as PPO does; here every answer is used once, by the policy that drew it, so
        u differs from 1 by the rounding of decoder and step only.
    Use: with `online.rewards`; beta 0.02 to 0.1, learning rate 1e-6 (1e-5 to 1e-4 with adapters),
        samples 2 to 8.  Its optimum is pi_ref exp(score / beta) / Z, that of MODPO for the weighted
        sum of rewards.
    Curves: `rollout/reward` rises, `kl` with it, and more slowly; `sampled/difference`, of the
        log-probs of drawing and of training, stays near 0: 1e-5 in float32, more in bfloat16.
    """
    present_BK = policy.count > 0
    rho_BK = jax.lax.stop_gradient(log_ratios(policy, ref))
    reward_BK = jnp.where(present_BK, score - beta * rho_BK, 0.0)
    count_B1 = present_BK.sum(-1, keepdims=True).astype(jnp.float32)
    others_BK = reward_BK.sum(-1, keepdims=True) - reward_BK
    advantage_BK = reward_BK - others_BK / jnp.maximum(count_B1 - 1.0, 1.0)
    gone_BK = jax.lax.stop_gradient(policy.sum) - sampled_logp
    ratio_BK = jnp.minimum(jnp.exp(jnp.minimum(gone_BK, LARGEST_EXPONENT)), ratio_max)
    one_BK = jnp.exp(
        policy.sum - jax.lax.stop_gradient(policy.sum)
    )  # 1, with the gradient of log pi
    loss_B = -mean(advantage_BK * ratio_BK * one_BK, present_BK, axis=-1)
    metrics = {
        "score": mean(score, present_BK, axis=-1),
        "kl": mean(rho_BK, present_BK, axis=-1),
        "advantage": mean(jnp.abs(advantage_BK), present_BK, axis=-1),
        "sampled/difference": mean(jnp.abs(gone_BK), present_BK, axis=-1),
        "sampled/ratio": mean(ratio_BK, present_BK, axis=-1),
    }
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), jax.lax.stop_gradient(metrics))
