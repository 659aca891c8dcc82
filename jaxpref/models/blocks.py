"""One layer of the decoder: Linen shells around the functions of layers.py.

They give names and initial values to the parameters, whose shapes are in parameters.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxpref.models import deltanet, experts, kv_cache, layers, parameters, routing
from jaxpref.models.attention import scaled
from jaxpref.models.lora import LoraSpec, adapted
from jaxpref.models.spec import Mixer, ModelSpec
from jaxpref.models.transposed import Transposed
from jaxpref.sharding import constrain

WEIGHT_INIT = nn.initializers.normal(0.02)

PRODUCT = "product"
"""Name of what products with weights give, by which remat can keep it."""


class Shared(NamedTuple):
    """What all layers read."""

    rope: tuple[jax.Array, jax.Array] | None
    """cos and sin, [R, L, 1, h]; with a leading axis of rotations where layers differ."""
    real_RL: jax.Array
    """Which tokens are not padding."""
    visibility: Any
    """What `attend` decides by which keys a query sees."""
    paths: deltanet.Paths | None
    """How tokens follow one another, for layers of Gated DeltaNet."""
    weights_RLO: jax.Array | None = None
    """Objective weights of every token, for a conditioned adapter."""


class Carry(NamedTuple):
    """What every layer takes from the one before."""

    x_RLD: jax.Array
    memory: dict[Mixer, Any]
    """What layers of each kind keep of earlier tokens (`kv_cache.py`); empty in training."""
    router_RL2E: jax.Array | None
    """Sum of `routing.statistics` over the layers, where asked for."""


def _product(
    module, name: str, equation: str, x: jax.Array, shared: Shared, *, bias: bool = False
) -> jax.Array:
    """x times the parameter `name` and its adapter, if there is one, plus `<name>_bias`."""
    w = _weight(module, name)
    if module.has_variable("lora", name):
        key = module.make_rng("dropout") if module.has_rng("dropout") else None
        spec = module.lora.on(f"{module.name}/{name}")
        adapter = module.get_variable("lora", name)
        y = adapted(equation, x, w, adapter, spec, key, shared.weights_RLO)
    else:
        y = layers.product(equation, x, w)
    if bias:
        b = module.param(f"{name}_bias", nn.initializers.zeros, _shape(module, f"{name}_bias"))
        y = y + b.astype(jnp.float32)[None, None]
    return checkpoint_name(y.astype(x.dtype), PRODUCT)


def _weight(module, name: str):
    if module.has_variable("params", name):
        w = module.get_variable("params", name)
        if isinstance(w, Transposed):
            return w  # its shape is that of rows, which `param` would refuse
    return module.param(name, WEIGHT_INIT, _shape(module, name))


def _shape(module, name: str) -> tuple[int, ...]:
    """The shape of one layer's parameter, as the table of parameters says."""
    return parameters.model_shapes(module.spec)[f"layers/{module.name}/{name}"][1:]


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
        if spec.attention_gate:
            both_RLNgH = _product(self, "q_gate", "RLD,DNgH->RLNgH", x_RLD, shared)
            q_RLNH, gate_RLNH = both_RLNgH[..., 0, :], both_RLNgH[..., 1, :]
        else:
            q_RLNH = _product(self, "q", "RLD,DNH->RLNH", x_RLD, shared, bias=spec.qkv_bias)
        k_RLMH = _product(self, "k", "RLD,DMH->RLMH", x_RLD, shared, bias=spec.qkv_bias)
        v_RLMH = _product(self, "v", "RLD,DMH->RLMH", x_RLD, shared, bias=spec.qkv_bias)
        if spec.qk_norm:
            q_scale = _norm_scale(self, "q_norm", _shape(self, "q_norm"))
            q_RLNH = layers.rms_norm(q_RLNH, q_scale, spec.norm_eps)
            k_scale = _norm_scale(self, "k_norm", _shape(self, "k_norm"))
            k_RLMH = layers.rms_norm(k_RLMH, k_scale, spec.norm_eps)
        if shared.rope is not None:
            cos, sin = _rotation_of_layer(shared.rope, layer)
            q_RLNH, k_RLMH = layers.rotate(q_RLNH, cos, sin), layers.rotate(k_RLMH, cos, sin)
        sink_N = None
        if spec.attention_sinks:
            sink_N = self.param("sinks", nn.initializers.zeros, _shape(self, "sinks"))
        out_RLNH, memory = self.attend(
            q_RLNH, k_RLMH, v_RLMH, sink_N, memory, shared.visibility, layer
        )
        if spec.attention_gate:
            out_RLNH = out_RLNH * jax.nn.sigmoid(gate_RLNH)
        return _product(self, "o", "RLNH,NHD->RLD", out_RLNH, shared, bias=spec.o_bias), memory


def _rotation_of_layer(rope, layer):
    """cos and sin of this layer, chosen by number where the layers differ."""
    if "rope" not in layer:
        return rope
    choose = lambda x: lax.dynamic_index_in_dim(x, layer["rope"], 0, keepdims=False)
    return jax.tree.map(choose, rope)


class Delta(nn.Module):
    """Gated DeltaNet: a short convolution, the delta rule, and a norm whose result is gated."""

    spec: ModelSpec
    lora: LoraSpec | None

    @nn.compact
    def __call__(self, x_RLD, memory, shared: Shared, layer):
        spec, paths, dtype = self.spec, shared.paths, x_RLD.dtype
        kept = None if memory is None else kv_cache.kept_states(memory, layer)
        projected = {
            "q": _product(self, "q", "RLD,Dmh->RLmh", x_RLD, shared),
            "k": _product(self, "k", "RLD,Dmh->RLmh", x_RLD, shared),
            "v": _product(self, "v", "RLD,Dnv->RLnv", x_RLD, shared),
        }
        mixed = {
            name: deltanet.convolve(
                x,
                None if kept is None else kept.windows[name],
                self.param(f"{name}_taps", WEIGHT_INIT, _shape(self, f"{name}_taps")),
                paths,
            )
            for name, x in projected.items()
        }
        beta_RLn = _product(self, "beta", "RLD,Dn->RLn", x_RLD, shared)
        decay_RLn = _product(self, "decay", "RLD,Dn->RLn", x_RLD, shared)
        a_log_n = self.param("a_log", _a_log_init, _shape(self, "a_log"))
        dt_bias_n = self.param("dt_bias", nn.initializers.ones, _shape(self, "dt_bias"))
        out_RLnv, states = deltanet.gated_delta(
            mixed["q"],
            mixed["k"],
            mixed["v"],
            beta_RLn,
            decay_RLn,
            a_log_n,
            dt_bias_n,
            None if kept is None else kept.state,
            paths,
        )
        if kept is not None:
            windows = {
                name: deltanet.next_window(x, kept.windows[name], paths)
                for name, x in projected.items()
            }
            memory = kv_cache.with_states(memory, layer, kv_cache.States(windows, states))
        z_RLnv = _product(self, "z", "RLD,Dnv->RLnv", x_RLD, shared)
        scale_v = self.param("norm", nn.initializers.ones, _shape(self, "norm"))
        normed_RLnv = layers.rms_norm(out_RLnv, scale_v, spec.norm_eps)
        gated_RLnv = layers.gated(z_RLnv.astype(jnp.float32), normed_RLnv, "silu").astype(dtype)
        return _product(self, "o", "RLnv,nvD->RLD", gated_RLnv, shared), memory


def _a_log_init(key, shape):
    """Rates of decay up to 16, as transformers starts them."""
    return jnp.log(jax.random.uniform(key, shape, minval=0.01, maxval=16.0))


class Mlp(nn.Module):
    spec: ModelSpec
    lora: LoraSpec | None

    @nn.compact
    def __call__(self, x_RLD, shared: Shared):
        spec = self.spec
        if spec.gated:
            gate_RLF = _product(self, "gate", "RLD,DF->RLF", x_RLD, shared)
            up_RLF = _product(self, "up", "RLD,DF->RLF", x_RLD, shared, bias=spec.mlp_bias)
            hidden_RLF = layers.gated(gate_RLF, up_RLF, spec.activation)
        else:
            up_RLF = _product(self, "up", "RLD,DF->RLF", x_RLD, shared, bias=spec.mlp_bias)
            hidden_RLF = layers.activate(up_RLF, spec.activation)
        return _product(self, "down", "RLF,FD->RLD", hidden_RLF, shared, bias=spec.mlp_bias)


class Experts(nn.Module):
    spec: ModelSpec
    token_axis: str | None

    @nn.compact
    def __call__(self, x_RLD, real_RL):
        spec = self.spec

        def bias_if(name: str) -> jax.Array | None:
            if not spec.expert_bias:
                return None
            return self.param(name, nn.initializers.zeros, _shape(self, name))

        weights = experts.ExpertWeights(
            gate=_weight(self, "gate"),
            up=_weight(self, "up"),
            down=_weight(self, "down"),
            gate_bias=bias_if("gate_bias"),
            up_bias=bias_if("up_bias"),
        )
        chosen = routing.route(
            x_RLD,
            _weight(self, "router"),
            spec.experts_per_token,
            spec.norm_topk,
            bias_if("router_bias"),
        )
        out_RLD = experts.mix(x_RLD, chosen, real_RL, weights, spec.activation, self.token_axis)
        if (down_bias_ED := bias_if("down_bias")) is not None:
            out_RLD = out_RLD + routing.mixed_bias(chosen, real_RL, down_bias_ED, x_RLD.dtype)
        return out_RLD, chosen


class Block(nn.Module):
    """One layer, as a scan body: (carry, broadcast, the layer's numbers) -> (carry, nothing)."""

    spec: ModelSpec
    lora: LoraSpec | None
    attend: Callable
    token_axis: str | None
    """As of `decoder.Decoder`."""
    mixer: Mixer = "attention"

    @nn.compact
    def __call__(self, carry: Carry, shared: Shared, layer):
        spec, (x_RLD, memory, router_RL2E) = self.spec, carry

        def norm_if(present: bool, name: str, x: jax.Array) -> jax.Array:
            return Norm(spec, name=name)(x) if present else x

        def added(x: jax.Array, part: jax.Array) -> jax.Array:
            return x + (part if spec.residual_scale is None else scaled(part, spec.residual_scale))

        before, after = spec.norm_at in ("pre", "both"), spec.norm_at in ("post", "both")
        mix: nn.Module
        if self.mixer == "delta":
            mix = Delta(spec, self.lora, name="delta")
        else:
            mix = Attention(spec, self.lora, self.attend, name="attention")
        normed_RLD = layers.computed_once(norm_if(before, "attention_norm", x_RLD))
        mixed_RLD, own = mix(normed_RLD, memory.get(self.mixer), shared, layer)
        if memory:
            memory = memory | {self.mixer: own}
        x_RLD = added(x_RLD, norm_if(after, "attention_post_norm", mixed_RLD))
        normed_RLD = layers.computed_once(norm_if(before, "mlp_norm", x_RLD))
        if spec.experts:
            mixture = Experts(spec, self.token_axis, name="experts")
            out_RLD, chosen = mixture(normed_RLD, shared.real_RL)
            if router_RL2E is not None:
                router_RL2E = router_RL2E + routing.statistics(chosen)
        else:
            out_RLD = Mlp(spec, self.lora, name="mlp")(normed_RLD, shared)
        x_RLD = added(x_RLD, norm_if(after, "mlp_post_norm", out_RLD))
        return Carry(constrain(x_RLD, "rows", self.token_axis, None), memory, router_RL2E), None
