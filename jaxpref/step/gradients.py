"""The gradient of a batch's loss, whichever way its micro-batches are split.

The objective's value is defined over the whole batch, as the weighted mean over all its groups.
Each micro-batch back-propagates its own share of that value, with the denominators summed over all
micro-batches beforehand.  Where an objective couples the groups of a batch, the log-probs of all
micro-batches come first, then the loss and its gradient with respect to them, then each micro-batch
is back-propagated with its own cotangent.  So loss and gradient never depend on how the batch is
split.

All three functions take (loss spec, state, frozen parameters, batch [T, R, ...], dropout keys [T]
or None, micro-batches in use).  They return (gradient of the trained parameters, (sums for the
metrics, running statistics after this batch)).  Where the losses of the parts are told apart
(`LossSpec.apart`), so are their gradients, on a leading axis O: one forward pass, whose graph is
gone back through once per part.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.models.placement import constrain_params
from jaxpref.step.batch_loss import (
    LossSpec,
    all_logps,
    both_logps,
    loss_and_sums,
    policy_logps,
    reference_states,
    total_weights,
)
from jaxpref.step.micro_batches import (
    MICRO_BATCHES,
    at_used_length,
    micro_batch,
    traced_once,
    whole_batch,
)
from jaxpref.step.policy import Frozen
from jaxpref.step.state import TrainState
from jaxpref.types import Batch


def whole_gradient(
    loss_spec: LossSpec, state: TrainState, frozen: Frozen, batch: Batch, keys_T, micro_batches
):
    """A single micro-batch is the whole batch, whatever the objective couples."""
    ref_params = frozen.reference_params()

    def loss(params, micro: Batch, key):
        logps, ref = both_logps(loss_spec, frozen.policy(params), ref_params, micro, key)
        return loss_and_sums(loss_spec, logps, ref, micro, state.running, None)

    gradient = at_used_length(_gradient_of(loss_spec)(loss, has_aux=True), loss_spec.lengths)
    return gradient(state.params, *micro_batch((batch, keys_T), 0))


def split_gradient(
    loss_spec: LossSpec, state: TrainState, frozen: Frozen, batch: Batch, keys_T, micro_batches
):
    """Each micro-batch gives its share; nothing couples them but the denominators."""
    ref_params = frozen.reference_params()
    totals = total_weights(loss_spec, batch)

    def loss(params, micro: Batch, key):
        logps, ref = both_logps(loss_spec, frozen.policy(params), ref_params, micro, key)
        share, (sums, _) = loss_and_sums(loss_spec, logps, ref, micro, state.running, totals)
        return share, sums

    gradient = traced_once(
        at_used_length(_gradient_of(loss_spec)(loss, has_aux=True), loss_spec.lengths)
    )

    def gradient_of(t):
        grads, sums = gradient(state.params, *micro_batch((batch, keys_T), t))
        return constrained(loss_spec, grads), sums

    def add(t, total):
        return jax.tree.map(jnp.add, total, gradient_of(t))

    # Accumulators of zeros, so that the loop has one body and the micro-batch is compiled once.
    shapes = jax.eval_shape(gradient, state.params, *micro_batch((batch, keys_T), 0))
    grads, sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    with jax.named_scope(MICRO_BATCHES):
        grads, sums = lax.fori_loop(0, micro_batches, add, (constrained(loss_spec, grads), sums))
    return grads, (sums, state.running)


def coupled_gradient(
    loss_spec: LossSpec, state: TrainState, frozen: Frozen, batch: Batch, keys_T, micro_batches
):
    """Log-probs of all micro-batches, the whole batch's loss, then back through each of them."""
    ref_params = frozen.reference_params()
    logps, ref = all_logps(
        loss_spec, frozen.policy(state.params), ref_params, batch, micro_batches, keys_T
    )

    def loss(logps):
        return loss_and_sums(loss_spec, logps, ref, whole_batch(batch), state.running, None)

    cotangent, sums_and_running = _gradient_of(loss_spec)(loss, has_aux=True)(logps)
    T, O = batch.token_RL.shape[0], len(loss_spec.parts)  # noqa: E741

    def of_micro_batches(x, logp):
        """[T*B, K] as [T, B, K]; of each part, [O, T*B, K] as [T, O, B, K]."""
        if not loss_spec.apart:
            return x.reshape(T, -1, *logp.shape[1:])
        return jnp.moveaxis(x.reshape(O, T, -1, *logp.shape[1:]), 1, 0)

    cotangent_T = jax.tree.map(of_micro_batches, cotangent, logps)

    def product_of(d, x):
        """sum(d * x), for each part where there are several."""
        return jax.vmap(product_of, (0, None))(d, x) if d.ndim > x.ndim else jnp.sum(d * x)

    def gradient_of(t):
        def projected(params, micro: Batch, key):
            """sum(log-probs * cotangents), whose gradient in `params` is that of the loss."""
            own_cotangent = micro_batch(cotangent_T, t)
            ref_states = None
            if "kl" in loss_spec.asked:  # the only field of the policy that reads the reference
                ref_states = reference_states(loss_spec, ref_params, micro)
            logps = policy_logps(loss_spec, frozen.policy(params), ref_states, micro, key)
            products = jax.tree.map(product_of, own_cotangent, logps)
            return jax.tree.reduce(jnp.add, products)

        gradient = at_used_length(_gradient_of(loss_spec)(projected), loss_spec.lengths)
        return constrained(loss_spec, gradient(state.params, *micro_batch((batch, keys_T), t)))

    def add(t, total):
        return jax.tree.map(jnp.add, total, gradient_of(t))

    apart = (O,) if loss_spec.apart else ()
    zeros = jax.tree.map(lambda x: jnp.zeros((*apart, *x.shape), jnp.float32), state.params)
    with jax.named_scope(MICRO_BATCHES):
        grads = lax.fori_loop(0, micro_batches, add, constrained(loss_spec, zeros))
    return grads, sums_and_running


def constrained(loss_spec: LossSpec, grads: Any) -> Any:
    """Gradients that lie on the mesh as their parameters do."""
    constrain = partial(constrain_params, axes=loss_spec.model.axes)
    return jax.vmap(constrain)(grads) if loss_spec.apart else constrain(grads)


def _gradient_of(loss_spec: LossSpec) -> Callable[..., Callable]:
    """`jax.grad`, or what it is of several losses at once."""
    return jax.jacrev if loss_spec.apart else jax.grad
