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
from jaxpref.models.layers import gate_units
from jaxpref.models.parameters import find_leaf
from jaxpref.models.routing import Routing
from jaxpref.models.spec import ClampedSwiglu
from jaxpref.sharding import LOGICAL, logical_spec, on_devices

_LARGEST_BLOCK = 128
_SMALLEST_BLOCK = 8


class ExpertWeights(NamedTuple):
    """Of all experts: gate, up [E, D, F] and down [E, F, D], and biases [E, F] of the former two.

    The bias of `down` is added where no device has a part of the sum (`routing.mixed_bias`).
    """

    gate: Any
    up: Any
    down: Any
    gate_bias: Any = None
    up_bias: Any = None


Activation = str | ClampedSwiglu


def mix(
    x_RLD: jax.Array,
    routing: Routing,
    real_RL: jax.Array,
    weights: ExpertWeights,
    activation: Activation,
    token_axis: str | None,
) -> jax.Array:
    """Weighted sum of the chosen experts' gated MLPs, in the dtype of x.

    Padding (not `real_RL`) runs through none.

    Args:
        token_axis: as of `decoder.Decoder`.
    """
    no_expert = weights.gate.shape[0]
    expert_RLU = jnp.where(real_RL[:, :, None], routing.expert_RLU, no_expert)
    weights = on_devices(weights)  # those of one layer
    return _mix(x_RLD, expert_RLU, routing.weight_RLU, weights, activation, token_axis)


# The gradient is written out, as the same loop over blocks: how many are in use is known only when
# the program runs, and JAX differentiates no such loop.
@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _mix(x_RLD, expert_RLU, weight_RLU, weights: ExpertWeights, activation, token_axis):
    return _mix_saving(x_RLD, expert_RLU, weight_RLU, weights, activation, token_axis)[0]


def _mix_saving(x_RLD, expert_RLU, weight_RLU, weights: ExpertWeights, activation, token_axis):
    def local(x_RLD, expert_RLU, weight_RLU, weights):
        out_QD = _forward(_flat(x_RLD), _flat(expert_RLU), _flat(weight_RLU), weights, activation)
        return _sum_over("ffn", out_QD).reshape(x_RLD.shape).astype(x_RLD.dtype)

    arguments, tokens = (x_RLD, expert_RLU, weight_RLU, weights), ("rows", token_axis, None)
    out_RLD = _per_device(local, _axes_of_arguments(weights, tokens), tokens)(*arguments)
    return out_RLD, arguments


def _mix_forward(x_RLD, expert_RLU, weight_RLU, weights: ExpertWeights, activation, token_axis):
    arguments = values_of((x_RLD, expert_RLU, weight_RLU, weights))
    out_RLD, saved = _mix_saving(*arguments, activation, token_axis)
    return out_RLD, (saved, trained_mark(weights))


def _mix_backward(activation: Activation, token_axis, saved_and_mark, dout_RLD):
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
        return dx_RLD, dweight_RLU, _sum_of_tokens(dweights)

    tokens = ("rows", token_axis, None)
    outputs = tokens, tokens, _axes_of(saved[3]) if trained else None
    gradients = _per_device(local, (*_axes_of_arguments(saved[3], tokens), tokens), outputs)(
        *saved, without_symbols(dout_RLD)
    )
    dx_RLD, dweight_RLU, dweights = gradients
    if trained:
        dweights = jax.tree.map(lambda d, w: d.astype(w.dtype), dweights, saved[3])
    return dx_RLD, None, dweight_RLU, dweights


_mix.defvjp(_mix_forward, _mix_backward, symbolic_zeros=True)


# ---- on a mesh: every device runs its own tokens through its part of every expert's ffn


def _axes_of(weights: ExpertWeights) -> ExpertWeights:
    """How those of one layer lie, as the parameters do: None where a model has none."""

    def axes(name: str, w: Any) -> tuple | None:
        return None if w is None else find_leaf(f"layers/experts/{name}", w.ndim + 1).axes[1:]

    return ExpertWeights(*map(axes, ExpertWeights._fields, weights))


def _axes_of_arguments(weights: ExpertWeights, tokens: tuple) -> tuple:
    """Of x, experts, weights and parameters.

    The parameters' width is gathered before the loop over blocks, and not in every block of it.
    """
    whole = lambda axes: axes and tuple(None if axis == "width" else axis for axis in axes)
    return tokens, tokens, tokens, ExpertWeights(*map(whole, _axes_of(weights)))


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


def _sum_of_tokens(dweights: ExpertWeights | None) -> ExpertWeights | None:
    """Over all devices' tokens; each keeps its part of the width, as the parameters lie."""
    if dweights is None or jax.sharding.get_abstract_mesh().empty:
        return dweights
    width, tokens = LOGICAL["width"], (*LOGICAL["rows"], LOGICAL["tokens"])
    others = tuple(axis for axis in tokens if axis not in width)

    def scatter(d, axes):
        if d is None or "width" not in axes:
            return d if d is None else lax.psum(d, tokens)
        total = lax.psum(d, others)
        return lax.psum_scatter(total, width, scatter_dimension=axes.index("width"), tiled=True)

    return ExpertWeights(*map(scatter, dweights, _axes_of(dweights)))


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


def block_size(pairs: int, experts: int) -> int:
    """Pairs of a block, given how many (token, choice) pairs there are."""
    block = _LARGEST_BLOCK
    while block > _SMALLEST_BLOCK and block * experts > pairs:
        block //= 2
    return block


def _blocks(expert_QU: jax.Array, experts: int) -> Blocks:
    """Lays the pairs out in blocks, each of one expert.

    Args:
        expert_QU: ids below `experts`; `experts` itself for a token that runs through none.
    """
    Q, U = expert_QU.shape
    pairs = Q * U
    block = block_size(pairs, experts)
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
    """Its matrices in a dtype; biases, which are added in float32, in that."""

    def one(w):
        of_one = lax.dynamic_index_in_dim(w, expert, 0, keepdims=False)
        return of_one.astype(dtype if of_one.ndim > 1 else jnp.float32)

    return jax.tree.map(one, weights)


def _hidden(x_CD, w: ExpertWeights, activation: Activation):
    """What goes into `down`, in the dtype of x, and its pullback to the products with gate, up."""

    def projected(weight_DF, bias_F):
        y_CF = _dot("CD,DF->CF", x_CD, weight_DF)
        return (y_CF if bias_F is None else y_CF + bias_F[None]).astype(x_CD.dtype)

    gate_CF, up_CF = projected(w.gate, w.gate_bias), projected(w.up, w.up_bias)
    return jax.vjp(partial(gate_units, activation=activation), gate_CF, up_CF)


def _tokens_of(x_QD, token_C):
    """A block's tokens, zero in empty slots, whose token number is out of range."""
    return x_QD.at[token_C].get(mode="fill", fill_value=0)


def _forward(x_QD, expert_QU, weight_QU, weights: ExpertWeights, activation: Activation):
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
    x_QD,
    expert_QU,
    weight_QU,
    weights: ExpertWeights,
    dout_QD,
    activation: Activation,
    trained: bool,
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
            biases = []
            if w.gate_bias is not None:
                biases = [d_CF.astype(jnp.float32).sum(0) for d_CF in (dgate_CF, dup_CF)]
            parts = ExpertWeights(dgate_DF, dup_DF, ddown_FD, *biases)
            dweights = jax.tree.map(lambda total, d: total.at[expert].add(d), dweights, parts)
        dx_QD = dx_QD.at[token_C].add(dx_CD, mode="drop")
        dweight_QU = dweight_QU.at[token_C, choice_C].add(dweight_C, mode="drop")
        return dx_QD, dweight_QU, dweights

    zeros = lambda x: jnp.zeros(x.shape, jnp.float32)
    start = zeros(x_QD), zeros(weight_QU), jax.tree.map(zeros, weights) if trained else None
    return lax.fori_loop(0, blocks.in_use, body, start)
