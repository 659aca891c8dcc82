"""Whole runs of a model with layers of Gated DeltaNet (Qwen3.5)."""

import math
from dataclasses import replace

import jax
import numpy as np
import plain
import pytest
import tiny

from jaxpref import export_run
from jaxpref.errors import InputError
from jaxpref.models import hf
from jaxpref.models.decoder import build_model
from jaxpref.models.parameters import flatten

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile", "any_mesh")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("qwen3_5") / "model"
    spec = replace(plain.SPECS["qwen3_5"], family="qwen3_5_text", vocab=128)
    params = jax.tree.map(np.asarray, plain.random_params(build_model(spec, attention_block=16)))
    hf.save_pretrained(
        directory, spec, params, tiny.make_tokenizer(), dtype=np.float32, generation_config=None, model_card=""
    )
    assert hf.load_spec(directory) == spec
    return directory


def run(out, directory, tiny_files, **changes):
    return tiny.run(tiny.config(out, directory, tiny_files.train, **{"train": {"max_steps": 3}} | changes))


def test_sharing_prompts_and_the_mesh_change_no_loss(model, tiny_files, tmp_path):
    shared = run(tmp_path / "shared", model, tiny_files)
    apart = run(tmp_path / "apart", model, tiny_files, data={"share_prefix": False})
    meshed = run(tmp_path / "meshed", model, tiny_files, mesh={"data": 1, "fsdp": 2, "tensor": 2})
    assert shared.losses[0] == pytest.approx(math.log(2), abs=1e-7) and shared.losses[2] < 0.68
    np.testing.assert_allclose(apart.losses, shared.losses, rtol=1e-4)
    np.testing.assert_allclose(meshed.losses, shared.losses, rtol=1e-4)

    export_run(shared.out, tmp_path / "exported", step="latest")
    before, after = (flatten(hf.load_params(path, hf.load_spec(path))) for path in (model, tmp_path / "exported"))
    assert before.keys() == after.keys() and hf.load_spec(tmp_path / "exported") == hf.load_spec(model)
    for path, leaf in after.items():
        assert np.abs(leaf - before[path]).max() > 1e-5, f"{path} was not trained"


def test_tokens_over_several_devices_are_refused(model, tiny_files, tmp_path):
    with pytest.raises(InputError, match="mesh.context=2 and model_type qwen3_5_text"):
        run(tmp_path / "run", model, tiny_files, mesh={"data": 1, "context": 2})


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_an_adapter_in_bfloat16_starts_as_the_base(quantize, model, tiny_files, tmp_path):
    adapter = {"rank": 4, "quantize": quantize, "dropout": 0.1}
    changes = {"model": {"path": str(model), "compute_dtype": "bfloat16"}, "adapter": adapter}
    losses = run(tmp_path / "run", model, tiny_files, **changes).losses
    assert losses[0] == pytest.approx(math.log(2), abs=1e-7) and losses[2] < losses[0]
