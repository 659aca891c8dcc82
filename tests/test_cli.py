"""The command line: what it prints, and that bad input ends with exit code 2, a place and no traceback."""

import gzip
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from jaxpref import cli
from jaxpref.errors import is_dependency
from jaxpref.objectives import OBJECTIVES, TRANSFORMS

pytestmark = pytest.mark.usefixtures("quick_compile")


def refused(result, *said):
    """Exit code 2, and one error in three parts that says all of `said`."""
    code, _, err = result
    assert code == 2
    assert "Traceback" not in err and "bad input" in err
    assert all(part in err for part in ("expected: ", "got: ", "fix: "))
    for text in said:
        assert text in err, err


# ---- data


def written(tmp_path, files, lines=None, name="bad.jsonl", **changes):
    """Config and data file of a run on `lines`."""
    data = tiny.write_rows(tmp_path / name, lines if lines is not None else tiny.rows(4))
    config = tiny.settings(tmp_path / "run", files.model, data, **changes)
    (tmp_path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    return tmp_path / "config.yaml", data


def text_rows(count=4):
    return [{"prompt": f"q{i}", "chosen": f" a{i}", "rejected": f" b{i}"} for i in range(count)]


BAD_ROWS = {
    "missing column": (
        {"prompt": "q", "chosen": " a", "rejectd": " b"},
        ['no key "rejected"', "data.columns: {rejected: rejectd}"],
    ),
    "empty completion": ({"prompt": "q", "chosen": "", "rejected": " b"}, ['key "chosen"']),
    "blank completion": ({"prompt": "q", "chosen": " a", "rejected": " \n"}, ['key "rejected"']),
    "identical pair": ({"prompt": "q", "chosen": " a", "rejected": " a"}, ["chosen", "rejected"]),
    "number for text": ({"prompt": "q", "chosen": 7, "rejected": " b"}, ['key "chosen"', "7"]),
    "null": ({"prompt": "q", "chosen": None, "rejected": " b"}, ['key "chosen"', "null"]),
    "number in a message": (
        {"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": 7}], "rejected": []},
        ['key "chosen[0]"', '"content"'],
    ),
    "malformed line": ('{"prompt": "q", "chosen": " a"', ["column"]),
    "a list": ("[1, 2]", ["a list"]),
    "not a number": ('{"prompt": "q", "chosen": " a", "rejected": " b", "weight": NaN}', ['key "weight"']),
}


@pytest.mark.parametrize("command", ["train", "data"])
@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_row_is_named(kind, command, call, tiny_files, tmp_path, any_mesh):
    row, said = BAD_ROWS[kind]
    config, data = written(tmp_path, tiny_files, [*text_rows(2), row, *text_rows(1)])
    refused(call(command, config), f"{data}, row 3", *said)
    assert not (tmp_path / "run" / "config.yaml").exists()  # nothing that looks like a run was left behind


def test_bad_rows_may_be_dropped_and_are_counted(call, tiny_files, tmp_path, any_mesh):
    rows = [
        *text_rows(4),
        {"prompt": "q", "chosen": " a", "rejected": " a"},
        {"prompt": "q", "chosen": "", "rejected": "b"},
    ]
    config, _ = written(tmp_path, tiny_files, rows)
    code, out, _ = call("data", config, "data.on_bad_row=drop")
    assert code == 0
    assert out.count("1 dropped: ") == 2 and "4 in, 4 kept" in out


def test_prompt_longer_than_max_length(call, tiny_files, tmp_path, any_mesh):
    """TRL's rule drops the row and the count says so; `truncation: error` names it."""
    long = {"prompt": "q" * 40, "chosen": " a", "rejected": " b"}
    config, data = written(tmp_path, tiny_files, [*text_rows(2), long], data={"max_length": 16})
    code, out, _ = call("data", config)
    assert code == 0 and "3 in, 2 kept; dropped: prompt as long as max_length: 1" in out
    refused(call("data", config, "data.truncation=error"), f"{data}, row 3", "40 of them in the prompt")


def test_group_longer_than_the_row(call, tiny_files, tmp_path, any_mesh):
    long = {"prompt": "q" * 40, "chosen": " a", "rejected": " b"}
    config, data = written(tmp_path, tiny_files, [*text_rows(2), long], data={"row_length": 32})
    refused(call("train", config), f"{data}, row 3", "46 tokens", "data.row_length")


def test_missing_file_suggests_the_nearest(call, tiny_files, tmp_path, any_mesh):
    config, data = written(tmp_path, tiny_files)
    refused(call("train", config, f"data.train=[{data.parent}/bda.jsonl]"), "bda.jsonl", "did you mean bad.jsonl")


def test_no_training_data(call, tiny_files, tmp_path, any_mesh):
    config, _ = written(tmp_path, tiny_files)
    refused(call("train", config, "data.train=[]"), "data.train")


def test_column_that_the_objective_needs(call, tiny_files, tmp_path, any_mesh):
    config, _ = written(tmp_path, tiny_files, objective=[{"name": "test_train:overflowing"}])
    refused(call("train", config), "overflowing needs 'margin'", "no such columns")


def test_broken_gzip(call, tiny_files, tmp_path, any_mesh):
    config, _ = written(tmp_path, tiny_files)
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(gzip.compress("".join(json.dumps(r) for r in text_rows()).encode())[:-12])
    refused(call("train", config, f"data.train=[{broken}]"), str(broken), "gzip")


def test_messages_without_a_chat_template(call, tiny_files, tmp_path, any_mesh):
    model = tiny.copy_run(tiny_files.model, tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    config, data = written(tmp_path, tiny_files)
    refused(call("train", config, f"model.path={model}"), f"{data}, row 1", "chat template")


# ---- models


@pytest.fixture
def broken_model(tiny_files, tmp_path):
    return tiny.copy_run(tiny_files.model, tmp_path / "model")


def change_config(model, **changes):
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_weights(model, change):
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


def model_error(call, tiny_files, tmp_path, model, *overrides):
    config, _ = written(tmp_path, tiny_files)
    return call("train", config, f"model.path={model}", *overrides)


def test_unknown_model_type(call, tiny_files, tmp_path, any_mesh, broken_model):
    change_config(broken_model, model_type="mamba", architectures=["MambaForCausalLM"])
    refused(model_error(call, tiny_files, tmp_path, broken_model), "mamba", str(broken_model / "config.json"))


def test_missing_and_misshaped_weights_are_all_listed(call, tiny_files, tmp_path, any_mesh, broken_model):
    def change(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.self_attn.q_proj.weight"] = np.zeros((2, 2), np.float32)
        tensors["lora"] = np.zeros((2, 2), np.float32)

    change_weights(broken_model, change)
    refused(
        model_error(call, tiny_files, tmp_path, broken_model),
        "missing model.layers.1.mlp.up_proj.weight",
        "misshaped model.layers.0.self_attn.q_proj.weight: [2, 2]",
        "extra lora",
    )


def test_truncated_weights(call, tiny_files, tmp_path, any_mesh, broken_model):
    file = broken_model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(model_error(call, tiny_files, tmp_path, broken_model), str(file))


def test_directory_that_is_no_model(call, tiny_files, tmp_path, any_mesh):
    (tmp_path / "empty").mkdir()
    refused(model_error(call, tiny_files, tmp_path, tmp_path / "empty"), str(tmp_path / "empty"), "config.json")
    refused(model_error(call, tiny_files, tmp_path, tmp_path / "nowhere"), str(tmp_path / "nowhere"), "no such file")


def test_no_tokenizer(call, tiny_files, tmp_path, any_mesh, broken_model):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken_model / name).unlink()
    refused(model_error(call, tiny_files, tmp_path, broken_model), str(broken_model), "tokenizer")


def test_reference_of_another_size(call, tiny_files, tmp_path, any_mesh, broken_model):
    change_config(broken_model, num_hidden_layers=1)
    config, _ = written(tmp_path, tiny_files)
    refused(call("train", config, f"reference.path={broken_model}"), "reference.path", "layers=1", "layers=2")


# ---- meshes (these see all 8 devices)


def test_mesh_that_is_not_all_devices(call, tiny_files, tmp_path):
    config, _ = written(tmp_path, tiny_files)
    refused(call("train", config, "mesh.data=3"), "8 devices", "mesh.data=3")


def test_mesh_that_does_not_divide_the_model(call, tiny_files, tmp_path):
    config, _ = written(tmp_path, tiny_files)
    refused(call("train", config, "mesh.tensor=8"), "layers/attention/k: 2 over tensor=8", "layers/attention/q: 4")


def test_mesh_that_does_not_divide_the_micro_rows(call, tiny_files, tmp_path):
    config, _ = written(tmp_path, tiny_files)
    refused(call("train", config, "mesh.data=8", "train.micro_rows=4"), "train.micro_rows=4", "= 8")


# ---- configuration and runs


def test_all_config_errors_at_once(call, tiny_files, tmp_path):
    config, _ = written(tmp_path, tiny_files)
    refused(
        call("train", config, "train.batchsize=4", "optim.learning_rate=fast", "optim.warmup_ratio=2"),
        "did you mean train.batch_size?",
        "optim.learning_rate: ",
        "optim.warmup_ratio: ",
    )


def test_config_file_that_is_missing(call, tmp_path):
    refused(call("train", tmp_path / "none.yaml"), "none.yaml: no such file")


@pytest.mark.parametrize("command", [("eval",), ("export", "--to", "somewhere")])
def test_directory_that_is_no_run(command, call, tmp_path):
    refused(call(*command, tmp_path), str(tmp_path), "config.yaml")
    assert list(tmp_path.iterdir()) == []


def test_step_that_is_not_there(call, finished_run, tmp_path, any_mesh):
    result = call("export", finished_run.out, "--to", tmp_path / "to", "--step", "4")
    refused(result, "'4'", "[9, 10]")
    assert not (tmp_path / "to").exists()


def test_run_without_checkpoints(call, finished_run, tmp_path, any_mesh):
    run = tiny.copy_run(finished_run.out, tmp_path / "run")
    tiny.remove(run / "checkpoints")
    refused(call("export", run, "--to", tmp_path / "to"), "checkpoints: no such directory")
    assert not (run / "checkpoints").exists()


def test_distributed_without_a_cluster(tmp_path):
    """In a process of its own: jax joins a cluster only before it has looked at its devices."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "OMPI", "JAX_COORD"))}
    command = [sys.executable, "-c", "import sys; from jaxpref import cli; sys.exit(cli.main())", "train"]
    done = subprocess.run(
        [*command, "--distributed", "any.yaml"], env=alone, capture_output=True, text=True, timeout=120
    )
    refused((done.returncode, done.stdout, done.stderr), "--distributed", "SLURM_JOB_ID", "--coordinator HOST:PORT")


def test_a_missing_package_is_told_before_the_run(call, tiny_files, tmp_path, monkeypatch):
    """One that draws at the end; what a user's own function lacks keeps its traceback."""
    config, _ = written(tmp_path, tiny_files)
    for module in ("jaxpref.runs.plots", "jaxpref.online.command"):
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.delattr(module, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = call("train", config)
    assert code == 2 and "matplotlib" in err and "install jaxpref again" in err
    assert not (tmp_path / "run").exists()
    assert is_dependency("orbax.checkpoint") and not is_dependency("my_rewards")


def test_out_below_a_file(call, tiny_files, tmp_path, any_mesh):
    config, data = written(tmp_path, tiny_files)
    for out in (data, data / "run"):
        refused(call("train", config, f"out={out}"), f"{data} is a file")


def test_a_directory_is_no_config(call, tmp_path):
    refused(call("train", tmp_path), f"{tmp_path}: a directory")


def test_what_may_be_left_out_is_not_called_required(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train"])
    assert capsys.readouterr().err.endswith("the following arguments are required: config\n")


def test_help_and_unknown_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"    {command} " in shown for command in ("train", "data", "eval", "export", "demo"))
    with pytest.raises(SystemExit) as stop:
        cli.main(["trian"])
    assert stop.value.code == 2


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    project = tomllib.loads((Path(cli.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out == f"jaxpref {project['version']}\n"


# ---- what the commands print


def test_objectives_are_listed_in_a_line_each(call):
    code, out, _ = call("objectives")
    assert code == 0
    for name in (*OBJECTIVES, *TRANSFORMS):
        (line,) = [line for line in out.splitlines() if line.startswith(f"  {name} ")]
        assert len(line) <= 130 and line.endswith(".")


def test_an_objective_is_shown_with_its_settings_and_source(call):
    code, out, _ = call("objectives", "dpo", "kto")
    assert code == 0
    assert "Settings: beta = 0.1\n" in out and "Source: Rafailov et al., arXiv 2305.18290" in out
    assert "column `label`" in out and "desirable_weight = 1.0" in out
    file, line = re.search(r"^Code: (.*):(\d+)$", out, re.MULTILINE).groups()
    assert "def dpo(" in "".join(Path(file).read_text().splitlines()[int(line) - 1 : int(line) + 2])
    refused(call("objectives", "dpoo"), "did you mean dpo?")
    refused(call("objectives", "DPO"), "did you mean dpo?")


def test_data_shows_lengths_drops_and_packing(call, tiny_files, tmp_path, any_mesh):
    rows = [*text_rows(5), {"prompt": "q" * 40, "chosen": " a", "rejected": " b"}]
    held_out = tiny.write_rows(tmp_path / "held_out.jsonl", tiny.rows(2))
    config, data = written(
        tmp_path, tiny_files, rows, data={"max_length": 32, "row_length": 48, "eval": [str(held_out)]}
    )
    code, out, err = call("data", config)
    assert code == 0 and err == ""
    assert "6 in, 5 kept; dropped: prompt as long as max_length: 1" in out
    assert str(data) in out and str(held_out) in out
    # q0 + <end of text>: prompt of 2, answers " a0<|im_end|>" of 4 tokens, 10 tokens a group and 12 unshared.
    assert "prefix sharing: 50 tokens instead of 60 (83.3%)" in out
    # Two steps: 4 groups in one row of 48, then 1 group in one row of 48.
    assert "2 steps of up to 1 micro-batch of 1 row x 48 tokens\na row: at most 4 groups and 32 loss tokens\n" in out
    assert f"packing: {50 / 96:.1%} of the row positions" in out
    assert f"{data}, row 1" in out and "q|0" in out
    assert "[chosen: 4 loss tokens]  |a|0|<|im_end|>" in out and "[rejected: 4 loss tokens]" in out


def test_train_eval_and_export(call, tiny_files, tmp_path, any_mesh):
    config = tiny.write_config(tiny.long_config(tmp_path / "run", tiny_files), tmp_path / "config.yaml")
    code, out, err = call("train", config, "log.progress=true")
    assert code == 0, err
    assert "held-out reward accuracy: 0.000 before" in out and "after 10 steps" in out
    assert "best: step 10, highest eval/rewards/accuracies" in out
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    last = [line for line in tiny.logged(tmp_path / "run") if "eval/loss" in line][-1]
    assert last["step"] == 10

    code, out, _ = call("eval", tmp_path / "run", "--step", "latest")
    assert code == 0
    stored = json.loads((tmp_path / "run" / "eval" / "preferences_held_out_10.json").read_text())
    assert stored["metrics"] == pytest.approx({key: value for key, value in last.items() if key != "step"}, rel=1e-5)
    assert f"{stored['metrics']['eval/rewards/margins']:.4g}" in out and "share of groups" in out
    assert (tmp_path / "run" / "eval" / "preferences_held_out_10.png").read_bytes().startswith(b"\x89PNG")

    code, out, _ = call("export", tmp_path / "run", "--to", tmp_path / "hf", "--step", "latest")
    assert code == 0 and f"step 10 written to {tmp_path / 'hf'}" in out
    assert (tmp_path / "hf" / "model.safetensors").is_file()
