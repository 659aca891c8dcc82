"""Causal attention over packed, prefix-shared rows: a key at column k is visible to column q iff k <= q < expiry[k].

Blockwise with an online softmax (Milakov & Gimelshein, arXiv 1805.02867; FlashAttention, arXiv 2205.14135), so that
[L, L] scores never exist, and with the column-wise mask of FlashMask (arXiv 2410.01359): per block of queries the
loop starts at the first block of keys that any of them may see.  A row of short groups therefore costs what the
groups cost, not what the row costs.

Plain XLA: the same code runs on CPU, GPU and TPU, and shards over rows and heads.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

# Finite, so that the running maximum of a query that sees nothing (padding) never makes inf - inf.
_MASKED = -1e30


def attention(
    q_RLNH: jax.Array, k_RLMH: jax.Array, v_RLMH: jax.Array, expiry_RL: jax.Array, *, block: int
) -> jax.Array:
    """Softmax attention with scale 1/sqrt(H); grouped queries when N > M (query head n reads key head n // (N/M)).

    Args:
        q_RLNH: queries, rotated.
        k_RLMH, v_RLMH: keys (rotated) and values.
        expiry_RL: int32, one past the last column whose query may see the key of this column; 0 for padding.
        block: columns of a block; must divide L.
    Returns:
        [R, L, N, H] in the dtype of q; zeros where a query sees no key (padding).
    """
    R, L, N, H = q_RLNH.shape
    M = k_RLMH.shape[2]
    assert L % block == 0 and N % M == 0
    # Heads first, the queries of one key head side by side: every product below is then a plain batched matmul.
    q_RMJLH = q_RLNH.reshape(R, L, M, N // M, H).transpose(0, 2, 3, 1, 4) * jnp.asarray(H**-0.5, q_RLNH.dtype)
    k_RMLH, v_RMLH = k_RLMH.transpose(0, 2, 1, 3), v_RLMH.transpose(0, 2, 1, 3)
    out_RMJLH = _blockwise(q_RMJLH, k_RMLH, v_RMLH, expiry_RL, block)
    return out_RMJLH.transpose(0, 3, 1, 2, 4).reshape(R, L, N, H)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blockwise(q_RMJLH, k_RMLH, v_RMLH, expiry_RL, block):
    return _forward(q_RMJLH, k_RMLH, v_RMLH, expiry_RL, block)[0]


def _block(x, i, block, axis):
    return lax.dynamic_slice_in_dim(x, i * block, block, axis)


def _first_visible_block(expiry_RL, block):
    """[blocks] int32: the first block of keys that some query of block i may see (itself at the latest)."""
    blocks = expiry_RL.shape[1] // block
    last_query = expiry_RL.reshape(expiry_RL.shape[0], blocks, block).max((0, 2))
    visible_ij = last_query[None, :] > (jnp.arange(blocks) * block)[:, None]
    return jnp.minimum(jnp.argmax(visible_ij, axis=1), jnp.arange(blocks)).astype(jnp.int32)


def _scores(q_RMJCH, k_RMCH, expiry_RC, i, j, block):
    """Masked float32 scores of query block i against key block j, [R, M, J, C, C]."""
    s = jnp.einsum("RMJqH,RMkH->RMJqk", q_RMJCH, k_RMCH, preferred_element_type=jnp.float32)
    column_q = i * block + jnp.arange(block)
    column_k = j * block + jnp.arange(block)
    visible_Rqk = (column_k[None, None, :] <= column_q[None, :, None]) & (
        column_q[None, :, None] < expiry_RC[:, None, :]
    )
    return jnp.where(visible_Rqk[:, None, None], s, _MASKED)


def _forward(q_RMJLH, k_RMLH, v_RMLH, expiry_RL, block):
    R, M, J, L, H = q_RMJLH.shape
    first = _first_visible_block(expiry_RL, block)

    def query_block(i):
        q = _block(q_RMJLH, i, block, 3)

        def key_block(j, carry):
            top, total, acc = carry
            s = _scores(q, _block(k_RMLH, j, block, 2), _block(expiry_RL, j, block, 1), i, j, block)
            new_top = jnp.maximum(top, s.max(-1))
            p = jnp.exp(s - new_top[..., None])  # exactly 0 at masked keys, once the query has seen any key
            shrink = jnp.exp(top - new_top)  # 0 when this block holds the first key seen, which wipes the ones before
            pv = jnp.einsum(
                "RMJqk,RMkH->RMJqH",
                p.astype(v_RMLH.dtype),
                _block(v_RMLH, j, block, 2),
                preferred_element_type=jnp.float32,
            )
            return new_top, total * shrink + p.sum(-1), acc * shrink[..., None] + pv

        zero = jnp.zeros((R, M, J, block), jnp.float32)
        init = (zero + _MASKED, zero, jnp.zeros((R, M, J, block, H), jnp.float32))
        top, total, acc = lax.fori_loop(first[i], i + 1, key_block, init)
        seen = top > _MASKED / 2
        out = jnp.where(seen[..., None], acc / jnp.where(seen, total, 1.0)[..., None], 0.0)
        # +inf where nothing is seen: the backward's exp(s - lse) is then exactly 0.
        lse = jnp.where(seen, top + jnp.log(jnp.where(seen, total, 1.0)), jnp.inf)
        return out.astype(q_RMJLH.dtype), lse

    out, lse = lax.map(query_block, jnp.arange(L // block))
    # [blocks, R, M, J, C, ...] -> [R, M, J, L, ...]
    out_RMJLH = jnp.moveaxis(out, 0, 3).reshape(R, M, J, L, H)
    lse_RMJL = jnp.moveaxis(lse, 0, 3).reshape(R, M, J, L)
    return out_RMJLH, lse_RMJL


def _forward_saving(q_RMJLH, k_RMLH, v_RMLH, expiry_RL, block):
    out, lse = _forward(q_RMJLH, k_RMLH, v_RMLH, expiry_RL, block)
    return out, (q_RMJLH, k_RMLH, v_RMLH, expiry_RL, out, lse)


def _backward(block, saved, dout_RMJLH):
    q_RMJLH, k_RMLH, v_RMLH, expiry_RL, out_RMJLH, lse_RMJL = saved
    f32 = jnp.float32
    first = _first_visible_block(expiry_RL, block)
    # FlashAttention's D_i: dot of the output with its cotangent; "highest", or a TPU might round float32 operands.
    delta_RMJL = jnp.einsum("RMJLH,RMJLH->RMJL", out_RMJLH, dout_RMJLH, precision="highest", preferred_element_type=f32)

    def query_block(carry, i):
        q, dout = _block(q_RMJLH, i, block, 3), _block(dout_RMJLH, i, block, 3)
        lse, delta = _block(lse_RMJL, i, block, 3), _block(delta_RMJL, i, block, 3)

        def key_block(j, carry):
            dq, dk_RMLH, dv_RMLH = carry
            k, v = _block(k_RMLH, j, block, 2), _block(v_RMLH, j, block, 2)
            s = _scores(q, k, _block(expiry_RL, j, block, 1), i, j, block)
            p = jnp.exp(s - lse[..., None])
            dp = jnp.einsum("RMJqH,RMkH->RMJqk", dout, v, preferred_element_type=f32)
            ds = (p * (dp - delta[..., None])).astype(q.dtype)
            dv = jnp.einsum("RMJqk,RMJqH->RMkH", p.astype(v.dtype), dout, preferred_element_type=f32)
            dk = jnp.einsum("RMJqk,RMJqH->RMkH", ds, q, preferred_element_type=f32)
            dq = dq + jnp.einsum("RMJqk,RMkH->RMJqH", ds, k, preferred_element_type=f32)
            add = lambda x, dx: lax.dynamic_update_slice_in_dim(x, _block(x, j, block, 2) + dx, j * block, 2)
            return dq, add(dk_RMLH, dk), add(dv_RMLH, dv)

        dq0 = jnp.zeros(q.shape, f32)
        dq, dk_RMLH, dv_RMLH = lax.fori_loop(first[i], i + 1, key_block, (dq0, *carry))
        return (dk_RMLH, dv_RMLH), dq.astype(q.dtype)

    zeros = (jnp.zeros(k_RMLH.shape, f32), jnp.zeros(v_RMLH.shape, f32))
    blocks = q_RMJLH.shape[3] // block
    (dk, dv), dq = lax.scan(query_block, zeros, jnp.arange(blocks))
    dq_RMJLH = jnp.moveaxis(dq, 0, 3).reshape(q_RMJLH.shape)
    return dq_RMJLH, dk.astype(k_RMLH.dtype), dv.astype(v_RMLH.dtype), None


_blockwise.defvjp(_forward_saving, _backward)
