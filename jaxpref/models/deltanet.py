"""Gated DeltaNet over packed, prefix-shared rows: the mathematics of its layers as pure functions.

A head keeps a state S, [h, v], and every token i changes it and reads it:

    S_i = exp(g_i) S_p + k_i u_i'     u_i = beta_i (v_i - exp(g_i) S_p' k_i)     out_i = S_i' q_i

Here p is the token before i *on its path*: in a packed row the first token of every completion
follows the last one of its prompt, and the first token of a prompt follows nothing.  So the states
form a tree, and so does the short convolution in front of it.

Chunks of tokens are worked through one after another (the WY form of the paper).  Inside a chunk,
what token i owes to the tokens before it on its path is one triangular system.  Between chunks two
states are carried: that of the last token, and that of the latest end of a prompt, from which the
completions of a later chunk continue.

Source: Yang et al., Gated Delta Networks, arXiv 2412.06464.  All of it is in float32, as in
transformers; so are the states that decoding keeps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LONGEST_CHUNK = 64
"""Tokens; the work inside a chunk grows with its square."""

_NORM_EPS = 1e-6  # of the lengths of queries and keys; transformers has no attribute for it


class Paths(NamedTuple):
    """How the tokens of a row follow one another.  A chunks of C tokens; s states are carried.

    The row is padded to whole chunks; padding follows nothing, and nothing follows it.
    """

    source_RLt: jax.Array
    """int32, what the taps of the convolution read, the token itself last: indices along t - 1
    tokens that were read before, and the row behind them."""
    visible_RACC: jax.Array
    """Whether the second token is the first one, or before it on its path in the chunk."""
    entry_RACs: jax.Array
    """Whether the token's path enters the chunk with state s."""
    exit_RAs: jax.Array
    """int32, index in the chunk of the token whose state is state s behind the chunk."""
    renewed_RAs: jax.Array
    """Whether there is such a token; otherwise state s stays."""
    real_RL: jax.Array
    """Which tokens are not padding."""


def packed_paths(expiry_RL: jax.Array, taps: int, chunk: int) -> Paths:
    """Of packed rows.

    Args:
        chunk: tokens of a chunk, for shorter rows all of them.

    A token follows the one before it, if it can see that (`attention.Mask`), otherwise the latest
    end of a prompt, if it can see that one, otherwise none.  A prompt that several completions
    share ends where the expiry falls.
    """
    R, L = expiry_RL.shape
    C = min(chunk, L)
    expiry_RL = jnp.pad(expiry_RL, ((0, 0), (0, -L % C)))
    A = expiry_RL.shape[1] // C
    index_1L = jnp.arange(A * C, dtype=jnp.int32)[None]

    following_RL = jnp.concatenate([expiry_RL[:, 1:], expiry_RL[:, -1:]], axis=1)
    end_RL = lax.cummax(jnp.where(following_RL < expiry_RL, index_1L, -1), axis=1)
    before_RL = jnp.concatenate([jnp.full((R, 1), -1), end_RL[:, :-1]], axis=1)

    def sees(index_RL):
        expiry = jnp.take_along_axis(expiry_RL, jnp.maximum(index_RL, 0), axis=1)
        return (index_RL >= 0) & (index_1L < expiry)

    previous_RL = jnp.broadcast_to(index_1L - 1, expiry_RL.shape)
    previous_RL = jnp.where(sees(previous_RL), previous_RL, before_RL)
    previous_RL = jnp.where(sees(previous_RL), previous_RL, -1)

    index_ARC = index_1L.reshape(1, A, C)
    expiry_RAC = expiry_RL.reshape(R, A, C)
    causal_CC = jnp.tril(jnp.ones((C, C), bool))
    visible_RACC = causal_CC[None, None] & (index_ARC[..., None] < expiry_RAC[:, :, None, :])

    first_A = jnp.arange(A, dtype=jnp.int32) * C
    no_chunk_R1 = jnp.zeros((R, 1), jnp.int32)
    last_expiry_RA = jnp.concatenate([no_chunk_R1, expiry_RAC[:, :-1, -1]], axis=1)
    continued_RAC = index_ARC < last_expiry_RA[..., None]
    end_RAC = end_RL.reshape(R, A, C)
    kept_RA = jnp.concatenate([no_chunk_R1 - 1, end_RAC[:, :-1, -1]], axis=1)
    kept_expiry_RA = jnp.take_along_axis(expiry_RL, jnp.maximum(kept_RA, 0), axis=1)
    branched_RAC = (kept_RA >= 0)[..., None] & (index_ARC < kept_expiry_RA[..., None])

    newest_RA = end_RAC[:, :, -1]
    last_RA = jnp.full_like(newest_RA, C - 1)
    renewed_RA = newest_RA >= first_A[None]
    return Paths(
        source_RLt=_followed_back(previous_RL, taps)[:, :L],
        visible_RACC=visible_RACC,
        entry_RACs=jnp.stack([continued_RAC, branched_RAC & ~continued_RAC], axis=-1),
        exit_RAs=jnp.stack([last_RA, jnp.maximum(newest_RA - first_A[None], 0)], axis=-1),
        renewed_RAs=jnp.stack([jnp.ones_like(renewed_RA), renewed_RA], axis=-1),
        real_RL=expiry_RL[:, :L] > 0,
    )


def _followed_back(previous_RL, taps: int):
    """`Paths.source_RLt` of rows that start with nothing before them (zeros, the first of all)."""
    at_RL = jnp.broadcast_to(jnp.arange(previous_RL.shape[1], dtype=jnp.int32), previous_RL.shape)
    sources = [at_RL]
    for _ in range(taps - 1):
        earlier_RL = jnp.take_along_axis(previous_RL, jnp.maximum(at_RL, 0), axis=1)
        at_RL = jnp.where(at_RL >= 0, earlier_RL, -1)
        sources.append(at_RL)
    source_RLt = jnp.stack(sources[::-1], axis=-1)
    return jnp.where(source_RLt >= 0, source_RLt + taps - 1, 0)


def cached_paths(real_RL: jax.Array, taps: int, chunk: int) -> Paths:
    """Of rows that go on from a cache: every token follows the real one before it."""
    R, L = real_RL.shape
    C = min(chunk, L)
    padded_RL = jnp.pad(real_RL, ((0, 0), (0, -L % C)))
    A = padded_RL.shape[1] // C
    causal_CC = jnp.tril(jnp.ones((C, C), bool))
    source_RLt, _ = _compacted(real_RL, taps)
    return Paths(
        source_RLt=source_RLt,
        visible_RACC=causal_CC[None, None] & padded_RL.reshape(R, A, 1, C),
        entry_RACs=jnp.ones((R, A, C, 1), bool),
        exit_RAs=jnp.full((R, A, 1), C - 1, jnp.int32),
        renewed_RAs=jnp.ones((R, A, 1), bool),
        real_RL=real_RL,
    )


def _compacted(real_RL, taps: int):
    """Sources of the taps, and of the window that later tokens will read, [R, t - 1]."""
    window = taps - 1
    # Of the window and the row behind it, [R, t - 1 + L].
    kept = jnp.pad(real_RL, ((0, 0), (window, 0)), constant_values=True)
    order = jnp.argsort(~kept, axis=1, stable=True).astype(jnp.int32)  # the real ones first
    number = jnp.cumsum(kept, axis=1) - 1  # of a real one among them
    back_t = jnp.arange(taps) - window

    def real_ones(number):
        return jnp.take_along_axis(order, number, axis=1)

    R, L = real_RL.shape
    number_RLt = jnp.maximum(number[:, window:, None] + back_t[None, None], 0)
    source_RLt = real_ones(number_RLt.reshape(R, L * taps)).reshape(R, L, taps)
    return source_RLt, real_ones(number[:, -1:] + 1 + back_t[None, :-1])


def convolve(
    x_RLzc: jax.Array, before: jax.Array | None, w_zct: jax.Array, paths: Paths
) -> jax.Array:
    """The short causal convolution along every token's path, of each channel alone, and SiLU.

    Args:
        x_RLzc: heads and their channels.
        before: the t - 1 tokens before the row, [R, t - 1, z, c]; None: there are none.
    Returns: as `x_RLzc`, float32.
    """
    taps = w_zct.shape[-1]
    if before is None:
        extended = jnp.pad(x_RLzc, ((0, 0), (taps - 1, 0), (0, 0), (0, 0)))
    else:
        extended = jnp.concatenate([before.astype(x_RLzc.dtype), x_RLzc], axis=1)
    y_RLzc = jnp.zeros(x_RLzc.shape, jnp.float32)
    for t in range(taps):
        read_RLzc = x_RLzc  # the last tap reads the token itself
        if t < taps - 1:
            source_RL11 = paths.source_RLt[:, :, t, None, None]
            read_RLzc = jnp.take_along_axis(extended, source_RL11, axis=1)
        y_RLzc = y_RLzc + read_RLzc.astype(jnp.float32) * w_zct[None, None, :, :, t]
    return jax.nn.silu(y_RLzc)


def next_window(x_RLzc: jax.Array, before: jax.Array, paths: Paths) -> jax.Array:
    """What `convolve` takes as `before` for the tokens that follow these."""
    taps = before.shape[1] + 1
    _, source = _compacted(paths.real_RL, taps)
    extended = jnp.concatenate([before, x_RLzc.astype(before.dtype)], axis=1)
    return jnp.take_along_axis(extended, source[:, :, None, None], axis=1)


def unit(x: jax.Array) -> jax.Array:
    """x with a length of 1 along the last axis."""
    return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + _NORM_EPS)


def gated_delta(
    q_RLmh: jax.Array,
    k_RLmh: jax.Array,
    v_RLnv: jax.Array,
    beta_RLn: jax.Array,
    decay_RLn: jax.Array,
    a_log_n: jax.Array,
    dt_bias_n: jax.Array,
    state_Rnhv: jax.Array | None,
    paths: Paths,
) -> tuple[jax.Array, jax.Array]:
    """What a layer reads from its states, from what its projections and convolution gave.

    Args:
        beta_RLn, decay_RLn: before their sigmoid and softplus.
        state_Rnhv: kept from earlier tokens; None: there are none.
    Returns: [R, L, n, v] float32 and the state behind the row.
    """
    (R, _, m, h), (n, v) = q_RLmh.shape, v_RLnv.shape[2:]
    shared = lambda x_RLmh: jnp.repeat(x_RLmh, n // m, axis=2)  # by n / m value heads in succession
    rate_11n = jnp.exp(a_log_n.astype(jnp.float32))[None, None]
    step_RLn = jax.nn.softplus(decay_RLn.astype(jnp.float32) + dt_bias_n[None, None])
    if state_Rnhv is None:
        states_Rsnhv = jnp.zeros((R, paths.exit_RAs.shape[-1], n, h, v))
    else:
        states_Rsnhv = state_Rnhv[:, None]
    out_RLnv, states_Rsnhv = delta_rule(
        shared(unit(q_RLmh) * h**-0.5),
        shared(unit(k_RLmh)),
        v_RLnv,
        -rate_11n * step_RLn,
        jax.nn.sigmoid(beta_RLn.astype(jnp.float32)),
        states_Rsnhv,
        paths,
    )
    return out_RLnv, states_Rsnhv[:, 0]


def delta_rule(
    q_RLnh: jax.Array,
    k_RLnh: jax.Array,
    v_RLnv: jax.Array,
    g_RLn: jax.Array,
    beta_RLn: jax.Array,
    states_Rsnhv: jax.Array,
    paths: Paths,
) -> tuple[jax.Array, jax.Array]:
    """The gated delta rule along every token's path, chunk by chunk.

    Args:
        q_RLnh, k_RLnh: queries, scaled, and keys of length 1, float32.
        g_RLn: log of the decay, at most 0.
        states_Rsnhv: before the row.
    Returns: [R, L, n, v] float32, zeros for padding, and the states behind the row.
    """
    if q_RLnh.shape[1] == 1 and states_Rsnhv.shape[1] == 1:
        return _one_token(q_RLnh, k_RLnh, v_RLnv, g_RLn, beta_RLn, states_Rsnhv, paths)
    L, (R, A, C, _) = q_RLnh.shape[1], paths.visible_RACC.shape

    def in_chunks(x_RLn):
        """[R, L, n, ...] as [A, R, n, C, ...]."""
        padding = ((0, 0), (0, A * C - L), *((0, 0),) * (x_RLn.ndim - 2))
        x = jnp.pad(x_RLn, padding).reshape(R, A, C, *x_RLn.shape[2:])
        return jnp.moveaxis(jnp.moveaxis(x, 3, 1), 2, 0)

    q, k, v, g, beta = map(in_chunks, (q_RLnh, k_RLnh, v_RLnv, g_RLn, beta_RLn))
    visible = jnp.moveaxis(paths.visible_RACC, 1, 0)[:, :, None]

    # G: log of the decay from the chunk's beginning to token i, along its path.
    G = jnp.sum(jnp.where(visible, g[..., None, :], 0.0), axis=-1)
    D = jnp.exp(jnp.where(visible, G[..., :, None] - G[..., None, :], -jnp.inf))
    # (1 + system) u = beta v - beta exp(G) k S, with S the state before the chunk.
    alike = _exactly(k, jnp.swapaxes(k, -1, -2))
    system = jnp.tril(beta[..., None] * alike * D, -1)
    right = jnp.concatenate([v, jnp.exp(G)[..., None] * k], axis=-1) * beta[..., None]
    solved = _exactly(unit_lower_inverse(system), right)
    written, erased = solved[..., : v.shape[-1]], solved[..., v.shape[-1] :]
    attended = jnp.einsum("ARnih,ARnjh->ARnij", q, k) * D
    inputs = (
        q * jnp.exp(G)[..., None],
        k,
        written,
        erased,
        attended,
        G,
        D,
        jnp.moveaxis(paths.entry_RACs, 1, 0).astype(jnp.float32),
        jnp.moveaxis(paths.exit_RAs, 1, 0),
        jnp.moveaxis(paths.renewed_RAs, 1, 0),
    )
    states, out_ARnCv = lax.scan(_chunk, states_Rsnhv, inputs)
    out_RACnv = out_ARnCv.transpose(1, 0, 3, 2, 4)
    return out_RACnv.reshape(R, A * C, *out_RACnv.shape[3:])[:, :L], states


def _exactly(a, b):
    """a @ b in float32 wherever it runs: errors in the system grow in its solution."""
    return jnp.matmul(a, b, precision="highest")


def unit_lower_inverse(system_CC: jax.Array) -> jax.Array:
    """(1 + system)^-1 for systems that are strictly lower triangular, [..., C, C].

    The inverse of twice as large diagonal blocks follows from that of their halves, A and D:
    [[A, 0], [B, D]]^-1 = [[A^-1, 0], [-D^-1 B A^-1, D^-1]].  As exact as substitution, in products
    alone: TPUs have units for those, and on CPUs jaxlib's batched triangular solve (0.10.2, 0.12)
    does not always return.
    """
    C = system_CC.shape[-1]
    index_C = jnp.arange(C)
    inverse_CC = jnp.broadcast_to(jnp.eye(C, dtype=system_CC.dtype), system_CC.shape)
    half = 1
    while half < C:
        row_C1, column_1C = index_C[:, None] // half, index_C[None] // half
        joins_CC = jnp.broadcast_to((row_C1 % 2 == 1) & (row_C1 == column_1C + 1), system_CC.shape)
        between_CC = jnp.where(joins_CC, system_CC, 0.0)
        inverse_CC = inverse_CC - _exactly(_exactly(inverse_CC, between_CC), inverse_CC)
        half *= 2
    return inverse_CC


def _chunk(states_Rsnhv, inputs):
    """One chunk: states before it -> states behind it, and what its tokens read."""
    q, k, written, erased, attended, G, D, entry_RCs, exit_Rs, renewed_Rs = inputs
    read = lambda x: jnp.einsum("RCs,RnCh,Rsnhv->RnCv", entry_RCs, x, states_Rsnhv)
    u_RnCv = written - read(erased)
    out_RnCv = read(q) + jnp.einsum("Rnij,Rnjv->Rniv", attended, u_RnCv)

    at = exit_Rs[:, None, :]
    decay_Rns = jnp.exp(jnp.take_along_axis(G, at, axis=2))
    weight_RnsC = jnp.take_along_axis(D, at[..., None], axis=2)
    from_Rss = jnp.take_along_axis(entry_RCs, exit_Rs[..., None], axis=1)
    kept = jnp.einsum("Rst,Rns,Rtnhv->Rsnhv", from_Rss, decay_Rns, states_Rsnhv)
    added = jnp.einsum("RnsC,RnCh,RnCv->Rsnhv", weight_RnsC, k, u_RnCv)
    return jnp.where(renewed_Rs[:, :, None, None, None], kept + added, states_Rsnhv), out_RnCv


def _one_token(q_R1nh, k_R1nh, v_R1nv, g_R1n, beta_R1n, state_R1nhv, paths: Paths):
    """The recurrence itself, for a row of one token and one state."""
    decayed = state_R1nhv * jnp.exp(g_R1n)[..., None, None]
    known = jnp.sum(decayed * k_R1nh[..., None], axis=-2)
    u_R1nv = (v_R1nv - known) * beta_R1n[..., None]
    new = decayed + k_R1nh[..., None] * u_R1nv[..., None, :]
    out_R1nv = jnp.sum(new * q_R1nh[..., None], axis=-2)
    return out_R1nv, jnp.where(paths.real_RL[:, :, None, None, None], new, state_R1nhv)
