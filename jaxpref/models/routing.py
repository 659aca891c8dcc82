"""The router of a mixture of experts: which experts a token runs through, with what weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.models.layers import product


class Routing(NamedTuple):
    """What the router says of every token."""

    probability_RLE: jax.Array
    """float32, softmax over all experts."""
    expert_RLU: jax.Array
    """int32 ids of the chosen experts, U per token."""
    weight_RLU: jax.Array
    """float32 weights of their outputs."""


def route(
    x_RLD: jax.Array,
    router_DE: jax.Array,
    per_token: int,
    norm_topk: bool,
    bias_E: jax.Array | None = None,
) -> Routing:
    """The most probable experts of every token.

    Source: Shazeer et al., arXiv 1701.06538; the softmax is over all experts, before the choice, as
    in Mixtral (`norm_topk`: the chosen probabilities are divided by their sum) and Qwen3-MoE.  With
    `norm_topk` it is the softmax over the chosen ones' logits, as gpt-oss has it.
    """
    logits_RLE = product("RLD,DE->RLE", x_RLD, router_DE)
    if bias_E is not None:
        logits_RLE = logits_RLE + bias_E.astype(jnp.float32)[None, None]
    probability_RLE = jax.nn.softmax(logits_RLE, axis=-1)
    weight_RLU, expert_RLU = lax.top_k(probability_RLE, per_token)
    if norm_topk:
        weight_RLU = weight_RLU / weight_RLU.sum(-1, keepdims=True)
    return Routing(probability_RLE, expert_RLU, weight_RLU)


def statistics(routing: Routing) -> jax.Array:
    """[R, L, 2, E] float32 of every token: 1 for the chosen experts, and the probabilities."""
    expert_E = jnp.arange(routing.probability_RLE.shape[-1])
    chosen_RLUE = routing.expert_RLU[..., None] == expert_E[None, None, None, :]
    chosen_RLE = chosen_RLUE.any(2).astype(jnp.float32)
    return jnp.stack([chosen_RLE, routing.probability_RLE], axis=2)


def mixed_bias(routing: Routing, real_RL: jax.Array, bias_ED: jax.Array, dtype: Any) -> jax.Array:
    """Weighted sum of the chosen experts' biases behind `down`, [R, L, D]; 0 for padding."""
    expert_E = jnp.arange(bias_ED.shape[0])[None, None, None, :]
    chosen_RLUE = routing.expert_RLU[..., None] == expert_E
    weight_RLE = jnp.sum(jnp.where(chosen_RLUE, routing.weight_RLU[..., None], 0.0), axis=2)
    weight_RLE = jnp.where(real_RL[..., None], weight_RLE, 0.0)
    # "highest", or a TPU would round the operands to bfloat16.
    bias_ED = bias_ED.astype(jnp.float32)
    return jnp.einsum("RLE,ED->RLD", weight_RLE, bias_ED, precision="highest").astype(dtype)
