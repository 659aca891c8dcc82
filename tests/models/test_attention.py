"""Blockwise attention against the plain softmax over the mask `k <= q < expiry[k]`, with windows and soft caps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.models.attention import Mask, attention, visible_blocks

pytestmark = pytest.mark.usefixtures("quick_compile")
R, L, M, J, H = 2, 32, 2, 3, 8
SCALE = H**-0.5
TOLERANCE = 2e-6  # float32, values of order 1


def seen(window=None):
    column = np.arange(L)
    visible = (column[None, None, :] <= column[None, :, None]) & (column[None, :, None] < EXPIRY[:, None, :])
    return visible & (POSITION[:, :, None] - POSITION[:, None, :] < (window or 10**6))


def plain(q, k, v, window=None, softcap=None, sink=None):
    visible = seen(window)
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    s = jnp.einsum("rqnh,rknh->rnqk", q, k, precision="highest") / np.sqrt(q.shape[-1])
    if softcap:
        s = softcap * jnp.tanh(s / softcap)
    top = s.max(-1, keepdims=True)
    p = jnp.where(visible[:, None], jnp.exp(s - top), 0.0)
    total = p.sum(-1, keepdims=True)
    if sink is not None:
        total = total + jnp.exp(sink[None, :, None, None] - top)
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
POSITION = np.zeros((R, L), np.int32)
POSITION[0, :27] = [*range(6), *range(6, 13), *range(6, 13), *range(7)]
POSITION[1, :30] = np.arange(30)


def mask_of(window=None):
    return Mask(EXPIRY) if window is None else Mask(EXPIRY, POSITION, jnp.int32(window))


QUICK = [(4, None, None), (4, 7, None), (4, 6, 0.5)]
SLOW = [
    (8, None, None),
    (32, None, None),
    (8, None, 0.5),
    (16, None, None),
    (4, 1, None),
    (8, 3, None),
    (4, 30, None),
    (32, 6, 3.0),
]


@pytest.mark.parametrize(
    "block, window, softcap", [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_equals_plain_attention_in_value_and_gradient(block, window, softcap):
    check(inputs(), block, window, softcap)


@pytest.mark.parametrize("block, window, softcap", [(4, 7, None), pytest.param(16, None, 0.5, marks=pytest.mark.slow)])
def test_sinks_in_value_and_gradient(block, window, softcap):
    sinks = 1.0 + jnp.arange(-2.0, M * J - 2)
    check((*inputs(), sinks), block, window, softcap)


def check(arguments, block, window, softcap):
    """Args: arguments: queries, keys, values and, of a model with them, sinks."""
    weight = jnp.cos(jnp.arange(arguments[0].size, dtype=jnp.float32).reshape(arguments[0].shape))

    def gradient(function):
        value = lambda *a: (jnp.sum(weight * function(*a)), function(*a))
        return jax.jit(jax.grad(value, argnums=range(len(arguments)), has_aux=True))(*arguments)

    options = {"block": block, "scale": SCALE, "softcap": softcap}
    ours = lambda q, k, v, sink=None: attention(q, k, v, mask_of(window), sink_N=sink, **options)
    ours_grad, out = gradient(ours)
    theirs_grad, theirs = gradient(lambda q, k, v, sink=None: plain(q, k, v, window, softcap, sink))
    np.testing.assert_allclose(out, theirs, atol=TOLERANCE)
    for a, b in zip(ours_grad, theirs_grad, strict=True):
        np.testing.assert_allclose(a, b, atol=10 * TOLERANCE)


def test_padding_gives_zeros_and_finite_gradients():
    q, k, v = inputs()
    out = attention(q, k, v, mask_of(), block=8, scale=SCALE)
    assert np.all(np.asarray(out)[0, 27:] == 0) and np.all(np.asarray(out)[1, 30:] == 0)
    with_sinks = attention(q, k, v, mask_of(), block=8, scale=SCALE, sink_N=jnp.ones(M * J))
    assert np.all(np.asarray(with_sinks)[0, 27:] == 0) and np.abs(with_sinks - out).max() > 0.1
    grads = jax.grad(lambda *a: attention(*a, mask_of(), block=8, scale=SCALE).sum(), argnums=(0, 1, 2))(q, k, v)
    assert all(bool(jnp.isfinite(g).all()) for g in grads)
    assert np.all(np.asarray(grads[1])[0, 27:] == 0), "a padding key must not matter"


def read_blocks(mask, queries=range(8)):
    """The blocks of keys that blocks of 4 queries read."""
    counts, numbers = visible_blocks(jax.tree.map(jnp.asarray, mask), 4, jnp.asarray(queries))
    return [row[:count].tolist() for count, row in zip(counts, numbers, strict=True)]


def test_blocks_that_no_query_sees_are_skipped():
    expiry = np.zeros((1, 32), np.int32)
    expiry[0, :8], expiry[0, 8:20], expiry[0, 20:28] = 8, 20, 28
    # Block 2 (columns 8-11) sees from its own group on; block 5 (20-23) starts a new group; block 7 is padding.
    assert read_blocks(Mask(expiry)) == [[0], [0, 1], [2], [2, 3], [2, 3, 4], [5], [5, 6], []]
    assert read_blocks(Mask(expiry), [3, 7, 0]) == [[2, 3], [], [0]]


def test_a_completion_skips_those_before_it():
    expiry = np.zeros((1, 32), np.int32)
    expiry[0, :4], expiry[0, 4:12], expiry[0, 12:20], expiry[0, 20:32] = 32, 12, 20, 32
    assert read_blocks(Mask(expiry)) == [[0], [0, 1], [0, 1, 2], [0, 3], [0, 3, 4], [0, 5], [0, 5, 6], [0, 5, 6, 7]]


@pytest.mark.parametrize("window", [1, 2, 3, 5, 6, 9, 30])
def test_blocks_out_of_the_window_are_skipped_and_no_others(window):
    blocks = L // 4
    visible = seen(window).reshape(R, blocks, 4, blocks, 4).any((0, 2, 4))
    expected = [np.flatnonzero(row).tolist() for row in visible]
    assert read_blocks(mask_of(window)) == expected
    assert window > 6 or expected != read_blocks(mask_of())


def test_without_a_window_or_cap_nothing_of_them_is_in_the_program():
    q, k, v = inputs()
    program = lambda **options: str(
        jax.make_jaxpr(jax.grad(lambda q: attention(q, k, v, block=8, scale=SCALE, **options).sum()))(q)
    )
    plain_program = program(mask=Mask(EXPIRY, POSITION))
    assert "tanh" not in plain_program and "cummin" not in plain_program and " sub " in plain_program
    assert plain_program == program(mask=mask_of())
    assert "cummin" in program(mask=mask_of(5)) and "tanh" in program(mask=mask_of(), softcap=1.0)


def test_bfloat16_is_close_and_stays_bfloat16():
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs())
    out = attention(q, k, v, mask_of(), block=8, scale=SCALE)
    assert out.dtype == jnp.bfloat16
    exact = plain(*(x.astype(jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)  # 8 bits of mantissa
