"""Causal attention over packed, prefix-shared rows.

A key at index k is visible to the query at index q of the same row iff k <= q < expiry[k] and,
where the layer has a window, position[q] - position[k] < window.  Where tokens see later ones
too (those of a picture, in Gemma 3), start[k] stands for k: the first query that sees the key.

Blockwise with an online softmax (Milakov & Gimelshein, arXiv 1805.02867; FlashAttention, arXiv
2205.14135), so that [L, L] attention logits never exist, and with the mask of FlashMask (arXiv
2410.01359), one number per key: per block of queries the loop goes over the blocks of keys that any
of them may see.  A row of short groups therefore costs what the groups cost, not what the row
costs, and a completion skips the completions between its prompt and itself.

Plain XLA: the same code runs on CPU, GPU and TPU, and shards over rows and heads.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

ATTENTION = "attention"
"""Name of what the backward pass needs of this forward pass, by which remat can keep it."""

MASKED = -1e30
"""Attention logit of a key that is not seen.

Finite, so that the running maximum of a query that sees nothing (padding) never makes inf - inf.
"""


class Mask(NamedTuple):
    """Which keys a query sees."""

    expiry_RL: jax.Array
    """int32, one past the last index whose query may see the key at this index; 0 for padding."""
    position_RL: jax.Array | None = None
    """int32 position inside its own branch; read where there is a window."""
    window: jax.Array | None = None
    """int32 scalar, tokens; None: no window, and nothing of it in the program."""
    start_RL: jax.Array | None = None
    """int32, the first index whose query may see the key; None: its own, of every key."""


def attention(
    q_RLNH: jax.Array,
    k_RLMH: jax.Array,
    v_RLMH: jax.Array,
    mask: Mask,
    *,
    block: int,
    scale: float,
    softcap: float | None = None,
    sink_N: jax.Array | None = None,
    q_start: jax.Array | int = 0,
) -> jax.Array:
    """Softmax attention; grouped queries when N > M (query head n reads key head n // (N/M)).

    Args:
        q_RLNH: queries, rotated; all of a row or a part of it, whose tokens are this L.
        k_RLMH, v_RLMH: keys (rotated) and values of whole rows.
        block: tokens of a block; must divide both L.
        scale: multiplies the attention logits.
        softcap: attention logits become softcap * tanh(logit / softcap), before the mask.
        sink_N: one more logit for every query of a head, of a key whose value is 0.
        q_start: index along the row of the first query, a multiple of `block`.
    Returns:
        [R, L, N, H] in the dtype of q; zeros where a query sees no key (padding).
    """
    R, L, N, H = q_RLNH.shape
    M = k_RLMH.shape[2]
    assert L % block == 0 and k_RLMH.shape[1] % block == 0 and N % M == 0
    # Heads first, the J queries of one key head side by side: every product below is then a plain
    # batched matmul.
    q_RMJLH = q_RLNH.reshape(R, L, M, N // M, H).transpose(0, 2, 3, 1, 4)
    q_RMJLH = scaled(q_RMJLH, scale)
    k_RMLH, v_RMLH = k_RLMH.transpose(0, 2, 1, 3), v_RLMH.transpose(0, 2, 1, 3)
    sink_MJ = None if sink_N is None else sink_N.astype(jnp.float32).reshape(M, N // M)
    first_block = jnp.asarray(q_start, jnp.int32) // block
    out_RMJLH = _blockwise(q_RMJLH, k_RMLH, v_RMLH, sink_MJ, mask, first_block, block, softcap)
    return out_RMJLH.transpose(0, 3, 1, 2, 4).reshape(R, L, N, H)


def scaled(q: jax.Array, scale: float) -> jax.Array:
    """q * scale in the dtype of q, rounded once: the scale itself is not."""
    return (q.astype(jnp.float32) * scale).astype(q.dtype)


def capped(logits: jax.Array, softcap: float | None) -> jax.Array:
    """softcap * tanh(logit / softcap); None: the logits as they are."""
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


# The gradient is written out: JAX differentiates no loop whose bounds are data, and over all blocks
# it would keep their probabilities, [L, L].  Here one number per query is kept (its logsumexp), and
# the logits are computed again.
@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _blockwise(q_RMJLH, k_RMLH, v_RMLH, sink_MJ, mask, first_block, block, softcap):
    return _forward(q_RMJLH, k_RMLH, v_RMLH, sink_MJ, mask, first_block, block, softcap)[0]


def _block(x, i, block, axis):
    return lax.dynamic_slice_in_dim(x, i * block, block, axis)


def visible_blocks(mask: Mask, block, block_i):
    """Of every block of queries, the blocks of keys that some query of it may see.

    Args:
        block_i: numbers along the row of the blocks of queries.
    Returns: how many they are, [i] int32, 0 where all is padding; and their numbers, [i, j] int32,
        ascending, the others behind them.
    """
    blocks = mask.expiry_RL.shape[1] // block
    if mask.window is None:
        expiry_j = mask.expiry_RL.reshape(-1, blocks, block).max((0, 2))
        visible_ij = expiry_j[None, :] > (block_i * block)[:, None]
    else:
        visible_ij = _within_window(mask, block, block_i)
    if mask.start_RL is None:
        visible_ij &= jnp.arange(blocks)[None, :] <= block_i[:, None]
    else:
        start_j = mask.start_RL.reshape(-1, blocks, block).min((0, 2))
        visible_ij &= start_j[None, :] < ((block_i + 1) * block)[:, None]
    visible_first_ij = jnp.argsort(~visible_ij, axis=1, stable=True)
    return visible_ij.sum(1, dtype=jnp.int32), visible_first_ij.astype(jnp.int32)


def _within_window(mask: Mask, block, block_i):
    """[i, j] whether a query of block i is near enough to a key of block j to see it.

    Of a key, the queries of a block before its expiry count, which are the block's first ones; the
    one with the smallest position decides.
    """
    R, L = mask.expiry_RL.shape
    blocks = L // block
    nearest_RL = lax.cummin(mask.position_RL.reshape(R, blocks, block), axis=2).reshape(R, L)
    expiry_R1L = mask.expiry_RL[:, None, :]
    end_i = ((block_i + 1) * block)[None, :, None]
    last_query_RiL = jnp.minimum(expiry_R1L, end_i) - 1
    nearest_R1L = nearest_RL[:, None, :]
    at_RiL = jnp.maximum(last_query_RiL, 0)
    position_RiL = jnp.take_along_axis(nearest_R1L, at_RiL, axis=2)
    before_expiry_RiL = last_query_RiL >= (block_i * block)[None, :, None]
    visible_RiL = before_expiry_RiL & (position_RiL - mask.position_RL[:, None, :] < mask.window)
    return visible_RiL.reshape(R, len(block_i), blocks, block).any((0, 3))


def _logits(q_RMJqH, k_RMkH, softcap):
    """Float32 attention logits of a block of queries and a block of keys, [R, M, J, q, k]."""
    logits_RMJqk = jnp.einsum(
        "RMJqH,RMkH->RMJqk", q_RMJqH, k_RMkH, preferred_element_type=jnp.float32
    )
    return capped(logits_RMJqk, softcap)


def _masked(logits_RMJqk, mask: Mask, i, j, block):
    """The logits of query block i and key block j, those of keys that are not seen replaced."""
    index_q = i * block + jnp.arange(block)
    index_k = j * block + jnp.arange(block)
    expiry_Rk = _block(mask.expiry_RL, j, block, 1)
    start_Rk = index_k[None, :]
    if mask.start_RL is not None:
        start_Rk = _block(mask.start_RL, j, block, 1)
    visible_Rqk = (start_Rk[:, None, :] <= index_q[None, :, None]) & (
        index_q[None, :, None] < expiry_Rk[:, None, :]
    )
    if mask.window is not None:
        position_Rq = _block(mask.position_RL, i, block, 1)
        position_Rk = _block(mask.position_RL, j, block, 1)
        visible_Rqk &= position_Rq[:, :, None] - position_Rk[:, None, :] < mask.window
    return jnp.where(visible_Rqk[:, None, None], logits_RMJqk, MASKED)


def _numbers_of_blocks(q_RMJLH, mask: Mask, first_block, block):
    """Of every block of queries: its number here and along the row, and its blocks of keys."""
    place_i = jnp.arange(q_RMJLH.shape[3] // block)
    block_i = first_block + place_i
    return place_i, block_i, *visible_blocks(mask, block, block_i)


def _forward(q_RMJLH, k_RMLH, v_RMLH, sink_MJ, mask, first_block, block, softcap):
    R, M, J, L, H = q_RMJLH.shape

    def query_block(numbers):
        place, i, visible, visible_j = numbers
        q = _block(q_RMJLH, place, block, 3)

        def key_block(t, carry):
            j, (top, total, acc) = visible_j[t], carry
            k = _block(k_RMLH, j, block, 2)
            logits = _masked(_logits(q, k, softcap), mask, i, j, block)
            new_top = jnp.maximum(top, logits.max(-1))
            # Exactly 0 at masked keys, once the query has seen any key.
            p = jnp.exp(logits - new_top[..., None])
            # Sums so far are relative to the old maximum.  This is 0 where the block holds the
            # first key that the query sees, and wipes out what masked keys before it have added.
            shrink = jnp.exp(top - new_top)
            probs = p.astype(v_RMLH.dtype)
            v = _block(v_RMLH, j, block, 2)
            pv = jnp.einsum("RMJqk,RMkH->RMJqH", probs, v, preferred_element_type=jnp.float32)
            return new_top, total * shrink + p.sum(-1), acc * shrink[..., None] + pv

        zero = jnp.zeros((R, M, J, block), jnp.float32)
        acc0 = jnp.zeros((R, M, J, block, H), jnp.float32)
        if sink_MJ is None:
            init = (zero + MASKED, zero, acc0)
        else:  # the sink has been seen, and its value is 0
            init = (zero + sink_MJ[None, :, :, None], zero + 1.0, acc0)
        top, total, acc = lax.fori_loop(0, visible, key_block, init)
        seen = top > MASKED / 2
        out = jnp.where(seen[..., None], acc / jnp.where(seen, total, 1.0)[..., None], 0.0)
        # +inf where nothing is seen: the backward pass's exp(logit - lse) is then exactly 0.
        lse = jnp.where(seen, top + jnp.log(jnp.where(seen, total, 1.0)), jnp.inf)
        return out.astype(q_RMJLH.dtype), lse

    out, lse = lax.map(query_block, _numbers_of_blocks(q_RMJLH, mask, first_block, block))
    # [blocks, R, M, J, C, ...] -> [R, M, J, L, ...]
    out_RMJLH = jnp.moveaxis(out, 0, 3).reshape(R, M, J, L, H)
    lse_RMJL = jnp.moveaxis(lse, 0, 3).reshape(R, M, J, L)
    return out_RMJLH, lse_RMJL


def _forward_saving(q_RMJLH, k_RMLH, v_RMLH, sink_MJ, mask, first_block, block, softcap):
    both = _forward(q_RMJLH, k_RMLH, v_RMLH, sink_MJ, mask, first_block, block, softcap)
    out, lse = (checkpoint_name(x, ATTENTION) for x in both)
    return out, (q_RMJLH, k_RMLH, v_RMLH, sink_MJ, mask, first_block, out, lse)


def _backward(block, softcap, saved, dout_RMJLH):
    q_RMJLH, k_RMLH, v_RMLH, sink_MJ, mask, first_block, out_RMJLH, lse_RMJL = saved
    f32 = jnp.float32
    # The softmax's gradient is p * (dp - sum(p * dp)).  The sum over all keys is the dot product of
    # the output with its cotangent (FlashAttention's D_i), so one pass over the blocks is enough.
    # "highest", or a TPU might round float32 operands.
    delta_RMJL = jnp.einsum(
        "RMJLH,RMJLH->RMJL", out_RMJLH, dout_RMJLH, precision="highest", preferred_element_type=f32
    )

    def query_block(carry, numbers):
        place, i, visible, visible_j = numbers
        q, dout = _block(q_RMJLH, place, block, 3), _block(dout_RMJLH, place, block, 3)
        lse, delta = _block(lse_RMJL, place, block, 3), _block(delta_RMJL, place, block, 3)

        def key_block(t, carry):
            j, (dq, dk_RMLH, dv_RMLH) = visible_j[t], carry
            k, v = _block(k_RMLH, j, block, 2), _block(v_RMLH, j, block, 2)
            logits = _logits(q, k, softcap)
            p = jnp.exp(_masked(logits, mask, i, j, block) - lse[..., None])
            dp = jnp.einsum("RMJqH,RMkH->RMJqk", dout, v, preferred_element_type=f32)
            dlogits = p * (dp - delta[..., None])
            if softcap is not None:  # d(c tanh(x / c)) / dx = 1 - tanh(x / c)^2
                dlogits *= 1.0 - (logits / softcap) ** 2
            dlogits = dlogits.astype(q.dtype)
            dv = jnp.einsum(
                "RMJqk,RMJqH->RMkH", p.astype(v.dtype), dout, preferred_element_type=f32
            )
            dk = jnp.einsum("RMJqk,RMJqH->RMkH", dlogits, q, preferred_element_type=f32)
            dq = dq + jnp.einsum("RMJqk,RMkH->RMJqH", dlogits, k, preferred_element_type=f32)

            def add(x, dx):
                return lax.dynamic_update_slice_in_dim(
                    x, _block(x, j, block, 2) + dx, j * block, axis=2
                )

            return dq, add(dk_RMLH, dk), add(dv_RMLH, dv)

        dq0 = jnp.zeros(q.shape, f32)
        dq, dk_RMLH, dv_RMLH = lax.fori_loop(0, visible, key_block, (dq0, *carry))
        return (dk_RMLH, dv_RMLH), dq.astype(q.dtype)

    zeros = (jnp.zeros(k_RMLH.shape, f32), jnp.zeros(v_RMLH.shape, f32))
    numbers = _numbers_of_blocks(q_RMJLH, mask, first_block, block)
    (dk, dv), dq = lax.scan(query_block, zeros, numbers)
    dq_RMJLH = jnp.moveaxis(dq, 0, 3).reshape(q_RMJLH.shape)
    dsink_MJ = None
    if sink_MJ is not None:  # its value is 0, so of p * (dp - delta) the second part is left
        p_RMJL = jnp.exp(sink_MJ[None, :, :, None] - lse_RMJL)
        dsink_MJ = -jnp.sum(p_RMJL * delta_RMJL, axis=(0, 3))
    return dq_RMJLH, dk.astype(k_RMLH.dtype), dv.astype(v_RMLH.dtype), dsink_MJ, None, None


_blockwise.defvjp(_forward_saving, _backward)
