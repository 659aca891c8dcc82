"""The written-out gradients of layers.py equal autodiff of the plain formula; RoPE as transformers computes it."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxpref.errors import InputError
from jaxpref.models import layers
from jaxpref.models.families import FAMILIES, spec_from_hf
from jaxpref.models.spec import DynamicRope

pytestmark = pytest.mark.usefixtures("quick_compile")


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


@pytest.mark.parametrize("axes, shape", [(1, (16,)), (2, (4, 16))])
def test_rms_norm_over_heads_equals_autodiff(axes, shape):
    """Of queries and keys: over each head, or over all heads together."""
    x, scale, cotangent = normal(0, 2, 7, 4, 16), normal(1, *shape), normal(2, 2, 7, 4, 16)
    over = tuple(range(-axes, 0))
    plain = lambda x, s: x / jnp.sqrt((x**2).mean(over, keepdims=True) + 1e-5) * s.reshape(1, 1, -1, 16)
    value, pull = jax.vjp(lambda x, s: layers.rms_norm(x, s, 1e-5), x, scale)
    plain_value, plain_pull = jax.vjp(plain, x, scale)
    np.testing.assert_allclose(value, plain_value, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(pull(cotangent), plain_pull(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=3e-6)


def test_layer_norm():
    x, scale, bias = normal(0, 2, 5, 16) + 3.0, normal(1, 16), normal(2, 16)
    expected = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) * scale[None, None] + bias[None, None]
    np.testing.assert_allclose(layers.layer_norm(x, scale, bias, 1e-12), expected, rtol=1e-4, atol=1e-5)
    check_grads(lambda *a: layers.layer_norm(*a, 1e-5), (x, scale, bias), order=1, modes=["rev"], rtol=2e-2, atol=2e-2)


def test_gated_gradient():
    gate, up = normal(3, 2, 5, 8), normal(4, 2, 5, 8)
    check_grads(lambda g, u: layers.gated(g, u, "silu"), (gate, up), order=1, modes=["rev"], rtol=2e-2)
    np.testing.assert_allclose(layers.gated(gate, up, "silu"), gate / (1 + np.exp(-gate)) * up, rtol=1e-5)


@pytest.mark.parametrize(
    "name, at_1, at_minus_2",
    [("silu", 0.7310586, -0.2384058), ("gelu", 0.8413447, -0.0455003), ("gelu_tanh", 0.8411920, -0.0454023)],
)
def test_activations_at_known_points(name, at_1, at_minus_2):
    """x Phi(x) exactly and by its tanh formula differ in the fourth digit."""
    np.testing.assert_allclose(layers.activate(jnp.array([1.0, -2.0]), name), [at_1, at_minus_2], rtol=1e-5)


def test_product_equals_autodiff_of_einsum():
    x, w, cotangent = normal(5, 2, 3, 8), normal(6, 8, 4), normal(7, 2, 3, 4)
    _, pull = jax.vjp(lambda x, w: layers.product("RLD,DF->RLF", x, w), x, w)
    _, plain = jax.vjp(lambda x, w: jnp.einsum("RLD,DF->RLF", x, w), x, w)
    for ours, theirs in zip(pull(cotangent), plain(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_rotation_equals_its_autodiff():
    """Scaled, as by YaRN, and with a rest of the head that is not rotated."""
    angle = normal(8, 2, 5, 1, 3)
    x, cotangent, tables = normal(9, 2, 5, 4, 8), normal(10, 2, 5, 4, 8), (1.2 * jnp.cos(angle), 1.2 * jnp.sin(angle))
    ours, theirs = (jax.vjp(f, x, *tables)[1](cotangent) for f in (layers.rotate, layers.rotate.fun))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6, atol=1e-6)


ROPES = json.loads((Path(__file__).parents[1] / "golden" / "rope.json").read_text())
# transformers rounds the exponent, a power of up to 1e6, and its inverse to float32: ln(1e6) + 2 roundings of 2^-24.
FREQUENCY = 16 * 2.0**-24


@pytest.mark.parametrize("name", ROPES)
def test_rope_is_transformers(name):
    wanted = ROPES[name]
    spec = spec_from_hf(wanted["config"], name)
    np.testing.assert_allclose(layers.rope_frequencies(spec), wanted["frequency"], rtol=FREQUENCY)
    assert layers.rope_amplitude(spec) == pytest.approx(wanted["amplitude"], rel=1e-9)
    family = FAMILIES[spec.family]
    assert family.from_hf(family.to_hf(spec)) == spec
    plain = layers.rope_frequencies(replace(spec, rope_scaling=None))
    differs = np.abs(plain / wanted["frequency"] - 1).max() > 0.1
    assert differs != isinstance(spec.rope_scaling, DynamicRope)


def test_yarn_cases_differ_where_they_should():
    frequency = lambda name: np.array(ROPES[name]["frequency"])
    assert ROPES["Qwen2.5-7B-Instruct with YaRN"]["amplitude"] == pytest.approx(1 + 0.1 * np.log(4))
    assert ROPES["yarn, mscale"]["amplitude"] == pytest.approx((1 + 0.15 * np.log(40)) / (1 + 0.05 * np.log(40)))
    truncated = dict(ROPES["yarn, not truncated"]["config"], rope_scaling={"type": "yarn", "factor": 32.0})
    truncated["rope_scaling"]["original_max_position_embeddings"] = 32768
    ours = layers.rope_frequencies(spec_from_hf(truncated, "x"))
    assert np.abs(ours / frequency("yarn, not truncated") - 1).max() > 0.01
    beside = ROPES["yarn, length beside it"]["config"]
    inside = {**beside["rope_scaling"], "original_max_position_embeddings": 8192}
    assert spec_from_hf(beside, "x") == spec_from_hf({**beside, "rope_scaling": inside}, "x")
    with pytest.raises(InputError, match="original_max_position_embeddings and that of the rope's disagree"):
        spec_from_hf({**beside, "rope_scaling": {**inside, "original_max_position_embeddings": 4096}}, "x")


@pytest.mark.parametrize("name, longest", [("dynamic", 4096), ("longrope", 4096)])
def test_lengths_at_which_transformers_changes_its_frequencies_are_refused(name, longest):
    spec = spec_from_hf(ROPES[name]["config"], name)
    assert spec.longest_sequence == longest
    ours, at = layers.rope_frequencies(spec), ROPES[name]["at"]
    np.testing.assert_allclose(ours, at[str(longest)], rtol=FREQUENCY)
    assert np.abs(ours / at[str(longest + 1)] - 1).max() > 1e-4
    if name == "dynamic":
        assert np.abs(np.array(at["4097"]) / at["8192"] - 1).max() > 0.1, "one frequency for all beyond"


@pytest.mark.parametrize(
    "name, longest", [("Qwen2.5-7B-Instruct with YaRN", 131072), ("DeepSeek-R1-0528-Qwen3-8B", 131072)]
)
def test_yarn_reaches_as_far_as_its_factor(name, longest):
    assert spec_from_hf(ROPES[name]["config"], name).longest_sequence == longest


def test_what_is_computed_once_stays_as_it_is_and_costs_nothing_elsewhere():
    def loss(x_RLD, w_DF):
        return jnp.sum(jnp.square(layers.product("RLD,DF->RLF", layers.computed_once(x_RLD), w_DF)))

    x, w = jax.random.normal(jax.random.key(0), (2, 3, 4)), jax.random.normal(jax.random.key(1), (4, 5))
    traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, w)
    barriers = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text().count("optimization_barrier")
        for platform in ("tpu", "cpu", "cuda")
    }
    assert barriers == {"tpu": 3, "cpu": 0, "cuda": 0}  # of x, its gradient and that of the product
    by_autodiff = jax.grad(lambda x, w: jnp.sum(jnp.square(x @ w)), (0, 1))(x, w)
    for ours, theirs in zip(jax.grad(loss, (0, 1))(x, w), by_autodiff, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
