"""The model card: what the Hub reads from it, and that it tells the whole recipe."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from jaxpref.objectives import OBJECTIVES, TRANSFORMS, bind
from jaxpref.runs.model_card import model_card
from jaxpref.settings import make_config, to_dict


def card(tmp_path, *, step=4, classifier=False, **settings):
    raw = {
        "out": str(tmp_path / "my-run"),
        "model": {"path": "some-org/Model-1.5@main"},
        "data": {"train": ["some-org/pairs", str(tmp_path / "more.jsonl")], "max_length": 300},
        "objective": [{"name": "dpo", "beta": 0.3}, {"name": "sft", "weight": 0.2}],
        "optim": {"learning_rate": 3e-6, "schedule": "cosine", "warmup_steps": 7, "weight_decay": 0.01},
        "train": {"batch_size": 24, "seed": 5},
    } | settings
    config = make_config(raw)
    parts = bind(config.objective, OBJECTIVES, TRANSFORMS)
    text = model_card(tmp_path, config, parts, step, classifier=classifier)
    return ModelCard(text), text, config


def table(text):
    """The two-column tables as a dict."""
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {key.strip(): value.strip() for key, value in rows}


def test_front_matter(tmp_path):
    read, text, _ = card(tmp_path)
    assert text.startswith("---\n")
    assert read.data.to_dict() == {
        "base_model": "some-org/Model-1.5",
        "datasets": ["some-org/pairs"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["jaxpref", "dpo", "sft"],
    }


@pytest.mark.parametrize("path", ["pkg://package/model.gguf", "/abs/model", "org/model.gguf", "a/b/c", "here/model"])
def test_a_local_path_is_no_base_model(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model").mkdir(parents=True)
    read, text, _ = card(tmp_path, model={"path": path}, data={"train": ["data/rows.jsonl", "here/model"]})
    assert read.data.base_model is None and read.data.datasets is None
    assert table(text)["base model"] == path


def test_reward_model(tmp_path):
    read, text, _ = card(tmp_path, objective=[{"name": "bradley_terry"}], classifier=True)
    assert read.data.pipeline_tag == "text-classification"
    assert read.data.tags == ["jaxpref", "bradley_terry", "reward-model"]
    assert table(text)["reference"] == "none" and "higher is better" in text


def test_recipe(tmp_path):
    _, text, config = card(tmp_path, reference={"sync_every": 10, "sync_alpha": 0.5})
    found = table(text)
    assert found["objective"].startswith("1 * dpo(beta=0.3) + 0.2 * sft(")
    assert found["reference"] == "the base model, moved by 0.5 every 10 steps"
    assert found["optimizer"] == "adamw, b1 0.9, b2 0.999, eps 1e-08, weight decay 0.01 (matrices)"
    assert found["learning rate"] == "3e-06, cosine, warm-up 7 steps"
    assert found["steps"] == "4 of 24 groups each" and found["seed"] == "5"
    assert found["tokens"] == "at most 300 of prompt and answer"
    assert "jaxpref " in found["exported with"] and "jax " in found["exported with"]
    whole = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert make_config(whole) == config and whole == to_dict(config)


def test_data_and_evaluation(tmp_path):
    (tmp_path / "data.txt").write_text("rows.jsonl\ngroups: 900 in, 880 kept\n\nPlan(shape=1)\n")
    lines = [
        {"step": 4, "loss": 1.0}, {"step": 4, "eval/loss": 0.5, "eval/rewards/accuracies": 0.87},
        {"step": 8, "eval/loss": 0.25},
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, text, _ = card(tmp_path)
    assert "groups: 900 in, 880 kept" in text and "Plan(" not in text
    assert {key: value for key, value in table(text).items() if key.startswith("eval/")} == {
        "eval/loss": "0.5",
        "eval/rewards/accuracies": "0.87",
    }
    assert "None at this step." in card(tmp_path, step=5)[1]
