"""The decoder's mathematics as pure functions."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.models.parameters import LAYER_AXES
from jaxpref.models.quantize import as_array, is_quantised
from jaxpref.models.spec import (
    ClampedSwiglu,
    LinearRope,
    Llama3Rope,
    LongRope,
    ModelSpec,
    YarnRope,
    yarn_amplitude,
)
from jaxpref.models.transposed import Transposed
from jaxpref.models.transposed import product as transposed_product
from jaxpref.sharding import constrain

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(equation: str, x: jax.Array, w: Any) -> jax.Array:
    """einsum of an activation and a weight cast to the activation's dtype, in float32.

    The weight may be plain, quantised or transposed.

    The gradient is written out because autodiff would multiply the float32 cotangent with bfloat16
    operands, which every backend runs at float32 speed or below.  Here both products of the
    backward pass take operands in the compute dtype and accumulate in float32; the weight's
    gradient stays float32.
    """
    if isinstance(w, Transposed):
        y_axes = equation.split("->")[1]
        return transposed_product(x, w, len(y_axes) - len(w.outputs))
    w_axes = equation.split("->")[0].split(",")[1]
    return _einsum(equation, x, _gathered(as_array(w, x.dtype), w_axes))


def _gathered(w: jax.Array, axes: str) -> jax.Array:
    """A layer's weight, whole over fsdp; over tensor it stays apart.

    Without this XLA's partitioner gathers nothing where the width is summed over: it takes the
    product in as many parts as there are devices and adds them up in memory in float32, which on a
    TPU takes as long again as the product (docs/design.md, "Mesh mode").  Cast before it is
    gathered, half as much travels.
    """
    if axes[0] == "V":  # an LM head is not gathered: its logits are computed where it lies
        return w
    whole = (None if LAYER_AXES.get(axis) == "width" else LAYER_AXES.get(axis) for axis in axes)
    return constrain(w, *whole)


def _scattered(dw: jax.Array, axes: str) -> jax.Array:
    """The gradient of a layer's weight, as the weight lies: one product, and its sum over rows.

    Pinned whole first, for the same reason.  Their sum travels as one all-reduce: the TPU compiler
    makes one of a reduce-scatter, too (`lax.psum_scatter` in `shard_map`, tried for v5p).
    """
    if axes[0] == "V":
        return dw
    return constrain(_gathered(dw, axes), *map(LAYER_AXES.get, axes))


def _einsum(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def computed_once(x: jax.Array) -> jax.Array:
    """`x`, on a TPU in memory before it is used.

    Its compiler computes what is cheap once more in each product that takes it, for every block of
    the product, and the matrix units wait for that.
    """
    return jax.lax.platform_dependent(x, tpu=jax.lax.optimization_barrier, default=lambda x: x)


def _product_forward(equation, x, w):
    return product(equation, x, w), (x, w)


def _product_backward(equation, saved, dy):
    x, w = saved
    inputs, y_axes = equation.split("->")
    x_axes, w_axes = inputs.split(",")
    dy = computed_once(dy.astype(x.dtype))
    whole = _gathered(as_array(w, x.dtype), w_axes)
    dx = _einsum(f"{y_axes},{w_axes}->{x_axes}", dy, whole).astype(x.dtype)
    if is_quantised(w):
        return dx, None  # codes are not trained
    dw = _scattered(_einsum(f"{x_axes},{y_axes}->{w_axes}", x, dy), w_axes)
    return dx, dw.astype(w.dtype)


product.defvjp(_product_forward, _product_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * scale over the axes of `scale`, the last ones of x, in float32.

    Source: Zhang & Sennrich, arXiv 1910.07467, eq. 4.  The gradient is written out to keep x alone
    for the backward pass, and for its two reductions, which autodiff writes so that jax 0.10 on a
    CPU needs as long for them as for a weight product.
    """
    inverse, x32 = _inverse_rms(x, scale, eps)
    return (x32 * inverse * _beside(scale, x)).astype(x.dtype)


def _beside(scale, x):
    """`scale` in float32 with the leading axes of x."""
    return scale.astype(jnp.float32).reshape((1,) * (x.ndim - scale.ndim) + scale.shape)


def _inverse_rms(x, scale, eps):
    x32 = x.astype(jnp.float32)
    axes = tuple(range(x.ndim - scale.ndim, x.ndim))
    return jax.lax.rsqrt(jnp.mean(x32 * x32, axis=axes, keepdims=True) + eps), x32


def _rms_norm_forward(x, scale, eps):
    return rms_norm(x, scale, eps), (x, scale)


def _rms_norm_backward(eps, saved, dy):
    """With r = 1/rms: dx = r (g - x r^2 mean(g x)), g = dy scale; dscale = sum(dy x r)."""
    x, scale = saved
    leading = x.ndim - scale.ndim
    inverse, x32 = _inverse_rms(x, scale, eps)
    dy32 = dy.astype(jnp.float32)
    g = dy32 * _beside(scale, x)
    axes = "RLNH"[: x.ndim]
    # "highest", or a TPU might round the operands of a dot product to bfloat16.
    mean = jnp.einsum(f"{axes},{axes}->{axes[:leading]}", g, x32, precision="highest") / scale.size
    dx = inverse * (g - x32 * inverse**2 * mean.reshape(inverse.shape))
    dscale = jnp.sum(dy32 * x32 * inverse, axis=tuple(range(leading)))
    return dx.astype(x.dtype), dscale.astype(scale.dtype)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


# `prevent_cse=False`, here and below: the layers are a scan, where nothing would be merged.
@partial(jax.checkpoint, prevent_cse=False, static_argnums=(3,))
def layer_norm(x_RLD: jax.Array, scale_D: jax.Array, bias_D: jax.Array, eps: float) -> jax.Array:
    """(x - mean(x)) / std(x) * scale + bias over the last axis, in float32.

    Source: Ba et al., arXiv 1607.06450.
    """
    x32_RLD = x_RLD.astype(jnp.float32)
    centred_RLD = x32_RLD - jnp.mean(x32_RLD, axis=-1, keepdims=True)
    inverse_RL1 = jax.lax.rsqrt(jnp.mean(centred_RLD * centred_RLD, axis=-1, keepdims=True) + eps)
    y_RLD = centred_RLD * inverse_RL1 * _beside(scale_D, x_RLD) + _beside(bias_D, x_RLD)
    return y_RLD.astype(x_RLD.dtype)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(2,))
def gated(gate_RLF: jax.Array, up_RLF: jax.Array, activation: str | ClampedSwiglu) -> jax.Array:
    """`gate_units`; the backward pass keeps only these two."""
    return gate_units(gate_RLF, up_RLF, activation)


def gate_units(gate: jax.Array, up: jax.Array, activation: str | ClampedSwiglu) -> jax.Array:
    """activation(gate) * up (Shazeer, arXiv 2002.05202), or as `ClampedSwiglu` says."""
    if not isinstance(activation, ClampedSwiglu):
        return ACTIVATIONS[activation](gate) * up
    gate = jnp.minimum(gate, activation.limit)
    up = jnp.clip(up, -activation.limit, activation.limit)
    return gate * jax.nn.sigmoid(activation.alpha * gate) * (up + 1.0)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(1,))
def activate(x_RLF: jax.Array, activation: str) -> jax.Array:
    """The activation alone; the backward pass keeps its argument only."""
    return ACTIVATIONS[activation](x_RLF)


def rotary_dim(spec: ModelSpec) -> int:
    """Numbers of a head that are rotated, from its front."""
    return int(spec.head_dim * spec.partial_rotary)


def rope_frequencies(spec: ModelSpec, rope: str = "global") -> np.ndarray:
    """[rotary_dim/2] rotation per token, in radians, rescaled if it is the global one.

    In float64 until the end: a relative error of the frequency is multiplied by the position.
    Source: Su et al., arXiv 2104.09864.
    """
    half = rotary_dim(spec) // 2
    theta = spec.rope_theta if rope == "global" else spec.rope_local_theta
    frequency = theta ** (-np.arange(half, dtype=np.float64) / half)
    scaling = spec.rope_scaling if rope == "global" else None
    if isinstance(scaling, Llama3Rope):
        frequency = _llama3_frequencies(frequency, scaling)
    elif isinstance(scaling, LinearRope):
        frequency = frequency / scaling.factor
    elif isinstance(scaling, LongRope):
        frequency = frequency / np.asarray(scaling.short_factor, np.float64)
    elif isinstance(scaling, YarnRope):
        frequency = _yarn_frequencies(frequency, scaling, theta)
    return frequency.astype(np.float32)


def _llama3_frequencies(frequency: np.ndarray, rope: Llama3Rope) -> np.ndarray:
    """Stretches wavelengths beyond the original context by `factor`, and keeps short ones.

    Those between are blended.
    """
    wavelength = 2 * math.pi / frequency
    # 1 at the short end of the blended band, 0 at its long end.
    blend = (rope.original_length / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blend = np.clip(blend, 0.0, 1.0)
    return frequency * (blend + (1.0 - blend) / rope.factor)


def _yarn_frequencies(frequency: np.ndarray, rope: YarnRope, theta: float) -> np.ndarray:
    """Divides rare frequencies by `factor`, keeps frequent ones, and blends between the two.

    The blend is linear in the number of the frequency (`YarnRope` says what is rare).
    """
    half = len(frequency)

    def number(turns: float) -> float:
        """Of the frequency that turns this often within the original length."""
        return half * math.log(rope.original_length / (turns * 2 * math.pi)) / math.log(theta)

    first, last = number(rope.beta_fast), number(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)  # transformers has this bound
    if first == last:
        last += 0.001
    rare = np.clip((np.arange(half) - first) / (last - first), 0.0, 1.0)
    return frequency * (1.0 - rare + rare / rope.factor)


def rope_amplitude(spec: ModelSpec) -> float:
    """The factor of the global cos and sin, 1 unless the rope is LongRoPE or YaRN.

    The default of LongRoPE is sqrt(1 + ln(max / original) / ln(original)), that of YaRN
    1 + 0.1 ln(factor).
    """
    rope = spec.rope_scaling
    if not isinstance(rope, (LongRope, YarnRope)):
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if isinstance(rope, YarnRope):
        return yarn_amplitude(rope.factor)
    stretch = spec.max_positions / rope.original_length
    if stretch <= 1:
        return 1.0
    return math.sqrt(1 + math.log(stretch) / math.log(rope.original_length))


def rope_tables(
    position_RL: jax.Array,
    spec: ModelSpec,
    rope: str | None = "global",
    offset_RL3: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """cos and sin of every position's rotation, [R, L, 1, rotary_dim/2] float32.

    Args:
        rope: as `LayerKind.rope`; None: no rotation, cos 1 and sin 0.
        offset_RL3: as of `types.Pictures`.
    """
    position_RL11 = position_RL.astype(jnp.float32)[..., None, None]
    if rope is None:
        still = jnp.zeros((*position_RL.shape, 1, rotary_dim(spec) // 2))
        return jnp.cos(still), still
    if offset_RL3 is not None:  # one position for every frequency
        by = np.repeat(np.arange(3), spec.rope_sections)
        position_RL11 = position_RL11 + offset_RL3[:, :, None, by].astype(jnp.float32)
    angle = position_RL11 * rope_frequencies(spec, rope)[None, None, None, :]
    amplitude = rope_amplitude(spec) if rope == "global" else 1.0
    if amplitude == 1.0:
        return jnp.cos(angle), jnp.sin(angle)
    return amplitude * jnp.cos(angle), amplitude * jnp.sin(angle)


@jax.custom_vjp
def rotate(x_RLNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate pairs (i, i + half) of the front of every head, Hugging Face's order, in float32.

    The gradient is written out, a rotation back: the compilers make fewer passes over memory of it
    than of autodiff's, which is the same.
    """
    half = cos.shape[-1]
    x32 = x_RLNH.astype(jnp.float32)
    first, second, rest = x32[..., :half], x32[..., half : 2 * half], x32[..., 2 * half :]
    parts = [first * cos - second * sin, second * cos + first * sin]
    if rest.shape[-1] > 0:
        parts.append(rest)
    return jnp.concatenate(parts, axis=-1).astype(x_RLNH.dtype)


def _rotate_forward(x_RLNH, cos, sin):
    return rotate(x_RLNH, cos, sin), (cos, sin)


def _rotate_backward(saved, dy_RLNH):
    cos, sin = saved
    return rotate(dy_RLNH, cos, -sin), None, None  # positions are not trained


rotate.defvjp(_rotate_forward, _rotate_backward)
