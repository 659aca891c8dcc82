"""Pieces that several objectives share."""

from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
from pydantic import Field

from jaxpref.logprobs import Logps
from jaxpref.objectives.contract import Term

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
LessThanHalf = Annotated[float, Field(ge=0, lt=0.5)]
"""A probability that a label is wrong."""


def log_ratios(policy: Logps, ref: Logps) -> jax.Array:
    """rho_BK = log pi(y|x) - log pi_ref(y|x), summed over tokens (nats); the reference gets no gradient."""
    return policy.sum - jax.lax.stop_gradient(ref.sum)


def pair_weight(policy: Logps, weight: jax.Array | None) -> jax.Array:
    """weight_B of a pairwise objective: the data's, or 1 for every pair, or 0 for an empty slot."""
    present_B = (policy.count.sum(-1) > 0).astype(jnp.float32)
    return present_B if weight is None else present_B * weight


def token_nll(policy: Logps, weight: jax.Array | None, completion: int = 0) -> Term:
    """Negative log-likelihood of a completion, a mean over the tokens of the whole batch, as a term of a loss."""
    tokens_B = policy.count[:, completion]
    return Term(-policy.sum[:, completion] / jnp.maximum(tokens_B, 1.0), pair_weight(policy, weight) * tokens_B)


def reward_metrics(reward_BK: jax.Array) -> dict[str, jax.Array]:
    """TRL's reward metrics; completion 0 is the chosen one.  Accuracy is strict: a tie counts as wrong."""
    chosen_B, rejected_B = jax.lax.stop_gradient((reward_BK[:, 0], reward_BK[:, 1]))
    return {
        "rewards/chosen": chosen_B,
        "rewards/rejected": rejected_B,
        "rewards/margins": chosen_B - rejected_B,
        "rewards/accuracies": (chosen_B > rejected_B).astype(jnp.float32),
    }


def mean_so_far(before: Mapping[str, jax.Array], x: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
    """Running weighted mean, these numbers included; its statistics are `mean` and `count`."""
    count = before["count"] + weight.sum()
    surplus = jnp.sum(weight * (x - before["mean"]))
    return {"mean": before["mean"] + surplus / jnp.maximum(count, 1e-30), "count": count}
