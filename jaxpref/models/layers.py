"""The decoder's mathematics as pure functions."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.models.spec import Llama3Rope, ModelSpec


def project(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """`product` rounded to the activation's dtype."""
    return product(equation, x, w).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """einsum of an activation with a weight cast to the activation's dtype, in float32.

    The gradient is written out because autodiff would multiply the float32 cotangent with bfloat16 operands, which
    every backend runs at float32 speed or below.  Here both products of the backward pass take operands in the compute
    dtype and accumulate in float32; the weight's gradient stays float32.
    """
    return _einsum(equation, x, w.astype(x.dtype))


def _einsum(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _product_forward(equation, x, w):
    return product(equation, x, w), (x, w)


def _product_backward(equation, saved, dy):
    x, w = saved
    inputs, y_axes = equation.split("->")
    x_axes, w_axes = inputs.split(",")
    dy = dy.astype(x.dtype)
    dx = _einsum(f"{y_axes},{w_axes}->{x_axes}", dy, w.astype(x.dtype)).astype(x.dtype)
    dw = _einsum(f"{x_axes},{y_axes}->{w_axes}", x, dy).astype(w.dtype)
    return dx, dw


product.defvjp(_product_forward, _product_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x_RLD: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * scale over the last axis, in float32 (Zhang & Sennrich, arXiv 1910.07467, eq. 4).

    The gradient is written out to keep x alone for the backward pass, and for its two reductions, which autodiff
    writes so that jax 0.10 on a CPU needs as long for them as for a weight product.
    """
    inverse_RL1, x32_RLD = _inverse_rms(x_RLD, eps)
    return (x32_RLD * inverse_RL1 * scale_D.astype(jnp.float32)[None, None, :]).astype(x_RLD.dtype)


def _inverse_rms(x_RLD, eps):
    x32_RLD = x_RLD.astype(jnp.float32)
    return jax.lax.rsqrt(jnp.mean(x32_RLD * x32_RLD, axis=-1, keepdims=True) + eps), x32_RLD


def _rms_norm_forward(x_RLD, scale_D, eps):
    return rms_norm(x_RLD, scale_D, eps), (x_RLD, scale_D)


def _rms_norm_backward(eps, saved, dy_RLD):
    """With r = 1/rms: dx = r (g - x r^2 mean(g x)), g = dy scale; dscale = sum(dy x r)."""
    x_RLD, scale_D = saved
    inverse_RL1, x32_RLD = _inverse_rms(x_RLD, eps)
    dy32_RLD = dy_RLD.astype(jnp.float32)
    g_RLD = dy32_RLD * scale_D.astype(jnp.float32)[None, None, :]
    # "highest", or a TPU might round the operands of a dot product to bfloat16.
    mean_RL1 = jnp.einsum("RLD,RLD->RL", g_RLD, x32_RLD, precision="highest")[:, :, None] / x_RLD.shape[-1]
    dx_RLD = inverse_RL1 * (g_RLD - x32_RLD * inverse_RL1**2 * mean_RL1)
    dscale_D = jnp.sum(dy32_RLD * x32_RLD * inverse_RL1, axis=(0, 1))
    return dx_RLD.astype(x_RLD.dtype), dscale_D.astype(scale_D.dtype)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


@partial(jax.checkpoint, prevent_cse=False)  # the layers are a scan, where nothing is merged
def swiglu(gate_RLF: jax.Array, up_RLF: jax.Array) -> jax.Array:
    """silu(gate) * up (Shazeer, arXiv 2002.05202); the backward pass keeps the two arguments only."""
    return jax.nn.silu(gate_RLF) * up_RLF


def rope_frequencies(spec: ModelSpec) -> np.ndarray:
    """[H/2] rotation per token, in radians (Su et al., arXiv 2104.09864), with Llama 3.1's rescaling when set.

    In float64 until the end: a relative error of the frequency is multiplied by the position.
    """
    half = spec.head_dim // 2
    frequency = spec.rope_theta ** (-np.arange(half, dtype=np.float64) / half)
    if spec.rope_scaling is not None:
        frequency = _llama3_frequencies(frequency, spec.rope_scaling)
    return frequency.astype(np.float32)


def _llama3_frequencies(frequency: np.ndarray, rope: Llama3Rope) -> np.ndarray:
    """Wavelengths beyond the original context are stretched by `factor`, short ones kept, those between blended."""
    wavelength = 2 * math.pi / frequency
    # 1 at the short end of the blended band, 0 at its long end.
    blend = (rope.original_length / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return frequency * (blend + (1.0 - blend) / rope.factor)


def rope_tables(position_RL: jax.Array, spec: ModelSpec) -> tuple[jax.Array, jax.Array]:
    """cos and sin of every position's rotation, [R, L, 1, H/2] float32; computed once, shared by the layers."""
    angle = position_RL.astype(jnp.float32)[..., None, None] * rope_frequencies(spec)[None, None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_RLNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate pairs (i, i + H/2), Hugging Face's order, in float32."""
    first, second = jnp.split(x_RLNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_RLNH.dtype)
