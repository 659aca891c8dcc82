"""Hidden states -> log-probabilities of the scored tokens, summed per completion.

The vocabulary is multiplied at scored tokens only, a chunk of columns at a time, and the softmax is reduced inside
the chunk: [.., V] never exists for a row.  The backward pass computes a chunk's logits again.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.models.decoder import Model
from jaxpref.models.layers import product
from jaxpref.sharding import constrain
from jaxpref.types import Batch


class Logps(NamedTuple):
    """Per completion, [B, K] float32; B = R*G.  Empty slots hold zeros.  Sums run over scored tokens.

    The optional fields are None unless an objective asks for them (`needs(logps=...)`).
    """

    sum: Any
    """Log-probability of the completion (nats, <= 0)."""
    count: Any
    """Scored tokens."""
    entropy: Any
    """Sum of the predictive entropies (nats), no gradient."""
    top1: Any
    """Tokens that were the most likely one, no gradient."""
    common: Any = None
    """Log-probability of the first n tokens, n the shorter of completions 0 and 1."""
    sampled: Any = None
    """Log-probability of n of its tokens, drawn anew every step, the same ones under policy and reference."""
    collision: Any = None
    """Sum of log sum_v p(v)^2 (nats, <= 0), no gradient."""
    kl: Any = None
    """Of the policy: sum of KL(reference || policy) over the vocabulary (nats, >= 0)."""
    prompt: Any = None
    """[B] log-probability of the prompt, all tokens but the first (nats)."""
    prompt_count: Any = None
    """[B] tokens of it."""
    reward: Any = None
    """Scalar head at the completion's last token."""
    value: Any = None
    """[B] scalar head at the prompt's last token."""


def completion_logps(model: Model, params: Any, batch: Batch, *, chunk: int, stats: bool = True) -> Logps:
    """Log-probabilities of every completion of a micro-batch.

    Args:
        model: the functions of the language model.
        params: its parameters.
        batch: packed rows, [R, ...].
        chunk: scored columns multiplied with the vocabulary at a time; R * chunk * V float32 logits exist at once.
        stats: also entropy and top1 (two more passes over the logits, forward only); zeros when False.
    Returns: Logps of shape [R*G, K].
    """
    x_RLD = model.hidden(params, batch.token_RL, batch.position_RL, batch.expiry_RL)
    logp_RS, entropy_RS, top1_RS = _token_stats(x_RLD, model.head(params), batch, chunk, stats)
    R, G, K = batch.slot_count_RGK.shape
    per_slot = lambda x_RS: _sum_by_slot(x_RS, batch.score_slot_RS, G * K).reshape(R * G, K)
    return Logps(per_slot(logp_RS), counts(batch), per_slot(entropy_RS), per_slot(top1_RS))


def counts(batch: Batch) -> jax.Array:
    """[B, K] float32 scored tokens of every completion: data only, no model."""
    R, G, K = batch.slot_count_RGK.shape
    return batch.slot_count_RGK.reshape(R * G, K).astype(jnp.float32)


def _sum_by_slot(x_RS: jax.Array, slot_RS: jax.Array, n: int) -> jax.Array:
    """[R, n] sums; a masked sum rather than a matmul, which TPUs would round to bfloat16."""
    member_RSn = slot_RS[:, :, None] == jnp.arange(n)[None, None, :]
    return jnp.sum(jnp.where(member_RSn, x_RS[:, :, None], 0.0), axis=1)


def _token_stats(x_RLD, w_VD, batch: Batch, chunk: int, stats: bool):
    """Log-prob, entropy and top-1 hit of every scored token, each [R, S] float32, zero at padding."""
    R, S = batch.score_src_RS.shape
    padding = batch.slot_count_RGK.shape[1] * batch.slot_count_RGK.shape[2]  # the slot number G*K
    chunk = min(chunk, S)
    columns = Columns(
        _chunks(batch.score_src_RS, chunk, 0),
        _chunks(batch.score_tok_RS, chunk, 0),
        _chunks(batch.score_slot_RS < padding, chunk, False),
    )
    out = _over_chunks(x_RLD, w_VD, columns, stats)
    return tuple(jnp.moveaxis(x_ARC, 0, 1).reshape(R, -1)[:, :S] for x_ARC in out)


class Columns(NamedTuple):
    """Scored columns in A chunks of C, [A, R, C]: column of the hidden state, target id, not padding."""

    src: jax.Array
    tok: jax.Array
    real: jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _over_chunks(x_RLD, w_VD, columns: Columns, stats: bool):
    """(logp, entropy, hit), each [A, R, C].

    The gradient is written out: autodiff of the loop would keep a copy of w_VD for every chunk.
    """
    return _over_chunks_saving(x_RLD, w_VD, columns, stats)[0]


def _over_chunks_saving(x_RLD, w_VD, columns: Columns, stats: bool):
    def body(a, out):
        src_RC, tok_RC, real_RC = (x[a] for x in columns)
        *values, lse_RC = _chunk_stats(_logits(_hidden_of(x_RLD, src_RC), w_VD), tok_RC, stats)
        values = [*(jnp.where(real_RC, value, 0.0) for value in values), lse_RC]
        return tuple(x.at[a].set(value) for x, value in zip(out, values, strict=True))

    zeros = jnp.zeros(columns.src.shape, jnp.float32)
    *out, lse_ARC = lax.fori_loop(0, _chunks_in_use(columns), body, (zeros,) * 4)
    return tuple(out), (x_RLD, w_VD, columns, lse_ARC)


def _over_chunks_backward(stats, saved, cotangents):
    x_RLD, w_VD, columns, lse_ARC = saved
    dlogp_ARC = cotangents[0]
    rows_R1 = jnp.arange(x_RLD.shape[0])[:, None]

    def body(a, carry):
        dx_RLD, dw_VD = carry
        src_RC, tok_RC, real_RC = (x[a] for x in columns)
        logits_RCV, pull = jax.vjp(_logits, _hidden_of(x_RLD, src_RC), w_VD)
        # d logp / d logits = [v is the target] - p_v
        p_RCV = jnp.exp(logits_RCV - lse_ARC[a][:, :, None])
        dlogp_RC1 = jnp.where(real_RC, dlogp_ARC[a], 0.0)[:, :, None]
        dx_RCD, dw = pull(dlogp_RC1 * (_is_target(logits_RCV, tok_RC) - p_RCV))
        return dx_RLD.at[rows_R1, src_RC].add(dx_RCD.astype(jnp.float32)), dw_VD + dw

    zeros = jnp.zeros(x_RLD.shape, jnp.float32), constrain(jnp.zeros_like(w_VD), "vocab", None)
    dx_RLD, dw_VD = lax.fori_loop(0, _chunks_in_use(columns), body, zeros)
    return dx_RLD.astype(x_RLD.dtype), dw_VD, None


_over_chunks.defvjp(_over_chunks_saving, _over_chunks_backward)


def _chunks_in_use(columns: Columns) -> jax.Array:
    """Scored tokens stand in front of a row, so chunks of padding at the end are not run."""
    return jnp.any(columns.real, axis=(1, 2)).sum(dtype=jnp.int32)


def _hidden_of(x_RLD, src_RC):
    # The vocabulary is sharded over fsdp too, so each holder needs the hidden states of its whole data shard.
    x_RCD = jnp.take_along_axis(x_RLD, src_RC[:, :, None], axis=1)
    return constrain(x_RCD, "rows_replicated_fsdp", None, None)


def _logits(x_RCD, w_VD):
    return constrain(product("RCD,VD->RCV", x_RCD, w_VD), "rows_replicated_fsdp", None, "vocab")


def _is_target(logits_RCV, tok_RC):
    """[R, C, V] whether the column is the target id; comparing needs no collective when V is sharded."""
    return jnp.arange(logits_RCV.shape[-1])[None, None, :] == tok_RC[:, :, None]


def _chunk_stats(logits_RCV, tok_RC, stats: bool):
    """(logp, entropy, hit, logsumexp) of a chunk, each [R, C] float32.

    With u = logit - max and Z = sum exp(u), the entropy is log Z - sum(exp(u) u) / Z.  The expectation is a sum,
    not a dot product: with V over two mesh axes and R over a third, XLA's partitioner (jax 0.10 and 0.12) gives a wrong
    value for the dot (tests/test_step.py, mesh 2x2x2).
    """
    target_RC = jnp.sum(jnp.where(_is_target(logits_RCV, tok_RC), logits_RCV, 0.0), axis=-1)
    top_RC = logits_RCV.max(-1)
    log_z_RC = jnp.log(jnp.exp(logits_RCV - top_RC[:, :, None]).sum(-1))
    logp_RC, lse_RC = target_RC - top_RC - log_z_RC, top_RC + log_z_RC
    if not stats:
        return logp_RC, jnp.zeros_like(logp_RC), jnp.zeros_like(logp_RC), lse_RC
    # The barrier keeps XLA from merging the sums: with and without statistics, the log-prob is the same to the bit.
    logits_RCV, top_RC, log_z_RC = lax.optimization_barrier((logits_RCV, top_RC, log_z_RC))
    u_RCV = logits_RCV - top_RC[:, :, None]
    e_RCV = jnp.exp(u_RCV)
    # Numerator and denominator in one pass: jax 0.10 on a CPU takes longer for sum(e * u) than for the logits.  The
    # denominator is not the Z above, because a pass of two sums adds in another order, less exactly.
    zero = jnp.zeros((), e_RCV.dtype)
    z_RC, eu_RC = lax.reduce((e_RCV, e_RCV * u_RCV), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (2,))
    return logp_RC, log_z_RC - eu_RC / z_RC, (target_RC >= top_RC).astype(jnp.float32), lse_RC


def _chunks(x_RS, chunk, value):
    """[R, S] -> [chunks, R, C], padded with `value`."""
    x_RS = jnp.pad(x_RS, ((0, 0), (0, -x_RS.shape[1] % chunk)), constant_values=value)
    return jnp.moveaxis(x_RS.reshape(x_RS.shape[0], -1, chunk), 1, 0)
