"""Products with weights as a CPU reads them fastest: values, and that no weight is written down again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.models.decoder import build_model
from jaxpref.models.source import open_checkpoint
from jaxpref.models.transposed import in_rows, product, transposed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 3])
def test_product_is_the_einsum(rows, dtype):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(rows, 1, 4, 8)).astype(dtype), rng.normal(size=(4, 8, 6, 2)).astype(dtype)
    y = product(jnp.asarray(x), transposed(jnp.asarray(w), 2), 2)
    expected = np.einsum("rcnh,nhxy->rcxy", x.astype(float), w.astype(float))
    assert y.dtype == jnp.float32 and y.shape == (rows, 1, 6, 2)
    # 32 products of numbers near 1, exact in bfloat16 as in float32, added up in float32.
    np.testing.assert_allclose(y, expected, rtol=0, atol=32 * 2.0**-24 * np.abs(expected).max() * 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 2, 8])
def test_the_weight_is_read_as_it_lies(rows, dtype):
    """A copy of it, in float32 too, would take longer than the product."""
    x, head = jnp.zeros((rows, 1, 64), dtype), jnp.zeros((8192, 64), dtype)
    program = jax.jit(lambda x, head: product(x, in_rows(head), 2)).lower(x, head).compile()
    logits = 4 * rows * len(head)
    assert program.memory_analysis().temp_size_in_bytes < 2 * logits + head.nbytes // 4


def test_weights_are_cast_once(tiny_files):
    """Those of a run that is trained are float32; what a product reads at every token is in its own dtype."""
    source = open_checkpoint(tiny_files.model)
    model, params = build_model(source.spec, dtype=jnp.bfloat16), source.load_params(dtype=np.float32)
    unstacked = jax.eval_shape(model.unstack_layers, params)
    matrices = [leaf for leaf in jax.tree.leaves(unstacked) if leaf.ndim == 2]
    assert len(matrices) > 4 and {leaf.dtype for leaf in matrices} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(unstacked) if leaf.ndim == 1} == {jnp.dtype("float32")}
