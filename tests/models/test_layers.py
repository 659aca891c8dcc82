"""The written-out gradients of layers.py equal autodiff of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxpref.models import layers


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def plain_rms_norm(x, scale, eps):
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + eps) * scale[None, None, :]


@pytest.mark.parametrize("rows", [1, 3])
def test_rms_norm_equals_autodiff(rows):
    x, scale, cotangent = normal(0, rows, 7, 16), normal(1, 16), normal(2, rows, 7, 16)
    value, pull = jax.vjp(lambda x, s: layers.rms_norm(x, s, 1e-5), x, scale)
    plain, plain_pull = jax.vjp(lambda x, s: plain_rms_norm(x, s, 1e-5), x, scale)
    np.testing.assert_allclose(value, plain, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(pull(cotangent), plain_pull(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)
    assert str(jax.make_jaxpr(lambda x: jax.vjp(lambda x: layers.rms_norm(x, scale, 1e-5), x)[0])(x)) != str(
        jax.make_jaxpr(lambda x: jax.vjp(lambda x: plain_rms_norm(x, scale, 1e-5), x)[0])(x)
    ), "two constructions"


def test_rms_norm_of_zeros_and_of_large_values_is_finite():
    scale = jnp.ones(16)
    for x in (jnp.zeros((1, 2, 16)), jnp.full((1, 2, 16), 1e15)):
        gradient = jax.grad(lambda x: layers.rms_norm(x, scale, 1e-5).sum())(x)
        assert np.all(np.isfinite(gradient))


def test_swiglu_gradient():
    gate, up = normal(3, 2, 5, 8), normal(4, 2, 5, 8)
    check_grads(layers.swiglu, (gate, up), order=1, modes=["rev"], rtol=2e-2)
    np.testing.assert_allclose(layers.swiglu(gate, up), gate / (1 + np.exp(-gate)) * up, rtol=1e-5)


def test_product_equals_autodiff_of_einsum():
    x, w, cotangent = normal(5, 2, 3, 8), normal(6, 8, 4), normal(7, 2, 3, 4)
    _, pull = jax.vjp(lambda x, w: layers.product("RLD,DF->RLF", x, w), x, w)
    _, plain = jax.vjp(lambda x, w: jnp.einsum("RLD,DF->RLF", x, w), x, w)
    for ours, theirs in zip(pull(cotangent), plain(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
