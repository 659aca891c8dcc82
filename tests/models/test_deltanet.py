"""Gated DeltaNet over packed rows: whom a token follows, and the delta rule in chunks against the recurrence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.models import deltanet

pytestmark = pytest.mark.usefixtures("quick_compile")
GROUPS = [(5, (3, 4)), (0, (2, 1)), (1, (1, 1, 2)), (4, (6,)), (7, (1, 2, 3))]
"""Tokens of a prompt and of its completions."""
LENGTH = 48
TAPS = 4


def packed():
    """Expiry of the row that shares the prompts, and the path of every completion: indices along the row."""
    expiry, paths, start = np.zeros(LENGTH, np.int32), [], 0
    for prompt, completions in GROUPS:
        first, end = start + prompt, start + prompt + sum(completions)
        expiry[start:first] = end
        for tokens in completions:
            expiry[first : first + tokens] = first + tokens
            paths.append([*range(start, start + prompt), *range(first, first + tokens)])
            first += tokens
        start = end
    assert start < LENGTH, "the row ends with padding"
    return expiry, paths


def inputs(length):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=(1, length, *shape)).astype(np.float32)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    decay, beta = -0.3 * np.abs(normal(2)), 1 / (1 + np.exp(-normal(2)))
    return unit(normal(2, 3)), unit(normal(2, 3)), normal(2, 5), decay, beta.astype(np.float32)


def recurrence(q, k, v, decay, beta):
    """One sequence, token by token, float64; [L, n, v]."""
    state, out = np.zeros((2, 3, 5)), []
    for i in range(len(q)):
        state = np.exp(decay[i, :, None, None].astype(np.float64)) * state
        error = v[i] - np.einsum("nhv,nh->nv", state, k[i])
        state = state + np.einsum("n,nh,nv->nhv", beta[i], k[i], error)
        out.append(np.einsum("nhv,nh->nv", state, q[i]))
    return np.array(out)


@pytest.mark.parametrize("chunk", [4, 64])
def test_chunks_of_a_packed_row_equal_the_recurrence_along_every_path(chunk):
    expiry, paths = packed()
    states = jnp.zeros((1, 2, 2, 3, 5))
    paths_of_row = deltanet.packed_paths(expiry[None], TAPS, chunk)
    out = jax.jit(deltanet.delta_rule)(*inputs(LENGTH), states, paths_of_row)[0][0]
    for path in paths:
        wanted = recurrence(*(x[0, path] for x in inputs(LENGTH)))
        np.testing.assert_allclose(out[np.array(path)], wanted, atol=2e-6, rtol=0)  # float32 sums of numbers up to 4
    assert not np.asarray(out)[expiry == 0].any()


@pytest.mark.parametrize("chunk", [5, 64])
def test_a_token_depends_on_its_own_path_alone(chunk):
    expiry, paths = packed()
    paths_of_row = deltanet.packed_paths(expiry[None], TAPS, chunk)
    q, k, v, decay, beta = inputs(LENGTH)
    wanted = np.zeros((LENGTH, LENGTH), bool)
    near = np.zeros((LENGTH, LENGTH), bool)
    for path in paths:
        for place, token in enumerate(path):
            wanted[token, path[: place + 1]] = True
            near[token, path[max(place + 1 - TAPS, 0) : place + 1]] = True

    def read(v):
        return deltanet.delta_rule(q, k, v, decay, beta, jnp.zeros((1, 2, 2, 3, 5)), paths_of_row)[0][0].sum((1, 2))

    def convolved(v):
        return deltanet.convolve(v, None, jnp.ones((2, 5, TAPS)), paths_of_row)[0].sum((1, 2))

    influence = lambda function: np.abs(jax.jit(jax.jacrev(function))(v)[:, 0]).max((2, 3)) > 1e-9
    np.testing.assert_array_equal(influence(read), wanted)
    np.testing.assert_array_equal(influence(convolved)[expiry > 0], near[expiry > 0])


def test_a_sequence_in_pieces_is_the_sequence():
    """The state and the window of a cache, with padding anywhere, a token at a time and several."""
    q, k, v, decay, beta = inputs(24)
    taps = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, TAPS)), jnp.float32)
    padded = np.array([0, 0, *range(1, 9), 0, 9, 0, 0, *range(10, 24)])  # 0: padding, otherwise the token
    real = np.array([False, False] + [True] * 8 + [False, True, False, False] + [True] * 14)
    whole = recurrence(q[0, 1:], k[0, 1:], v[0, 1:], decay[0, 1:], beta[0, 1:])
    alone = deltanet.packed_paths(jnp.full((1, 23), 23, jnp.int32), TAPS, 64)
    mixed = deltanet.convolve(v[:, 1:], None, taps, alone)

    state, window, outs, convolved = jnp.zeros((1, 1, 2, 3, 5)), jnp.zeros((1, TAPS - 1, 2, 5)), [], []
    step = jax.jit(deltanet.delta_rule)
    start = 0
    for pieces in (5, 11, 1, 1, 10):
        at = padded[start : start + pieces]
        paths = deltanet.cached_paths(jnp.asarray(real[None, start : start + pieces]), TAPS, 4)
        out, state = step(*(x[:, at] for x in (q, k, v, decay, beta)), state, paths)
        outs.append(out[0])
        convolved.append(deltanet.convolve(v[:, at], window, taps, paths)[0])
        window = deltanet.next_window(v[:, at], window, paths)
        start += pieces
    assert start == len(padded) == len(real)
    np.testing.assert_allclose(np.concatenate(outs)[real], whole, atol=2e-6, rtol=0)
    np.testing.assert_allclose(np.concatenate(convolved)[real], mixed[0], atol=1e-6, rtol=0)


def test_a_token_follows_the_one_before_it_on_its_path():
    """The example of docs/design.md: a prompt "a b", its completions "c d" and "e"."""
    expiry = np.array([[5, 5, 4, 4, 5]], np.int32)
    source = deltanet.packed_paths(expiry, 3, 64).source_RLt[0]
    names = np.array(["-", "-", "a", "b", "c", "d", "e"])
    wanted = ["--a", "-ab", "abc", "bcd", "abe"]
    assert ["".join(names[row]) for row in np.asarray(source)] == wanted


@pytest.mark.parametrize("size", [1, 5, 63, 64])
@pytest.mark.parametrize("alike", [False, True])
def test_an_inverse_of_products_is_that_of_substitution(size, alike):
    """Keys in any direction, and keys that are all the same one, where powers of the system would reach 1e17."""
    rng = np.random.default_rng(0)
    keys = np.ones((size, 8)) if alike else rng.normal(size=(size, 8))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    beta = np.ones((size, 1)) if alike else rng.uniform(size=(size, 1))
    system = np.tril(beta * (keys @ keys.T), -1).astype(np.float32)
    wanted = np.linalg.inv(np.eye(size) + system.astype(np.float64))
    np.testing.assert_allclose(deltanet.unit_lower_inverse(jnp.asarray(system)), wanted, atol=1e-6, rtol=0)


def test_the_delta_rule_calls_no_library_on_a_cpu():
    """jaxlib's batched triangular solve for CPUs has been seen not to return."""
    paths = deltanet.packed_paths(packed()[0][None], TAPS, 16)
    states = jnp.zeros((1, 2, 2, 3, 5))
    loss = lambda q, k, v, decay, beta: jnp.sum(deltanet.delta_rule(q, k, v, decay, beta, states, paths)[0])
    program = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4))).lower(*inputs(LENGTH)).as_text()
    assert "dot_general" in program and "custom_call" not in program
