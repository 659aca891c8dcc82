"""Fronts on rows with pictures: every method that draws no answers of its own, and what is refused before training."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_pictures

import jaxpref
from jaxpref.errors import InputError
from jaxpref.evaluation.bootstrap import Bootstrap
from jaxpref.evaluation.preferences import evaluate_preferences
from jaxpref.pareto.inputs import start_front
from jaxpref.pareto.settings import make_front_config
from jaxpref.pareto.sweep import Watch, run_front
from jaxpref.runs.merge import merge
from jaxpref.settings import to_dict

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

METHODS = ["dpo", "modpo", "mod", "soup_deltas", "cos_dpo", "panacea"]


def exchanged(row):
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, and the same pairs in both orders: one by one another picture with the same question."""
    directory = tmp_path_factory.mktemp("pictures")
    rows = [tiny_pictures.row(i) | {"prompt": tiny_pictures.row(0)["prompt"]} for i in range(4)]
    tiny_pictures.write_model(directory / "model")
    tiny_pictures.write_rows(directory / "one.jsonl", rows)
    tiny_pictures.write_rows(directory / "two.jsonl", [exchanged(row) for row in rows])
    return directory


def front_config(files: Path, out: Path, *, targets=("q", "v"), second=None, **pareto):
    adapter = {"rank": 2, "targets": list(targets)}
    train, rates = {"max_steps": 2, "batch_size": 4}, {"learning_rate": 3e-2, "schedule": "constant"}
    run = tiny_pictures.config(out, files / "model", files / "one.jsonl", adapter=adapter, train=train, optim=rates)
    raw = to_dict(run)
    del raw["objective"]
    raw["data"] |= {"train": [], "eval": []}
    pairs = lambda name: {"train": [str(files / f"{name}.jsonl")], "eval": [str(files / f"{name}.jsonl")]}
    objectives = [{"name": "one", **pairs("one")}, {"name": "two", **pairs("two")} | (second or {})]
    answers = {"count": 4, "max_new_tokens": 4}
    pareto = {"objectives": objectives, "weights": [[0.3, 0.7]], "methods": METHODS, "answers": answers} | pareto
    return make_front_config(raw | {"pareto": pareto})


@pytest.mark.slow
def test_a_front_on_pictures(files, tmp_path):
    out = tmp_path / "front"
    found = run_front(front_config(files, out), Watch(say=lambda line: None))
    names = [f"{method}_0.3_0.7" for method in METHODS[1:]]
    assert [point.name for point in found.points] == ["reference", "dpo_one", "dpo_two", *names]
    assert len(found.prompts) == 4
    assert len({url for [url] in found.pictures}) == 4 and found.pictures[0][0].startswith("data:image/png;base64")

    # MODPO's other reward is the implicit one of that objective's policy, which sees the pictures.
    rows = [json.loads(line) for line in (out / "data" / "two-train-implicit.jsonl").read_text().splitlines()]
    overrides = [f"data.eval=[{files / 'two.jsonl'}]"]
    evaluated = evaluate_preferences(out / "dpo" / "one", step="latest", overrides=overrides, bootstrap=Bootstrap(100))
    scores = [row["scores_chosen"]["one"] for row in rows]
    np.testing.assert_allclose(scores, [row["chosen"]["reward"] for row in evaluated.groups], atol=1e-4)
    assert np.ptp(scores) > 1e-2

    # A soup of adapters is the mean of the models, and an adapter that any command takes.
    sources = {out / "dpo" / "one": 0.3, out / "dpo" / "two": 0.7}
    merge(sources, tmp_path / "mean", how="weights", step="latest")
    prompts = [{"images": [str(files / "1.png")], "prompt": tiny_pictures.row(0)["prompt"]}]
    overrides = ["model.pictures=true", "model.compute_dtype=float32", "model.attention_block=16", "mesh.data=8"]
    answer = lambda path: jaxpref.generate(str(path), prompts, max_new_tokens=4, overrides=overrides)[0]
    soup, mean, base = map(answer, (out / "soups" / "soup_deltas_0.3_0.7", tmp_path / "mean", files / "model"))
    assert soup.text == mean.text and soup.logp == pytest.approx(mean.logp, abs=1e-4)
    assert soup.logp != pytest.approx(base.logp, abs=1e-3)


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"methods": ["dpo", "rloo"]},
            r"one.jsonl, row 1 has pictures; rloo \(pareto.methods\) draws answers to",
        ),
        ({"targets": ["q", "connector"]}, "adapter.targets with connector/project, which see pictures"),
        ({"second": {"train": ["BROKEN"]}}, "broken.jsonl, row 1, picture 1: .*9.png"),
        ({"second": {"judge": "rule:tokens:TEXT"}}, "rule:tokens:.* sees no pictures"),
    ],
)
def test_what_sees_no_pictures_is_refused_before_anything_is_trained(files, tiny_files, tmp_path, changes, said):
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(tiny_pictures.row(0) | {"images": ["9.png"]}) + "\n")
    named = json.loads(json.dumps(changes).replace("BROKEN", str(broken)).replace("TEXT", str(tiny_files.model)))
    with pytest.raises(InputError, match=said):
        start_front(front_config(files, tmp_path / "front", **named), tmp_path / "front")
