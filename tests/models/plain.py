"""A decoder written the plain way, for one sequence and every feature of ModelSpec; and specs that use them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.models.spec import (
    ClampedSwiglu,
    DeltaNet,
    LayerKind,
    LinearRope,
    Llama3Rope,
    LongRope,
    ModelSpec,
    YarnRope,
)

LLAMA = ModelSpec("llama", 61, 32, 48, 3, 4, 2, 8, 128, 1e4, 1e-5, True)
_windowed = (LayerKind(5, "local"), LayerKind(None, "global"), LayerKind(3, "local"))
SPECS = {
    name: dataclasses.replace(LLAMA, **changes)
    for name, changes in {
        "llama": {"rope_scaling": Llama3Rope(4.0, 1.0, 4.0, 16), "tied": False},
        "mistral": {"kinds": (LayerKind(4),) * 3},
        "qwen2": {"qkv_bias": True},
        "gemma2": {
            "activation": "gelu_tanh", "norm": "rms_plus_one", "norm_at": "both", "attention_softcap": 0.7,
            "logit_softcap": 1.5, "attention_scale": 0.3, "embed_scale": 32**0.5,
            "kinds": (LayerKind(5), LayerKind(), LayerKind(5)),
        },
        "gemma3": {
            "activation": "gelu_tanh", "norm": "rms_plus_one", "norm_at": "both", "qk_norm": "head",
            "attention_scale": 0.3, "embed_scale": 32**0.5, "rope_local_theta": 100.0,
            "rope_scaling": LinearRope(8.0), "kinds": _windowed,
        },
        "phi3": {
            "partial_rotary": 0.5, "tied": False,
            "rope_scaling": LongRope((1.0, 3.0), (2.0, 4.0), 64, None), "kinds": (LayerKind(7),) * 3,
        },
        "olmo2": {"norm_at": "post", "qk_norm": "whole"},
        "smollm3": {"kinds": (LayerKind(), LayerKind(rope=None), LayerKind(6, None))},
        "granite": {
            "attention_scale": 0.3, "embed_scale": 5.0, "residual_scale": 0.7, "logit_divisor": 0.4, "tied": True,
        },
        "gpt2": {
            "activation": "gelu_tanh", "gated": False, "norm": "layer", "qkv_bias": True, "o_bias": True,
            "mlp_bias": True, "learned_positions": True, "kv_heads": 4,
        },
        "all_biases": {"activation": "gelu", "o_bias": True, "mlp_bias": True},
        "gpt_oss": {
            "experts": 4, "experts_per_token": 2, "expert_bias": True, "attention_sinks": True, "qkv_bias": True,
            "o_bias": True, "activation": ClampedSwiglu(1.7, 0.4), "ffn": 16,
            "rope_scaling": YarnRope(4.0, 16, 2.0, 0.5, truncate=False),
            "kinds": (LayerKind(5), LayerKind(), LayerKind(5)),
        },
        "mixtral": {"experts": 4, "experts_per_token": 2},
        "qwen3_5": {
            "layers": 4, "kinds": (LayerKind(mixer="delta"), LayerKind()) * 2, "delta": DeltaNet(2, 4, 6, 5, 3),
            "norm": "rms_plus_one", "qk_norm": "head", "attention_gate": True, "partial_rotary": 0.5, "tied": False,
        },
        "qwen3_moe": {"experts": 6, "experts_per_token": 3, "norm_topk": False, "qk_norm": "head", "ffn": 16},
    }.items()
}  # fmt: skip


# A whole model is compiled for each; these have every feature between them.
QUICK = ("gemma2", "gemma3", "gpt2", "gpt_oss", "qwen3_moe")
EACH = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SPECS]


def random_params(model, seed=1):
    """Every leaf away from where it starts, so that leaving one out would show."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        around = 1.0 if "norm" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(around + 0.12 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def hidden(spec: ModelSpec, params, token_L, router=None):
    """[L, D] normed hidden states of one sequence; appends every layer's [L, E] router probabilities to `router`."""
    position = np.arange(len(token_L))
    x = params["embed"]["table"][token_L]
    if spec.embed_scale is not None:
        x = x * spec.embed_scale
    if spec.learned_positions:
        x = x + params["embed"]["position"][position]
    kinds = spec.kinds or (LayerKind(),) * spec.layers
    for y, kind in enumerate(kinds):
        own = sum(other.mixer == kind.mixer for other in kinds[:y])
        at = {"attention": None, "delta": None} | {kind.mixer: own}
        layer = {name: _taken(group, at.get(name, y)) for name, group in params["layers"].items()}
        x = _layer(spec, kind, layer, x, router)
    return _norm(spec, params["final_norm"], x)


def _taken(group, at):
    return None if at is None else jax.tree.map(lambda leaf: leaf[at], group)


def _layer(spec, kind, layer, x, router):
    scale = spec.residual_scale or 1.0
    if kind.mixer == "delta":
        mix = lambda x: _delta(spec, layer["delta"], x)
    else:
        mix = lambda x: _attention(spec, layer["attention"], kind, x)
    x = x + scale * _around(spec, layer, "attention", x, mix)
    if spec.experts:
        return x + scale * _around(spec, layer, "mlp", x, lambda x: _experts(spec, layer["experts"], x, router))
    return x + scale * _around(spec, layer, "mlp", x, lambda x: _mlp(spec, layer["mlp"], x))


def _around(spec, layer, name, x, function):
    if spec.norm_at != "post":
        x = _norm(spec, layer[f"{name}_norm"], x)
    x = function(x)
    return _norm(spec, layer[f"{name}_post_norm"], x) if spec.norm_at != "pre" else x


def _norm(spec, leaves, x):
    if spec.norm == "layer":
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / jnp.sqrt(x.var(-1, keepdims=True) + spec.norm_eps) * leaves["scale"][None] + leaves["bias"][None]
        )
    return _rms(spec, x, leaves["scale"][None], (-1,))


def _rms(spec, x, scale, axes):
    scale = scale + 1 if spec.norm == "rms_plus_one" else scale
    return x / jnp.sqrt((x**2).mean(axes, keepdims=True) + spec.norm_eps) * scale


def _delta(spec, leaves, x):
    """Gated DeltaNet, token by token."""
    sizes, dot = spec.delta, lambda name: jnp.tensordot(x, leaves[name], 1, precision="highest")
    silu = lambda x: x / (1 + jnp.exp(-x))
    sigmoid = lambda x: 1 / (1 + jnp.exp(-x))

    def mixed(name):
        y, taps = dot(name), leaves[f"{name}_taps"]
        y = jnp.concatenate([jnp.zeros((sizes.taps - 1, *y.shape[1:])), y])
        return silu(sum(y[t : t + len(x)] * taps[None, :, :, t] for t in range(sizes.taps)))

    def unit(y):
        y = y / jnp.sqrt((y**2).sum(-1, keepdims=True) + 1e-6)
        return jnp.repeat(y, sizes.value_heads // sizes.key_heads, axis=1)

    def step(state, token):
        q, k, v, beta, alpha = token
        state = alpha[:, None, None] * state
        error = v - jnp.einsum("nhv,nh->nv", state, k, precision="highest")
        state = state + jnp.einsum("n,nh,nv->nhv", beta, k, error, precision="highest")
        return state, jnp.einsum("nhv,nh->nv", state, q, precision="highest")

    q, k, v = unit(mixed("q")) / math.sqrt(sizes.key_size), unit(mixed("k")), mixed("v")
    alpha = jnp.exp(-jnp.exp(leaves["a_log"])[None] * jnp.log1p(jnp.exp(dot("decay") + leaves["dt_bias"][None])))
    start = jnp.zeros((sizes.value_heads, sizes.key_size, sizes.value_size))
    out = jax.lax.scan(step, start, (q, k, v, sigmoid(dot("beta")), alpha))[1]
    out = out / jnp.sqrt((out**2).mean(-1, keepdims=True) + spec.norm_eps) * leaves["norm"][None, None]
    return jnp.einsum("qnv,nvd->qd", out * silu(dot("z")), leaves["o"], precision="highest")


def _attention(spec, leaves, kind, x):
    if spec.attention_gate:
        both = jnp.tensordot(x, leaves["q_gate"], 1, precision="highest")
        leaves = leaves | {"q": leaves["q_gate"][:, :, 0]}
    q, k, v = (jnp.tensordot(x, leaves[name], 1, precision="highest") for name in "qkv")
    if spec.qkv_bias:
        q, k, v = (a + leaves[f"{name}_bias"][None] for a, name in ((q, "q"), (k, "k"), (v, "v")))
    if spec.qk_norm == "head":
        q, k = (_rms(spec, a, leaves[name][None, None], (-1,)) for a, name in ((q, "q_norm"), (k, "k_norm")))
    if spec.qk_norm == "whole":
        q, k = (_rms(spec, a, leaves[name][None], (-2, -1)) for a, name in ((q, "q_norm"), (k, "k_norm")))
    if kind.rope and not spec.learned_positions:
        q, k = _rotate(spec, kind.rope, q), _rotate(spec, kind.rope, k)
    k, v = (jnp.repeat(a, spec.heads // spec.kv_heads, axis=1) for a in (k, v))
    s = jnp.einsum("qnh,knh->nqk", q, k, precision="highest") * (spec.attention_scale or spec.head_dim**-0.5)
    if spec.attention_softcap:
        s = spec.attention_softcap * jnp.tanh(s / spec.attention_softcap)
    back = np.arange(len(x))[:, None] - np.arange(len(x))[None, :]
    s = jnp.where(((back >= 0) & (back < (kind.window or 10**6)))[None], s, -jnp.inf)
    if spec.attention_sinks:  # a key more
        sinks = jnp.broadcast_to(leaves["sinks"][:, None, None], (*s.shape[:2], 1))
        p = jax.nn.softmax(jnp.concatenate([s, sinks], axis=-1), axis=-1)[..., :-1]
    else:
        p = jax.nn.softmax(s, axis=-1)
    if spec.attention_gate:
        heads = jnp.einsum("nqk,knh->qnh", p, v, precision="highest") / (1 + jnp.exp(-both[:, :, 1]))
        return jnp.einsum("qnh,nhd->qd", heads, leaves["o"], precision="highest")
    out = jnp.einsum("nqk,knh,nhd->qd", p, v, leaves["o"], precision="highest")
    return out + leaves["o_bias"][None] if spec.o_bias else out


def _rotate(spec, rope, x):
    """As complex numbers."""
    dim = int(spec.head_dim * spec.partial_rotary)
    theta = spec.rope_theta if rope == "global" else spec.rope_local_theta
    frequency, amplitude, scaling = theta ** (-np.arange(0, dim, 2) / dim), 1.0, spec.rope_scaling
    if rope == "global" and isinstance(scaling, LinearRope):
        frequency = frequency / scaling.factor
    if rope == "global" and isinstance(scaling, LongRope):
        frequency = frequency / np.array(scaling.short_factor)
        amplitude = math.sqrt(1 + math.log(spec.max_positions / scaling.original_length, scaling.original_length))
    if rope == "global" and isinstance(scaling, YarnRope):
        amplitude = 0.1 * math.log(scaling.factor) + 1
        place = lambda turns: dim / 2 * math.log(scaling.original_length / (2 * np.pi * turns), theta)
        first, last = max(place(scaling.beta_fast), 0), min(place(scaling.beta_slow), dim - 1)
        rare = np.clip((np.arange(dim // 2) - first) / (last - first), 0, 1)
        frequency = frequency * (1 - rare) + frequency / scaling.factor * rare
    if rope == "global" and isinstance(scaling, Llama3Rope):
        turns = scaling.original_length * frequency / (2 * np.pi)
        keep = np.clip((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0, 1)
        frequency = keep * frequency + (1 - keep) * frequency / scaling.factor
    turn = amplitude * np.exp(1j * np.arange(len(x))[:, None] * frequency[None])[:, None].astype(np.complex64)
    pairs = (x[..., : dim // 2] + 1j * x[..., dim // 2 : dim]) * turn
    return jnp.concatenate([pairs.real, pairs.imag, x[..., dim:]], axis=-1)


def _act(spec, x):
    if spec.activation == "silu":
        return x / (1 + jnp.exp(-x))
    if spec.activation == "gelu":
        return x * 0.5 * (1 + jax.scipy.special.erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _mlp(spec, leaves, x):
    dot = lambda a, name: jnp.matmul(a, leaves[name], precision="highest")
    up = dot(x, "up") + (leaves["up_bias"][None] if spec.mlp_bias else 0.0)
    out = dot(_act(spec, dot(x, "gate")) * up if spec.gated else _act(spec, up), "down")
    return out + leaves["down_bias"][None] if spec.mlp_bias else out


def _experts(spec, leaves, x, router):
    """All experts on all tokens, and zero weights for those not chosen."""
    scores = jnp.matmul(x, leaves["router"], precision="highest")
    p = jax.nn.softmax(scores + leaves["router_bias"][None] if spec.expert_bias else scores, axis=-1)
    if router is not None:
        router.append(p)
    order = jnp.argsort(-p, axis=-1)
    chosen = jnp.argsort(order, axis=-1) < spec.experts_per_token
    weight = jnp.where(chosen, p, 0.0)
    weight = weight / weight.sum(-1, keepdims=True) if spec.norm_topk else weight
    each = jnp.stack([_expert(spec, leaves, e, x) for e in range(spec.experts)])
    return jnp.einsum("te,etd->td", weight, each, precision="highest")


def _expert(spec, leaves, e, x):
    if not spec.expert_bias:
        return _mlp(spec, {name: leaves[name][e] for name in ("gate", "up", "down")}, x)
    affine = lambda a, name: jnp.matmul(a, leaves[name][e], precision="highest") + leaves[f"{name}_bias"][e][None]
    limit = spec.activation.limit
    gate, up = jnp.minimum(affine(x, "gate"), limit), jnp.clip(affine(x, "up"), -limit, limit)
    return affine((up + 1) * gate / (1 + jnp.exp(-spec.activation.alpha * gate)), "down")
