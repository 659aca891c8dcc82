"""A run on pictures, exported: the model that answers as the run does, with what its processor reads."""

import shutil

import pytest
import tiny_pictures
from tiny_pictures import row

import jaxpref
from jaxpref.online.train import train
from jaxpref.runs.export import export_run
from jaxpref.runs.merge import merge

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("any_mesh")]


def test_an_adapter_on_every_part_is_merged(tmp_path):
    model = tiny_pictures.write_model(tmp_path / "model")
    rows = tiny_pictures.write_rows(tmp_path / "train.jsonl", [*map(row, range(4))])
    adapter = {"rank": 2, "targets": ["vision", "connector", "attention/q"]}
    settings = {"max_steps": 3, "batch_size": 4}
    rates = {"learning_rate": 5e-2, "schedule": "constant"}
    train(tiny_pictures.config(tmp_path / "run", model, rows, adapter=adapter, train=settings, optim=rates))
    export_run(tmp_path / "run", tmp_path / "exported", step="latest")
    twice = [(tmp_path / "run", 0.4), (tmp_path / "again", 0.6)]
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    merge(twice, tmp_path / "merged", how="deltas", adapter=False, step="latest")
    prompts = [{"images": [str(tmp_path / "0.png")], "prompt": row(0)["prompt"]}]
    overrides = ["model.pictures=true", "model.compute_dtype=float32", "model.attention_block=16", "mesh.data=8"]
    answer = lambda source, **options: jaxpref.generate(source, prompts, max_new_tokens=5, **options)[0]
    ours = answer(tmp_path / "run", step="latest")
    for directory in ("exported", "merged"):
        assert (tmp_path / directory / "preprocessor_config.json").is_file()
        again = answer(str(tmp_path / directory), overrides=overrides)
        assert again.text == ours.text and again.logp == pytest.approx(ours.logp, abs=2e-3)
    assert answer(str(model), overrides=overrides).logp != pytest.approx(ours.logp, abs=0.02)
