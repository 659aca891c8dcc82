"""One layer of the decoder: thin Linen shells for names and initialisation around the functions of
layers.py."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.models import experts, layers
from jaxpref.models.lora import LoraSpec, adapted
from jaxpref.models.spec import ModelSpec
from jaxpref.models.transposed import Transposed
from jaxpref.sharding import constrain

WEIGHT_INIT = nn.initializers.normal(0.02)


class Shared(NamedTuple):
    """What all layers read."""

    rope: tuple[jax.Array, jax.Array] | None
    """cos and sin, [R, L, 1, h]; with a leading axis of rotations where layers differ."""
    real_RL: jax.Array
    """Which columns are not padding."""
    view: Any
    """What `attend` reads."""


class Carry(NamedTuple):
    """What goes from layer to layer."""

    x_RLD: jax.Array
    memory: Any
    """What `attend` keeps; () in training."""
    router_RL2E: jax.Array | None
    """Sum of `experts.statistics` over the layers, where asked for."""


def _weigh(
    module, name: str, equation: str, x: jax.Array, shape: tuple[int, ...], bias: bool = False
) -> jax.Array:
    """x times the parameter `name`, with the adapter of this name if there is one, and
    `<name>_bias`."""
    w = _weight(module, name, shape)
    if module.has_variable("lora", name):
        key = module.make_rng("dropout") if module.has_rng("dropout") else None
        y = adapted(equation, x, w, module.get_variable("lora", name), module.lora, key)
    else:
        y = layers.product(equation, x, w)
    if bias:
        inputs, y_axes = equation.split("->")
        w_axes = inputs.split(",")[1]
        out = tuple(size for axis, size in zip(w_axes, shape, strict=True) if axis in y_axes)
        y = (
            y
            + module.param(f"{name}_bias", nn.initializers.zeros, out).astype(jnp.float32)[
                None, None
            ]
        )
    return y.astype(x.dtype)


def _weight(module, name: str, shape: tuple[int, ...]):
    if module.has_variable("params", name) and isinstance(
        w := module.get_variable("params", name), Transposed
    ):
        return w  # Linen would miss the shape
    return module.param(name, WEIGHT_INIT, shape)


class Norm(nn.Module):
    spec: ModelSpec

    @nn.compact
    def __call__(self, x_RLD):
        spec, width = self.spec, x_RLD.shape[-1]
        scale_D = _norm_scale(self, "scale", (width,))
        if spec.norm == "layer":
            bias_D = self.param("bias", nn.initializers.zeros, (width,))
            return layers.layer_norm(x_RLD, scale_D, bias_D, spec.norm_eps)
        return layers.rms_norm(x_RLD, scale_D, spec.norm_eps)


def _norm_scale(module, name: str, shape: tuple[int, ...]) -> jax.Array:
    if module.spec.norm == "rms_plus_one":
        return 1.0 + module.param(name, nn.initializers.zeros, shape).astype(jnp.float32)
    return module.param(name, nn.initializers.ones, shape)


class Attention(nn.Module):
    spec: ModelSpec
    lora: LoraSpec | None
    attend: Callable

    @nn.compact
    def __call__(self, x_RLD, memory, shared: Shared, layer):
        spec = self.spec
        D, N, M, H = spec.width, spec.heads, spec.kv_heads, spec.head_dim
        q_RLNH = _weigh(self, "q", "RLD,DNH->RLNH", x_RLD, (D, N, H), spec.qkv_bias)
        k_RLMH = _weigh(self, "k", "RLD,DMH->RLMH", x_RLD, (D, M, H), spec.qkv_bias)
        v_RLMH = _weigh(self, "v", "RLD,DMH->RLMH", x_RLD, (D, M, H), spec.qkv_bias)
        if spec.qk_norm:
            scale = lambda name, heads: _norm_scale(
                self, name, (H,) if spec.qk_norm == "head" else (heads, H)
            )
            q_RLNH = layers.rms_norm(q_RLNH, scale("q_norm", N), spec.norm_eps)
            k_RLMH = layers.rms_norm(k_RLMH, scale("k_norm", M), spec.norm_eps)
        if shared.rope is not None:
            rope = shared.rope
            if "rope" in layer:
                rope = jax.tree.map(
                    lambda x: lax.dynamic_index_in_dim(x, layer["rope"], 0, keepdims=False), rope
                )
            q_RLNH, k_RLMH = layers.rotate(q_RLNH, *rope), layers.rotate(k_RLMH, *rope)
        out_RLNH, memory = self.attend(q_RLNH, k_RLMH, v_RLMH, memory, shared.view, layer)
        return _weigh(self, "o", "RLNH,NHD->RLD", out_RLNH, (N, H, D), spec.o_bias), memory


class Mlp(nn.Module):
    spec: ModelSpec
    lora: LoraSpec | None

    @nn.compact
    def __call__(self, x_RLD):
        spec = self.spec
        D, F = spec.width, spec.ffn
        if spec.gated:
            gate_RLF = _weigh(self, "gate", "RLD,DF->RLF", x_RLD, (D, F))
            up_RLF = _weigh(self, "up", "RLD,DF->RLF", x_RLD, (D, F), spec.mlp_bias)
            hidden_RLF = layers.gated(gate_RLF, up_RLF, spec.activation)
        else:
            up_RLF = _weigh(self, "up", "RLD,DF->RLF", x_RLD, (D, F), spec.mlp_bias)
            hidden_RLF = layers.activate(up_RLF, spec.activation)
        return _weigh(self, "down", "RLF,FD->RLD", hidden_RLF, (F, D), spec.mlp_bias)


class Experts(nn.Module):
    spec: ModelSpec

    @nn.compact
    def __call__(self, x_RLD, real_RL):
        spec = self.spec
        D, E, F = spec.width, spec.experts, spec.ffn
        router_DE = self.param("router", WEIGHT_INIT, (D, E))
        shapes = {"gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}
        weights = experts.Weights(
            **{name: self.param(name, WEIGHT_INIT, shape) for name, shape in shapes.items()}
        )
        routing = experts.route(x_RLD, router_DE, spec.experts_per_token, spec.norm_topk)
        return experts.mix(x_RLD, routing, real_RL, weights, spec.activation), routing


class Block(nn.Module):
    """One layer, as a scan body: (carry, broadcast, the layer's numbers) -> (carry, nothing)."""

    spec: ModelSpec
    lora: LoraSpec | None
    attend: Callable

    @nn.compact
    def __call__(self, carry: Carry, shared: Shared, layer):
        spec, (x_RLD, memory, router_RL2E) = self.spec, carry
        norm = lambda name, x: Norm(spec, name=name)(x)
        before = norm if spec.norm_at in ("pre", "both") else lambda _, x: x
        after = norm if spec.norm_at in ("post", "both") else lambda _, x: x
        mixed_RLD, memory = Attention(spec, self.lora, self.attend, name="attention")(
            before("attention_norm", x_RLD), memory, shared, layer
        )
        x_RLD = x_RLD + after("attention_post_norm", mixed_RLD)
        normed_RLD = before("mlp_norm", x_RLD)
        if spec.experts:
            out_RLD, routing = Experts(spec, name="experts")(normed_RLD, shared.real_RL)
            if router_RL2E is not None:
                router_RL2E = router_RL2E + experts.statistics(routing)
        else:
            out_RLD = Mlp(spec, self.lora, name="mlp")(normed_RLD)
        x_RLD = x_RLD + after("mlp_post_norm", out_RLD)
        return Carry(constrain(x_RLD, "rows", None, None), memory, router_RL2E), None
