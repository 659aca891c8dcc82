"""One short training run for every objective: the loss falls, and what the objective is about moves the right way.

The model is stories260k where it is at hand, else the random one of the other tests; the data are the demo's.
"""

import inspect
import json

import numpy as np
import pytest
import tiny

from jaxpref.demo import synthetic
from jaxpref.objectives import OBJECTIVES
from jaxpref.runs.metrics import read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("any_mesh")]

AXES = ("correct", "brief")
PAIRS, STEPS = 24, 12

SETTINGS = {
    "mrpo_fixed": {"alphas": [0.5, 0.5]},
    "geometric_mrpo": {"alphas": [0.5, 0.5]},
    "multi_dpo": {"alphas": [0.5, 0.5]},
    "modpo": {"w": [0.7, 0.2, 0.1]},
    "modpo_hinge": {"w": [0.7, 0.2, 0.1]},
    "modpo_implicit": {"w": [0.7, 0.3]},
    "spo": {"lambdas": [0.1]},
    "hpo_dpo": {"g": [1.0, 0.5]},
    "hpo_kto": {"g": [1.0, 0.5]},
    "advantage_mle": {"g": [1.0, 0.5]},
    "advantage_mle_value": {"g": [1.0, 0.5]},
    "sppo_hard": {"beta": 0.05},
    "sppo_soft": {"beta": 0.02},
    "cal_dpo": {"beta": 0.05},
    "dpo_norm": {"beta": 5.0},
    "ipo_sum": {"beta": 0.02},
}
"""Hyperparameters without a default, and betas for a dozen steps where the paper's is for thousands."""

MARGIN, SIGNED = ("eval/rewards/margins", 1), ("eval/rewards/signed", 1)
MOVES = {
    "sft": ("eval/nll", -1),
    "sft_gold": ("eval/loss", -1),
    "minor_sft": ("eval/logps/chosen", 1),
    "kto": SIGNED,
    "hpo_kto": SIGNED,
    "bco": SIGNED,
    "apo_zero_unpaired": SIGNED,
    "advantage_mle": ("eval/logps/chosen", 1),
    "advantage_mle_value": ("eval/advantage/value_loss", -1),
    "mdpo_anchor": ("eval/rewards/chosen", 1),
    "sppo_hard": MARGIN,
}
"""Evaluation metric and direction; of all others the margin must grow."""

ELSEWHERE = {"rloo", "mdpo", "mdpo_masked"}
"""On answers of its own (tests/online), and on pictures (test_picture_training.py)."""
ON_GIVEN_ANSWERS = [name for name in OBJECTIVES if name not in ELSEWHERE]


@pytest.fixture(scope="module")
def model(tmp_path_factory, request):
    stories = tiny.Path(__file__).resolve().parents[3] / "shared/models/stories260k"
    return stories if stories.is_dir() else tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def other(model, tmp_path_factory):
    """Another model of the same vocabulary, as a further reference."""
    from jaxpref.models.hf import save_pretrained
    from jaxpref.models.source import open_checkpoint

    source = open_checkpoint(model)
    params = source.load_params(dtype=np.float32)
    params["layers"]["mlp"]["down"] = params["layers"]["mlp"]["down"] * np.float32(1.02)
    directory = tmp_path_factory.mktemp("other") / "model"
    save_pretrained(
        directory, source.spec, params, source.load_tokenizer(), dtype=np.float32, generation_config=None,
        model_card="# other\n",
    )  # fmt: skip
    return directory


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The demo's rows as pairs with every column, and the same as ranked lists and triples."""
    directory = tmp_path_factory.mktemp("data")
    synthetic.write(directory, 200, 0, 0.1)
    raw = [json.loads(line) for line in (directory / "train.jsonl").read_text().splitlines()][:PAIRS]
    text = lambda messages: messages[-1]["content"]
    pairs = []
    for row in raw:
        chosen, rejected = (list(row[f"scores_{side}"].values()) for side in ("chosen", "rejected"))
        pairs.append({
            "prompt": text(row["prompt"]) + "\n", "chosen": text(row["chosen"]), "rejected": text(row["rejected"]),
            "score_chosen": sum(chosen), "score_rejected": sum(rejected), "probability": 0.9, "margin": 0.1,
            "other_rewards_chosen": chosen[:2], "other_rewards_rejected": rejected[:2], "baseline": 0.0,
            "scores_chosen": dict(zip(AXES, chosen, strict=False)),
            "scores_rejected": dict(zip(AXES, rejected, strict=False)),
        })  # fmt: skip
    ranked = [
        {"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"], "no."], "scores": [2.0, 1.0, 0.0]}
        for row in pairs
    ]
    triples = [row | {"reference": row["chosen"]} for row in pairs]
    return {
        name: tiny.write_rows(directory / f"{name}.jsonl", rows)
        for name, rows in {"pair": pairs, "ranked": ranked, "triple": triples}.items()
    }


@pytest.mark.parametrize("name", ON_GIVEN_ANSWERS)
def test_loss_falls_and_the_quantity_moves(name, model, other, files, tmp_path):
    function = OBJECTIVES[name]
    first = function.needs.groups[0]
    rows = files[first if first in files else "pair"]
    arrays = inspect.signature(function).parameters
    objective = {"name": name, **SETTINGS.get(name, {})}
    if "scores" in arrays:
        objective["columns"] = {"scores": [f"scores/{axis}" for axis in AXES]}
    reference = {"extra": [str(other)], "cache_dir": str(tmp_path / "cache")} if "extra_refs" in arrays else {}
    config = tiny.config(
        tmp_path / "run", model, rows, rows, objective=[objective], reference=reference,
        model={"path": str(model), "attention_block": 64, "logprob_chunk": 64, "remat": "none"},
        data={"train": [str(rows)], "eval": [str(rows)], "max_length": 200},
        optim={"learning_rate": 1e-3, "schedule": "constant"},
        train={"batch_size": 12, "max_steps": STEPS, "micro_rows": 4, "log_every": STEPS, "best_metric": "eval/loss"},
    )  # fmt: skip
    tiny.run(config)
    before, after = (line for line in read_jsonl(tmp_path / "run/metrics.jsonl") if "eval/loss" in line)
    assert after["eval/loss"] < before["eval/loss"], (before, after)
    metric, direction = MOVES.get(name, MARGIN)
    assert direction * (after[metric] - before[metric]) > 0, (metric, before[metric], after[metric])
