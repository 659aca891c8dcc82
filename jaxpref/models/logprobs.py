"""Hidden states -> log-probabilities of the loss tokens, summed per completion.

The vocabulary is multiplied at loss tokens only, a chunk of columns at a time, and the softmax is
reduced inside
the chunk: [.., V] never exists for a row.  The backward pass computes a chunk's logits again.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.errors import InputError
from jaxpref.models.decoder import Model
from jaxpref.models.frozen import trained_mark, values_of, without_symbols
from jaxpref.models.layers import product
from jaxpref.models.spec import SCALAR_HEADS
from jaxpref.sharding import constrain
from jaxpref.types import Batch

_MASKED = (
    -1e30
)  # logit of a row of the head that is no token; finite, so that it times a probability of 0 is 0


class States(NamedTuple):
    """What a model gives for a micro-batch, before the vocabulary is multiplied."""

    hidden_RLD: jax.Array
    head_VD: jax.Array
    router_RL2E: jax.Array | None = None
    """What `Model.hidden_and_router` gives beside, where asked for."""


class Vocabulary(NamedTuple):
    """What becomes of the product of hidden states and head."""

    tokens: int
    """Rows of the head behind them are padding."""
    softcap: float | None

    @classmethod
    def of(cls, model: Model) -> "Vocabulary":
        return cls(model.vocab, model.logit_softcap)


class Logps(NamedTuple):
    """Per completion, [B, K] float32; B = R*G.  Empty slots hold zeros.  Sums run over loss tokens.

    The optional fields are None unless an objective asks for them (`needs(logps=...)`).
    """

    sum: Any
    """Log-probability of the completion (nats, <= 0)."""
    count: Any
    """Loss tokens."""
    entropy: Any
    """Sum of the predictive entropies (nats), no gradient."""
    top1: Any
    """Tokens that were the most likely one, no gradient."""
    common: Any = None
    """Log-probability of the first n tokens, n the shorter of completions 0 and 1."""
    sampled: Any = None
    """Log-probability of n of its tokens, drawn anew every step, the same ones under policy and
    reference."""
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
    """[B] scalar head at the prompt's last token; 0 where the prompt is empty."""
    router: Any = None
    """[B, 2, E] sums over all layers and all tokens of all completions, each with its prompt: how
    often each expert of a mixture was chosen (no gradient), and its router probability."""
    tokens: Any = None
    """[R, S] log-probability of every loss token, in the layout of the batch; 0 for padding."""


def completion_logps(
    model: Model,
    params: Any,
    batch: Batch,
    *,
    chunk: int,
    stats: bool = True,
    asked: Sequence[str] = (),
    ref_states: States | None = None,
    key: jax.Array | None = None,
) -> Logps:
    """Log-probabilities of every completion of a micro-batch.

    Args:
        model: the functions of the language model.
        params: its parameters.
        batch: packed rows, [R, ...].
        chunk: loss tokens multiplied with the vocabulary at a time; R * chunk * V float32 logits
            exist at once.
        stats: also entropy and top1 (two more passes over the logits, forward only); zeros when
            False.
        asked: optional fields of Logps to fill.
        ref_states: the reference's, for `kl`.
        key: of the adapter's dropout; None: no dropout.
    Returns: Logps of shape [R*G, K].
    Errors: InputError when router statistics are asked of a model without experts.
    """
    states = hidden_states(model, params, batch, router="router" in asked, key=key)
    logps, token_RS = _summed(Vocabulary.of(model), states, batch, chunk, stats, asked, ref_states)
    R, G, K = batch.slot_count_RGK.shape
    slots = R * G, K
    x_RLD, extra = states.hidden_RLD, {}
    if "prompt" in asked:
        extra["prompt"] = _sum_by_slot(token_RS["logp"], batch.loss_slot_RS, G * K, G).reshape(
            R * G
        )
        extra["prompt_count"] = batch.prompt_count_RG.reshape(R * G).astype(jnp.float32)
    if "reward" in asked:
        extra["reward"] = jnp.where(
            counts(batch) > 0, _scalar(params, "reward", x_RLD, batch.last_RGK, slots), 0.0
        )
    if "value" in asked:
        at_RG = batch.prompt_last_RG
        value_RG = _scalar(params, "value", x_RLD, jnp.maximum(at_RG, 0), (R, G))
        extra["value"] = jnp.where(at_RG >= 0, value_RG, 0.0).reshape(R * G)
    if "router" in asked:
        extra["router"] = _router_sums(states.router_RL2E, batch)
    return logps._replace(**extra)


def hidden_states(
    model: Model, params: Any, batch: Batch, *, router: bool = False, key: jax.Array | None = None
) -> States:
    """The model's forward pass over a micro-batch.

    Args:
        router: also the statistics of its router.
        key: of the adapter's dropout; None: no dropout.
    """
    inputs = params, batch.token_RL, batch.position_RL, batch.expiry_RL
    dropout = {} if key is None else {"key": key}  # a model of one's own need not know of it
    if not router:
        return States(model.hidden(*inputs, **dropout), model.head(params))
    if model.hidden_and_router is None:
        raise InputError(
            "a mixture of experts", "a model without a router", "leave router_balance out"
        )
    hidden_RLD, router_RL2E = model.hidden_and_router(*inputs, **dropout)
    return States(hidden_RLD, model.head(params), router_RL2E)


def logits(model: Model, x_RCD: jax.Array, head_VD: jax.Array) -> jax.Array:
    """[R, C, V] float32 logits of hidden states, capped as the model says; -1e30 where the head has
    no token."""
    return _logits(Vocabulary.of(model), x_RCD, head_VD)


def reference_logps(
    model: Model, ref_states: States, batch: Batch, *, chunk: int, asked: Sequence[str] = ()
) -> Logps:
    """The same of the reference: no gradient, no statistics, and of the optional fields those that
    are log-probs."""
    kept = tuple(name for name in asked if name == "tokens")
    return lax.stop_gradient(
        _summed(Vocabulary.of(model), ref_states, batch, chunk, False, kept, None)[0]
    )


def _summed(
    vocabulary: Vocabulary,
    states: States,
    batch: Batch,
    chunk: int,
    stats: bool,
    asked: Sequence[str],
    ref_states: States | None,
):
    """(Logps of what is summed over a completion's tokens, the tokens' own values)."""
    token_RS = _token_stats(vocabulary, states, ref_states, batch, chunk, stats, asked)
    per_slot = lambda x_RS: sums_of_completions(x_RS, batch)
    logps = Logps(
        per_slot(token_RS["logp"]),
        counts(batch),
        per_slot(token_RS["entropy"]),
        per_slot(token_RS["top1"]),
    )
    masked = {name: per_slot(mask_RS * token_RS["logp"]) for name, mask_RS in batch.masks.items()}
    summed = {name: per_slot(token_RS[name]) for name in ("collision", "kl") if name in asked}
    tokens = {"tokens": token_RS["logp"]} if "tokens" in asked else {}
    return logps._replace(**masked, **summed, **tokens), token_RS


def sums_of_completions(x_RS: jax.Array, batch: Batch) -> jax.Array:
    """Numbers of the loss tokens, summed over every completion: [B, K]."""
    R, G, K = batch.slot_count_RGK.shape
    return _sum_by_slot(x_RS, batch.loss_slot_RS, 0, G * K).reshape(R * G, K)


def counts(batch: Batch) -> jax.Array:
    """[B, K] float32 loss tokens of every completion: data only, no model."""
    R, G, K = batch.slot_count_RGK.shape
    return batch.slot_count_RGK.reshape(R * G, K).astype(jnp.float32)


def data_logps(batch: Batch, asked: Sequence[str]) -> Logps:
    """What is known of the log-probs without a model: the counts; all else is zero."""
    count = counts(batch)
    zero_BK, zero_B = jnp.zeros_like(count), jnp.zeros_like(count[:, 0])
    extra = {name: zero_B if name in ("prompt", "value") else zero_BK for name in asked}
    if "prompt" in asked:
        extra["prompt_count"] = batch.prompt_count_RG.reshape(-1).astype(jnp.float32)
    return Logps(zero_BK, count, zero_BK, zero_BK, **extra)


def _scalar(
    params: Any, name: str, x_RLD: jax.Array, column: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """A scalar head at some columns [R, ...] of the hidden states, in float32."""
    column_RC = column.reshape(column.shape[0], -1)
    x_RCD = jnp.take_along_axis(x_RLD, column_RC[:, :, None], axis=1).astype(jnp.float32)
    return jnp.sum(x_RCD * params[SCALAR_HEADS][name][:, None, :], axis=-1).reshape(shape)


def _router_sums(router_RL2E: jax.Array, batch: Batch) -> jax.Array:
    """[R*G, 2, E]: a token counts once for every completion that it is part of, shared prompts as
    unshared ones."""
    column = jnp.arange(router_RL2E.shape[1])[None, :, None, None]
    last_RLGK = batch.last_RGK[:, None]
    part_RLGK = (column <= last_RLGK) & (last_RLGK < batch.expiry_RL[:, :, None, None])
    times_RLG = jnp.sum(
        part_RLGK & (batch.valid_RG[:, None, :, None] > 0), axis=3, dtype=jnp.float32
    )
    # "highest", or a TPU would round the operands to bfloat16.
    sums_RG2E = jnp.einsum("RLG,RLsE->RGsE", times_RLG, router_RL2E, precision="highest")
    return sums_RG2E.reshape(-1, *sums_RG2E.shape[2:])


def _sum_by_slot(x_RS: jax.Array, slot_RS: jax.Array, first: int, n: int) -> jax.Array:
    """[R, n] sums of the slots from `first`; a masked sum, for TPUs would round a matmul's operands
    to bfloat16."""
    member_RSn = slot_RS[:, :, None] == first + jnp.arange(n)[None, None, :]
    return jnp.sum(jnp.where(member_RSn, x_RS[:, :, None], 0.0), axis=1)


def _token_stats(
    vocabulary: Vocabulary,
    states: States,
    ref_states: States | None,
    batch: Batch,
    chunk: int,
    stats: bool,
    asked: Sequence[str],
):
    """name -> [R, S] float32 of every loss token, zero at padding: logp, entropy, top1 and the
    asked ones."""
    R, S = batch.loss_src_RS.shape
    G, K = batch.slot_count_RGK.shape[1:]
    chunk = min(chunk, S)
    columns = Columns(
        _chunks(batch.loss_src_RS, chunk, 0),
        _chunks(batch.loss_tok_RS, chunk, 0),
        _chunks(batch.loss_slot_RS < G * (K + 1), chunk, False),
    )
    wanted = Wanted(stats, "collision" in asked, "kl" in asked, vocabulary)
    out = _over_chunks(states.hidden_RLD, states.head_VD, ref_states, columns, wanted)
    return {name: jnp.moveaxis(x_ARC, 0, 1).reshape(R, -1)[:, :S] for name, x_ARC in out.items()}


class Wanted(NamedTuple):
    """What is computed of a chunk besides the log-prob."""

    stats: bool
    collision: bool
    kl: bool
    vocabulary: Vocabulary


class Columns(NamedTuple):
    """Loss tokens in A chunks of C, [A, R, C]: column of the hidden state, target id, not
    padding."""

    src: jax.Array
    tok: jax.Array
    real: jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _over_chunks(x_RLD, w_VD, ref_states, columns: Columns, wanted: Wanted):
    """name -> [A, R, C].

    The gradient, of logp and kl with respect to the policy, is written out: autodiff of the loop
    would keep a copy of w_VD for every chunk.
    """
    return _over_chunks_saving(x_RLD, w_VD, ref_states, columns, wanted)[0]


def _over_chunks_saving(x_RLD, w_VD, ref_states, columns: Columns, wanted: Wanted):
    def body(a, out):
        src_RC, tok_RC, real_RC = (x[a] for x in columns)
        logits_RCV = _logits(wanted.vocabulary, _hidden_of(x_RLD, src_RC), w_VD)
        values, lse_RC = _chunk_stats(logits_RCV, tok_RC, wanted)
        if wanted.kl:
            logq_RCV = _reference_logp(wanted.vocabulary, ref_states, src_RC)
            values["kl"] = jnp.sum(
                jnp.exp(logq_RCV) * (logq_RCV - logits_RCV + lse_RC[:, :, None]), axis=-1
            )
        values = {name: jnp.where(real_RC, value, 0.0) for name, value in values.items()} | {
            "lse": lse_RC
        }
        return {name: x.at[a].set(values[name]) for name, x in out.items()}

    names = [
        "logp",
        "entropy",
        "top1",
        *(n for n in ("collision", "kl") if getattr(wanted, n)),
        "lse",
    ]
    zeros = jnp.zeros(columns.src.shape, jnp.float32)
    out = lax.fori_loop(0, _chunks_in_use(columns), body, dict.fromkeys(names, zeros))
    lse_ARC = out.pop("lse")
    return out, (x_RLD, w_VD, ref_states, columns, lse_ARC)


def _over_chunks_forward(x_RLD, w_VD, ref_states, columns: Columns, wanted: Wanted):
    out, saved = _over_chunks_saving(*values_of((x_RLD, w_VD, ref_states, columns)), wanted)
    return out, (saved, trained_mark(w_VD))


def _over_chunks_backward(wanted, saved, cotangents):
    (x_RLD, w_VD, ref_states, columns, lse_ARC), mark = saved
    cotangents, trained = without_symbols(cotangents), mark is not None
    rows_R1 = jnp.arange(x_RLD.shape[0])[:, None]

    def body(a, carry):
        dx_RLD, dw_VD = carry
        src_RC, tok_RC, real_RC = (x[a] for x in columns)
        cotangent = lambda name: jnp.where(real_RC, cotangents[name][a], 0.0)[:, :, None]
        logits_RCV, pull = jax.vjp(
            partial(_logits, wanted.vocabulary), _hidden_of(x_RLD, src_RC), w_VD
        )
        # d logp / d logits = [v is the target] - p_v
        p_RCV = jnp.exp(logits_RCV - lse_ARC[a][:, :, None])
        dlogits_RCV = cotangent("logp") * (_is_target(logits_RCV, tok_RC) - p_RCV)
        if wanted.kl:  # d KL(q || p) / d logits = p_v - q_v
            dlogits_RCV += cotangent("kl") * (
                p_RCV - jnp.exp(_reference_logp(wanted.vocabulary, ref_states, src_RC))
            )
        dx_RCD, dw = pull(dlogits_RCV)
        dx_RLD = dx_RLD.at[rows_R1, src_RC].add(dx_RCD.astype(jnp.float32))
        return dx_RLD, dw_VD + dw if trained else None

    dw_VD = constrain(jnp.zeros_like(w_VD), "vocab", None) if trained else None
    zeros = jnp.zeros(x_RLD.shape, jnp.float32), dw_VD
    dx_RLD, dw_VD = lax.fori_loop(0, _chunks_in_use(columns), body, zeros)
    return dx_RLD.astype(x_RLD.dtype), dw_VD, jax.tree.map(jnp.zeros_like, ref_states), None


_over_chunks.defvjp(_over_chunks_forward, _over_chunks_backward, symbolic_zeros=True)


def _reference_logp(vocabulary: Vocabulary, ref_states: States, src_RC):
    """log q of a chunk under the reference, [R, C, V]."""
    x_RCD = _hidden_of(ref_states.hidden_RLD, src_RC)
    return jax.nn.log_softmax(_logits(vocabulary, x_RCD, ref_states.head_VD), axis=-1)


def _chunks_in_use(columns: Columns) -> jax.Array:
    """Loss tokens stand in front of a row, so chunks of padding at the end are not run."""
    return jnp.any(columns.real, axis=(1, 2)).sum(dtype=jnp.int32)


def _hidden_of(x_RLD, src_RC):
    # The vocabulary is sharded over fsdp too, so each holder needs the hidden states of its whole
    # data shard.
    x_RCD = jnp.take_along_axis(x_RLD, src_RC[:, :, None], axis=1)
    return constrain(x_RCD, "rows_replicated_fsdp", None, None)


def _logits(vocabulary: Vocabulary, x_RCD, w_VD):
    logits_RCV = product("RCD,VD->RCV", x_RCD, w_VD)
    if vocabulary.softcap is not None:
        logits_RCV = vocabulary.softcap * jnp.tanh(logits_RCV / vocabulary.softcap)
    if vocabulary.tokens < w_VD.shape[0]:
        logits_RCV = jnp.where(
            (jnp.arange(w_VD.shape[0]) < vocabulary.tokens)[None, None], logits_RCV, _MASKED
        )
    return constrain(logits_RCV, "rows_replicated_fsdp", None, "vocab")


def _is_target(logits_RCV, tok_RC):
    """[R, C, V] whether the column is the target id; comparing needs no collective when V is
    sharded."""
    return jnp.arange(logits_RCV.shape[-1])[None, None, :] == tok_RC[:, :, None]


def _chunk_stats(logits_RCV, tok_RC, wanted: Wanted):
    """(name -> values of a chunk, its logsumexp), each [R, C] float32.

    With u = logit - max and Z = sum exp(u), the entropy is log Z - sum(exp(u) u) / Z.  The
    expectation is a sum,
    not a dot product: with V over two mesh axes and R over a third, XLA's partitioner (jax 0.10 and
    0.12) gives a wrong value for the dot (tests/step/test_step.py, mesh 2x2x2).
    """
    target_RC = jnp.sum(jnp.where(_is_target(logits_RCV, tok_RC), logits_RCV, 0.0), axis=-1)
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
    #     same to the bit.
    logits_RCV, top_RC, log_z_RC = lax.optimization_barrier((logits_RCV, top_RC, log_z_RC))
    u_RCV = logits_RCV - top_RC[:, :, None]
    e_RCV = jnp.exp(u_RCV)
    # Numerator and denominator in one pass: jax 0.10 on a CPU takes longer for sum(e * u) than for
    # the logits.  The denominator is not the Z above, because a pass of two sums adds in another
    # order, less exactly.
    zero = jnp.zeros((), e_RCV.dtype)
    z_RC, eu_RC = lax.reduce(
        (e_RCV, e_RCV * u_RCV), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (2,)
    )
    values |= {
        "entropy": log_z_RC - eu_RC / z_RC,
        "top1": (target_RC >= top_RC).astype(jnp.float32),
    }
    return values, lse_RC


def _chunks(x_RS, chunk, value):
    """[R, S] -> [chunks, R, C], padded with `value`."""
    x_RS = jnp.pad(x_RS, ((0, 0), (0, -x_RS.shape[1] % chunk)), constant_values=value)
    return jnp.moveaxis(x_RS.reshape(x_RS.shape[0], -1, chunk), 1, 0)
