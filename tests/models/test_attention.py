"""Blockwise attention against the plain softmax over the mask `k <= q < expiry[k]`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.models.attention import _first_visible_block, attention

R, L, M, J, H = 2, 32, 2, 3, 8
TOLERANCE = 2e-6  # float32, values of order 1


def plain(q, k, v, expiry_RL):
    column = jnp.arange(q.shape[1])
    visible = (column[None, None, :] <= column[None, :, None]) & (column[None, :, None] < expiry_RL[:, None, :])
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    s = jnp.einsum("rqnh,rknh->rnqk", q, k, precision="highest") / np.sqrt(q.shape[-1])
    p = jnp.where(visible[:, None], jnp.exp(s - s.max(-1, keepdims=True)), 0.0)
    total = p.sum(-1, keepdims=True)
    p = jnp.where(total > 0, p / jnp.where(total > 0, total, 1.0), 0.0)
    return jnp.einsum("rnqk,rknh->rqnh", p, v, precision="highest")


def inputs(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return tuple(jax.random.normal(key, (R, L, n, H)) for key, n in zip(keys, (M * J, M, M), strict=True))


# Row 0: a group with a shared prompt (0-5), completions 6-12 and 13-19, then a causal group, then padding.
# Row 1: one long causal sequence with a little padding.
EXPIRY = np.zeros((R, L), np.int32)
EXPIRY[0, :6], EXPIRY[0, 6:13], EXPIRY[0, 13:20], EXPIRY[0, 20:27] = 20, 13, 20, 27
EXPIRY[1, :30] = 30


@pytest.mark.parametrize("block", [4, 8, 16, 32])
def test_equals_plain_attention_in_value_and_gradient(block):
    q, k, v = inputs()
    weight = jnp.cos(jnp.arange(q.size, dtype=jnp.float32).reshape(q.shape))

    def value(function, q, k, v):
        return jnp.sum(weight * function(q, k, v))

    ours = lambda q, k, v: attention(q, k, v, EXPIRY, block=block)
    theirs = lambda q, k, v: plain(q, k, v, jnp.asarray(EXPIRY))
    np.testing.assert_allclose(ours(q, k, v), theirs(q, k, v), atol=TOLERANCE)
    ours_grad = jax.grad(value, argnums=(1, 2, 3))(ours, q, k, v)
    theirs_grad = jax.grad(value, argnums=(1, 2, 3))(theirs, q, k, v)
    for a, b in zip(ours_grad, theirs_grad, strict=True):
        np.testing.assert_allclose(a, b, atol=10 * TOLERANCE)


def test_padding_gives_zeros_and_finite_gradients():
    q, k, v = inputs()
    out = attention(q, k, v, EXPIRY, block=8)
    assert np.all(np.asarray(out)[0, 27:] == 0) and np.all(np.asarray(out)[1, 30:] == 0)
    grads = jax.grad(lambda *a: attention(*a, EXPIRY, block=8).sum(), argnums=(0, 1, 2))(q, k, v)
    assert all(bool(jnp.isfinite(g).all()) for g in grads)
    assert np.all(np.asarray(grads[1])[0, 27:] == 0), "a padding key must not matter"


def test_blocks_that_no_query_sees_are_skipped():
    expiry = np.zeros((1, 32), np.int32)
    expiry[0, :8], expiry[0, 8:20], expiry[0, 20:32] = 8, 20, 32
    # Block 2 (columns 8-11) sees from its own group on; block 5 (20-23) starts a new group.
    assert _first_visible_block(jnp.asarray(expiry), 4).tolist() == [0, 0, 2, 2, 2, 5, 5, 5]


def test_bfloat16_is_close_and_stays_bfloat16():
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs())
    out = attention(q, k, v, EXPIRY, block=8)
    assert out.dtype == jnp.bfloat16
    exact = plain(*(x.astype(jnp.float32) for x in (q, k, v)), jnp.asarray(EXPIRY))
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)  # 8 bits of mantissa
