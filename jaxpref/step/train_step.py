"""One optimizer step as a pure function, and the steps that only run forward."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpref.models.placement import constrain_params
from jaxpref.step.batch_loss import LossSpec, all_logps, finish_metrics, loss_and_sums
from jaxpref.step.combine import Combine
from jaxpref.step.gradients import coupled_gradient, split_gradient, whole_gradient
from jaxpref.step.micro_batches import at_used_length, collect, whole_batch
from jaxpref.step.policy import Frozen
from jaxpref.step.state import MovingReference, TrainState
from jaxpref.types import Batch


def make_train_step(
    loss_spec: LossSpec,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule | None,
    moving: MovingReference | None = None,
    combine: Combine | None = None,
) -> Callable[[TrainState, Frozen, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """(state, what is frozen, batch [T, R, ...], micro-batches in use) -> (state, metrics).

    Metrics are float32 scalars over the whole batch.  Among them are `loss`, `grad_norm` (before
    clipping) and `param_norm`, of the trained parameters after the step.

    Args:
        schedule: whose learning rate is among the metrics; None: it is not.
        moving: the reference is the state's own and follows the policy.
        combine: how the gradients of the parts become one; None: the gradient of their sum.
    """
    loss_spec = replace(loss_spec, apart=combine is not None)

    def train_step(state: TrainState, frozen: Frozen, batch: Batch, micro_batches: jax.Array):
        if moving:
            frozen = moving.laid_over(frozen.base, state.ref_params)
        if batch.token_RL.shape[0] == 1:
            gradient = whole_gradient
        elif loss_spec.coupled:
            gradient = coupled_gradient
        else:
            gradient = split_gradient
        keys_T = _dropout_keys(loss_spec, state, batch)
        grads, (sums, running) = gradient(loss_spec, state, frozen, batch, keys_T, micro_batches)
        metrics = finish_metrics(sums, loss_spec.parts)
        if combine:
            losses = {part.name: metrics[f"loss/{part.name}"] for part in loss_spec.parts}
            grads, combined = combine(grads, loss_spec.parts, losses)
            metrics |= combined
        grads = constrain_params(grads, loss_spec.model.axes)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ref_params = state.ref_params
        if moving:
            ref_params = moving.updated(ref_params, params, state.step + 1)

        metrics |= {
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(params),
        }
        if schedule is not None:
            metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        state = TrainState(params, opt_state, state.step + 1, state.rng, running, ref_params)
        return state, metrics

    return train_step


def _dropout_keys(loss_spec: LossSpec, state: TrainState, batch: Batch) -> jax.Array | None:
    """One key per micro-batch of this step; None: no dropout."""
    if not loss_spec.dropout:
        return None
    T = batch.token_RL.shape[0]
    return jax.random.split(jax.random.fold_in(state.rng, state.step), T)


def make_eval_step(
    loss_spec: LossSpec,
) -> Callable[[Any, Any, Any, Batch, jax.Array], dict[str, Any]]:
    """(params, reference params or None, running statistics, batch, micro-batches in use) -> sums.

    The sums of several batches add up to what `finish_metrics` takes.  An objective that couples
    groups sees one evaluation batch at a time.
    """

    def eval_step(params, ref_params, running, batch: Batch, micro_batches: jax.Array):
        logps, ref = all_logps(loss_spec, params, ref_params, batch, micro_batches)
        _, (sums, _) = loss_and_sums(loss_spec, logps, ref, whole_batch(batch), running, None)
        return sums

    return eval_step


def make_logp_step(
    sums: Callable[[Any, Batch], jax.Array], *, lengths: Sequence[int] = ()
) -> Callable[[Any, Batch, jax.Array], jax.Array]:
    """(params, batch, micro-batches in use) -> `sums` of all micro-batches, [T, R, G, K].

    Args:
        sums: (params, micro-batch) -> [R*G, K] summed log-probs.
        lengths: as of `LossSpec`.
    """
    one = at_used_length(sums, lengths)

    def logp_step(params, batch: Batch, micro_batches: jax.Array):
        logps_TBK = collect(lambda micro: one(params, micro), batch, micro_batches)
        return logps_TBK.reshape(batch.slot_count_RGK.shape)

    return logp_step
