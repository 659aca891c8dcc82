"""Attention over packed, prefix-shared rows by Pallas kernels for TPUs.

The mathematics are those of attention.py.  Blocks that the mask empties are neither computed nor
fetched.  Query heads that share a key head stand side by side: their keys are fetched and masked
once, and one head's softmax is computed during another's products.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxpref.models.attention import ATTENTION, MASKED, Mask, scaled
from jaxpref.models.tpu_grid import Blocks, Cotangents, Inputs, Options, Ranges
from jaxpref.models.tpu_kernels import forward, key_gradients, query_gradient

BLOCK = 256
"""Tokens of a block of queries and of keys; docs/design.md says why."""

FETCHED_KEYS = 2048
"""At most so many keys are in VMEM at a time."""

FETCHED_BYTES = 2 * 2**20
"""Of queries that `key_gradients` has in VMEM at a time.  As much of their cotangents is there too,
and room for what comes next of both."""

LANES = 128
"""To a multiple of this the last axis of an array is padded in memory."""

FAR = 2**30
"""More than any position and any window."""

HEADS_AT_ONCE = 8
"""Query heads of one key head for which code is laid out side by side."""


class Masks(NamedTuple):
    """The mask as the kernels read it."""

    limits_R2L: jax.Array
    """Of keys: the expiry and, with a window, the position from which on queries are too far."""
    position_R1L: jax.Array | None
    """Of queries; None without a window."""
    start_1: jax.Array
    """Index of the first query in its row."""


def tpu_attention(
    q_RLNH: jax.Array,
    k_RLMH: jax.Array,
    v_RLMH: jax.Array,
    mask: Mask,
    *,
    scale: float,
    softcap: float | None = None,
    sink_N: jax.Array | None = None,
    q_start: jax.Array | int = 0,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Softmax attention, as `attention.attention`, on one device.

    Args:
        q_RLNH: queries of a part of the row, or of all of it.
        q_start: index of the first of them.
        blocks: None: as `choose_blocks` says.
        interpret: computes what the kernels compute on any device, slowly.
    """
    (R, L, N, H), M = q_RLNH.shape, k_RLMH.shape[2]
    J = _heads_at_once(N // M)
    blocks = blocks or choose_blocks(L, k_RLMH.shape[1], J * H * q_RLNH.dtype.itemsize)
    options = Options(blocks, H % LANES != 0, softcap, interpret)
    q_RNHL = _tokens_last(scaled(q_RLNH, scale), blocks.queries)
    k_RMHL, v_RMHL = (_tokens_last(x, blocks.keys) for x in (k_RLMH, v_RLMH))
    assert q_RNHL.shape[-1] % blocks.fetched_queries == 0
    assert k_RMHL.shape[-1] % blocks.fetched_keys == 0
    masks = _masks(mask, L, jnp.asarray(q_start, jnp.int32), blocks)
    # Without sinks, a logit that adds nothing.
    sink_N = jnp.full(N, MASKED) if sink_N is None else sink_N.astype(jnp.float32)
    q_RnJHL, sink_nJ = q_RNHL.reshape(R, N // J, J, H, -1), sink_N.reshape(N // J, J)
    out = _attend(q_RnJHL, k_RMHL, v_RMHL, sink_nJ, masks, options)
    out = out.reshape(R, N, *out.shape[3:])
    return jnp.moveaxis(out, 3 if options.out_tokens_last else 2, 1)[:, :L]


def choose_blocks(queries: int, keys: int, query_bytes: int) -> Blocks:
    """Args: query_bytes: of a token's queries that one program works through."""
    return Blocks(
        BLOCK, BLOCK, _part(queries, FETCHED_BYTES // query_bytes), _part(keys, FETCHED_KEYS)
    )


def _part(tokens: int, most: int) -> int:
    """The largest part of the blocks of a row, up to `most` tokens, or a block."""
    blocks = -(-tokens // BLOCK)
    sizes = (n for n in range(1, most // BLOCK + 1) if blocks % n == 0)
    return BLOCK * max(sizes, default=1)


def _masks(mask: Mask, queries: int, q_start: jax.Array, blocks: Blocks) -> Masks:
    limits, position_R1L = [mask.expiry_RL], None
    if mask.window is not None:
        limits.append(mask.position_RL + mask.window)
        # Padding is near nothing, whatever its position.
        position_RL = jnp.where(mask.expiry_RL > 0, mask.position_RL, FAR)
        position_RL = lax.dynamic_slice_in_dim(position_RL, q_start, queries, axis=1)
        position_R1L = _padded(position_RL, blocks.queries, FAR)[:, None]
    limits_R2L = jnp.stack([_padded(x, blocks.keys) for x in limits], axis=1)
    return Masks(limits_R2L, position_R1L, q_start.reshape(1))


def _padded(x_RL: jax.Array, unit: int, value: int = 0) -> jax.Array:
    """Up to a multiple of `unit` tokens; a key that expires at 0 is not seen."""
    missing = -x_RL.shape[1] % unit
    if not missing:
        return x_RL
    behind = [(0, 0), (0, missing), *[(0, 0)] * (x_RL.ndim - 2)]
    return jnp.pad(x_RL, behind, constant_values=value)


def _tokens_last(x_RLNH: jax.Array, unit: int) -> jax.Array:
    """[R, N, H, L], padded to a multiple of `unit` tokens."""
    return jnp.moveaxis(_padded(x_RLNH, unit), 1, -1)


def _heads_at_once(heads: int) -> int:
    return max(J for J in range(1, HEADS_AT_ONCE + 1) if heads % J == 0)


def _visible_blocks(masks: Masks, queries: int, blocks: Blocks) -> jax.Array:
    """[R, i, j] whether some query of a block may see some key of a block.

    Of a window, the smallest position and the largest reach decide, wherever in the blocks they
    are; blocks that are taken without need are those at which a group begins.
    """
    bq, bk, *_ = blocks
    first_query_i1 = (masks.start_1 + jnp.arange(0, queries, bq))[:, None]
    last_query_i1 = first_query_i1 + bq - 1
    first_key_1j = jnp.arange(0, masks.limits_R2L.shape[-1], bk)[None, :]
    last_R21j = _per_block(masks.limits_R2L, bk).max(-1)[:, :, None, :]
    visible_Rij = (first_key_1j <= last_query_i1)[None] & (last_R21j[:, 0] > first_query_i1[None])
    if masks.position_R1L is not None:
        nearest_Ri1 = _per_block(masks.position_R1L, bq).min(-1).transpose(0, 2, 1)
        visible_Rij &= nearest_Ri1 < last_R21j[:, 1]
    return visible_Rij


def seen_share(mask: Mask) -> jax.Array:
    """Pairs of queries and keys in the blocks that are worked through, of whole rows.

    As a share of the pairs that one causal sequence would see, which is what the kernels state as
    their cost: rows of short groups take less.
    """
    R, L = mask.expiry_RL.shape
    blocks = Blocks(BLOCK, BLOCK, fetched_queries=BLOCK, fetched_keys=BLOCK)
    masks = _masks(mask, L, jnp.zeros((), jnp.int32), blocks)
    visible_Rij = _visible_blocks(masks, masks.limits_R2L.shape[-1], blocks)
    return visible_Rij.sum() * BLOCK**2 / (R * L * L / 2)


def _per_block(x: jax.Array, size: int) -> jax.Array:
    return x.reshape(*x.shape[:-1], -1, size)


def _ranges(masks: Masks, queries: int, blocks: Blocks) -> tuple[Ranges, Ranges]:
    """Of keys per block of queries, and of queries per block of keys."""
    visible_Rij = _visible_blocks(masks, queries, blocks)
    expiry_Rj = _per_block(masks.limits_R2L[:, 0], blocks.keys).max(-1)

    def along(axis):
        count = visible_Rij.shape[axis]
        behind = jnp.argmax(jnp.flip(visible_Rij, axis), axis)
        end = jnp.where(visible_Rij.any(axis), count - behind, 0)
        first = jnp.argmax(visible_Rij, axis)
        return Ranges(first.astype(jnp.int32), end.astype(jnp.int32), expiry_Rj, masks.start_1)

    return along(2), along(1)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q_RnJHL, k_RMHL, v_RMHL, sink_nJ, masks: Masks, options: Options):
    return _attend_saving(q_RnJHL, k_RMHL, v_RMHL, sink_nJ, masks, options)[0]


def _attend_saving(q_RnJHL, k_RMHL, v_RMHL, sink_nJ, masks, options):
    inputs = Inputs(q_RnJHL, k_RMHL, v_RMHL, masks.limits_R2L, masks.position_R1L)
    keys, _ = _ranges(masks, q_RnJHL.shape[-1], options.blocks)
    both = forward(inputs, sink_nJ[:, :, None], keys, options)
    out, lse = (checkpoint_name(x, ATTENTION) for x in both)
    return out, (inputs, sink_nJ, masks, out, lse)


def _attend_backward(options, saved, dout):
    inputs, sink_nJ, masks, out, lse_RnJL = saved
    # The sum over all keys of p * dp (attention.py).
    products = out.astype(jnp.float32) * dout.astype(jnp.float32)
    delta_RnJL = products.sum(axis=3 if options.out_tokens_last else 4)
    dout_RnJHL = dout if options.out_tokens_last else jnp.swapaxes(dout, 3, 4)
    cotangents = Cotangents(dout_RnJHL, lse_RnJL, delta_RnJL)
    keys, queries = _ranges(masks, lse_RnJL.shape[-1], options.blocks)
    dq = query_gradient(inputs, cotangents, keys, options)
    dk, dv = key_gradients(inputs, cotangents, queries, options)
    dsink_nJ = -jnp.sum(jnp.exp(sink_nJ[None, :, :, None] - lse_RnJL) * delta_RnJL, axis=(0, 3))
    return dq, dk, dv, dsink_nJ, None


_attend.defvjp(_attend_saving, _attend_backward)
