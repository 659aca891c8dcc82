"""A batch becomes a loss: log-probs under policy and reference, the objective's terms, their
weighted means.

The objective's value is defined over the whole batch, as the weighted mean over all its groups
(docs/design.md, "The functional boundary").  So every sum here is of some groups, and the
denominators may be given.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from jaxpref.objectives import Part, Term, asked_logps
from jaxpref.step.micro_batches import at_used_length, collect, whole_batch
from jaxpref.types import Batch

REFERENCE_COLUMN = "ref_logp"
"""Per-completion column [R, G, K] of cached reference log-probs, in place of a reference model."""


@dataclass(frozen=True)
class LossSpec:
    """How a batch becomes losses: the model, the objective, and how its log-probs are computed."""

    model: Model
    parts: Sequence[Part]
    chunk: int
    """Loss tokens multiplied with the vocabulary at a time."""
    lengths: Sequence[int] = ()
    """Row lengths of which a micro-batch runs the shortest that holds it, ascending
    (`Layout.lengths`); empty: always the whole row."""
    kind: str = "pair"
    """What the groups are, a key of `objectives.KINDS`."""
    also: tuple[str, ...] = ()
    """Optional fields of `Logps` that are wanted besides those of the objective."""
    dropout: bool = False
    """Whether the policy drops inputs of its adapter in training."""

    @property
    def asked(self) -> tuple[str, ...]:
        return tuple(sorted({*asked_logps(self.parts), *self.also}))

    @property
    def coupled(self) -> bool:
        return any(part.needs.coupled for part in self.parts)


def init_running(parts: Sequence[Part]) -> dict[str, dict[str, jax.Array]]:
    """The statistics before the first step, of the parts that carry some."""
    start = lambda part: {
        name: jnp.asarray(value, jnp.float32) for name, value in part.needs.running.items()
    }
    return {part.name: start(part) for part in parts if part.needs.running}


@functools.cache  # the same function for the same model, so that nothing is compiled again
def summed_logps(model: Model, chunk: int) -> Callable[[Any, Batch], jax.Array]:
    """(params, micro-batch) -> [B, K] summed log-probs."""
    return lambda params, micro: (
        completion_logps(model, params, micro, chunk=chunk, stats=False).sum
    )


def reference_states(loss_spec: LossSpec, ref_params, micro: Batch) -> States | None:
    return (
        None
        if ref_params is None
        else lax.stop_gradient(hidden_states(loss_spec.model, ref_params, micro))
    )


def policy_logps(
    loss_spec: LossSpec, params, ref_states: States | None, micro: Batch, key=None
) -> Logps:
    """`key`: of the dropout; None: as in evaluation."""
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
    ref_states = reference_states(loss_spec, ref_params, micro)
    logps = policy_logps(loss_spec, params, ref_states, micro, key)
    if REFERENCE_COLUMN in micro.columns:
        cached = micro.columns[REFERENCE_COLUMN].reshape(logps.sum.shape)
        zero = jnp.zeros_like(cached)
        return logps, Logps(cached, logps.count, zero, zero)
    if ref_states is None:
        return logps, None
    return logps, reference_logps(
        loss_spec.model, ref_states, micro, chunk=loss_spec.chunk, asked=loss_spec.asked
    )


def all_logps(
    loss_spec: LossSpec, params, ref_params, batch: Batch, micro_batches, keys_T=None
) -> tuple[Logps, Logps | None]:
    """Of all micro-batches as one, [T*B, K]; forward only.  Those not in use hold the zeros of
    empty slots.

    Args:
        keys_T: of the dropout, one a micro-batch; None: no dropout.
    """
    both = lambda params, micro, key: both_logps(loss_spec, params, ref_params, micro, key)
    one = at_used_length(both, loss_spec.lengths)
    collected_T = collect(lambda micro: one(params, *micro), (batch, keys_T), micro_batches)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), collected_T)


# ---- the objective


def _arrays(batch: Batch) -> dict[str, jax.Array]:
    """Columns with rows and groups folded: [R, G, ...] -> [B, ...]."""
    return {
        name: x.reshape(-1, *x.shape[2:])
        for name, x in batch.columns.items()
        if name != REFERENCE_COLUMN
    }


def _outputs(
    loss_spec: LossSpec, logps: Logps, ref: Logps | None, batch: Batch, running: Mapping[str, Any]
):
    arrays = _arrays(batch)
    return [
        part(logps, ref, arrays | ({"running": running[part.name]} if part.name in running else {}))
        for part in loss_spec.parts
    ]


def total_weights(loss_spec: LossSpec, batch: Batch) -> list[list[jax.Array]]:
    """Denominators of every part's terms over the whole batch: data only, so log-probs are stood in
    for by zeros."""
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
    """The objective on these groups, or their share of it, and the sums from which the metrics are
    made.

    Args:
        totals: denominators over the whole batch of every part's terms; None: these groups are the
            whole batch.
    Returns: loss, (sums, the running statistics after this batch).
    """
    values, carried = group_values(loss_spec, logps, ref, batch, running)
    sums, share = jax.tree.map(jnp.sum, values), jnp.zeros(())
    for i, part in enumerate(loss_spec.parts):
        for j, (value, weight) in enumerate(sums["terms"][part.name]):
            share += (
                part.weight * value / jnp.maximum(weight if totals is None else totals[i][j], 1e-30)
            )
    return share, jax.tree.map(lambda x: lax.stop_gradient(x).astype(jnp.float32), (sums, carried))


def group_values(loss_spec: LossSpec, logps: Logps, ref: Logps | None, batch: Batch, running):
    """What loss and metrics are sums of: `terms` of every part, and `means` by name, as (weighted
    value_B, weight_B).

    Returns: these, and the running statistics after this batch.
    """
    valid_B = batch.valid_RG.reshape(-1)
    real = lambda x_B: jnp.where(valid_B > 0, x_B, 0.0)
    terms, per_group, carried = {}, {}, {}
    for part, out in zip(
        loss_spec.parts, _outputs(loss_spec, logps, ref, batch, running), strict=True
    ):
        weights = [real(lax.stop_gradient(term.weight_B)) for term in out.terms]
        terms[part.name] = [
            (real(w_B * term.loss_B), w_B) for w_B, term in zip(weights, out.terms, strict=True)
        ]
        per_group |= {name: x_B for name, x_B in out.metrics.items() if name not in per_group}
        carried |= {part.name: out.running} if part.name in running else {}
    weighed = lambda x: x if isinstance(x, Term) else Term(x, valid_B)
    pair = lambda term: (real(term.weight_B * term.loss_B), real(term.weight_B))
    means = {name: pair(weighed(x)) for name, x in per_group.items()}
    means |= {
        f"logps/{side}": (logps.sum[:, k], valid_B) for k, side in enumerate(NAMES[loss_spec.kind])
    }
    means["entropy"] = logps.entropy.sum(-1), logps.count.sum(-1)
    means["mean_token_accuracy"] = logps.top1[:, 0], logps.count[:, 0]
    return {"terms": terms, "means": means}, carried


def finish_metrics(sums: dict[str, Any], parts: Sequence[Part]) -> dict[str, jax.Array]:
    """Means over the groups (reward metrics, logps) and over the tokens (entropy, accuracy) of the
    batch."""
    mean = lambda total, weight: total / jnp.maximum(weight, 1e-30)
    values = {part.name: sum(mean(*term) for term in sums["terms"][part.name]) for part in parts}
    metrics = {"loss": sum(part.weight * values[part.name] for part in parts)}
    metrics |= {f"loss/{name}": value for name, value in values.items()} if len(parts) > 1 else {}
    return metrics | {name: mean(*pair) for name, pair in sums["means"].items()}
