"""Before the first step policy and reference are the same model: equal to the bit, in every dtype and mode."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
import tiny

from jaxpref.models.decoder import build_model
from jaxpref.models.hf import save_pretrained
from jaxpref.models.parameters import CAST_BY_PRODUCTS, cast_for_products, leaf_path
from jaxpref.models.source import open_checkpoint
from jaxpref.runs.build import build
from jaxpref.runs.params import load_params

MODES = {
    "copy": {},
    "cache": {"mode": "cache"},
    "moving": {"sync_every": 2, "sync_alpha": 0.5},
}
ADAPTERS = {"weights": {}, "lora": {"rank": 4}}


@pytest.fixture(scope="module")
def odd_norms(tmp_path_factory):
    """The tiny model with norm scales that are no bfloat16 numbers."""
    directory = tmp_path_factory.mktemp("odd_norms")
    source = open_checkpoint(tiny.write_model(directory / "plain"))
    draw = np.random.default_rng(0)

    def odd(path, x):
        return draw.uniform(0.5, 1.5, x.shape).astype(np.float32) if leaf_path(path).endswith("scale") else x

    params = jax.tree_util.tree_map_with_path(odd, source.load_params(dtype=np.float32))
    save_pretrained(
        directory / "model", source.spec, params, tiny.make_tokenizer(),
        dtype=np.float32, generation_config=None, model_card="",
    )  # fmt: skip
    return directory / "model"


QUICK = [("weights", "copy"), ("weights", "cache")]
CASES = [
    pytest.param(*case, dtype, marks=() if dtype == "bfloat16" and case in QUICK else pytest.mark.slow)
    for case in itertools.product(ADAPTERS, MODES)
    for dtype in ("float32", "bfloat16")
]


@pytest.mark.parametrize("adapter, mode, dtype", CASES)
def test_the_first_loss_is_ln_2(adapter, mode, dtype, odd_norms, tiny_files, tmp_path, any_mesh, quick_compile):
    reference = MODES[mode] | {"cache_dir": str(tmp_path / "cache")}
    if adapter == "lora" and mode == "moving":
        reference |= {"sync_alpha": 1.0}  # factors of two adapters do not mix
    run = tiny.run(
        tiny.config(
            tmp_path / "run", odd_norms, tiny_files.train, model={"path": str(odd_norms), "compute_dtype": dtype},
            reference=reference, adapter=ADAPTERS[adapter], train={"max_steps": 1},
        )
    )  # fmt: skip
    assert run.steps[1]["rewards/margins"] == 0.0
    assert run.losses == [pytest.approx(math.log(2), abs=1e-7)]


def test_the_weights_below_an_adapter_keep_their_norms(odd_norms, tiny_files, tmp_path, any_mesh):
    """What is exported later has the float32 norms of the checkpoint; training sees the same ones."""
    model = {"path": str(odd_norms), "compute_dtype": "bfloat16"}
    pieces = build(tiny.config(tmp_path / "run", odd_norms, tiny_files.train, model=model, adapter={"rank": 4}))
    dtypes = {leaf_path(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(load_params(pieces))}
    assert dtypes["layers/attention/q"] == jnp.bfloat16
    assert dtypes["layers/attention_norm/scale"] == dtypes["final_norm/scale"] == jnp.float32


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "qwen3_5" else name for name in plain.SPECS]
)
def test_what_products_cast_may_be_cast_once(name):
    """Hidden states of every kind of decoder are the same bits, with biases and norms that are true float32."""
    spec = plain.SPECS[name]
    model = build_model(spec, dtype=jnp.bfloat16, attention_block=16)
    params = jax.tree.map(lambda x: x * 1.0009765625, plain.random_params(model))
    token_RL = jnp.arange(32)[None] % spec.vocab
    inputs = token_RL, jnp.arange(32)[None], jnp.full((1, 32), 32)
    once = cast_for_products(params, jnp.bfloat16)
    assert any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(once))
    np.testing.assert_array_equal(*(np.asarray(model.hidden(p, *inputs), np.float32) for p in (params, once)))
    np.testing.assert_array_equal(model.head(once), model.head(params).astype(jnp.bfloat16))


def test_only_factors_of_products_are_cast():
    assert "layers/attention/q" in CAST_BY_PRODUCTS and "head/kernel" in CAST_BY_PRODUCTS
    assert not any(path.endswith(("scale", "bias", "norm", "position")) for path in CAST_BY_PRODUCTS)
