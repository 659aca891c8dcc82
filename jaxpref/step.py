"""One optimizer step as a pure function: micro-batches -> gradients -> update.

The objective's value is defined over the whole batch, as the weighted mean over all its pairs.  Each micro-batch
back-propagates its own share of that value, with the denominators summed over all micro-batches beforehand, so the
loss and the gradient do not depend on how the batch is split.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxpref.logprobs import Logps, completion_logps, counts
from jaxpref.models.decoder import Model
from jaxpref.objectives import Part
from jaxpref.sharding import constrain_params
from jaxpref.types import Batch

REFERENCE_COLUMN = "ref_logp"
"""Per-completion column [R, G, K] of cached reference log-probs, in place of a reference model."""


class TrainState(NamedTuple):
    """All that training changes; what a checkpoint holds."""

    params: Any
    opt_state: Any
    step: jax.Array
    rng: jax.Array


def init_state(params: Any, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), jax.random.key(seed))


def make_train_step(
    model: Model,
    parts: Sequence[Part],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    chunk: int,
    lengths: Sequence[int] = (),
) -> Callable[[TrainState, Any, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """(state, reference params or None, batch [T, R, ...], micro-batches in use) -> (state, metrics).

    Args:
        chunk: scored columns multiplied with the vocabulary at a time.
        lengths: row lengths of which a micro-batch runs the shortest that holds it, ascending (`Layout.lengths`);
            empty: always the whole row.
    Metrics are float32 scalars over the whole batch; `loss` and `grad_norm` (before clipping) among them.
    """

    def train_step(state: TrainState, ref_params: Any, batch: Batch, micro_batches: jax.Array):
        totals = _total_weights(parts, batch)

        def loss(params, micro: Batch):
            logps, ref = _both_logps(model, params, ref_params, micro, chunk)
            return _loss_and_sums(parts, logps, ref, micro, totals)

        gradient = _at_used_length(jax.grad(loss, has_aux=True), lengths)
        grads, sums = _accumulate(gradient, state.params, batch, micro_batches)
        grads = constrain_params(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = finish_metrics(sums, parts) | {
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return TrainState(params, opt_state, state.step + 1, state.rng), metrics

    return train_step


def make_eval_step(
    model: Model, parts: Sequence[Part], *, chunk: int, lengths: Sequence[int] = ()
) -> Callable[[Any, Any, Batch, jax.Array], dict[str, Any]]:
    """(params, reference params or None, batch, micro-batches in use) -> sums for `add_sums`, `finish_metrics`."""

    def eval_step(params, ref_params, batch: Batch, micro_batches: jax.Array):
        totals = [jnp.ones(())] * len(parts)  # plain sums; eval batches are added up before dividing

        def sums_of(params, micro: Batch):
            logps, ref = _both_logps(model, params, ref_params, micro, chunk)
            _, sums = _loss_and_sums(parts, logps, ref, micro, totals)
            weights = _part_weights(parts, micro)
            return sums | {"part_weights": {part.name: w for part, w in zip(parts, weights, strict=True)}}

        one = _at_used_length(sums_of, lengths)

        def body(t, total):
            return jax.tree.map(jnp.add, total, one(params, _micro(batch, t)))

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, params, _micro(batch, 0)))
        return lax.fori_loop(0, micro_batches, body, zeros)

    return eval_step


def make_logp_step(
    model: Model, *, chunk: int, lengths: Sequence[int] = ()
) -> Callable[[Any, Batch, jax.Array], jax.Array]:
    """(params, batch, micro-batches in use) -> summed log-probs [T, R, G, K]: what the reference cache stores."""

    def logp_step(params, batch: Batch, micro_batches: jax.Array):
        sums = lambda params, micro: completion_logps(model, params, micro, chunk=chunk, stats=False).sum
        one = _at_used_length(sums, lengths)

        def body(t, out):
            return lax.dynamic_update_index_in_dim(out, one(params, _micro(batch, t)).reshape(out.shape[1:]), t, 0)

        return lax.fori_loop(0, micro_batches, body, jnp.zeros(batch.slot_count_RGK.shape, jnp.float32))

    return logp_step


def _micro(batch: Batch, t) -> Batch:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, t, 0, keepdims=False), batch)


def _at_used_length(function: Callable[[Any, Batch], Any], lengths: Sequence[int]) -> Callable[[Any, Batch], Any]:
    """`function(params, micro)` on as many columns as the micro-batch needs, of `lengths`.

    One branch a length in one program: the run still compiles once, and which branch runs depends on the data only.
    """
    if len(lengths) < 2:
        return function

    def at(length: int) -> Callable[[Any, Batch], Any]:
        return lambda params, micro: function(params, micro.first_columns(length))

    def run(params, micro: Batch):
        # The last key of a row expires right behind the row's last token.
        shorter = jnp.asarray(lengths[:-1]) < micro.expiry_RL.max()
        return lax.switch(jnp.sum(shorter, dtype=jnp.int32), [at(length) for length in lengths], params, micro)

    return run


def _accumulate(gradient, params, batch: Batch, micro_batches):
    """Sums of gradients (float32) and of metrics over the micro-batches in use."""
    if batch.token_RL.shape[0] == 1:
        return gradient(params, _micro(batch, 0))

    def body(t, carry):
        grads, sums = gradient(params, _micro(batch, t))
        return jax.tree.map(jnp.add, carry, (constrain_params(grads), sums))

    shapes = jax.eval_shape(gradient, params, _micro(batch, 0))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    return lax.fori_loop(0, micro_batches, body, (constrain_params(zeros[0]), zeros[1]))


def _both_logps(model, params, ref_params, micro: Batch, chunk: int) -> tuple[Logps, Logps | None]:
    logps = completion_logps(model, params, micro, chunk=chunk)
    if REFERENCE_COLUMN in micro.columns:
        cached = micro.columns[REFERENCE_COLUMN].reshape(logps.sum.shape)
        zero = jnp.zeros_like(cached)
        return logps, Logps(cached, logps.count, zero, zero)
    if ref_params is None:
        return logps, None
    return logps, lax.stop_gradient(completion_logps(model, ref_params, micro, chunk=chunk, stats=False))


def _objective_columns(micro: Batch) -> dict[str, jax.Array]:
    """Columns with rows and groups folded: [R, G, ...] -> [B, ...]."""
    return {name: x.reshape(-1, *x.shape[2:]) for name, x in micro.columns.items() if name != REFERENCE_COLUMN}


def _part_weights(parts: Sequence[Part], micro: Batch) -> list[jax.Array]:
    """Sum of every part's weight_B over a micro-batch: data only, so log-probs are stood in for by zeros."""
    count = counts(micro)
    zeros = Logps(jnp.zeros_like(count), count, jnp.zeros_like(count), jnp.zeros_like(count))
    return [part(zeros, zeros, _objective_columns(micro)).weight_B.sum() for part in parts]


def _total_weights(parts: Sequence[Part], batch: Batch) -> list[jax.Array]:
    """The denominators over the whole batch; empty micro-batches weigh nothing."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    return [jnp.maximum(weight, 1e-30) for weight in _part_weights(parts, flat)]


def _loss_and_sums(parts: Sequence[Part], logps: Logps, ref, micro: Batch, totals):
    """This micro-batch's share of the objective, and the sums from which the metrics are made."""
    valid_B = micro.valid_RG.reshape(-1)
    share, sums, per_pair = jnp.zeros(()), {}, {}
    for part, total in zip(parts, totals, strict=True):
        out = part(logps, ref, _objective_columns(micro))
        value = jnp.sum(jnp.where(valid_B > 0, out.weight_B * out.loss_B, 0.0)) / total
        share = share + part.weight * value
        sums[part.name] = value
        per_pair |= {name: x_B for name, x_B in out.metrics.items() if name not in per_pair}
    pair = {name: jnp.sum(jnp.where(valid_B > 0, x_B, 0.0)) for name, x_B in per_pair.items()}
    sides = {"chosen": 0, "rejected": 1} if logps.sum.shape[1] == 2 else {}
    pair |= {f"logps/{side}": logps.sum[:, k].sum() for side, k in sides.items()}
    token = {
        "entropy": (logps.entropy.sum(), logps.count.sum()),
        "mean_token_accuracy": (logps.top1[:, 0].sum(), logps.count[:, 0].sum()),
    }
    sums = {"parts": sums, "pair": pair, "token": token, "pairs": valid_B.sum()}
    return share, jax.tree.map(lambda x: lax.stop_gradient(x).astype(jnp.float32), sums)


def finish_metrics(sums: dict[str, Any], parts: Sequence[Part]) -> dict[str, jax.Array]:
    """Means over the pairs (reward metrics, logps) and over the tokens (entropy, accuracy) of the batch.

    Evaluation sums carry the parts undivided with their weights; training has divided them already.
    """
    weights = sums.get("part_weights", {})
    values = {part.name: sums["parts"][part.name] / weights.get(part.name, 1.0) for part in parts}
    pairs = jnp.maximum(sums["pairs"], 1.0)
    metrics = {"loss": sum(part.weight * values[part.name] for part in parts)}
    metrics |= {f"loss/{name}": value for name, value in values.items()} if len(parts) > 1 else {}
    metrics |= {name: x / pairs for name, x in sums["pair"].items()}
    return metrics | {name: x / jnp.maximum(n, 1.0) for name, (x, n) in sums["token"].items()}
