"""A batch becomes a loss: log-probs, the objective's terms, and their weighted means.

The objective's value is defined over the whole batch, as the weighted mean over all its groups
(docs/design.md, "The functional boundary").  So the sums here may be over some of the groups only,
and the denominators of the whole batch may be given.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.data.kinds import NAMES
from jaxpref.models.chunked_head import States
from jaxpref.models.logprobs import (
    Logps,
    completion_logps,
    data_logps,
    hidden_states,
    reference_logps,
)
from jaxpref.models.model import Model
from jaxpref.models.parameters import LORA
from jaxpref.objectives import ObjectiveOutput, Part, Term, asked_logps
from jaxpref.step.micro_batches import at_used_length, collect, whole_batch
from jaxpref.types import Batch, Pictures

REFERENCE_COLUMN = "ref_logp"
"""Per-completion column [R, G, K] of cached reference log-probs, in place of a reference model."""

_LEAST_WEIGHT = 1e-30
"""In denominators, so that a batch without weight has the loss 0."""


@dataclass(frozen=True)
class LossSpec:
    """How a batch becomes a loss: the model, the objective, and how log-probs are computed."""

    model: Model
    parts: Sequence[Part]
    chunk: int
    """Loss tokens multiplied with the vocabulary at a time."""
    lengths: Sequence[int] = ()
    """Ascending row lengths (`Layout.lengths`), of which a micro-batch runs the shortest that holds
    it; empty: always the whole row."""
    kind: str = "pair"
    """What the groups are, a key of `data.kinds.NAMES`."""
    also: tuple[str, ...] = ()
    """Optional fields of `Logps` to compute besides those that the objective asks for."""
    dropout: bool = False
    """Whether the policy drops inputs of its adapter in training."""
    apart: bool = False
    """Whether the losses of the parts, and so their gradients, are told apart in training: on a
    leading axis O, without the parts' weights."""

    @property
    def asked(self) -> tuple[str, ...]:
        return tuple(sorted({*asked_logps(self.parts), *self.also}))

    @property
    def coupled(self) -> bool:
        return any(part.needs.coupled for part in self.parts)

    def with_numbers(self, numbers: Sequence[Mapping[str, Any]]) -> "LossSpec":
        """With other numbers in the parts of the objective, as `Part.with_numbers` takes them."""
        parts = [part.with_numbers(own) for part, own in zip(self.parts, numbers, strict=True)]
        return replace(self, parts=parts)


def init_running(parts: Sequence[Part]) -> dict[str, dict[str, jax.Array]]:
    """Statistics before the first step, of the parts that carry some: {part: {name: scalar}}."""
    running = {}
    for part in parts:
        if part.needs.running:
            running[part.name] = {
                name: jnp.asarray(value, jnp.float32) for name, value in part.needs.running.items()
            }
    return running


# ---- log-probs


@functools.cache  # the same function for the same model, so that nothing is compiled again
def summed_logps(model: Model, chunk: int) -> Callable[[Any, Batch], jax.Array]:
    """(params, micro-batch) -> [B, K] summed log-probs."""

    def sums(params, micro: Batch):
        return completion_logps(model, params, micro, chunk=chunk, stats=False).sum

    return sums


def reference_states(loss_spec: LossSpec, ref_params, micro: Batch) -> States | None:
    """Hidden states of the reference, without gradient or noise; None where it is not run."""
    if ref_params is None:
        return None
    quiet = micro._replace(noise=None)
    return lax.stop_gradient(hidden_states(loss_spec.model, ref_params, quiet))


def policy_logps(
    loss_spec: LossSpec, params, ref_states: States | None, micro: Batch, key=None
) -> Logps:
    """Log-probs under the policy, with gradient.

    Args:
        ref_states: of the reference, for the fields of `Logps` that compare both; None without one.
        key: of the dropout; None: no dropout.
    """
    return completion_logps(
        loss_spec.model,
        params,
        micro,
        chunk=loss_spec.chunk,
        asked=loss_spec.asked,
        ref_states=ref_states,
        key=key,
    )


def both_logps(
    loss_spec: LossSpec, params, ref_params, micro: Batch, key=None
) -> tuple[Logps, Logps | None]:
    """Log-probs under policy and reference; None for a reference that is neither run nor cached.

    Args: as of `policy_logps`; a batch with `REFERENCE_COLUMN` brings the reference's along.
    """
    micro = _looked_once(loss_spec.model, params, ref_params, micro)
    ref_states = reference_states(loss_spec, ref_params, micro)
    logps = policy_logps(loss_spec, params, ref_states, micro, key)
    if REFERENCE_COLUMN in micro.columns:
        cached = micro.columns[REFERENCE_COLUMN].reshape(logps.sum.shape)
        zero = jnp.zeros_like(cached)
        return logps, Logps(sum=cached, count=logps.count, entropy=zero, top1=zero)
    if ref_states is None:
        return logps, None
    ref = reference_logps(
        loss_spec.model, ref_states, micro, chunk=loss_spec.chunk, asked=loss_spec.asked
    )
    return logps, ref


def _looked_once(model: Model, params, ref_params, micro: Batch) -> Batch:
    """With what the tower makes of the pictures, where policy and reference have it in common."""
    if not isinstance(micro.pictures, Pictures) or model.look is None or ref_params is None:
        return micro
    adapted = "vision" in params.get(LORA, {})
    if adapted or params["vision"] is not ref_params["vision"]:  # the same arrays, not equal ones
        return micro
    return micro._replace(pictures=lax.stop_gradient(model.look(params, micro.pictures)))


def all_logps(
    loss_spec: LossSpec, params, ref_params, batch: Batch, micro_batches, keys_T=None
) -> tuple[Logps, Logps | None]:
    """Log-probs of all micro-batches as one, [T*B, K]; forward only.

    Micro-batches that are not in use hold the zeros of empty slots.

    Args:
        keys_T: of the dropout, one per micro-batch; None: no dropout.
    """

    def both(params, micro: Batch, key):
        return both_logps(loss_spec, params, ref_params, micro, key)

    one = at_used_length(both, loss_spec.lengths)
    collected_T = collect(lambda micro: one(params, *micro), (batch, keys_T), micro_batches)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), collected_T)


# ---- the objective


def _outputs(
    loss_spec: LossSpec, logps: Logps, ref: Logps | None, batch: Batch, running: Mapping[str, Any]
) -> list[ObjectiveOutput]:
    """What every part of the objective makes of these groups."""
    arrays = {  # data columns with packed rows and their groups folded: [R, G, ...] -> [B, ...]
        name: x.reshape(-1, *x.shape[2:])
        for name, x in batch.columns.items()
        if name != REFERENCE_COLUMN
    }
    outputs = []
    for part in loss_spec.parts:
        own = {"running": running[part.name]} if part.name in running else {}
        outputs.append(part(logps, ref, arrays | own))
    return outputs


def total_weights(loss_spec: LossSpec, batch: Batch) -> list[list[jax.Array]]:
    """The denominators over the whole batch, of every term of every part.

    Weights depend on the data alone, so zeros stand in for the log-probs.
    """
    whole = whole_batch(batch)
    zeros = data_logps(whole, loss_spec.asked)
    outputs = _outputs(loss_spec, zeros, zeros, whole, init_running(loss_spec.parts))
    valid_B = whole.valid_RG.reshape(-1)
    return [
        [jnp.sum(jnp.where(valid_B > 0, term.weight_B, 0.0)) for term in out.terms]
        for out in outputs
    ]


def loss_and_sums(
    loss_spec: LossSpec, logps: Logps, ref: Logps | None, batch: Batch, running, totals
):
    """The objective on these groups, or their share of it, and the sums that metrics are made of.

    Args:
        totals: denominators over the whole batch, as `total_weights` gives them; None: these groups
            are the whole batch.
    Returns: loss, [O] where `loss_spec.apart`; (sums, the running statistics after this batch).
    """
    values, carried = group_values(loss_spec, logps, ref, batch, running)
    sums = jax.tree.map(jnp.sum, values)
    terms: list[list[jax.Array]] = []
    for i, part in enumerate(loss_spec.parts):
        terms.append([])
        for j, (value, own_weight) in enumerate(sums["terms"][part.name]):
            weight = own_weight if totals is None else totals[i][j]
            scale = 1.0 if loss_spec.apart else part.weight
            terms[i].append(scale * value / jnp.maximum(weight, _LEAST_WEIGHT))
    if loss_spec.apart:
        loss = jnp.stack([sum(of_part) for of_part in terms])
    else:
        loss = sum(itertools.chain(*terms), jnp.zeros(()))

    def no_gradient(x):
        return lax.stop_gradient(x).astype(jnp.float32)

    return loss, jax.tree.map(no_gradient, (sums, carried))


def group_values(loss_spec: LossSpec, logps: Logps, ref: Logps | None, batch: Batch, running):
    """What loss and metrics are made of, for every group, before any sum.

    Returns: `terms` {part: one pair per term} and `means` {metric: pair}, a pair being (weighted
        value_B, weight_B); and the running statistics after this batch.
    """
    valid_B = batch.valid_RG.reshape(-1)

    def real(x_B):
        """Zero in empty slots, whatever stands there."""
        return jnp.where(valid_B > 0, x_B, 0.0)

    terms, metrics, carried = {}, {}, {}
    outputs = _outputs(loss_spec, logps, ref, batch, running)
    for part, out in zip(loss_spec.parts, outputs, strict=True):
        weights = [real(lax.stop_gradient(term.weight_B)) for term in out.terms]
        terms[part.name] = [
            (real(w_B * term.loss_B), w_B) for w_B, term in zip(weights, out.terms, strict=True)
        ]
        for name, value in out.metrics.items():
            metrics.setdefault(name, value)  # of parts that log the same name, the first counts
        if part.name in running:
            carried[part.name] = out.running

    means = {}
    for name, value in metrics.items():
        term = value if isinstance(value, Term) else Term(value, valid_B)
        means[name] = real(term.weight_B * term.loss_B), real(term.weight_B)
    for k, side in enumerate(NAMES[loss_spec.kind]):
        means[f"logps/{side}"] = logps.sum[:, k], valid_B
    means["entropy"] = logps.entropy.sum(-1), logps.count.sum(-1)
    means["mean_token_accuracy"] = logps.top1[:, 0], logps.count[:, 0]
    return {"terms": terms, "means": means}, carried


def finish_metrics(sums: dict[str, Any], parts: Sequence[Part]) -> dict[str, jax.Array]:
    """Metrics of the batch from its sums.

    Rewards and log-probs are means over the groups, entropy and accuracy over the tokens.
    """

    def mean(total, weight):
        return total / jnp.maximum(weight, _LEAST_WEIGHT)

    losses = {part.name: sum(mean(*term) for term in sums["terms"][part.name]) for part in parts}
    metrics = {"loss": sum(part.weight * losses[part.name] for part in parts)}
    if len(parts) > 1:
        metrics |= {f"loss/{name}": value for name, value in losses.items()}
    return metrics | {name: mean(*pair) for name, pair in sums["means"].items()}
