"""The one decoder: the blocks of blocks.py under scan and remat, between an embedding and a head.

Outside `jaxpref/models/` nobody sees a Module: `build_model` gives a `Model`, functions over a
nested dict of arrays, the tree of `parameters.LEAVES`.

The layers are one scan whatever the pattern in which they alternate: what differs between them is
numbers (a window, which rotation), scanned beside the parameters.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.errors import InputError
from jaxpref.models import kv_cache, layers
from jaxpref.models.attention import ATTENTION, Mask, attention
from jaxpref.models.blocks import PRODUCT, WEIGHT_INIT, Block, Carry, Norm, Shared
from jaxpref.models.context import spread_attention
from jaxpref.models.lora import TARGETS, LoraSpec
from jaxpref.models.model import Model
from jaxpref.models.parameters import LORA, SCALAR_HEADS, cast_for_products
from jaxpref.models.quantize import is_quantised
from jaxpref.models.spec import ClampedSwiglu, LongRope, ModelSpec
from jaxpref.models.transposed import transposed
from jaxpref.sharding import constrain, context_ways

# What the backward pass keeps of a layer's forward pass; everything else is recomputed.
REMAT_POLICIES: dict[str, Any] = {
    "none": None,  # keep everything: most memory
    "full": jax.checkpoint_policies.nothing_saveable,  # keep the layer's input only
    # Keep the weight products and attention's outputs, by name: they are in functions with
    # gradients of their own, into which the policies for dot products do not look.
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT, ATTENTION),
}

_NO_WINDOW = 2**30  # more than any position


class Embed(nn.Module):
    spec: ModelSpec
    rows: int
    """Of the table: the vocabulary and what pads it."""
    token_axis: str | None
    """As of `Decoder`."""

    @nn.compact
    def __call__(self, token_RL, position_RL, dtype):
        spec, tokens = self.spec, self.token_axis
        table_VD = self.param("table", WEIGHT_INIT, (self.rows, spec.width))
        # The vocabulary lies over fsdp and tensor, so every holder looks up all rows of its data
        # shard; the rows are spread over fsdp again right after.  Where tokens are spread over
        # context, the vocabulary is not: whole rows of hidden states would be longer.
        token_RL = constrain(token_RL, "rows_replicated_fsdp", tokens)
        if tokens is not None:
            table_VD = constrain(table_VD, "vocab_replicated_context", None)
        x_RLD = constrain(table_VD[token_RL], "rows_replicated_fsdp", tokens, None)
        x_RLD = constrain(x_RLD.astype(dtype), "rows", tokens, None)
        if spec.embed_scale is not None:
            # Rounded to the compute dtype first, as in transformers.
            x_RLD = x_RLD * jnp.asarray(spec.embed_scale, dtype)
        if spec.learned_positions:
            position_PD = self.param("position", WEIGHT_INIT, (spec.max_positions, spec.width))
            added_RLD = position_PD[jnp.maximum(position_RL, 0)].astype(dtype)
            x_RLD = x_RLD + constrain(added_RLD, "rows", tokens, None)
        return x_RLD


class Head(nn.Module):
    """Only names the untied LM head; the product with it is in chunked_head.py."""

    rows: int
    width: int

    @nn.compact
    def __call__(self):
        return self.param("kernel", WEIGHT_INIT, (self.rows, self.width))


class Decoder(nn.Module):
    spec: ModelSpec
    lora: LoraSpec | None
    vocab_rows: int
    dtype: Any
    remat: str
    scan: bool
    attend: Callable
    """(q, k, v, sinks or None, memory, visibility, layer) -> attention's output, memory."""
    token_axis: str | None
    """Logical axis of the tokens of a row: `tokens` in packed rows, None in decoding, which reads
    few at a time."""
    router: bool = False
    """Whether the router's statistics are summed."""
    unstacked: bool = False
    """Whether every layer has its own subtree, `layers_0`, ..., and memory (`_unstack_layers`)."""

    @nn.compact
    def __call__(self, token_RL, position_RL, real_RL, visibility, memory=()):
        spec = self.spec
        position_RL = constrain(position_RL, "rows", self.token_axis)
        embed = Embed(spec, self.vocab_rows, self.token_axis, name="embed")
        x_RLD = embed(token_RL, position_RL, self.dtype)
        router_RL2E = jnp.zeros((*token_RL.shape, 2, spec.experts)) if self.router else None
        rope, numbers = _layer_numbers(spec, position_RL)
        carry, shared = Carry(x_RLD, memory, router_RL2E), Shared(rope, real_RL, visibility)
        run_layers = self._one_by_one if self.unstacked else self._scanned
        carry = run_layers(carry, shared, numbers)
        x_RLD = Norm(spec, name="final_norm")(carry.x_RLD)
        if not spec.tied:
            Head(self.vocab_rows, spec.width, name="head")()
        return carry._replace(x_RLD=x_RLD)

    def _one_by_one(self, carry, shared, numbers):
        memories = []
        for y, memory in enumerate(carry.memory):
            layer = jax.tree.map(lambda x, y=y: x[y], numbers)
            name = f"layers_{y}"
            block = Block(self.spec, self.lora, self.attend, self.token_axis, name=name)
            carry, _ = block(carry._replace(memory=memory), shared, layer)
            memories.append(carry.memory)
        return carry._replace(memory=tuple(memories))

    def _scanned(self, carry, shared, numbers):
        spec, body = self.spec, Block
        if self.remat != "none":
            body = nn.remat(Block, policy=REMAT_POLICIES[self.remat], prevent_cse=not self.scan)
        stacked = nn.scan(
            body,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, 0),
            length=spec.layers,
            unroll=1 if self.scan else spec.layers,
        )
        layers = stacked(spec, self.lora, self.attend, self.token_axis, name="layers")
        return layers(carry, shared, numbers)[0]


def _layer_numbers(spec: ModelSpec, position_RL):
    """Rotations, and {name: [Y]} numbers in which the layers differ.

    What no layer has is not in the program.
    """
    numbers = {"index": jnp.arange(spec.layers)}
    if any(kind.window is not None for kind in spec.kinds):
        numbers["window"] = jnp.asarray(
            [kind.window or _NO_WINDOW for kind in spec.kinds], jnp.int32
        )
    if spec.learned_positions:
        return None, numbers
    kinds = [kind.rope for kind in spec.kinds] or ["global"]
    names = list(dict.fromkeys(kinds))
    tables = [layers.rope_tables(position_RL, spec, name) for name in names]
    if len(names) == 1:
        return tables[0], numbers
    numbers["rope"] = jnp.asarray([names.index(kind) for kind in kinds], jnp.int32)
    return jax.tree.map(lambda *x: jnp.stack(x), *tables), numbers


def build_model(
    spec: ModelSpec,
    *,
    dtype: Any = jnp.float32,
    remat: str = "full",
    attention_block: int = 128,
    attend: Callable | None = None,
    scan: bool = True,
    scalar_heads: Sequence[str] = (),
    lora: LoraSpec | None = None,
    vocab_multiple: int = 1,
) -> Model:
    """The decoder of `spec` as a `Model`.

    Args:
        dtype: compute dtype of activations and weight products; norms, softmax and log-probs stay
            float32.
        remat: a name of REMAT_POLICIES.
        attention_block: tokens of an attention block; L must be a multiple.
        attend: in place of the blockwise attention: (queries, keys, values, Mask, scale=,
            softcap=, sink_N= for a model with sinks, and q_start= on a mesh with a context) -> what
            `attention` returns.
        scalar_heads: names of linear maps of the final hidden state to one number (`reward`,
            `value`), [1, D] each; they start at zero.
        scan: False unrolls the layers (compile time grows with depth; for tests and inspection).
        lora: what an adapter under the params' key `lora` is.
        vocab_multiple: embedding and head get rows of padding up to a multiple of it.
    Errors: InputError for an unknown remat policy or sizes that do not fit together.  Positions are
        not checked here: a row may be longer than any sequence in it
        (`ModelSpec.longest_sequence`).
    """
    if remat not in REMAT_POLICIES:
        raise InputError(
            f"a remat policy of {sorted(REMAT_POLICIES)}",
            f"model.remat={remat!r}",
            "choose one of them",
        )
    if problems := list(_problems(spec)):
        raise InputError(
            "sizes that fit together",
            "; ".join(problems),
            "change these sizes in the model's config.json, or copy the original config.json again",
        )
    vocab_rows = -(-spec.vocab // vocab_multiple) * vocab_multiple
    options = {
        "scale": spec.head_dim**-0.5 if spec.attention_scale is None else spec.attention_scale,
        "softcap": spec.attention_softcap,
    }
    blockwise = partial(attention, block=attention_block)
    if attend is None:
        attend = blockwise
    attend_rows = partial(_attend_rows, partial(attend, **options))
    decoder = partial(Decoder, spec, lora, vocab_rows, dtype, remat, scan)

    def init(key):
        # Blockwise: on a mesh, another attention may not take a single row.
        attend_one_row = partial(_attend_rows, partial(blockwise, **options))
        token_RL = jnp.zeros((1, attention_block), jnp.int32)
        inputs = token_RL, token_RL, token_RL > 0, (token_RL, token_RL)
        params = decoder(attend_one_row, "tokens").init(key, *inputs)["params"]
        heads = {name: jnp.zeros((1, spec.width)) for name in scalar_heads}
        return params | {SCALAR_HEADS: heads} if heads else params

    def run(router, params, token_RL, position_RL, expiry_RL, key):
        rngs = {} if key is None else {"dropout": key}
        inputs = token_RL, position_RL, expiry_RL > 0, (expiry_RL, position_RL)
        module = decoder(attend_rows, "tokens", router)
        return module.apply(_collections(params, lora), *inputs, rngs=rngs)

    def hidden(params, token_RL, position_RL, expiry_RL, key=None):
        return run(False, params, token_RL, position_RL, expiry_RL, key).x_RLD

    def hidden_and_router(params, token_RL, position_RL, expiry_RL, key=None):
        carry = run(True, params, token_RL, position_RL, expiry_RL, key)
        return carry.x_RLD, carry.router_RL2E

    def head(params):
        return params["embed"]["table"] if spec.tied else params["head"]["kernel"]

    def new_cache(rows, length):
        return kv_cache.init_cache(spec, rows, length, dtype)

    def extend(params, token_RC, position_RC, cache, index):
        position_RI = lax.dynamic_update_slice_in_dim(cache["position"], position_RC, index, 1)
        positions = kv_cache.CachePositions(position_RC, position_RI, index)
        attend_cached = partial(kv_cache.attend, **options)
        module = decoder(attend_cached, None, unstacked="layers" not in params)
        inputs = token_RC, position_RC, position_RC >= 0, positions, cache["layers"]
        carry = module.apply(_collections(params, lora), *inputs)
        return carry.x_RLD, {"layers": carry.memory, "position": position_RI}

    def unstack_layers(params):
        # Cast here, once: a product would cast its weight at every token.
        return _unstack_layers(cast_for_products(params, dtype))

    return Model(
        init=init,
        hidden=hidden,
        head=head,
        vocab=spec.vocab,
        logit_softcap=spec.logit_softcap,
        logit_divisor=spec.logit_divisor,
        experts=spec.experts,
        hidden_and_router=hidden_and_router if spec.experts else None,
        init_cache=new_cache,
        extend=extend,
        unstack_layers=unstack_layers,
        unstack_cache=kv_cache.unstack_layers,
    )


def _attend_rows(attend, q_RLNH, k_RLMH, v_RLMH, sink_N, memory, rows, layer):
    """Attention over packed rows, as a layer calls it: there is no memory."""
    mask = Mask(*rows, layer.get("window"))
    if context_ways() > 1:
        return spread_attention(attend, q_RLNH, k_RLMH, v_RLMH, mask, sink_N), memory
    sinks = {} if sink_N is None else {"sink_N": sink_N}
    return attend(q_RLNH, k_RLMH, v_RLMH, mask, **sinks), memory


def _unstack_layers(params: Any) -> dict[str, Any]:
    """`layers_0`, `layers_1`, ... in place of `layers`, in the adapter too; weights transposed.

    Args:
        params: all, or the base or the adapter alone.
    """

    def split(tree, finish):
        if "layers" not in tree:
            return dict(tree)
        unstacked = {name: leaf for name, leaf in tree.items() if name != "layers"}
        for y in range(len(jax.tree.leaves(tree["layers"])[0])):
            layer = jax.tree.map(lambda x, y=y: x[y], tree["layers"])
            unstacked[f"layers_{y}"] = finish(layer)
        return unstacked

    unstacked = split(params, _transposed_weights)
    if LORA in params:
        unstacked[LORA] = split(params[LORA], lambda layer: layer)
    return unstacked


def _transposed_weights(layer: Mapping[str, Any]) -> dict[str, Any]:
    groups = {group: dict(leaves) for group, leaves in layer.items()}
    for target, (inputs, _) in TARGETS.items():
        group, name = target.split("/")
        w = groups.get(group, {}).get(name)
        if w is not None and not is_quantised(w):
            groups[group][name] = transposed(w, len(inputs))
    return groups


def _collections(params, lora: LoraSpec | None):
    """Linen's collections of a parameter tree."""
    if LORA in params and lora is None:
        raise InputError(
            "an adapter's LoraSpec",
            f"params[{LORA!r}] for a model built without",
            "set build_model(lora=)",
        )
    collections = {"params": {k: v for k, v in params.items() if k not in (SCALAR_HEADS, LORA)}}
    if LORA in params:
        collections["lora"] = params[LORA]
    return collections


def _problems(spec: ModelSpec) -> Iterator[str]:
    """What does not fit together in a spec."""
    if spec.heads % spec.kv_heads:
        yield f"{spec.heads} query heads are no multiple of {spec.kv_heads} key/value heads"
    if spec.kinds and len(spec.kinds) != spec.layers:
        yield f"{len(spec.kinds)} kinds of layers for {spec.layers} layers"
    if layers.rotary_dim(spec) % 2:
        yield f"{layers.rotary_dim(spec)} rotated numbers of a head are odd"
    if spec.rope_local_theta is None and any(kind.rope == "local" for kind in spec.kinds):
        yield "a layer with the local rope, and no rope_local_theta"
    rope = spec.rope_scaling
    if isinstance(rope, LongRope) and len(rope.short_factor) != layers.rotary_dim(spec) // 2:
        pairs = layers.rotary_dim(spec) // 2
        yield f"{len(rope.short_factor)} short factors for {pairs} rotated pairs"
    if spec.experts and not 0 < spec.experts_per_token <= spec.experts:
        yield f"{spec.experts_per_token} of {spec.experts} experts per token"
    if spec.experts and (spec.mlp_bias or not spec.gated):
        yield "experts that are not gated or have biases of a dense MLP"
    if spec.expert_bias and not spec.experts:
        yield "biases of experts, and no experts"
    if isinstance(spec.activation, ClampedSwiglu) and not spec.gated:
        yield "a clamped SwiGLU without a gate"
