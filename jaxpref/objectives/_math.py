"""Pieces that several objectives share."""

from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Lt
from pydantic import Field

from jaxpref.logprobs import Logps

Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
LessThanHalf = Annotated[float, Ge(0), Lt(0.5)]
"""A probability that a label is wrong."""


def log_ratios(policy: Logps, ref: Logps) -> jax.Array:
    """rho_BK = log pi(y|x) - log pi_ref(y|x), summed over tokens (nats); the reference gets no gradient."""
    return policy.sum - jax.lax.stop_gradient(ref.sum)


def pair_weight(policy: Logps, weight: jax.Array | None) -> jax.Array:
    """weight_B of a pairwise objective: the data's, or 1 for every pair, or 0 for an empty slot."""
    present_B = (policy.count.sum(-1) > 0).astype(jnp.float32)
    return present_B if weight is None else present_B * weight


def reward_metrics(reward_BK: jax.Array) -> dict[str, jax.Array]:
    """TRL's reward metrics; completion 0 is the chosen one.  Accuracy is strict: a tie counts as wrong."""
    chosen_B, rejected_B = jax.lax.stop_gradient((reward_BK[:, 0], reward_BK[:, 1]))
    return {
        "rewards/chosen": chosen_B,
        "rewards/rejected": rejected_B,
        "rewards/margins": chosen_B - rejected_B,
        "rewards/accuracies": (chosen_B > rejected_B).astype(jnp.float32),
    }
