"""One optimizer step as a pure function: micro-batches -> gradients -> update.

The objective's value is defined over the whole batch, as the weighted mean over all its groups.  Each micro-batch
back-propagates its own share of that value, with the denominators summed over all micro-batches beforehand.  Where an
objective couples the groups of a batch, the log-probs of all micro-batches come first, then the loss and its gradient
with respect to them, then each micro-batch is back-propagated with its own cotangent.  So loss and gradient never
depend on how the batch is split.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxpref.data.kinds import NAMES
from jaxpref.logprobs import Logps, States, completion_logps, data_logps, hidden_states, reference_logps
from jaxpref.models.decoder import Model
from jaxpref.objectives import Part, Term, asked_logps
from jaxpref.policy import Frozen
from jaxpref.sharding import constrain_params
from jaxpref.types import Batch

REFERENCE_COLUMN = "ref_logp"
"""Per-completion column [R, G, K] of cached reference log-probs, in place of a reference model."""


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
    """Where the reference moves with the policy: what follows `params` (float32); otherwise None."""


@dataclass(frozen=True)
class Scoring:
    """How a batch becomes losses: the model, the objective, and how its log-probs are computed."""

    model: Model
    parts: Sequence[Part]
    chunk: int
    """Scored columns multiplied with the vocabulary at a time."""
    lengths: Sequence[int] = ()
    """Row lengths of which a micro-batch runs the shortest that holds it, ascending (`Layout.lengths`); empty: always
    the whole row."""
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


@dataclass(frozen=True)
class MovingReference:
    """TR-DPO (Gorbatovski et al., arXiv 2404.09656): ref <- alpha * policy + (1 - alpha) * ref, every so many steps."""

    every: int
    alpha: float
    dtype: Any
    """In which the reference runs; it is kept in float32."""

    def laid_over(self, base: Mapping[str, Any], ref_params: Mapping[str, Any]) -> Frozen:
        """What is frozen in a step, `ref_params` being the state's."""
        return Frozen(base, jax.tree.map(lambda x: x.astype(self.dtype), ref_params))


def init_running(parts: Sequence[Part]) -> dict[str, dict[str, jax.Array]]:
    """The statistics before the first step, of the parts that carry some."""
    start = lambda part: {name: jnp.asarray(value, jnp.float32) for name, value in part.needs.running.items()}
    return {part.name: start(part) for part in parts if part.needs.running}


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    seed: int,
    parts: Sequence[Part] = (),
    ref_params: Any = None,
) -> TrainState:
    zero = jnp.zeros((), jnp.int32)
    return TrainState(params, optimizer.init(params), zero, jax.random.key(seed), init_running(parts), ref_params)


def make_train_step(
    scoring: Scoring,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    moving: MovingReference | None = None,
) -> Callable[[TrainState, Frozen, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """(state, what is frozen, batch [T, R, ...], micro-batches in use) -> (state, metrics).

    Args:
        moving: the reference is the state's own and follows the policy.
    Metrics are float32 scalars over the whole batch; `loss` and `grad_norm` (before clipping) among them.
    """

    def train_step(state: TrainState, frozen: Frozen, batch: Batch, micro_batches: jax.Array):
        if moving:
            frozen = moving.laid_over(frozen.base, state.ref_params)
        if batch.token_RL.shape[0] == 1:
            gradient = _whole_gradient
        else:
            gradient = _coupled_gradient if scoring.coupled else _split_gradient
        keys_T = _dropout_keys(scoring, state, batch)
        grads, (sums, running) = gradient(scoring, state, frozen, batch, keys_T, micro_batches)
        grads = constrain_params(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = finish_metrics(sums, scoring.parts) | {
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        follows = _follow(moving, state.ref_params, params, state.step + 1) if moving else state.ref_params
        return TrainState(params, opt_state, state.step + 1, state.rng, running, follows), metrics

    return train_step


def make_eval_step(scoring: Scoring) -> Callable[[Any, Any, Any, Batch, jax.Array], dict[str, Any]]:
    """(params, reference params or None, running statistics, batch, micro-batches in use) -> sums for `add_sums`.

    An objective that couples groups sees one evaluation batch at a time.
    """

    def eval_step(params, ref_params, running, batch: Batch, micro_batches: jax.Array):
        logps, ref = all_logps(scoring, params, ref_params, batch, micro_batches)
        _, (sums, _) = _loss_and_sums(scoring, logps, ref, whole_batch(batch), running, None)
        return sums

    return eval_step


@functools.cache  # the same function for the same model, so that nothing is compiled again
def summed_logps(model: Model, chunk: int) -> Callable[[Any, Batch], jax.Array]:
    """(params, micro-batch) -> [B, K] summed log-probs."""
    return lambda params, micro: completion_logps(model, params, micro, chunk=chunk, stats=False).sum


def make_logp_step(
    sums: Callable[[Any, Batch], jax.Array], *, lengths: Sequence[int] = ()
) -> Callable[[Any, Batch, jax.Array], jax.Array]:
    """(params, batch, micro-batches in use) -> `sums` of all micro-batches, [T, R, G, K]: what the reference cache
    stores."""

    def logp_step(params, batch: Batch, micro_batches: jax.Array):
        one = _at_used_length(sums, lengths)
        return _collect(lambda micro: one(params, micro), batch, micro_batches).reshape(batch.slot_count_RGK.shape)

    return logp_step


# ---- gradients: (scoring, state, frozen, batch, keys_T, micro-batches in use) -> gradient, (sums, running statistics)


def _whole_gradient(scoring: Scoring, state: TrainState, frozen: Frozen, batch: Batch, keys_T, _):
    """A single micro-batch is the whole batch, whatever the objective couples."""

    def loss(params, micro: Batch, key):
        logps, ref = _both_logps(scoring, frozen.policy(params), frozen.reference_params(), micro, key)
        return _loss_and_sums(scoring, logps, ref, micro, state.running, None)

    gradient = _at_used_length(jax.grad(loss, has_aux=True), scoring.lengths)
    return gradient(state.params, *_micro((batch, keys_T), 0))


def _split_gradient(scoring: Scoring, state: TrainState, frozen: Frozen, batch: Batch, keys_T, micro_batches):
    """Each micro-batch gives its share; nothing couples them but the denominators."""
    totals = _total_weights(scoring, batch)

    def loss(params, micro: Batch, key):
        logps, ref = _both_logps(scoring, frozen.policy(params), frozen.reference_params(), micro, key)
        share, (sums, _) = _loss_and_sums(scoring, logps, ref, micro, state.running, totals)
        return share, sums

    gradient = _at_used_length(jax.grad(loss, has_aux=True), scoring.lengths)

    def body(t, carry):
        grads, sums = gradient(state.params, *_micro((batch, keys_T), t))
        return jax.tree.map(jnp.add, carry, (constrain_params(grads), sums))

    zeros = _zeros_like_output(gradient, state.params, *_micro((batch, keys_T), 0))
    grads, sums = lax.fori_loop(0, micro_batches, body, (constrain_params(zeros[0]), zeros[1]))
    return grads, (sums, state.running)


def _coupled_gradient(scoring: Scoring, state: TrainState, frozen: Frozen, batch: Batch, keys_T, micro_batches):
    """Log-probs of all micro-batches, the loss of the whole batch and its cotangent, then back through each."""
    ref_params = frozen.reference_params()
    logps, ref = all_logps(scoring, frozen.policy(state.params), ref_params, batch, micro_batches, keys_T)
    loss = lambda logps: _loss_and_sums(scoring, logps, ref, whole_batch(batch), state.running, None)
    cotangent, aux = jax.grad(loss, has_aux=True)(logps)
    cotangent_T = jax.tree.map(lambda x: x.reshape(batch.token_RL.shape[0], -1, *x.shape[1:]), cotangent)

    def body(t, grads):
        def projected(params, micro: Batch, key):
            ref_states = _reference_states(scoring, ref_params, micro) if "kl" in scoring.asked else None
            policy = _policy_logps(scoring, frozen.policy(params), ref_states, micro, key)
            return jax.tree.reduce(jnp.add, jax.tree.map(lambda d, x: jnp.sum(d * x), _micro(cotangent_T, t), policy))

        gradient = _at_used_length(jax.grad(projected), scoring.lengths)
        return jax.tree.map(jnp.add, grads, constrain_params(gradient(state.params, *_micro((batch, keys_T), t))))

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), state.params)
    return lax.fori_loop(0, micro_batches, body, constrain_params(zeros)), aux


def _zeros_like_output(function: Callable, *args: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *args))


def _follow(moving: MovingReference, ref_params: Any, params: Any, step: jax.Array) -> Any:
    mixed = lambda: jax.tree.map(lambda r, p: moving.alpha * p + (1.0 - moving.alpha) * r, ref_params, params)
    return lax.cond(step % moving.every == 0, mixed, lambda: ref_params)


# ---- log-probs


def _dropout_keys(scoring: Scoring, state: TrainState, batch: Batch) -> jax.Array | None:
    """A key a micro-batch of this step, or None: no dropout."""
    if not scoring.dropout:
        return None
    return jax.random.split(jax.random.fold_in(state.rng, state.step), batch.token_RL.shape[0])


def _micro(tree: Any, t) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, t, 0, keepdims=False), tree)


def whole_batch(batch: Batch) -> Batch:
    """All micro-batches as one: [T, R, ...] -> [T * R, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def _at_used_length(function: Callable[..., Any], lengths: Sequence[int]) -> Callable[..., Any]:
    """`function(params, micro, ...)` on as many columns as the micro-batch needs, of `lengths`.

    One branch a length in one program: the run still compiles once, and which branch runs depends on the data only.
    """
    if len(lengths) < 2:
        return function

    def at(length: int) -> Callable[..., Any]:
        return lambda params, micro, *rest: function(params, micro.first_columns(length), *rest)

    def run(params, micro: Batch, *rest):
        # The last key of a row expires right behind the row's last token.
        shorter = jnp.asarray(lengths[:-1]) < micro.expiry_RL.max()
        return lax.switch(jnp.sum(shorter, dtype=jnp.int32), [at(length) for length in lengths], params, micro, *rest)

    return run


def _reference_states(scoring: Scoring, ref_params, micro: Batch) -> States | None:
    return None if ref_params is None else lax.stop_gradient(hidden_states(scoring.model, ref_params, micro))


def _policy_logps(scoring: Scoring, params, ref_states: States | None, micro: Batch, key=None) -> Logps:
    """`key`: of the dropout; None: as in evaluation."""
    return completion_logps(
        scoring.model, params, micro, chunk=scoring.chunk, asked=scoring.asked, ref_states=ref_states, key=key
    )


def _both_logps(scoring: Scoring, params, ref_params, micro: Batch, key=None) -> tuple[Logps, Logps | None]:
    ref_states = _reference_states(scoring, ref_params, micro)
    logps = _policy_logps(scoring, params, ref_states, micro, key)
    if REFERENCE_COLUMN in micro.columns:
        cached = micro.columns[REFERENCE_COLUMN].reshape(logps.sum.shape)
        zero = jnp.zeros_like(cached)
        return logps, Logps(cached, logps.count, zero, zero)
    if ref_states is None:
        return logps, None
    return logps, reference_logps(scoring.model, ref_states, micro, chunk=scoring.chunk, asked=scoring.asked)


def all_logps(
    scoring: Scoring, params, ref_params, batch: Batch, micro_batches, keys_T=None
) -> tuple[Logps, Logps | None]:
    """Of all micro-batches as one, [T*B, K]; forward only.  Those not in use hold the zeros of empty slots.

    Args:
        keys_T: of the dropout, one a micro-batch; None: no dropout.
    """
    both = lambda params, micro, key: _both_logps(scoring, params, ref_params, micro, key)
    one = _at_used_length(both, scoring.lengths)
    collected_T = _collect(lambda micro: one(params, *micro), (batch, keys_T), micro_batches)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), collected_T)


def _collect(function: Callable[[Any], Any], tree_T: Any, micro_batches) -> Any:
    """`function` of every micro-batch in use, stacked on a leading T; zeros for the others."""
    shapes, count = jax.eval_shape(function, _micro(tree_T, 0)), jax.tree.leaves(tree_T)[0].shape[0]
    zeros = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), shapes)

    def body(t, out):
        write = lambda x, value: lax.dynamic_update_index_in_dim(x, value, t, 0)
        return jax.tree.map(write, out, function(_micro(tree_T, t)))

    return lax.fori_loop(0, micro_batches, body, zeros)


# ---- the objective


def _arrays(batch: Batch) -> dict[str, jax.Array]:
    """Columns with rows and groups folded: [R, G, ...] -> [B, ...]."""
    return {name: x.reshape(-1, *x.shape[2:]) for name, x in batch.columns.items() if name != REFERENCE_COLUMN}


def _outputs(scoring: Scoring, logps: Logps, ref: Logps | None, batch: Batch, running: Mapping[str, Any]):
    arrays = _arrays(batch)
    return [
        part(logps, ref, arrays | ({"running": running[part.name]} if part.name in running else {}))
        for part in scoring.parts
    ]


def _total_weights(scoring: Scoring, batch: Batch) -> list[list[jax.Array]]:
    """Denominators of every part's terms over the whole batch: data only, so log-probs are stood in for by zeros."""
    whole = whole_batch(batch)
    zeros = data_logps(whole, scoring.asked)
    outputs = _outputs(scoring, zeros, zeros, whole, init_running(scoring.parts))
    valid_B = whole.valid_RG.reshape(-1)
    return [[jnp.sum(jnp.where(valid_B > 0, term.weight_B, 0.0)) for term in out.terms] for out in outputs]


def _loss_and_sums(scoring: Scoring, logps: Logps, ref: Logps | None, batch: Batch, running, totals):
    """The objective on these groups, or their share of it, and the sums from which the metrics are made.

    Args:
        totals: denominators over the whole batch of every part's terms; None: these groups are the whole batch.
    Returns: loss, (sums, the running statistics after this batch).
    """
    values, carried = group_values(scoring, logps, ref, batch, running)
    sums, share = jax.tree.map(jnp.sum, values), jnp.zeros(())
    for i, part in enumerate(scoring.parts):
        for j, (value, weight) in enumerate(sums["terms"][part.name]):
            share += part.weight * value / jnp.maximum(weight if totals is None else totals[i][j], 1e-30)
    return share, jax.tree.map(lambda x: lax.stop_gradient(x).astype(jnp.float32), (sums, carried))


def group_values(scoring: Scoring, logps: Logps, ref: Logps | None, batch: Batch, running):
    """What loss and metrics are sums of: `terms` of every part, and `means` by name, as (weighted value_B, weight_B).

    Returns: these, and the running statistics after this batch.
    """
    valid_B = batch.valid_RG.reshape(-1)
    real = lambda x_B: jnp.where(valid_B > 0, x_B, 0.0)
    terms, per_group, carried = {}, {}, {}
    for part, out in zip(scoring.parts, _outputs(scoring, logps, ref, batch, running), strict=True):
        weights = [real(lax.stop_gradient(term.weight_B)) for term in out.terms]
        terms[part.name] = [(real(w_B * term.loss_B), w_B) for w_B, term in zip(weights, out.terms, strict=True)]
        per_group |= {name: x_B for name, x_B in out.metrics.items() if name not in per_group}
        carried |= {part.name: out.running} if part.name in running else {}
    weighed = lambda x: x if isinstance(x, Term) else Term(x, valid_B)
    pair = lambda term: (real(term.weight_B * term.loss_B), real(term.weight_B))
    means = {name: pair(weighed(x)) for name, x in per_group.items()}
    means |= {f"logps/{side}": (logps.sum[:, k], valid_B) for k, side in enumerate(NAMES[scoring.kind])}
    means["entropy"] = logps.entropy.sum(-1), logps.count.sum(-1)
    means["mean_token_accuracy"] = logps.top1[:, 0], logps.count[:, 0]
    return {"terms": terms, "means": means}, carried


def finish_metrics(sums: dict[str, Any], parts: Sequence[Part]) -> dict[str, jax.Array]:
    """Means over the groups (reward metrics, logps) and over the tokens (entropy, accuracy) of the batch."""
    mean = lambda total, weight: total / jnp.maximum(weight, 1e-30)
    values = {part.name: sum(mean(*term) for term in sums["terms"][part.name]) for part in parts}
    metrics = {"loss": sum(part.weight * values[part.name] for part in parts)}
    metrics |= {f"loss/{name}": value for name, value in values.items()} if len(parts) > 1 else {}
    return metrics | {name: mean(*pair) for name, pair in sums["means"].items()}
