"""One optimizer step as a pure function: micro-batches -> gradients -> update.

The objective's value is defined over the whole batch, as the weighted mean over all its groups.
Each micro-batch back-propagates its own share of that value, with the denominators summed over all
micro-batches beforehand.  Where an objective couples the groups of a batch, the log-probs of all
micro-batches come first, then the loss and its gradient with respect to them, then each micro-batch
is back-propagated with its own cotangent.  So loss and gradient never depend on how the batch is
split.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.models.parameters import leaf_path
from jaxpref.models.placement import constrain_params, param_shardings
from jaxpref.objectives import Part
from jaxpref.step.batch_loss import (
    LossSpec,
    all_logps,
    both_logps,
    finish_metrics,
    init_running,
    loss_and_sums,
    policy_logps,
    reference_states,
    total_weights,
)
from jaxpref.step.micro_batches import at_used_length, collect, micro_batch, whole_batch
from jaxpref.step.policy import Frozen
from jaxpref.types import Batch


class TrainState(NamedTuple):
    """All that training changes; what a checkpoint holds."""

    params: Any
    """What is trained: all weights, or an adapter (`policy.py`)."""
    opt_state: Any
    step: jax.Array
    rng: jax.Array
    running: Any
    """Statistics that objectives carry from step to step: {part: {name: scalar}}."""
    ref_params: Any
    """Where the reference moves with the policy: what follows `params` (float32); otherwise
    None."""


@dataclass(frozen=True)
class MovingReference:
    """TR-DPO (Gorbatovski et al., arXiv 2404.09656): ref <- alpha * policy + (1 - alpha) * ref,
    every so many steps."""

    every: int
    alpha: float
    dtype: Any
    """In which the reference runs; it is kept in float32."""

    def laid_over(self, base: Mapping[str, Any], ref_params: Mapping[str, Any]) -> Frozen:
        """What is frozen in a step, `ref_params` being the state's."""
        return Frozen(base, jax.tree.map(lambda x: x.astype(self.dtype), ref_params))


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    seed: int,
    parts: Sequence[Part] = (),
    ref_params: Any = None,
) -> TrainState:
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        params, optimizer.init(params), zero, jax.random.key(seed), init_running(parts), ref_params
    )


def state_shardings(shapes: TrainState, mesh: Any) -> TrainState:
    """Moments lie as their parameters do; counters, factored moments and the key are replicated."""
    params = {
        (leaf_path(path), leaf.shape): sharding
        for (path, leaf), (_, sharding) in zip(
            jax.tree_util.tree_leaves_with_path(shapes.params),
            jax.tree_util.tree_leaves_with_path(param_shardings(shapes.params, mesh)),
            strict=True,
        )
    }
    replicated = NamedSharding(mesh, P())

    def sharding(path, leaf):
        names = leaf_path(path).split("/")
        tails = ("/".join(names[i:]) for i in range(len(names)))
        return next(
            (params[tail, leaf.shape] for tail in tails if (tail, leaf.shape) in params), replicated
        )

    return jax.tree_util.tree_map_with_path(sharding, shapes)


def make_train_step(
    loss_spec: LossSpec,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    moving: MovingReference | None = None,
) -> Callable[[TrainState, Frozen, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """(state, what is frozen, batch [T, R, ...], micro-batches in use) -> (state, metrics).

    Args:
        moving: the reference is the state's own and follows the policy.
    Metrics are float32 scalars over the whole batch; `loss` and `grad_norm` (before clipping) among
    them.
    """

    def train_step(state: TrainState, frozen: Frozen, batch: Batch, micro_batches: jax.Array):
        if moving:
            frozen = moving.laid_over(frozen.base, state.ref_params)
        if batch.token_RL.shape[0] == 1:
            gradient = _whole_gradient
        else:
            gradient = _coupled_gradient if loss_spec.coupled else _split_gradient
        keys_T = _dropout_keys(loss_spec, state, batch)
        grads, (sums, running) = gradient(loss_spec, state, frozen, batch, keys_T, micro_batches)
        grads = constrain_params(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = finish_metrics(sums, loss_spec.parts) | {
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        follows = (
            _follow(moving, state.ref_params, params, state.step + 1)
            if moving
            else state.ref_params
        )
        return TrainState(params, opt_state, state.step + 1, state.rng, running, follows), metrics

    return train_step


def make_eval_step(
    loss_spec: LossSpec,
) -> Callable[[Any, Any, Any, Batch, jax.Array], dict[str, Any]]:
    """(params, reference params or None, running statistics, batch, micro-batches in use) -> sums
    for `add_sums`.

    An objective that couples groups sees one evaluation batch at a time.
    """

    def eval_step(params, ref_params, running, batch: Batch, micro_batches: jax.Array):
        logps, ref = all_logps(loss_spec, params, ref_params, batch, micro_batches)
        _, (sums, _) = loss_and_sums(loss_spec, logps, ref, whole_batch(batch), running, None)
        return sums

    return eval_step


def make_logp_step(
    sums: Callable[[Any, Batch], jax.Array], *, lengths: Sequence[int] = ()
) -> Callable[[Any, Batch, jax.Array], jax.Array]:
    """(params, batch, micro-batches in use) -> `sums` of all micro-batches, [T, R, G, K]: what the
    reference cache stores."""

    def logp_step(params, batch: Batch, micro_batches: jax.Array):
        one = at_used_length(sums, lengths)
        return collect(lambda micro: one(params, micro), batch, micro_batches).reshape(
            batch.slot_count_RGK.shape
        )

    return logp_step


# ---- gradients: (loss_spec, state, frozen, batch, keys_T, micro-batches in use) -> gradient, (sums, running statistics)


def _whole_gradient(
    loss_spec: LossSpec, state: TrainState, frozen: Frozen, batch: Batch, keys_T, _
):
    """A single micro-batch is the whole batch, whatever the objective couples."""

    def loss(params, micro: Batch, key):
        logps, ref = both_logps(
            loss_spec, frozen.policy(params), frozen.reference_params(), micro, key
        )
        return loss_and_sums(loss_spec, logps, ref, micro, state.running, None)

    gradient = at_used_length(jax.grad(loss, has_aux=True), loss_spec.lengths)
    return gradient(state.params, *micro_batch((batch, keys_T), 0))


def _split_gradient(
    loss_spec: LossSpec, state: TrainState, frozen: Frozen, batch: Batch, keys_T, micro_batches
):
    """Each micro-batch gives its share; nothing couples them but the denominators."""
    totals = total_weights(loss_spec, batch)

    def loss(params, micro: Batch, key):
        logps, ref = both_logps(
            loss_spec, frozen.policy(params), frozen.reference_params(), micro, key
        )
        share, (sums, _) = loss_and_sums(loss_spec, logps, ref, micro, state.running, totals)
        return share, sums

    gradient = at_used_length(jax.grad(loss, has_aux=True), loss_spec.lengths)

    def body(t, carry):
        grads, sums = gradient(state.params, *micro_batch((batch, keys_T), t))
        return jax.tree.map(jnp.add, carry, (constrain_params(grads), sums))

    zeros = _zeros_like_output(gradient, state.params, *micro_batch((batch, keys_T), 0))
    grads, sums = lax.fori_loop(0, micro_batches, body, (constrain_params(zeros[0]), zeros[1]))
    return grads, (sums, state.running)


def _coupled_gradient(
    loss_spec: LossSpec, state: TrainState, frozen: Frozen, batch: Batch, keys_T, micro_batches
):
    """Log-probs of all micro-batches, the loss of the whole batch and its cotangent, then back
    through each."""
    ref_params = frozen.reference_params()
    logps, ref = all_logps(
        loss_spec, frozen.policy(state.params), ref_params, batch, micro_batches, keys_T
    )
    loss = lambda logps: loss_and_sums(
        loss_spec, logps, ref, whole_batch(batch), state.running, None
    )
    cotangent, aux = jax.grad(loss, has_aux=True)(logps)
    cotangent_T = jax.tree.map(
        lambda x: x.reshape(batch.token_RL.shape[0], -1, *x.shape[1:]), cotangent
    )

    def body(t, grads):
        def projected(params, micro: Batch, key):
            ref_states = (
                reference_states(loss_spec, ref_params, micro) if "kl" in loss_spec.asked else None
            )
            policy = policy_logps(loss_spec, frozen.policy(params), ref_states, micro, key)
            return jax.tree.reduce(
                jnp.add,
                jax.tree.map(lambda d, x: jnp.sum(d * x), micro_batch(cotangent_T, t), policy),
            )

        gradient = at_used_length(jax.grad(projected), loss_spec.lengths)
        return jax.tree.map(
            jnp.add,
            grads,
            constrain_params(gradient(state.params, *micro_batch((batch, keys_T), t))),
        )

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), state.params)
    return lax.fori_loop(0, micro_batches, body, constrain_params(zeros)), aux


def _zeros_like_output(function: Callable, *args: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *args))


def _follow(moving: MovingReference, ref_params: Any, params: Any, step: jax.Array) -> Any:
    mixed = lambda: jax.tree.map(
        lambda r, p: moving.alpha * p + (1.0 - moving.alpha) * r, ref_params, params
    )
    return lax.cond(step % moving.every == 0, mixed, lambda: ref_params)


# ---- log-probs


def _dropout_keys(loss_spec: LossSpec, state: TrainState, batch: Batch) -> jax.Array | None:
    """A key a micro-batch of this step, or None: no dropout."""
    if not loss_spec.dropout:
        return None
    return jax.random.split(jax.random.fold_in(state.rng, state.step), batch.token_RL.shape[0])
