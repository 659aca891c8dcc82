"""Pieces that several objectives share."""

from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
from pydantic import Field

from jaxpref.errors import InputError
from jaxpref.models.logprobs import Logps
from jaxpref.objectives.contract import ObjectiveOutput, Term

LARGEST_EXPONENT = 40.0
"""exp of it and its square stay finite in float32, and so does the norm of the gradient."""

RowWeight = jax.Array | None
"""[B] weight of every group of the batch in the loss, >= 0; None: 1 each."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
LessThanOne = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
LessThanHalf = Annotated[float, Field(ge=0, lt=0.5, allow_inf_nan=False)]
"""A probability that a label is wrong."""


def log_ratios(policy: Logps, ref: Logps) -> jax.Array:
    """rho_BK = log pi(y|x) - log pi_ref(y|x), summed over tokens (nats).

    The reference gets no gradient.
    """
    return policy.sum - jax.lax.stop_gradient(ref.sum)


def difference(x_BK: jax.Array) -> jax.Array:
    """Chosen less rejected, [B]."""
    return x_BK[:, 0] - x_BK[:, 1]


def per_token(x_BK: jax.Array, policy: Logps) -> jax.Array:
    """Sums over a completion's tokens as means over them; 0 for an empty slot."""
    return x_BK / jnp.maximum(policy.count, 1.0)


def cross_entropy(margin_B: jax.Array, label_B: jax.Array | float) -> jax.Array:
    """Of sigmoid(margin) to the label, the probability that the chosen answer is the better one."""
    return -label_B * jax.nn.log_sigmoid(margin_B) - (1.0 - label_B) * jax.nn.log_sigmoid(-margin_B)


def mean(x: jax.Array, weight: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """Weighted mean; 0 where all weights are 0.

    Args:
        weight: >= 0, or bool: the places to average over.
    """
    total = jnp.sum(jnp.where(weight > 0, weight * x, 0.0), axis)
    return total / jnp.maximum(weight.sum(axis), 1e-30)


def pair_weight(policy: Logps, weight: RowWeight) -> jax.Array:
    """weight_B of an objective: the data's, or 1 for every group; 0 for an empty slot."""
    present_B = (policy.count.sum(-1) > 0).astype(jnp.float32)
    return present_B if weight is None else present_B * weight


def pair_output(
    loss_B: jax.Array, reward_BK: jax.Array, policy: Logps, weight: RowWeight
) -> ObjectiveOutput:
    """The output of most objectives on pairs: one loss per pair, and TRL's reward metrics."""
    return ObjectiveOutput(loss_B, pair_weight(policy, weight), reward_metrics(reward_BK))


def token_nll(policy: Logps, weight: RowWeight, completion: int = 0) -> Term:
    """Negative log-likelihood of a completion as a mean over the tokens of the whole batch."""
    nll_B = -per_token(policy.sum, policy)[:, completion]
    return Term(nll_B, pair_weight(policy, weight) * policy.count[:, completion])


def plus_metrics(out: ObjectiveOutput, metrics: Mapping[str, jax.Array | Term]) -> ObjectiveOutput:
    """`out` with more to log, without gradient."""
    return out._replace(metrics={**out.metrics, **jax.lax.stop_gradient(dict(metrics))})


def plus_term(
    out: ObjectiveOutput, scale: float, term: Term, metrics: Mapping[str, jax.Array]
) -> ObjectiveOutput:
    """`out` with `scale` times a term of its own weights added, and more to log."""
    scaled = term._replace(loss_B=scale * term.loss_B)
    return plus_metrics(out._replace(plus=(*out.plus, scaled)), metrics)


def per_model(
    name: str, given: tuple[float, ...], n: int, default: float, models: str
) -> tuple[float, ...]:
    """One number per model: those given, or the default for each of the n.

    Errors: InputError for another length.
    """
    if given and len(given) != n:
        raise InputError(
            f"{name} with {n} entries, one per model: {models}",
            f"{len(given)} entries: {given}",
            f"give one number per model, or remove {name}: then each has {default:g}",
        )
    return given or (default,) * n


def check_last_axis(name: str, array: jax.Array, size: int, why: str) -> None:
    """Errors: InputError unless the array is [B, K, size]."""
    if array.ndim == 3 and array.shape[-1] == size:
        return
    if name == "extra_refs":
        fix = "list that many models under `reference.extra`, or change the hyperparameter"
    else:
        fix = (
            f"list that many columns, `columns: {{{name}: [first, ...]}}`, "
            "or change the hyperparameter"
        )
    raise InputError(f"`{name}` of shape [B, K, {size}]: {why}", f"shape {tuple(array.shape)}", fix)


def reward_metrics(reward_BK: jax.Array) -> dict[str, jax.Array]:
    """TRL's reward metrics; completion 0 is the chosen one.

    Accuracy is strict: a tie counts as wrong.
    """
    chosen_B, rejected_B = jax.lax.stop_gradient((reward_BK[:, 0], reward_BK[:, 1]))
    return {
        "rewards/chosen": chosen_B,
        "rewards/rejected": rejected_B,
        "rewards/margins": chosen_B - rejected_B,
        "rewards/accuracies": (chosen_B > rejected_B).astype(jnp.float32),
    }


def mean_so_far(
    before: Mapping[str, jax.Array], x: jax.Array, weight: jax.Array
) -> dict[str, jax.Array]:
    """Running weighted mean, these numbers included; its statistics are `mean` and `count`."""
    count = before["count"] + weight.sum()
    surplus = jnp.sum(weight * (x - before["mean"]))
    return {"mean": before["mean"] + surplus / jnp.maximum(count, 1e-30), "count": count}
