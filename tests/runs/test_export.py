"""A run -> a Hugging Face directory, and the evaluation of a run."""

import json
import os

import jax
import matplotlib
import numpy as np
import pytest
import tiny
import yaml
from safetensors.numpy import load_file

from jaxpref.errors import InputError
from jaxpref.evaluation import evaluate_preferences, evaluate_run
from jaxpref.models.source import open_checkpoint
from jaxpref.runs import plots
from jaxpref.runs.export import export_run
from jaxpref.runs.plots import plot_curves
from jaxpref.settings import make_config

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

MESH_TOLERANCE = 1e-5
"""Relative: sums over devices run in another order."""


def leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.allow_any_mesh(monkeypatch)
        directory = tmp_path_factory.mktemp("exported") / "model"
        assert export_run(finished_run.out, directory, step="9") == 9
    return directory


def test_weights_come_back_bit_for_bit(finished_run, exported, tiny_files):
    stored = leaves(tiny.stored_state(finished_run.out, 9)["params"])
    loaded = leaves(open_checkpoint(exported).load_params(dtype=np.float32))
    initial = leaves(open_checkpoint(tiny_files.model).load_params(dtype=np.float32))
    assert stored.keys() == loaded.keys() == initial.keys()
    for name, value in loaded.items():
        np.testing.assert_array_equal(value, stored[name], err_msg=name, strict=True)
        assert not np.array_equal(value, initial[name]), name  # training moved it


def test_directory_is_complete(finished_run, exported):
    source = open_checkpoint(exported)
    assert source.spec == open_checkpoint(finished_run.config.model.path).spec
    tokenizer = source.load_tokenizer()
    messages = [{"role": "user", "content": "n 1"}]
    render = lambda t: t.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert render(tokenizer) == render(tiny.make_tokenizer())
    assert json.loads((exported / "config.json").read_text())["model_type"] == "llama"


def test_model_card_holds_the_whole_config(finished_run, exported):
    card = (exported / "README.md").read_text()
    assert f"for 9 steps on {finished_run.config.data.train[0]}" in card
    assert make_config(yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])) == finished_run.config


def test_default_step_is_the_best(finished_run, tmp_path):
    assert export_run(finished_run.out, tmp_path / "to") == 10  # the only one saved with an evaluation


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_smaller_dtypes(finished_run, exported, tmp_path, dtype):
    export_run(finished_run.out, tmp_path / "to", step="9", dtype=dtype)
    small, whole = (load_file(d / "model.safetensors") for d in (tmp_path / "to", exported))
    for name, value in small.items():
        assert value.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(value, whole[name].astype(dtype), err_msg=name)


def test_a_dtype_that_nothing_is_written_in(finished_run, tmp_path):
    for settings, said in (
        ({"dtype": "fp16"}, "float16"),
        ({"dtype": "bfloat16", "adapter": True}, "float32, in which"),
    ):
        with pytest.raises(InputError, match=said):
            export_run(finished_run.out, tmp_path / "to", **settings)
    assert not (tmp_path / "to").exists()


def test_weights_of_objectives_that_a_run_does_not_read(finished_run, tmp_path):
    with pytest.raises(InputError, match="export without --weights"):
        export_run(finished_run.out, tmp_path / "to", weights=[0.3, 0.7])


def test_sets_figures_and_bins_that_there_are_none_of(finished_run, tmp_path):
    with pytest.raises(InputError, match="'other'; there are none(.|\n)*name one of these, or none"):
        evaluate_preferences(finished_run.out, of_set="other")
    with pytest.raises(InputError, match="bins=2.5"):
        evaluate_preferences(finished_run.out, bins=2.5)
    with pytest.raises(InputError, match="metrics.jsonl: no such file"):
        plot_curves(tmp_path)


def test_foreign_directory_is_refused_and_left_alone(finished_run, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="thesis.tex"):
        export_run(finished_run.out, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_own_export_is_replaced(finished_run, tmp_path):
    export_run(finished_run.out, tmp_path / "to", step="9")
    export_run(finished_run.out, tmp_path / "to", step="10")
    assert "for 10 steps" in (tmp_path / "to" / "README.md").read_text()


def test_what_an_export_reads_is_not_replaced(finished_run, tmp_path):
    """Nor the model that the run was made from, by whatever name it is called."""
    link = tmp_path / "link"
    link.symlink_to(finished_run.out)
    model = finished_run.config.model.path
    for to in (finished_run.out, link, os.path.relpath(finished_run.out), finished_run.out.parent, model):
        with pytest.raises(InputError, match="apart from what is read"):
            export_run(finished_run.out, to, step="9")
    assert open_checkpoint(model) and (finished_run.out / "config.yaml").is_file()


# ---- evaluation


def test_a_damaged_checkpoint_is_neither_exported_nor_evaluated(finished_run, tmp_path):
    run = tiny.copy_run(finished_run.out, tmp_path / "run")
    for file in tiny.array_files(run, 10):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for read in (lambda: export_run(run, tmp_path / "model"), lambda: evaluate_run(run)):
        with pytest.raises(InputError, match=r"step 10 in .* is damaged: (.|\n)*take another step, of \[9\]"):
            read()
    assert not (tmp_path / "model").exists()
    assert tiny.stored_steps(run) == [9, 10]  # a reader renames nothing
    assert export_run(run, tmp_path / "model", step="9") == 9


def test_evaluation_of_a_run_is_the_trainers_last(finished_run):
    values, step = evaluate_run(finished_run.out, step="latest")
    assert step == 10 and values == finished_run.result.last_eval
    earlier, step = evaluate_run(finished_run.out, step="9")
    assert step == 9 and earlier["eval/loss"] != values["eval/loss"]


def test_evaluation_with_other_settings(finished_run, tiny_files):
    """Another batch size, mesh or packing is the same mean; other data is not."""
    whole = finished_run.result.last_eval
    for overrides in (
        ["train.batch_size=5", "data.pack=false"],
        ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "data.share_prefix=false"],
    ):
        values, _ = evaluate_run(finished_run.out, step="10", overrides=overrides)
        assert values == pytest.approx(whole, rel=MESH_TOLERANCE, abs=MESH_TOLERANCE)
    values, _ = evaluate_run(finished_run.out, step="10", overrides=[f"data.eval=[{tiny_files.train}]"])
    assert values["eval/loss"] != pytest.approx(whole["eval/loss"], rel=1e-2)


def test_exported_model_answers_as_the_run_does(finished_run, exported, tmp_path):
    """The run starts from a model; evaluated with the export as its reference, its rewards vanish at that step."""
    values, _ = evaluate_run(finished_run.out, step="9", overrides=[f"reference.path={exported}"])
    assert values["eval/loss"] == pytest.approx(np.log(2), rel=1e-6)
    assert values["eval/rewards/margins"] == 0.0


# ---- what shows the result


def test_curves(finished_run, tmp_path):
    png = plot_curves(finished_run.out, tmp_path / "curves.png")
    assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 10_000


def test_panels_are_of_what_was_logged():
    """An objective's own metrics have panels, the trainer's have none; nor has what is nowhere."""
    logged = ["step", "loss", "eval/a/loss", "margin", "eval/a/margin", "eval/entropy", "entropy", "learning_rate"]
    logged += ["eval/b/loss", "logps/rejected"]
    sets = {"a": "eval/a/loss", "b": "eval/b/loss"}
    panels = {
        "loss": {"loss": sets},
        "log-probs (nats)": {"logps/rejected": {}},
        "margin": {"margin": {"a": "eval/a/margin"}},
    }
    assert plots._panels(logged) == panels


def test_figures_leave_the_settings_of_matplotlib_alone(finished_run, tmp_path, monkeypatch):
    """The kernel of a notebook has a backend of its own; with Agg it would show no figure any more."""
    monkeypatch.setitem(matplotlib.rcParams, "backend", "svg")
    before = dict(matplotlib.rcParams)
    plot_curves(finished_run.out, tmp_path / "curves.png")
    assert dict(matplotlib.rcParams) == before and matplotlib.get_backend() == "svg"
