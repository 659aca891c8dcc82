"""Mixture of experts: every token runs through the MLPs that the router chooses for it.

No token is dropped.  The (token, expert) pairs are laid out sorted by expert, each expert's share
filled up to whole blocks, and one loop runs over the blocks in use: a block reads the weights of
one expert.  So the cost is that of the pairs, on every backend (`jax.lax.ragged_dot` runs all
experts on all tokens anywhere but on TPUs), and there is no capacity.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.models.frozen import trained_mark, values_of, without_symbols
from jaxpref.models.layers import ACTIVATIONS, product
from jaxpref.models.parameters import find_leaf
from jaxpref.sharding import LOGICAL, logical_spec

_LARGEST_BLOCK = 128
_SMALLEST_BLOCK = 8


class Routing(NamedTuple):
    """What the router says of every token."""

    probability_RLE: jax.Array
    """float32, softmax over all experts."""
    expert_RLU: jax.Array
    """int32 ids of the chosen experts, U per token."""
    weight_RLU: jax.Array
    """float32 weights of their outputs."""


def route(x_RLD: jax.Array, router_DE: jax.Array, per_token: int, norm_topk: bool) -> Routing:
    """The most probable experts of every token.

    Source: Shazeer et al., arXiv 1701.06538; the softmax is over all experts, before the choice, as
    in Mixtral (`norm_topk`: the chosen probabilities are divided by their sum) and Qwen3-MoE.
    """
    probability_RLE = jax.nn.softmax(product("RLD,DE->RLE", x_RLD, router_DE), axis=-1)
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


class ExpertWeights(NamedTuple):
    """Of all experts: gate, up [E, D, F] and down [E, F, D]."""

    gate: Any
    up: Any
    down: Any


def mix(
    x_RLD: jax.Array, routing: Routing, real_RL: jax.Array, weights: ExpertWeights, activation: str
) -> jax.Array:
    """Weighted sum of the chosen experts' gated MLPs, in the dtype of x.

    Padding (not `real_RL`) runs through none.
    """
    no_expert = weights.gate.shape[0]
    expert_RLU = jnp.where(real_RL[:, :, None], routing.expert_RLU, no_expert)
    return _mix(x_RLD, expert_RLU, routing.weight_RLU, weights, activation)


# The gradient is written out, as the same loop over blocks: how many are in use is known only when
# the program runs, and JAX differentiates no such loop.
@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _mix(x_RLD, expert_RLU, weight_RLU, weights: ExpertWeights, activation: str):
    return _mix_saving(x_RLD, expert_RLU, weight_RLU, weights, activation)[0]


def _mix_saving(x_RLD, expert_RLU, weight_RLU, weights: ExpertWeights, activation: str):
    def local(x_RLD, expert_RLU, weight_RLU, weights):
        out_QD = _forward(_flat(x_RLD), _flat(expert_RLU), _flat(weight_RLU), weights, activation)
        return _sum_over("ffn", out_QD).reshape(x_RLD.shape).astype(x_RLD.dtype)

    out_RLD = _per_device(local, _SPECS, _ROWS)(x_RLD, expert_RLU, weight_RLU, weights)
    return out_RLD, (x_RLD, expert_RLU, weight_RLU, weights)


def _mix_forward(x_RLD, expert_RLU, weight_RLU, weights: ExpertWeights, activation: str):
    out_RLD, saved = _mix_saving(*values_of((x_RLD, expert_RLU, weight_RLU, weights)), activation)
    return out_RLD, (saved, trained_mark(weights))


def _mix_backward(activation: str, saved_and_mark, dout_RLD):
    saved, mark = saved_and_mark
    trained = mark is not None

    def local(x_RLD, expert_RLU, weight_RLU, weights, dout_RLD):
        dx_QD, dweight_QU, dweights = _backward(
            _flat(x_RLD),
            _flat(expert_RLU),
            _flat(weight_RLU),
            weights,
            _flat(dout_RLD),
            activation,
            trained,
        )
        dx_RLD = _sum_over("ffn", dx_QD).reshape(x_RLD.shape).astype(x_RLD.dtype)
        dweight_RLU = _sum_over("ffn", dweight_QU).reshape(weight_RLU.shape)
        return dx_RLD, dweight_RLU, _sum_of_rows(dweights)

    outputs = _ROWS, _ROWS, _GRADIENTS if trained else None
    gradients = _per_device(local, (*_SPECS, _ROWS), outputs)(*saved, without_symbols(dout_RLD))
    dx_RLD, dweight_RLU, dweights = gradients
    if trained:
        dweights = jax.tree.map(lambda d, w: d.astype(w.dtype), dweights, saved[3])
    return dx_RLD, None, dweight_RLU, dweights


_mix.defvjp(_mix_forward, _mix_backward, symbolic_zeros=True)


# ---- on a mesh: every device runs its own rows through its part of every expert's ffn

_ROWS = ("rows", None, None)
# Of one layer, as the parameters lie.
_GRADIENTS = ExpertWeights(
    *(find_leaf(f"layers/experts/{name}", 4).axes[1:] for name in ExpertWeights._fields)
)
# Gathered over fsdp before the loop over blocks, and not in every block of it.
_WEIGHTS = ExpertWeights(
    *(tuple(None if axis == "width" else axis for axis in axes) for axes in _GRADIENTS)
)
_SPECS = (_ROWS, _ROWS, _ROWS, _WEIGHTS)


def _per_device(function, inputs, outputs):
    if jax.sharding.get_abstract_mesh().empty:
        return function

    def is_axes(x: Any) -> bool:
        return isinstance(x, tuple) and all(name is None or isinstance(name, str) for name in x)

    def specs(tree: Any) -> Any:
        return jax.tree.map(logical_spec, tree, is_leaf=is_axes)

    return jax.shard_map(
        function, in_specs=specs(inputs), out_specs=specs(outputs), check_vma=False
    )


def _sum_over(logical: str, tree: Any) -> Any:
    """The sum over the devices of a logical axis, where there is a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return lax.psum(tree, LOGICAL[logical])


def _sum_of_rows(dweights: ExpertWeights | None) -> ExpertWeights | None:
    """Over all devices' rows; each keeps its part of the width, as the parameters lie."""
    if dweights is None or jax.sharding.get_abstract_mesh().empty:
        return dweights
    width = LOGICAL["width"]
    others = tuple(axis for axis in LOGICAL["rows"] if axis != width)

    def scatter(d, axes):
        total = lax.psum(d, others)
        return lax.psum_scatter(total, width, scatter_dimension=axes.index("width"), tiled=True)

    return ExpertWeights(*map(scatter, dweights, _GRADIENTS))


# ---- on one device: Q tokens, U experts each


def _flat(x_RLU):
    return x_RLU.reshape(-1, x_RLU.shape[-1])


class Blocks(NamedTuple):
    """The (token, expert) pairs sorted by expert, in A blocks of C slots."""

    token_AC: jax.Array
    """int32 token of the slot; Q where the slot is empty."""
    choice_AC: jax.Array
    """int32, which of the token's U choices it is."""
    expert_A: jax.Array
    """int32 expert of the block's pairs."""
    in_use: jax.Array
    """int32, blocks that hold something; they come first."""


def _blocks(expert_QU: jax.Array, experts: int) -> Blocks:
    """Lays the pairs out in blocks, each of one expert.

    Args:
        expert_QU: ids below `experts`; `experts` itself for a token that runs through none.
    """
    Q, U = expert_QU.shape
    pairs = Q * U
    block = _LARGEST_BLOCK
    while block > _SMALLEST_BLOCK and block * experts > pairs:
        block //= 2
    # Shapes are static, so there are as many blocks as the pairs may need: every expert may leave
    # one block unfilled.
    blocks = -(-pairs // block) + experts
    size_E = jnp.zeros(experts, jnp.int32).at[expert_QU.reshape(-1)].add(1, mode="drop")
    blocks_E = -(-size_E // block)
    last_E = jnp.cumsum(blocks_E)  # one past the expert's last block
    # Pairs sorted by expert (`pair_...`), those of no expert behind; a pair's slot is that of its
    # expert's first block plus its rank among the expert's pairs.
    pair_order = jnp.argsort(expert_QU.reshape(-1), stable=True)
    pair_expert = expert_QU.reshape(-1)[pair_order]
    pairs_before_E = jnp.cumsum(size_E) - size_E
    pair_rank = jnp.arange(pairs) - pairs_before_E.at[pair_expert].get(mode="fill", fill_value=0)
    first_E = last_E - blocks_E
    pair_slot = first_E.at[pair_expert].get(mode="fill", fill_value=blocks) * block + pair_rank
    empty = jnp.full(blocks * block, pairs, jnp.int32)
    pair_AC = (
        empty.at[pair_slot].set(pair_order.astype(jnp.int32), mode="drop").reshape(blocks, block)
    )
    expert_A = jnp.searchsorted(last_E, jnp.arange(blocks), side="right").astype(jnp.int32)
    return Blocks(
        token_AC=pair_AC // U,
        choice_AC=pair_AC % U,
        expert_A=jnp.minimum(expert_A, experts - 1),
        in_use=last_E[-1].astype(jnp.int32),
    )


def _dot(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _of_expert(weights: ExpertWeights, expert: jax.Array, dtype: Any) -> ExpertWeights:
    one = lambda w: lax.dynamic_index_in_dim(w, expert, 0, keepdims=False).astype(dtype)
    return jax.tree.map(one, weights)


def _hidden(x_CD, w: ExpertWeights, activation: str):
    """What goes into `down`, in the dtype of x, and its pullback to the products with gate, up."""
    gate_CF = _dot("CD,DF->CF", x_CD, w.gate).astype(x_CD.dtype)
    up_CF = _dot("CD,DF->CF", x_CD, w.up).astype(x_CD.dtype)
    return jax.vjp(lambda gate, up: ACTIVATIONS[activation](gate) * up, gate_CF, up_CF)


def _tokens_of(x_QD, token_C):
    """A block's tokens, zero in empty slots, whose token number is out of range."""
    return x_QD.at[token_C].get(mode="fill", fill_value=0)


def _forward(x_QD, expert_QU, weight_QU, weights: ExpertWeights, activation: str):
    """[Q, D] float32."""
    blocks = _blocks(expert_QU, weights.gate.shape[0])

    def body(a, out_QD):
        token_C, choice_C = blocks.token_AC[a], blocks.choice_AC[a]
        w = _of_expert(weights, blocks.expert_A[a], x_QD.dtype)
        hidden_CF, _ = _hidden(_tokens_of(x_QD, token_C), w, activation)
        weight_C = weight_QU.at[token_C, choice_C].get(mode="fill", fill_value=0)
        y_CD = _dot("CF,FD->CD", hidden_CF, w.down) * weight_C[:, None]
        return out_QD.at[token_C].add(y_CD, mode="drop")

    return lax.fori_loop(0, blocks.in_use, body, jnp.zeros(x_QD.shape, jnp.float32))


def _backward(
    x_QD, expert_QU, weight_QU, weights: ExpertWeights, dout_QD, activation: str, trained: bool
):
    """Gradients, float32, of x, of the pairs' weights and of the experts (None unless trained)."""
    blocks = _blocks(expert_QU, weights.gate.shape[0])
    dtype = x_QD.dtype

    def body(a, carry):
        dx_QD, dweight_QU, dweights = carry
        token_C, choice_C, expert = blocks.token_AC[a], blocks.choice_AC[a], blocks.expert_A[a]
        w = _of_expert(weights, expert, dtype)
        x_CD, dout_CD = _tokens_of(x_QD, token_C), _tokens_of(dout_QD, token_C)
        hidden_CF, pull = _hidden(x_CD, w, activation)
        weight_C = weight_QU.at[token_C, choice_C].get(mode="fill", fill_value=0)
        dhidden_CF = _dot("CD,FD->CF", dout_CD, w.down)
        # The output is weight * hidden @ down, so its gradient by the weight is <dout @ down^T,
        # hidden>.
        dweight_C = jnp.sum(dhidden_CF * hidden_CF, axis=-1)
        dgate_CF, dup_CF = pull((dhidden_CF * weight_C[:, None]).astype(dtype))
        dx_CD = _dot("CF,DF->CD", dgate_CF, w.gate) + _dot("CF,DF->CD", dup_CF, w.up)
        if trained:
            dy_CD = (dout_CD * weight_C[:, None]).astype(dtype)
            ddown_FD = _dot("CF,CD->FD", hidden_CF, dy_CD)
            dgate_DF, dup_DF = (_dot("CD,CF->DF", x_CD, d_CF) for d_CF in (dgate_CF, dup_CF))
            parts = ExpertWeights(dgate_DF, dup_DF, ddown_FD)
            dweights = jax.tree.map(lambda total, d: total.at[expert].add(d), dweights, parts)
        dx_QD = dx_QD.at[token_C].add(dx_CD, mode="drop")
        dweight_QU = dweight_QU.at[token_C, choice_C].add(dweight_C, mode="drop")
        return dx_QD, dweight_QU, dweights

    zeros = lambda x: jnp.zeros(x.shape, jnp.float32)
    start = zeros(x_QD), zeros(weight_QU), jax.tree.map(zeros, weights) if trained else None
    return lax.fori_loop(0, blocks.in_use, body, start)
