"""Objectives on pairs with a reference: completion 0 is chosen, completion 1 rejected."""

import jax
import jax.numpy as jnp

from jaxpref.logprobs import Logps
from jaxpref.objectives._math import Positive, log_ratios, pair_weight, reward_metrics
from jaxpref.objectives.contract import PAIRS, ObjectiveOutput, needs


@needs(groups=PAIRS)
def dpo(policy: Logps, ref: Logps, weight: jax.Array | None = None, *, beta: Positive = 0.1) -> ObjectiveOutput:
    """Direct preference optimisation: -log sigmoid(beta * (rho_chosen - rho_rejected)).

    Args:
        policy, ref: summed log-probs [B, 2] in nats; the reference is constant.
        weight: [B] weight of every pair, >= 0.
        beta: strength of the pull towards the reference, > 0; the paper uses 0.1 to 0.5.
    Returns: loss_B in nats, ln 2 where policy equals reference.
    Source: Rafailov et al., arXiv 2305.18290, eq. 7; TRL's `loss_type: sigmoid`.
    """
    rho_BK = log_ratios(policy, ref)
    loss_B = -jax.nn.log_sigmoid(beta * (rho_BK[:, 0] - rho_BK[:, 1]))
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), reward_metrics(beta * rho_BK))


@needs(groups=PAIRS)
def ipo(policy: Logps, ref: Logps, weight: jax.Array | None = None, *, beta: Positive = 0.1) -> ObjectiveOutput:
    """Identity preference optimisation on token means: (rho_c / n_c - rho_r / n_r - 1 / (2 beta))^2.

    Args:
        policy, ref: summed log-probs and token counts n, [B, 2]; the reference is constant.
        weight: [B] weight of every pair, >= 0.
        beta: the paper's tau, > 0: the per-token margin is driven to 1 / (2 beta).
    Returns: loss_B, 1 / (4 beta^2) where policy equals reference.
    Source: Azar et al., arXiv 2310.12036, eq. 17, which sums log-probs over tokens; the token mean follows TRL's
    `loss_type: ipo` (its authors' advice).  Logged rewards are beta * rho (summed), as TRL logs them.
    """
    rho_BK = log_ratios(policy, ref)
    mean_BK = rho_BK / jnp.maximum(policy.count, 1.0)
    loss_B = (mean_BK[:, 0] - mean_BK[:, 1] - 1.0 / (2.0 * beta)) ** 2
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), reward_metrics(beta * rho_BK))
