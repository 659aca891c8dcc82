"""Rows whose tokens lie over several devices, for conversations too long for one.

Nearly all of a model works token by token and does not notice (`sharding.LOGICAL`: "tokens").  Here
is what does: attention, and taking the hidden states of single tokens.  Neither brings the hidden
states of a row together.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxpref.models.attention import Mask
from jaxpref.sharding import LOGICAL, context_ways, logical_spec

_AXIS = LOGICAL["tokens"]
_TOKENS = logical_spec(("rows", "tokens", None))
_WHOLE = logical_spec(("rows", None, None))
_INDEX = logical_spec(("rows", None))


def spread_attention(
    attend: Callable[..., jax.Array],
    q_RLNH: jax.Array,
    k_RLMH: jax.Array,
    v_RLMH: jax.Array,
    mask: Mask,
    sink_N: jax.Array | None,
) -> jax.Array:
    """Attention where every device has a part of each row's queries, keys and values.

    Each device gathers the keys and values of its rows and heads, and keeps its queries: they are
    more, and their outputs belong here.  The mask is causal, so a later query sees more keys; for
    even work a device gives the second half of its queries to its mirror image, the first to the
    last, and takes that one's.  The halves of a device then lie as far from the row's start as from
    its end.

    Args:
        attend: (queries of a part of a row, keys and values of all of it, mask, q_start=, and
            sink_N= where there are sinks) -> outputs, as `attention.attention`.
    """
    heads = logical_spec(("rows", "tokens", "heads", None))
    kv_heads = logical_spec(("rows", "tokens", "kv_heads", None))
    masks = jax.tree.map(lambda x: _INDEX if jnp.ndim(x) else P(), mask)
    sinks = None if sink_N is None else logical_spec(("heads",))
    run = jax.shard_map(
        partial(_on_one_device, attend),
        in_specs=(heads, kv_heads, kv_heads, masks, sinks),
        out_specs=heads,
        check_vma=False,  # attention's loops start from constants, which vary over no axis
    )
    return run(q_RLNH, k_RLMH, v_RLMH, mask, sink_N)


def _on_one_device(attend, q_RLNH, k_RLMH, v_RLMH, mask, sink_N):
    options = {} if sink_N is None else {"sink_N": sink_N}
    k_RLMH, v_RLMH = _of_all(k_RLMH), _of_all(v_RLMH)
    ways, here = lax.axis_size(_AXIS), lax.axis_index(_AXIS)
    early, late = jnp.split(q_RLNH, 2, axis=1)
    half = early.shape[1]
    early_start, late_start = 2 * here * half, (2 * ways - 1 - 2 * here) * half
    early = attend(early, k_RLMH, v_RLMH, mask, q_start=early_start, **options)
    late = attend(_mirrored(late), k_RLMH, v_RLMH, mask, q_start=late_start, **options)
    return jnp.concatenate([early, _mirrored(late)], axis=1)


@jax.custom_vjp
def _of_all(x: jax.Array) -> jax.Array:
    """The tokens of all devices of the context.

    The gradient is written out because autodiff would add up the devices' parts in the compute
    dtype.
    """
    return lax.all_gather(x, _AXIS, axis=1, tiled=True)


def _of_all_forward(x):
    return _of_all(x), None


def _of_all_backward(_, dy):
    dx = lax.psum_scatter(dy.astype(jnp.float32), _AXIS, scatter_dimension=1, tiled=True)
    return (dx.astype(dy.dtype),)


_of_all.defvjp(_of_all_forward, _of_all_backward)


def _mirrored(x: jax.Array) -> jax.Array:
    """That of the device as far from the last as this one is from the first."""
    ways = lax.axis_size(_AXIS)
    return lax.ppermute(x, _AXIS, [(i, ways - 1 - i) for i in range(ways)])


def tokens_at(x_RLD: jax.Array, index_RC: jax.Array) -> jax.Array:
    """The tokens at these indices along the rows, [R, C, D]."""
    if context_ways() == 1:
        return jnp.take_along_axis(x_RLD, index_RC[:, :, None], axis=1)

    def sum_of_parts(x_RLD, index_RC):
        local_RC = _local_index(index_RC, x_RLD.shape[1])
        own_RCD = jnp.take_along_axis(
            x_RLD, local_RC[:, :, None], axis=1, mode="fill", fill_value=0
        )
        return lax.psum(own_RCD, _AXIS)  # one device has the token, the others add zeros

    return jax.shard_map(sum_of_parts, in_specs=(_TOKENS, _INDEX), out_specs=_WHOLE)(
        x_RLD, index_RC
    )


def add_at(x_RLD: jax.Array, index_RC: jax.Array, added_RCD: jax.Array) -> jax.Array:
    """x with numbers added to the tokens at these indices, more than once where they repeat."""

    def add(x_RLD, index_RC, added_RCD):
        rows_R1 = jnp.arange(x_RLD.shape[0])[:, None]
        return x_RLD.at[rows_R1, index_RC].add(added_RCD, mode="drop")

    if context_ways() == 1:
        return add(x_RLD, index_RC, added_RCD)

    def add_own(x_RLD, index_RC, added_RCD):
        return add(x_RLD, _local_index(index_RC, x_RLD.shape[1]), added_RCD)

    return jax.shard_map(add_own, in_specs=(_TOKENS, _INDEX, _WHOLE), out_specs=_TOKENS)(
        x_RLD, index_RC, added_RCD
    )


def _local_index(index_RC: jax.Array, length: int) -> jax.Array:
    """Indices along the device's part of a row; `length`, behind its end, for those of others."""
    local_RC = index_RC - lax.axis_index(_AXIS) * length
    return jnp.where((local_RC >= 0) & (local_RC < length), local_RC, length)
