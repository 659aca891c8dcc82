"""Hidden states -> log-probabilities of the loss tokens, summed per completion.

The values of single tokens, and the product with the vocabulary, are in chunked_head.py.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.errors import InputError
from jaxpref.models.chunked_head import States, Vocabulary, token_values
from jaxpref.models.context import tokens_at
from jaxpref.models.model import Model
from jaxpref.models.parameters import SCALAR_HEADS
from jaxpref.types import Batch


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
    """Log-probability of n of its tokens, drawn anew every step.

    They are the same ones under policy and reference.
    """
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
    """[B, 2, E] how often each expert was chosen (no gradient), and its router probability.

    Summed over all layers and all tokens of all completions, each with its prompt.
    """
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
        prompt_RG = _sum_by_slot(token_RS["logp"], batch.loss_slot_RS, G * K, G)
        extra["prompt"] = prompt_RG.reshape(R * G)
        extra["prompt_count"] = batch.prompt_count_RG.reshape(R * G).astype(jnp.float32)
    if "reward" in asked:
        filled_BK = counts(batch) > 0
        reward_BK = _scalar_head(params, "reward", x_RLD, batch.last_RGK, slots)
        extra["reward"] = jnp.where(filled_BK, reward_BK, 0.0)
    if "value" in asked:
        at_RG = batch.prompt_last_RG
        value_RG = _scalar_head(params, "value", x_RLD, jnp.maximum(at_RG, 0), (R, G))
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
    weights_RLO = _objective_weights(batch, model.weight_columns)
    optional = {
        "key": key,
        "noise": batch.noise,
        "weights_RLO": weights_RLO,
        "pictures": batch.pictures,
    }
    optional = {name: x for name, x in optional.items() if x is not None}  # a model may lack them
    if not router:
        return States(model.hidden(*inputs, **optional), model.head(params))
    if model.hidden_and_router is None:
        raise InputError(
            "a mixture of experts",
            "a model without a router",
            "remove the objective router_balance, or train a mixture of experts",
        )
    hidden_RLD, router_RL2E = model.hidden_and_router(*inputs, **optional)
    return States(hidden_RLD, model.head(params), router_RL2E)


def _objective_weights(batch: Batch, columns: Sequence[str]) -> jax.Array | None:
    """[R, L, O] the objective weights of the group that a token belongs to; 0 for padding.

    None for a batch without them, as an adapter at given weights is asked with.
    """
    if not columns or columns[0] not in batch.columns:
        return None
    weights_RGO = jnp.stack([batch.columns[name] for name in columns], axis=-1)
    number_11G = 1 + jnp.arange(weights_RGO.shape[1])[None, None, :]
    member_RLG = batch.segment_RL[:, :, None] == number_11G
    return jnp.sum(jnp.where(member_RLG[..., None], weights_RGO[:, None], 0.0), axis=2)


def reference_logps(
    model: Model, ref_states: States, batch: Batch, *, chunk: int, asked: Sequence[str] = ()
) -> Logps:
    """The same of the reference, without gradient and statistics.

    Of the optional fields it has those that are log-probs.
    """
    kept = tuple(name for name in asked if name == "tokens")
    logps, _ = _summed(Vocabulary.of(model), ref_states, batch, chunk, False, kept, None)
    return lax.stop_gradient(logps)


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
    token_RS = token_values(vocabulary, states, ref_states, batch, chunk, stats, asked)
    logp_RS = token_RS["logp"]
    logps = Logps(
        sum=sums_of_completions(logp_RS, batch),
        count=counts(batch),
        entropy=sums_of_completions(token_RS["entropy"], batch),
        top1=sums_of_completions(token_RS["top1"], batch),
    )
    optional = {}
    for name, mask_RS in batch.masks.items():
        optional[name] = sums_of_completions(mask_RS * logp_RS, batch)
    for name in ("collision", "kl"):
        if name in asked:
            optional[name] = sums_of_completions(token_RS[name], batch)
    if "tokens" in asked:
        optional["tokens"] = logp_RS
    return logps._replace(**optional), token_RS


def sums_of_completions(x_RS: jax.Array, batch: Batch) -> jax.Array:
    """Numbers of the loss tokens, summed over every completion: [B, K]."""
    R, G, K = batch.slot_count_RGK.shape
    return _sum_by_slot(x_RS, batch.loss_slot_RS, 0, G * K).reshape(R * G, K)


def counts(batch: Batch) -> jax.Array:
    """[B, K] float32 loss tokens of every completion: data only, no model."""
    R, G, K = batch.slot_count_RGK.shape
    return batch.slot_count_RGK.reshape(R * G, K).astype(jnp.float32)


def data_logps(batch: Batch, asked: Sequence[str]) -> Logps:
    """What is known of the log-probs without a model: the counts; everything else is zero."""
    count = counts(batch)
    zero_BK, zero_B = jnp.zeros_like(count), jnp.zeros_like(count[:, 0])
    extra = {name: zero_B if name in ("prompt", "value") else zero_BK for name in asked}
    if "prompt" in asked:
        extra["prompt_count"] = batch.prompt_count_RG.reshape(-1).astype(jnp.float32)
    return Logps(zero_BK, count, zero_BK, zero_BK, **extra)


def _scalar_head(
    params: Any, name: str, x_RLD: jax.Array, index: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """A scalar head at some tokens [R, ...] of the rows, in float32."""
    index_RC = index.reshape(index.shape[0], -1)
    x_RCD = tokens_at(x_RLD, index_RC).astype(jnp.float32)
    return jnp.sum(x_RCD * params[SCALAR_HEADS][name][:, None, :], axis=-1).reshape(shape)


def _router_sums(router_RL2E: jax.Array, batch: Batch) -> jax.Array:
    """[R*G, 2, E] sums over the tokens of a group's completions, each with its prompt.

    So a token counts once for every completion that it is part of, and shared prompts count as
    unshared ones do.
    """
    index = jnp.arange(router_RL2E.shape[1])[None, :, None, None]
    last_RLGK = batch.last_RGK[:, None]
    # A token is part of a completion iff the query at the completion's last token sees it.
    part_RLGK = (index <= last_RLGK) & (last_RLGK < batch.expiry_RL[:, :, None, None])
    filled_RLGK = batch.valid_RG[:, None, :, None] > 0
    times_RLG = jnp.sum(part_RLGK & filled_RLGK, axis=3, dtype=jnp.float32)
    # "highest", or a TPU would round the operands to bfloat16.
    sums_RG2E = jnp.einsum("RLG,RLsE->RGsE", times_RLG, router_RL2E, precision="highest")
    return sums_RG2E.reshape(-1, *sums_RG2E.shape[2:])


def _sum_by_slot(x_RS: jax.Array, slot_RS: jax.Array, first: int, n: int) -> jax.Array:
    """[R, n] sums of the slots from `first`.

    A masked sum, for TPUs would round a matmul's operands to bfloat16.
    """
    member_RSn = slot_RS[:, :, None] == first + jnp.arange(n)[None, None, :]
    return jnp.sum(jnp.where(member_RSn, x_RS[:, :, None], 0.0), axis=1)
