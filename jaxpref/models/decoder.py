"""The one decoder: the blocks of blocks.py under scan and remat, between an embedding and a head.

Outside `jaxpref/models/` nobody sees a Module: `build_model` gives a `Model`, functions over a
nested dict of arrays, the tree of `parameters.LEAVES`.

The layers are one scan whatever the pattern in which they alternate.  What differs between layers
of attention is numbers (a window, which rotation), scanned beside the parameters; where some layers
are of another kind, the scan goes over the periods of the pattern (`periods.py`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.errors import InputError
from jaxpref.models import deltanet, kv_cache, periods, tower, unstacked
from jaxpref.models.attention import ATTENTION, Mask, attention
from jaxpref.models.blocks import PRODUCT, WEIGHT_INIT, Block, Carry, Norm, Shared
from jaxpref.models.decoder_inputs import attend_rows, collections, layer_numbers, starts
from jaxpref.models.embedding import Embed, Seen
from jaxpref.models.lora import LoraSpec
from jaxpref.models.misfits import misfits
from jaxpref.models.model import Model
from jaxpref.models.parameters import SCALAR_HEADS, cast_for_products
from jaxpref.models.spec import Mixer, ModelSpec
from jaxpref.sharding import constrain
from jaxpref.types import Looked, Pictures

# What the backward pass keeps of a layer's forward pass; everything else is recomputed.
REMAT_POLICIES: dict[str, Any] = {
    "none": None,  # keep everything: most memory
    "full": jax.checkpoint_policies.nothing_saveable,  # keep the layer's input only
    # Keep the weight products and attention's outputs, by name: they are in functions with
    # gradients of their own, into which the policies for dot products do not look.
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT, ATTENTION),
}


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
    """Whether every layer has its own subtree, `layers_0`, ..., and memory (`unstacked.py`)."""

    @nn.compact
    def __call__(
        self,
        token_RL,
        position_RL,
        real_RL,
        visibility,
        paths=None,
        memory=None,
        noise=None,
        weights_RLO=None,
        seen=None,
        offset_RL3=None,
    ):
        spec = self.spec
        position_RL = constrain(position_RL, "rows", self.token_axis)
        embed = Embed(spec, self.vocab_rows, self.token_axis, name="embed")
        x_RLD = embed(token_RL, position_RL, self.dtype, noise, seen)
        router_RL2E = jnp.zeros((*token_RL.shape, 2, spec.experts)) if self.router else None
        rope, numbers = layer_numbers(spec, position_RL, offset_RL3)
        carry = Carry(x_RLD, {} if memory is None else memory, router_RL2E)
        shared = Shared(rope, real_RL, visibility, paths, weights_RLO)
        if self.unstacked:
            carry = self._one_by_one(carry, shared, numbers)
        elif len(set(spec.mixers)) == 1:
            carry = self._scanned(carry, shared, numbers)
        else:
            carry = self._by_period(carry, shared, numbers)
        x_RLD = Norm(spec, name="final_norm")(carry.x_RLD)
        if not spec.tied:
            Head(self.vocab_rows, spec.width, name="head")()
        return carry._replace(x_RLD=x_RLD)

    def _block(self, mixer: Mixer, **options):
        return Block(self.spec, self.lora, self.attend, self.token_axis, mixer, **options)

    def _one_by_one(self, carry, shared, numbers):
        memories = []
        for y, memory in enumerate(carry.memory):
            layer = jax.tree.map(lambda x, y=y: x[y], numbers)
            block = self._block(self.spec.mixers[y], name=f"layers_{y}")
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
        options = self.lora, self.attend, self.token_axis, spec.mixers[0]
        return stacked(spec, *options, name="layers")(carry, shared, numbers)[0]

    def _by_period(self, carry, shared, numbers):
        spec = self.spec
        make_block = partial(self._block, parent=None)
        if self.is_initializing():
            inputs = make_block, spec.mixers, carry, shared, jax.tree.map(lambda x: x[0], numbers)
            self.param("layers", periods.init, *inputs)
        variables = {
            name: self.get_variable(name, "layers")
            for name in ("params", "lora")
            if self.has_variable(name, "layers")
        }
        keys = None
        if self.has_rng("dropout"):
            keys = jax.random.split(self.make_rng("dropout"), spec.layers)
        checkpoint = lambda run: run
        if self.remat != "none":
            policy = REMAT_POLICIES[self.remat]
            checkpoint = partial(jax.checkpoint, policy=policy, prevent_cse=not self.scan)
        return periods.run(
            make_block,
            spec.mixers,
            periods.Stacks(variables, numbers, keys),
            carry,
            shared,
            checkpoint=checkpoint,
            unroll=not self.scan,
        )


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
    weight_columns: Sequence[str] = (),
    vocab_multiple: int = 1,
) -> Model:
    """The decoder of `spec` as a `Model`.

    Args:
        dtype: compute dtype of activations and weight products; norms, softmax and log-probs stay
            float32.
        remat: a name of REMAT_POLICIES.
        attention_block: tokens of an attention block, and of a chunk of Gated DeltaNet unless that
            is too many; L must be a multiple.
        attend: in place of the blockwise attention: (queries, keys, values, Mask, scale=,
            softcap=, sink_N= for a model with sinks, and q_start= on a mesh with a context) -> what
            `attention` returns.
        scalar_heads: names of linear maps of the final hidden state to one number (`reward`,
            `value`), [1, D] each; they start at zero.
        scan: False unrolls the layers (compile time grows with depth; for tests and inspection).
        lora: what an adapter under the params' key `lora` is.
        weight_columns: of a row's objective weights, for a conditioned adapter.
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
    if problems := list(misfits(spec)):
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
    chunk = min(attention_block, deltanet.LONGEST_CHUNK)
    if attend is None:
        attend = blockwise
    attend_packed = partial(attend_rows, partial(attend, **options))
    decoder = partial(Decoder, spec, lora, vocab_rows, dtype, remat, scan)

    def paths_of(expiry_RL):
        return deltanet.packed_paths(expiry_RL, spec.delta.taps, chunk) if spec.delta else None

    def init(key):
        # Blockwise: on a mesh, another attention may not take a single row.
        attend_one_row = partial(attend_rows, partial(blockwise, **options))
        token_RL = jnp.zeros((1, attention_block), jnp.int32)
        rows = Mask(token_RL, token_RL)
        inputs = token_RL, token_RL, token_RL > 0, rows, paths_of(token_RL)
        params = decoder(attend_one_row, "tokens").init(key, *inputs)["params"]
        if spec.vision is not None:
            params = params | tower.init(jax.random.fold_in(key, 1), spec, WEIGHT_INIT)
        heads = {name: jnp.zeros((1, spec.width)) for name in scalar_heads}
        return params | {SCALAR_HEADS: heads} if heads else params

    def look(params, pictures, key=None):
        checkpoint = None
        if remat != "none":
            checkpoint = partial(jax.checkpoint, policy=REMAT_POLICIES[remat])
        options = {"dtype": dtype, "lora": lora, "key": key, "checkpoint": checkpoint}
        patch_Rpad = tower.patch_features(spec, params, pictures, **options)
        return Looked(patch_Rpad, pictures.index_RL, pictures.offset_RL3, pictures.behind_R)

    def see(params, pictures, key=None):
        if isinstance(pictures, Pictures):
            pictures = look(params, pictures, key)
        embedding_RxD = tower.embeddings(spec, params, pictures.patch_Rpad, lora=lora, key=key)
        return Seen(embedding_RxD, pictures.index_RL)

    def run(
        router,
        params,
        token_RL,
        position_RL,
        expiry_RL,
        key=None,
        noise=None,
        weights_RLO=None,
        pictures=None,
    ):
        rngs = {} if key is None else {"dropout": key}
        visibility = Mask(expiry_RL, position_RL, start_RL=starts(spec, pictures))
        inputs = token_RL, position_RL, expiry_RL > 0, visibility, paths_of(expiry_RL)
        module = decoder(attend_packed, "tokens", router)
        optional = {"noise": noise, "weights_RLO": weights_RLO}
        if pictures is not None:
            optional |= {"seen": see(params, pictures, key), "offset_RL3": pictures.offset_RL3}
        return module.apply(collections(params, lora), *inputs, **optional, rngs=rngs)

    def hidden(*inputs, **optional):
        return run(False, *inputs, **optional).x_RLD

    def hidden_and_router(*inputs, **optional):
        carry = run(True, *inputs, **optional)
        return carry.x_RLD, carry.router_RL2E

    def head(params):
        return params["embed"]["table"] if spec.tied else params["head"]["kernel"]

    def new_cache(rows, length):
        return kv_cache.init_cache(spec, rows, length, dtype)

    def extend(params, token_RC, position_RC, cache, index, pictures=None):
        position_RI = lax.dynamic_update_slice_in_dim(cache["position"], position_RC, index, 1)
        first_RI = position_RI
        if (start_RC := starts(spec, pictures)) is not None:
            # As positions; all tokens of a tile are in this call (`Model.pictures_whole`).
            start_RC = position_RC - (jnp.arange(start_RC.shape[1])[None] - start_RC)
            first_RI = lax.dynamic_update_slice_in_dim(first_RI, start_RC, index, 1)
        positions = kv_cache.CachePositions(position_RC, position_RI, index, first_RI)
        attend_cached = partial(kv_cache.attend, **options)
        module = decoder(attend_cached, None, unstacked="layers" not in params)
        real_RC, paths = position_RC >= 0, None
        if spec.delta is not None:
            paths = deltanet.cached_paths(real_RC, spec.delta.taps, chunk)
        inputs = token_RC, position_RC, real_RC, positions, paths, cache["layers"]
        optional, kept = kv_cache.offsets(cache, token_RC, pictures)
        seen = None if pictures is None else see(params, pictures)
        carry = module.apply(collections(params, lora), *inputs, seen=seen, **optional)
        return carry.x_RLD, {"layers": carry.memory, "position": position_RI, **kept}

    def unstack_layers(params):
        # Cast here, once: a product would cast its weight at every token.
        return unstacked.unstack_layers(spec.mixers, cast_for_products(params, dtype))

    return Model(
        init=init,
        hidden=hidden,
        head=head,
        vocab=spec.vocab,
        logit_softcap=spec.logit_softcap,
        logit_divisor=spec.logit_divisor,
        experts=spec.experts,
        weight_columns=tuple(weight_columns),
        hidden_and_router=hidden_and_router if spec.experts else None,
        look=look if spec.vision else None,
        pictures_whole=spec.vision is not None and spec.vision.mutual,
        init_cache=new_cache,
        extend=extend,
        unstack_layers=unstack_layers,
        unstack_cache=partial(kv_cache.unstack_layers, spec),
    )
