"""The product of hidden states and the LM head, and what is made of a token's logits.

The vocabulary is multiplied at loss tokens only, a chunk of them at a time, and the softmax is
reduced inside the chunk: [.., V] never exists for a row.  The backward pass computes a chunk's
logits again.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.models.context import add_at, tokens_at
from jaxpref.models.frozen import trained_mark, values_of, without_symbols
from jaxpref.models.layers import product
from jaxpref.models.model import Model
from jaxpref.sharding import constrain
from jaxpref.types import Batch

LM_HEAD = "lm_head"
"""Scope of the loops over chunks: so they are told apart in a profile, and in a plan."""

# Logit of a row of the head that is no token; finite, so that it times a probability of 0 is 0.
_NO_TOKEN = -1e30


class States(NamedTuple):
    """What a model gives for a micro-batch, before the vocabulary is multiplied."""

    hidden_RLD: jax.Array
    head_VD: jax.Array
    router_RL2E: jax.Array | None = None
    """The statistics of `Model.hidden_and_router`, where asked for."""


class Vocabulary(NamedTuple):
    """How the product of hidden states and LM head becomes logits."""

    tokens: int
    """Number of tokens; rows of the head behind them are padding."""
    softcap: float | None
    divisor: float | None

    @classmethod
    def of(cls, model: Model) -> "Vocabulary":
        return cls(model.vocab, model.logit_softcap, model.logit_divisor)


def logits(model: Model, x_RCD: jax.Array, head_VD: jax.Array) -> jax.Array:
    """[R, C, V] float32 logits of hidden states; -1e30 where the head has no token."""
    return _logits(Vocabulary.of(model), x_RCD, head_VD)


def token_values(
    vocabulary: Vocabulary,
    states: States,
    ref_states: States | None,
    batch: Batch,
    chunk: int,
    stats: bool,
    asked: Sequence[str],
):
    """name -> [R, S] float32 of every loss token, zero at padding.

    The names are logp, entropy, top1 and, where asked for, collision and kl; arguments as of
    `logprobs.completion_logps`.
    """
    R, S = batch.loss_src_RS.shape
    G, K = batch.slot_count_RGK.shape[1:]
    chunk = min(chunk, S)
    tokens = LossTokens(
        source=_chunks(batch.loss_src_RS, chunk, 0),
        target=_chunks(batch.loss_tok_RS, chunk, 0),
        real=_chunks(batch.loss_slot_RS < G * (K + 1), chunk, False),
    )
    wanted = Wanted(stats, "collision" in asked, "kl" in asked, vocabulary)
    out = _over_chunks(states.hidden_RLD, states.head_VD, ref_states, tokens, wanted)
    return {name: jnp.moveaxis(x_ARC, 0, 1).reshape(R, -1)[:, :S] for name, x_ARC in out.items()}


class Wanted(NamedTuple):
    """What is computed of a chunk besides the log-prob."""

    stats: bool
    collision: bool
    kl: bool
    vocabulary: Vocabulary


class LossTokens(NamedTuple):
    """Loss tokens in A chunks of C, [A, R, C]."""

    source: jax.Array
    """int32 index of the hidden state that predicts the token."""
    target: jax.Array
    """int32 id of the token."""
    real: jax.Array
    """Whether it is a token, and not padding."""


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _over_chunks(x_RLD, w_VD, ref_states, tokens: LossTokens, wanted: Wanted):
    """name -> [A, R, C].

    The gradient, of logp and kl with respect to the policy, is written out: autodiff of the loop
    would keep a copy of w_VD for every chunk.
    """
    return _over_chunks_saving(x_RLD, w_VD, ref_states, tokens, wanted)[0]


def _over_chunks_saving(x_RLD, w_VD, ref_states, tokens: LossTokens, wanted: Wanted):
    def body(a, out):
        source_RC, target_RC, real_RC = (x[a] for x in tokens)
        logits_RCV = _logits(wanted.vocabulary, _hidden_of(x_RLD, source_RC), w_VD)
        values, lse_RC = _chunk_values(logits_RCV, target_RC, wanted)
        if wanted.kl:
            logq_RCV = _reference_logp(wanted.vocabulary, ref_states, source_RC)
            q_RCV = jnp.exp(logq_RCV)
            log_ratio_RCV = logq_RCV - logits_RCV + lse_RC[:, :, None]
            values["kl"] = jnp.sum(q_RCV * log_ratio_RCV, axis=-1)
        values = {name: jnp.where(real_RC, value, 0.0) for name, value in values.items()}
        values["lse"] = lse_RC
        return {name: x.at[a].set(values[name]) for name, x in out.items()}

    optional = [name for name in ("collision", "kl") if getattr(wanted, name)]
    names = ["logp", "entropy", "top1", *optional, "lse"]
    zeros = jnp.zeros(tokens.source.shape, jnp.float32)
    with jax.named_scope(LM_HEAD):
        out = lax.fori_loop(0, _chunks_in_use(tokens), body, dict.fromkeys(names, zeros))
    lse_ARC = out.pop("lse")
    return out, (x_RLD, w_VD, ref_states, tokens, lse_ARC)


def _over_chunks_forward(x_RLD, w_VD, ref_states, tokens: LossTokens, wanted: Wanted):
    out, saved = _over_chunks_saving(*values_of((x_RLD, w_VD, ref_states, tokens)), wanted)
    return out, (saved, trained_mark(w_VD))


def _over_chunks_backward(wanted, saved, cotangents):
    (x_RLD, w_VD, ref_states, tokens, lse_ARC), mark = saved
    cotangents, trained = without_symbols(cotangents), mark is not None

    def body(a, carry):
        dx_RLD, dw_VD = carry
        source_RC, target_RC, real_RC = (x[a] for x in tokens)

        def cotangent(name):
            return jnp.where(real_RC, cotangents[name][a], 0.0)[:, :, None]

        logits_of = partial(_logits, wanted.vocabulary)
        logits_RCV, pull = jax.vjp(logits_of, _hidden_of(x_RLD, source_RC), w_VD)
        # d logp / d logits = [v is the target] - p_v
        p_RCV = jnp.exp(logits_RCV - lse_ARC[a][:, :, None])
        dlogits_RCV = cotangent("logp") * (_is_target(logits_RCV, target_RC) - p_RCV)
        if wanted.kl:  # d KL(q || p) / d logits = p_v - q_v
            dkl_RC1 = cotangent("kl")
            logq_RCV = _reference_logp(wanted.vocabulary, ref_states, source_RC)
            dlogits_RCV += dkl_RC1 * (p_RCV - jnp.exp(logq_RCV))
        dx_RCD, dw = pull(dlogits_RCV)
        # Added, not set: one hidden state may predict the first tokens of several completions.
        dx_RLD = add_at(dx_RLD, source_RC, dx_RCD.astype(jnp.float32))
        return dx_RLD, dw_VD + dw if trained else None

    dw_VD = constrain(jnp.zeros_like(w_VD), "vocab", None) if trained else None
    dx_RLD = constrain(jnp.zeros(x_RLD.shape, jnp.float32), "rows", "tokens", None)
    with jax.named_scope(LM_HEAD):
        dx_RLD, dw_VD = lax.fori_loop(0, _chunks_in_use(tokens), body, (dx_RLD, dw_VD))
    return dx_RLD.astype(x_RLD.dtype), dw_VD, jax.tree.map(jnp.zeros_like, ref_states), None


_over_chunks.defvjp(_over_chunks_forward, _over_chunks_backward, symbolic_zeros=True)


def _reference_logp(vocabulary: Vocabulary, ref_states: States, source_RC):
    """log q of a chunk under the reference, [R, C, V]."""
    x_RCD = _hidden_of(ref_states.hidden_RLD, source_RC)
    return jax.nn.log_softmax(_logits(vocabulary, x_RCD, ref_states.head_VD), axis=-1)


def _chunks_in_use(tokens: LossTokens) -> jax.Array:
    """Loss tokens stand in front of a row, so chunks of padding at the end are not run."""
    return jnp.any(tokens.real, axis=(1, 2)).sum(dtype=jnp.int32)


def _hidden_of(x_RLD, source_RC):
    # The vocabulary is sharded over fsdp and context too, so each holder needs the hidden states of
    # its whole data shard, of one chunk at a time.
    return constrain(tokens_at(x_RLD, source_RC), "rows_replicated_fsdp", None, None)


def _logits(vocabulary: Vocabulary, x_RCD, w_VD):
    logits_RCV = product("RCD,VD->RCV", x_RCD, w_VD)
    if vocabulary.divisor is not None:
        logits_RCV = logits_RCV / vocabulary.divisor
    if vocabulary.softcap is not None:
        logits_RCV = vocabulary.softcap * jnp.tanh(logits_RCV / vocabulary.softcap)
    if vocabulary.tokens < w_VD.shape[0]:
        is_token_V = jnp.arange(w_VD.shape[0]) < vocabulary.tokens
        logits_RCV = jnp.where(is_token_V[None, None], logits_RCV, _NO_TOKEN)
    return constrain(logits_RCV, "rows_replicated_fsdp", None, "vocab")


def _is_target(logits_RCV, id_RC):
    """[R, C, V] whether v is the target id; comparing needs no collective when V is sharded."""
    return jnp.arange(logits_RCV.shape[-1])[None, None, :] == id_RC[:, :, None]


def _chunk_values(logits_RCV, id_RC, wanted: Wanted):
    """(name -> values of a chunk, its logsumexp), each [R, C] float32.

    With u = logit - max and Z = sum exp(u), the entropy is log Z - sum(exp(u) u) / Z.  The
    expectation is a sum, not a dot product: with V over two mesh axes and R over a third, XLA's
    partitioner (jax 0.10 and 0.12) gives a wrong value for the dot (tests/step/test_step.py, mesh
    2x2x2).
    """
    target_RC = jnp.sum(jnp.where(_is_target(logits_RCV, id_RC), logits_RCV, 0.0), axis=-1)
    top_RC = logits_RCV.max(-1)
    log_z_RC = jnp.log(jnp.exp(logits_RCV - top_RC[:, :, None]).sum(-1))
    logp_RC, lse_RC = target_RC - top_RC - log_z_RC, top_RC + log_z_RC
    values = {"logp": logp_RC, "entropy": jnp.zeros_like(logp_RC), "top1": jnp.zeros_like(logp_RC)}
    if wanted.collision:  # log sum_v p(v)^2
        twice_RC = jnp.log(jnp.exp(2.0 * (logits_RCV - top_RC[:, :, None])).sum(-1))
        values["collision"] = lax.stop_gradient(twice_RC - 2.0 * log_z_RC)
    if not wanted.stats:
        return values, lse_RC
    # The barrier keeps XLA from merging the sums: with and without statistics, the log-prob is the
    # same to the bit.
    logits_RCV, top_RC, log_z_RC = lax.optimization_barrier((logits_RCV, top_RC, log_z_RC))
    u_RCV = logits_RCV - top_RC[:, :, None]
    e_RCV = jnp.exp(u_RCV)
    # Numerator and denominator in one pass: jax 0.10 on a CPU takes longer for sum(e * u) than for
    # the logits.  The denominator is not the Z above, because a pass of two sums adds in another
    # order, less exactly.
    zero = jnp.zeros((), e_RCV.dtype)
    both_sums = lambda a, b: (a[0] + b[0], a[1] + b[1])
    z_RC, eu_RC = lax.reduce((e_RCV, e_RCV * u_RCV), (zero, zero), both_sums, (2,))
    values["entropy"] = log_z_RC - eu_RC / z_RC
    values["top1"] = (target_RC >= top_RC).astype(jnp.float32)
    return values, lse_RC


def _chunks(x_RS, chunk, value):
    """[R, S] -> [chunks, R, C], padded with `value`."""
    x_RS = jnp.pad(x_RS, ((0, 0), (0, -x_RS.shape[1] % chunk)), constant_values=value)
    return jnp.moveaxis(x_RS.reshape(x_RS.shape[0], -1, chunk), 1, 0)
