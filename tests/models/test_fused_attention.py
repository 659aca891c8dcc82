"""Attention by tokamax against the blockwise one, with tokamax's plain XLA for its kernels; which is chosen when."""

import dataclasses
import importlib.util
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_attention import SCALE, TOLERANCE, inputs, mask_of

from jaxpref.config import MeshConfig
from jaxpref.errors import InputError
from jaxpref.models.attention import attention
from jaxpref.models.decoder import build_model
from jaxpref.models.fused_attention import KERNELS, choose_attention, fused_attention, pallas_attention
from jaxpref.models.placement import param_shardings
from jaxpref.models.spec import LayerKind, ModelSpec
from jaxpref.runs.build import attention_of, build
from jaxpref.sharding import batch_sharding, make_mesh

SPEC = ModelSpec("llama", 64, 16, 32, 3, 4, 2, 8, 64, 1e4, 1e-5, True, kinds=(LayerKind(), LayerKind(5), LayerKind(9)))
HAS_TOKAMAX = importlib.util.find_spec("tokamax") is not None
needs_tokamax = pytest.mark.skipif(not HAS_TOKAMAX, reason="tokamax is not installed (it needs Python 3.12)")

fused = partial(fused_attention, kernels=("xla",))


@pytest.fixture(autouse=True)
def rank_promotion():
    """tokamax counts on it."""
    with jax.numpy_rank_promotion("allow"):
        yield


def with_gradient(function, q, k, v):
    weight = jnp.cos(jnp.arange(q.size, dtype=jnp.float32).reshape(q.shape))
    value = lambda *qkv: (jnp.sum(weight * function(*qkv)), function(*qkv))
    return jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))(q, k, v)


@needs_tokamax
@pytest.mark.parametrize("window, softcap", [(None, None), (7, None), (1, None), (7, 0.5)])
def test_equals_the_blockwise_attention_in_value_and_gradient(window, softcap):
    mask, options = mask_of(window), {"scale": SCALE, "softcap": softcap}
    ours = with_gradient(lambda *qkv: fused(*qkv, mask, **options), *inputs())
    theirs = with_gradient(lambda *qkv: attention(*qkv, mask, block=4, **options), *inputs())
    jax.tree.map(partial(np.testing.assert_allclose, atol=TOLERANCE), ours, theirs)
    assert not np.any(ours[1][0, 27:])  # padding


@needs_tokamax
def test_policies_that_are_stacked_each_get_their_own():
    q, k, v = (jnp.stack([x, 2 * x]) for x in inputs())
    stacked = jax.vmap(lambda *qkv: with_gradient(lambda *qkv: fused(*qkv, mask_of(7), scale=SCALE), *qkv))(q, k, v)
    for i in range(2):
        alone = with_gradient(lambda *qkv: fused(*qkv, mask_of(7), scale=SCALE), q[i], k[i], v[i])
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, atol=TOLERANCE), stacked, alone)


@needs_tokamax
@pytest.mark.parametrize("mesh_shape", [(2, 2, 2), (1, 8, 1), (4, 1, 2)], ids=str)
def test_a_model_on_a_mesh_equals_the_blockwise_one_without(mesh_shape):
    """Rows over data and fsdp, heads over tensor; windows that differ from layer to layer, scan and remat."""
    rng = np.random.default_rng(0)
    token_RL = rng.integers(0, SPEC.vocab, (8, 32)).astype(np.int32)
    mask = mask_of(1)
    expiry_RL, position_RL = np.tile(mask.expiry_RL, (4, 1)), np.tile(mask.position_RL, (4, 1))
    weight_RLD = np.where(expiry_RL[:, :, None] > 0, rng.standard_normal((8, 32, SPEC.width)), 0).astype(np.float32)

    def gradient(model, params, *batch):
        loss = lambda params: jnp.sum(weight_RLD * model.hidden(params, *batch))
        return jax.jit(jax.value_and_grad(loss))(params)

    plain = build_model(SPEC, attention_block=8)
    params = plain.init(jax.random.key(1))
    theirs = gradient(plain, params, token_RL, position_RL, expiry_RL)
    mesh = make_mesh(MeshConfig(*mesh_shape))
    with jax.set_mesh(mesh):
        params = jax.device_put(params, param_shardings(params, mesh))
        batch = jax.device_put((token_RL, position_RL, expiry_RL), batch_sharding(mesh))
        ours = gradient(build_model(SPEC, attention_block=8, attend=fused), params, *batch)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, theirs)


H100 = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3", compute_capability="9.0")
OTHERS = {
    "T4": SimpleNamespace(platform="gpu", device_kind="Tesla T4", compute_capability="7.5"),
    "B200": SimpleNamespace(platform="gpu", device_kind="NVIDIA B200", compute_capability="10.0"),
    "MI300X": SimpleNamespace(platform="gpu", device_kind="AMD Instinct MI300X", compute_capability="gfx942"),
    "TPU v4": SimpleNamespace(platform="tpu", device_kind="TPU v4"),
}
V5P = SimpleNamespace(platform="tpu", device_kind="TPU v5p")
WIDE = dataclasses.replace(SPEC, head_dim=64)


@needs_tokamax
def test_auto_and_tokamax_take_the_kernels_of_the_gpu():
    choice = choose_attention("auto", H100, SPEC, "bfloat16")
    assert choice.name == "tokamax" and choice.attend.keywords == {"kernels": KERNELS[9]}
    assert choose_attention("tokamax", H100, SPEC, "bfloat16").why == choice.why


@pytest.mark.parametrize("device", OTHERS.values(), ids=OTHERS)
def test_other_devices_compute_in_xla_and_say_why(device):
    choice = choose_attention("auto", device, SPEC, "bfloat16")
    assert choice.name == "xla" and choice.attend is None and device.device_kind in choice.why


@pytest.mark.parametrize(
    "device, changes, dtype, why",
    [
        (H100, {}, "float32", "the compute dtype is float32"),
        (H100, {"attention_softcap": 50.0}, "bfloat16", "caps its attention logits"),
        (jax.devices()[0], {}, "bfloat16", "the device is cpu"),
        (V5P, {}, "bfloat16", "the head size is 8"),
    ],
)
def test_kernels_that_cannot_be_used_are_not_chosen_and_refused_when_asked_for(device, changes, dtype, why):
    spec = dataclasses.replace(SPEC, **changes)
    assert why in choose_attention("auto", device, spec, dtype).why
    with pytest.raises(InputError, match=why):
        choose_attention("pallas" if device is V5P else "tokamax", device, spec, dtype)
    assert choose_attention("xla", device, spec, dtype).name == "xla"


def test_on_gpus_rows_over_several_devices_are_computed_in_xla():
    assert choose_attention("auto", H100, SPEC, "bfloat16", 2).name == "xla"
    with pytest.raises(InputError, match="tokens lie over mesh.context"):
        choose_attention("tokamax", H100, SPEC, "bfloat16", 2)


@pytest.mark.parametrize("changes", [{}, {"attention_softcap": 50.0}, {"attention_sinks": True}, {"head_dim": 256}])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_auto_takes_the_pallas_kernels_on_tpus(changes, dtype):
    spec = dataclasses.replace(WIDE, **changes)
    choice = choose_attention("auto", V5P, spec, dtype, context=4)
    assert choice == ("pallas", "Pallas kernels on TPU v5p", pallas_attention)
    assert choose_attention("pallas", V5P, spec, dtype) == choice


def test_on_a_tpu_of_another_kind_they_are_taken_when_asked_for():
    assert choose_attention("auto", OTHERS["TPU v4"], WIDE, "bfloat16").name == "xla"
    assert choose_attention("pallas", OTHERS["TPU v4"], WIDE, "bfloat16").name == "pallas"


def test_kernels_for_tpus_are_refused_elsewhere():
    with pytest.raises(InputError, match="the kernels are for TPUs"):
        choose_attention("pallas", H100, WIDE, "bfloat16")


def test_a_run_on_a_cpu_computes_in_xla_and_says_why(tiny_files, any_mesh, tmp_path):
    config = tiny.config(tmp_path, tiny_files.model, tiny_files.train)
    assert attention_of(config, build(config).source).why.startswith("the device is cpu")
    other = tiny.config(tmp_path, tiny_files.model, tiny_files.train, model={"attention": "tokamax"})
    with pytest.raises(InputError, match="the device is cpu"):
        build(other)


@pytest.mark.skipif(HAS_TOKAMAX, reason="tokamax is installed")
def test_without_tokamax_auto_computes_in_xla():
    choice = choose_attention("auto", H100, SPEC, "bfloat16")
    assert choice.name == "xla" and "tokamax is not installed" in choice.why
