"""The one decoder: thin Linen shells for names, initialisation, scan and remat around the functions of layers.py.

Outside `jaxpref/models/` nobody sees a Module: `build_model` gives a `Model`, functions over a nested dict of arrays
whose tree is documented at `ModelSpec`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpref.errors import InputError
from jaxpref.models import layers
from jaxpref.models.attention import attention
from jaxpref.models.spec import SCALAR_HEADS, ModelSpec
from jaxpref.sharding import constrain

# What the backward pass keeps of a layer's forward pass; everything else is recomputed.
REMAT_POLICIES: dict[str, Any] = {
    "none": None,  # keep everything: most memory
    "full": jax.checkpoint_policies.nothing_saveable,  # keep the layer's input only
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep the weight products
}

_init = nn.initializers.normal(0.02)


class Norm(nn.Module):
    eps: float

    @nn.compact
    def __call__(self, x_RLD):
        return layers.rms_norm(x_RLD, self.param("scale", nn.initializers.ones, (x_RLD.shape[-1],)), self.eps)


class Attention(nn.Module):
    spec: ModelSpec
    block: int

    @nn.compact
    def __call__(self, x_RLD, rope, expiry_RL):
        D, N, M, H = self.spec.width, self.spec.heads, self.spec.kv_heads, self.spec.head_dim
        q_DNH = self.param("q", _init, (D, N, H))
        k_DMH = self.param("k", _init, (D, M, H))
        v_DMH = self.param("v", _init, (D, M, H))
        o_NHD = self.param("o", _init, (N, H, D))
        q_RLNH = layers.rotate(layers.project("RLD,DNH->RLNH", x_RLD, q_DNH), *rope)
        k_RLMH = layers.rotate(layers.project("RLD,DMH->RLMH", x_RLD, k_DMH), *rope)
        v_RLMH = layers.project("RLD,DMH->RLMH", x_RLD, v_DMH)
        out_RLNH = attention(q_RLNH, k_RLMH, v_RLMH, expiry_RL, block=self.block)
        return layers.project("RLNH,NHD->RLD", out_RLNH, o_NHD)


class GatedMlp(nn.Module):
    """SwiGLU (Shazeer, arXiv 2002.05202)."""

    spec: ModelSpec

    @nn.compact
    def __call__(self, x_RLD):
        D, F = self.spec.width, self.spec.ffn
        gate_RLF = layers.project("RLD,DF->RLF", x_RLD, self.param("gate", _init, (D, F)))
        up_RLF = layers.project("RLD,DF->RLF", x_RLD, self.param("up", _init, (D, F)))
        return layers.project("RLF,FD->RLD", layers.swiglu(gate_RLF, up_RLF), self.param("down", _init, (F, D)))


class Block(nn.Module):
    """Pre-norm attention and MLP, as a scan body: (carry, broadcast...) -> (carry, nothing)."""

    spec: ModelSpec
    block: int

    @nn.compact
    def __call__(self, x_RLD, rope, expiry_RL):
        eps = self.spec.norm_eps
        x_RLD = x_RLD + Attention(self.spec, self.block, name="attention")(
            Norm(eps, name="attention_norm")(x_RLD), rope, expiry_RL
        )
        x_RLD = x_RLD + GatedMlp(self.spec, name="mlp")(Norm(eps, name="mlp_norm")(x_RLD))
        return constrain(x_RLD, "rows", None, None), None


class Embed(nn.Module):
    spec: ModelSpec

    @nn.compact
    def __call__(self, token_RL, dtype):
        table_VD = self.param("table", _init, (self.spec.vocab, self.spec.width))
        # The vocabulary lies over fsdp and tensor, so every holder looks up all rows of its data shard; the rows are
        # spread over fsdp again right after.
        x_RLD = constrain(
            table_VD[constrain(token_RL, "rows_replicated_fsdp", None)], "rows_replicated_fsdp", None, None
        )
        return constrain(x_RLD.astype(dtype), "rows", None, None)


class Head(nn.Module):
    """Only names the untied head's weight; the product with it is chunked in logprobs.py."""

    spec: ModelSpec

    @nn.compact
    def __call__(self):
        return self.param("kernel", _init, (self.spec.vocab, self.spec.width))


class Decoder(nn.Module):
    spec: ModelSpec
    dtype: Any
    remat: str
    block: int
    scan: bool

    @nn.compact
    def __call__(self, token_RL, position_RL, expiry_RL):
        spec = self.spec
        x_RLD = Embed(spec, name="embed")(token_RL, self.dtype)
        rope = layers.rope_tables(position_RL, spec)
        body = Block
        if self.remat != "none":
            body = nn.remat(Block, policy=REMAT_POLICIES[self.remat], prevent_cse=not self.scan)
        stacked = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=spec.layers,
            unroll=1 if self.scan else spec.layers,
        )
        x_RLD, _ = stacked(spec, self.block, name="layers")(x_RLD, rope, expiry_RL)
        x_RLD = Norm(spec.norm_eps, name="final_norm")(x_RLD)
        if not spec.tied:
            Head(spec, name="head")()
        return x_RLD


@dataclass(frozen=True)
class Model:
    """A language model as functions over a nested dict of arrays; the rest of jaxpref sees only this.

    A model of one's own needs the same three functions.
    """

    init: Callable[[jax.Array], Any]
    """key -> params, float32."""
    hidden: Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]
    """(params, token_RL, position_RL, expiry_RL) -> final hidden states [R, L, D], normed, in the compute dtype."""
    head: Callable[[Any], jax.Array]
    """params -> unembedding [V, D]."""


def build_model(
    spec: ModelSpec,
    *,
    dtype: Any = jnp.float32,
    remat: str = "full",
    attention_block: int = 128,
    scan: bool = True,
    scalar_heads: Sequence[str] = (),
) -> Model:
    """The decoder of `spec` as a `Model`.

    Args:
        dtype: compute dtype of activations and weight products; norms, softmax and log-probs stay float32.
        remat: a name of REMAT_POLICIES.
        attention_block: columns of an attention block; L must be a multiple.
        scalar_heads: names of linear maps of the final hidden state to one number (`reward`, `value`), [1, D] each;
            they start at zero.
        scan: False unrolls the layers (compile time grows with depth; for tests and inspection).
    Errors: InputError for an unknown remat policy or sizes that do not fit together.
    """
    if remat not in REMAT_POLICIES:
        raise InputError(f"a remat policy of {sorted(REMAT_POLICIES)}", f"model.remat={remat!r}", "choose one of them")
    if spec.heads % spec.kv_heads:
        raise InputError(
            "query heads that are a multiple of key/value heads",
            f"{spec.heads} and {spec.kv_heads}",
            "correct the model's config.json",
        )
    module = Decoder(spec, dtype, remat, attention_block, scan)

    def init(key):
        token_RL = jnp.zeros((1, attention_block), jnp.int32)
        params = module.init(key, token_RL, token_RL, token_RL)["params"]
        heads = {name: jnp.zeros((1, spec.width)) for name in scalar_heads}
        return params | {SCALAR_HEADS: heads} if heads else params

    def hidden(params, token_RL, position_RL, expiry_RL):
        decoder = {name: leaf for name, leaf in params.items() if name != SCALAR_HEADS}
        return module.apply({"params": decoder}, token_RL, position_RL, expiry_RL)

    def head(params):
        return params["embed"]["table"] if spec.tied else params["head"]["kernel"]

    return Model(init=init, hidden=hidden, head=head)
