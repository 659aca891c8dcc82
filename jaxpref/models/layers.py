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


def rms_norm(x_RLD: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * scale over the last axis, in float32 (Zhang & Sennrich, arXiv 1910.07467, eq. 4)."""
    x32 = x_RLD.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (normed * scale_D.astype(jnp.float32)[None, None, :]).astype(x_RLD.dtype)


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
