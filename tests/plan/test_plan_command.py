"""`jaxpref plan` through its command, with the real TPU compiler where libtpu is."""

import importlib.util
import json

import pytest
import tiny

from jaxpref.models.hf import read_json

with_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='needs libtpu: pip install "jax[tpu]"'
)


def config_file(files, tmp_path, sizes=(), **changes):
    """A config whose model is a config.json alone, and whose data are not there.

    Args:
        sizes: of the model, in place of the tiny one's.
    """
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    settings = read_json(files.model / "config.json") | dict(sizes)
    (model / "config.json").write_text(json.dumps(settings))
    missing = tmp_path / "missing.jsonl"
    config = tiny.config(tmp_path / "run", model, missing, **changes)
    return str(tiny.write_config(config, tmp_path / "plan.yaml"))


def test_without_libtpu_it_says_what_to_install(call, tiny_files, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = config_file(tiny_files, tmp_path)
    code, _, err = call("plan", config, "--topology", "v5e:2x2", "mesh.fsdp=4")
    assert code == 2 and 'pip install "jaxpref[tpu]"' in err


def test_a_slice_of_another_size_than_the_mesh_is_refused(call, tiny_files, tmp_path):
    config = config_file(tiny_files, tmp_path)
    code, _, err = call("plan", config, "--topology", "v5e:twoxtwo")
    assert code == 2 and "--topology GENERATION:SHAPE" in err


@with_compiler
@pytest.mark.tpu_compiler
def test_a_plan_from_a_config_json_alone(call, tiny_files, tmp_path):
    config = config_file(tiny_files, tmp_path, mesh={"fsdp": 2})
    out = tmp_path / "plan.json"
    sizes = ("--groups", "8", "--prompt", "12", "--answer", "6")
    code, text, err = call(
        "plan", config, "--topology", "v5e:2x2", "mesh.fsdp=4", *sizes,
        "--json", str(out), "--cache", str(tmp_path / "cache"),
    )  # fmt: skip
    assert code == 0, err
    assert "predicted:" in text and "HBM of a device" in text
    plan = json.loads(out.read_text())
    assert plan["devices"] == 4 and plan["mesh"]["fsdp"] == 4
    named = sum(plan["hbm"].values())
    assert named <= plan["arguments"] and plan["memory"]["total"] < plan["memory"]["capacity"]
    assert any(one["axes"] == ["fsdp"] and not one["dcn"] for one in plan["collectives"])
    assert plan["flops"] * 4 > plan["model_flops_all"] > 0 and plan["saved"] > 0
    assert plan["seconds"]["fastest"] <= plan["seconds"]["slowest"]

    # Another time it comes from the cache; a mesh that the model does not allow is refused.
    assert len(list((tmp_path / "cache").iterdir())) == 1
    code, _, err = call("plan", config, "--topology", "v5e:2x2", "mesh.fsdp=3", *sizes)
    assert code == 2 and "a mesh of 4 devices" in err


@with_compiler
@pytest.mark.tpu_compiler
def test_a_step_that_does_not_fit_is_said_to(call, tiny_files, tmp_path):
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 64}
    config = config_file(tiny_files, tmp_path, sizes)
    code, text, err = call(
        "plan", config, "--topology", "v5e:2x2", "mesh.fsdp=4",
        "--groups", "8", "--prompt", "12", "--answer", "6", "--cache", str(tmp_path / "cache"),
    )  # fmt: skip
    assert code == 2 and "does not fit" in text and "hbm" in text.lower(), err
    assert "reference.mode=cache" in err
    assert "layers/mlp/up" in text and "float32[64, 4096, 14336]" in text


@with_compiler
@pytest.mark.tpu_compiler
def test_a_search_saves_the_best_config(call, tiny_files, tmp_path):
    config = config_file(tiny_files, tmp_path)
    best = tmp_path / "best.yaml"
    code, text, err = call(
        "plan", config, "--topology", "v5e:2x2", "--search", "--tries", "2",
        "--groups", "8", "--prompt", "12", "--answer", "6", "--write", str(best),
        "--cache", str(tmp_path / "cache"),
    )  # fmt: skip
    assert code == 0, err
    assert text.count("s a step") >= 2 and "the best:" in text and "runner-up" in text
    from jaxpref.settings import load_config

    mesh = load_config(best).mesh
    assert mesh.data * mesh.fsdp * mesh.tensor == 4
