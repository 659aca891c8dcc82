"""The micro-batches of a step: arrays [T, R, ...] of which a loop takes one after another."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.types import Batch

MICRO_BATCHES = "micro_batches"
"""Scope of the loops over them: so they are told apart in a profile, and in a plan."""


def micro_batch(tree_T: Any, t) -> Any:
    """Micro-batch t of a tree of arrays [T, ...]."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, t, 0, keepdims=False), tree_T)


def whole_batch(batch: Batch) -> Batch:
    """All micro-batches as one: [T, R, ...] -> [T * R, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


traced_once = partial(jax.jit, inline=True)
"""For what a loop over micro-batches runs: its shapes are asked for before, which traces it too.

Tracing a model takes seconds, and is not repeated. The program is as if it were written out.
"""


def at_used_length(function: Callable[..., Any], lengths: Sequence[int]) -> Callable[..., Any]:
    """`function(params, micro, ...)` at the shortest of `lengths` that holds the micro-batch.

    One branch per length in one program: the run still compiles once, and which branch runs depends
    on the data only.

    Args:
        lengths: ascending, as of `LossSpec`; with fewer than two, `function` as it is.
    """
    if len(lengths) < 2:
        return function

    def at(length: int) -> Callable[..., Any]:
        def at_length(params, micro: Batch, *rest):
            return function(params, micro.first_tokens(length), *rest)

        return at_length

    branches = [at(length) for length in lengths]

    def at_shortest(params, micro: Batch, *rest):
        # The last key of a row expires right behind the row's last token, so this is the length of
        # the fullest row.
        needed = micro.expiry_RL.max()
        too_short = jnp.asarray(lengths[:-1]) < needed
        branch = jnp.sum(too_short, dtype=jnp.int32)
        return lax.switch(branch, branches, params, micro, *rest)

    return at_shortest


def collect(function: Callable[[Any], Any], tree_T: Any, micro_batches) -> Any:
    """`function` of every micro-batch in use, stacked on a leading T; zeros for the others."""
    T = jax.tree.leaves(tree_T)[0].shape[0]
    function = traced_once(function)
    shapes = jax.eval_shape(function, micro_batch(tree_T, 0))
    zeros_T = jax.tree.map(lambda x: jnp.zeros((T, *x.shape), x.dtype), shapes)

    def write(t, out_T):
        def at_t(x_T, value):
            return lax.dynamic_update_index_in_dim(x_T, value, t, 0)

        return jax.tree.map(at_t, out_T, function(micro_batch(tree_T, t)))

    with jax.named_scope(MICRO_BATCHES):
        return lax.fori_loop(0, micro_batches, write, zeros_T)
