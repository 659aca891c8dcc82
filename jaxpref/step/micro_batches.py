"""The micro-batches of a step: arrays [T, R, ...] of which a loop takes one after another."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.types import Batch


def micro_batch(tree: Any, t) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, t, 0, keepdims=False), tree)


def whole_batch(batch: Batch) -> Batch:
    """All micro-batches as one: [T, R, ...] -> [T * R, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def at_used_length(function: Callable[..., Any], lengths: Sequence[int]) -> Callable[..., Any]:
    """`function(params, micro, ...)` on as many columns as the micro-batch needs, of `lengths`.

    One branch a length in one program: the run still compiles once, and which branch runs depends
        on the data only.
    """
    if len(lengths) < 2:
        return function

    def at(length: int) -> Callable[..., Any]:
        return lambda params, micro, *rest: function(params, micro.first_tokens(length), *rest)

    def run(params, micro: Batch, *rest):
        # The last key of a row expires right behind the row's last token.
        shorter = jnp.asarray(lengths[:-1]) < micro.expiry_RL.max()
        return lax.switch(
            jnp.sum(shorter, dtype=jnp.int32),
            [at(length) for length in lengths],
            params,
            micro,
            *rest,
        )

    return run


def collect(function: Callable[[Any], Any], tree_T: Any, micro_batches) -> Any:
    """`function` of every micro-batch in use, stacked on a leading T; zeros for the others."""
    shapes, count = (
        jax.eval_shape(function, micro_batch(tree_T, 0)),
        jax.tree.leaves(tree_T)[0].shape[0],
    )
    zeros = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), shapes)

    def body(t, out):
        write = lambda x, value: lax.dynamic_update_index_in_dim(x, value, t, 0)
        return jax.tree.map(write, out, function(micro_batch(tree_T, t)))

    return lax.fori_loop(0, micro_batches, body, zeros)
