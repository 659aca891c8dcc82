"""Hidden states -> log-probabilities of the scored tokens, summed per completion.

The vocabulary is multiplied at scored tokens only, a chunk of columns at a time, and the softmax is reduced inside
the chunk: [.., V] never exists for a row.  Under `jax.checkpoint` the backward pass recomputes a chunk's logits.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.models.decoder import Model
from jaxpref.models.layers import product
from jaxpref.sharding import constrain
from jaxpref.types import Batch


class Logps(NamedTuple):
    """Per completion, [B, K] float32; B = R*G.  Empty slots hold zeros.

    `sum`: log-probability of the completion, summed over its scored tokens (nats, <= 0).
    `count`: scored tokens.  `entropy`: sum of the predictive entropies (nats), no gradient.
    `top1`: tokens that were the most likely one, no gradient.
    """

    sum: Any
    count: Any
    entropy: Any
    top1: Any


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

    @jax.checkpoint
    def one_chunk(src_RC, tok_RC, slot_RC):
        x_RCD = jnp.take_along_axis(x_RLD, src_RC[:, :, None], axis=1)
        # The vocabulary is sharded over fsdp too, so each holder needs the hidden states of its whole data shard.
        x_RCD = constrain(x_RCD, "rows_replicated_fsdp", None, None)
        logits_RCV = product("RCD,VD->RCV", x_RCD, w_VD)
        logits_RCV = constrain(logits_RCV, "rows_replicated_fsdp", None, "vocab")
        real_RC = slot_RC < padding
        target_RC, lse_RC = _target_logit(logits_RCV, tok_RC), jax.nn.logsumexp(logits_RCV, axis=-1)
        logp_RC = jnp.where(real_RC, target_RC - lse_RC, 0.0)
        if not stats:
            return logp_RC, jnp.zeros_like(logp_RC), jnp.zeros_like(logp_RC)
        entropy_RC, hit_RC = _predictive(*lax.stop_gradient((logits_RCV, target_RC, lse_RC)))
        return logp_RC, jnp.where(real_RC, entropy_RC, 0.0), (real_RC & hit_RC).astype(jnp.float32)

    def step(_, columns):
        # Scored tokens stand in front, so whole chunks of padding at the end cost nothing.
        zeros = jnp.zeros(columns[0].shape, jnp.float32)
        some = jnp.any(columns[2] < padding)
        return None, lax.cond(some, one_chunk, lambda *_: (zeros, zeros, zeros), *columns)

    pad = -S % chunk
    columns = (
        _chunks(batch.score_src_RS, chunk, pad, 0),
        _chunks(batch.score_tok_RS, chunk, pad, 0),
        _chunks(batch.score_slot_RS, chunk, pad, padding),
    )
    _, out = lax.scan(step, None, columns)
    return tuple(jnp.moveaxis(x, 0, 1).reshape(R, S + pad)[:, :S] for x in out)


def _chunks(x_RS, chunk, pad, value):
    """[R, S] -> [chunks, R, C], padded with `value`."""
    x_RS = jnp.pad(x_RS, ((0, 0), (0, pad)), constant_values=value)
    return jnp.moveaxis(x_RS.reshape(x_RS.shape[0], -1, chunk), 1, 0)


def _target_logit(logits_RCV: jax.Array, tok_RC: jax.Array) -> jax.Array:
    """Logits of the target ids, [R, C].

    Compare-and-sum instead of a gather: it needs no collective but the sum when V is sharded.
    """
    is_target = jnp.arange(logits_RCV.shape[-1])[None, None, :] == tok_RC[:, :, None]
    return jnp.sum(jnp.where(is_target, logits_RCV, 0.0), axis=-1)


def _predictive(logits_RCV, target_RC, lse_RC):
    """Entropy and whether the target is a most likely token, both [R, C].

    The expectation is a sum, not a dot product: with V over two mesh axes and R over a third, XLA's partitioner
    (jax 0.10 and 0.12) gives a wrong value for the dot (tests/test_step.py, mesh 2x2x2).
    """
    p_RCV = jnp.exp(logits_RCV - lse_RC[:, :, None])
    mean_logit_RC = jnp.sum(p_RCV * logits_RCV, axis=-1)
    return lse_RC - mean_logit_RC, target_RC >= logits_RCV.max(-1)
