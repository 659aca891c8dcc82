"""Quantised frozen weights: what the codes stand for, products with them, and how they are placed on a mesh."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.config import MeshConfig
from jaxpref.errors import InputError
from jaxpref.models import layers
from jaxpref.models.quantize import Quantisation, as_array, is_quantised, place_quantised, quantised
from jaxpref.sharding import make_mesh

pytest.importorskip("qwix")
pytestmark = pytest.mark.usefixtures("quick_compile")

# QLoRA, appendix E: the 16 values of NF4.
NF4 = [
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
]  # fmt: skip


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def blocks(w: np.ndarray, size: int) -> np.ndarray:
    """[Y, D, F] -> [Y, D / size, size, F]."""
    return w.reshape(w.shape[0], -1, size, w.shape[2])


@pytest.mark.parametrize(
    "kind, codes", [("int8", np.arange(-128, 128) / 127.5), ("int4", np.arange(-8, 8) / 7.5), ("nf4", NF4)]
)
def test_every_number_becomes_the_nearest_code_times_its_blocks_scale(kind, codes):
    w = weight(2, 32, 6)
    got = np.asarray(as_array(quantised(jnp.asarray(w), "layers/mlp/gate", Quantisation(kind, 16)), jnp.float32))
    scale = np.abs(blocks(w, 16)).max(2, keepdims=True)
    values = scale[..., None] * codes  # of every block
    distance = lambda x: np.abs(x[..., None] - values).min(-1)
    assert distance(blocks(got, 16)).max() < 1e-5, "a number that no code stands for"
    np.testing.assert_allclose(np.abs(blocks(got - w, 16)), distance(blocks(w, 16)), atol=1e-5)  # ties go either way


def test_a_scale_an_output_sums_over_all_its_inputs():
    w = weight(2, 3, 8, 5)  # o: [Y, N, H, D]
    whole = quantised(jnp.asarray(w), "layers/attention/o", Quantisation("int8", None))
    assert whole.scale.shape == (2, 1, 1, 5) and whole.qvalue.shape == w.shape
    np.testing.assert_allclose(whole.scale[:, 0, 0], np.abs(w).max((1, 2)) / 127.5, rtol=1e-6)
    assert quantised(jnp.asarray(w), "layers/attention/o", Quantisation("int8", 4)).scale.shape == (2, 3, 2, 5)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_products_and_their_gradients_are_those_of_the_numbers(kind):
    w = quantised(jnp.asarray(weight(1, 32, 6)), "layers/mlp/gate", Quantisation(kind, 16))
    one, x = jax.tree.map(lambda leaf: leaf[0], w), weight(2, 4, 32)
    f = jax.jit(jax.value_and_grad(lambda x, w: jnp.sum(jnp.sin(layers.product("RLD,DF->RLF", x, w)))))
    (got, dx), (wanted, wanted_dx) = f(x, one), f(x, as_array(one, jnp.float32))
    assert is_quantised(one) and float(got) == pytest.approx(float(wanted), rel=1e-6)
    np.testing.assert_allclose(dx, wanted_dx, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [16, None])
def test_a_leaf_that_is_placed_on_a_mesh_is_the_same(block):
    """Layer by layer and split over devices, or at once in one place."""
    mesh = make_mesh(MeshConfig(1, 2, 2), devices=jax.devices()[:4])
    w, seen = weight(3, 32, 8), []

    def read(index):
        seen.append(index[0])
        return w[index]

    how = Quantisation("nf4", block)
    placed = place_quantised("layers/mlp/gate", w.shape, NamedSharding(mesh, P(None, "fsdp", "tensor")), read, how)
    at_once = quantised(jnp.asarray(w), "layers/mlp/gate", how)
    assert placed.qvalue.sharding.shard_shape(w.shape) == (3, 16, 4)
    assert placed.scale.sharding.shard_shape(placed.scale.shape)[2] == 4
    assert {(part.start, part.stop) for part in seen} == {(0, 1), (1, 2), (2, 3)}, "one layer at a time"
    np.testing.assert_array_equal(as_array(placed, jnp.float32), as_array(at_once, jnp.float32))


def test_blocks_that_do_not_fit_are_refused():
    mesh = make_mesh(MeshConfig(1, 4, 1), devices=jax.devices()[:4])
    place = lambda rows, block: place_quantised(
        "layers/mlp/gate", (1, rows, 8), NamedSharding(mesh, P(None, "fsdp", None)), weight(1, rows, 8).__getitem__,
        Quantisation("int8", block),
    )  # fmt: skip
    with pytest.raises(InputError, match="divides 32.*\n.*quantize_block=24"):
        place(32, 24)
    with pytest.raises(InputError, match="one device each"):
        place(32, 16)  # two blocks over four devices


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(InputError, match=r"jaxpref\[qlora\]"):
        quantised(jnp.zeros((1, 16, 8)), "layers/mlp/gate", Quantisation("int8", None))
