"""Whole runs with objectives that need more than pairs and a fixed copy of the reference."""

import json

import jax
import numpy as np
import pytest
import tiny

from jaxpref.errors import InputError
from jaxpref.evaluation import evaluate_run
from jaxpref.models.hf.tokenizer import load_tokenizer
from jaxpref.models.source import open_checkpoint
from jaxpref.objectives import ObjectiveOutput
from jaxpref.runs.export import export_run
from jaxpref.runs.metrics import read_jsonl
from jaxpref.settings import make_config
from jaxpref.training.run import train

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")


@pytest.mark.slow
def test_unpaired_objective_on_pairs(tiny_files, tmp_path):
    """Pairs become single answers with labels; micro-batches of one row change nothing."""
    runs = {}
    for rows in (1, 8):
        config = tiny.config(
            tmp_path / f"rows{rows}", tiny_files.model, tiny_files.train, tiny_files.held_out,
            objective=[{"name": "kto", "beta": 0.5}], train={"micro_rows": rows, "best_metric": "eval/loss"},
        )  # fmt: skip
        runs[rows] = tiny.run(config)
    assert len(runs[1].steps) == 9, "18 pairs are 36 answers, four a step"
    for name in ("loss", "kl", "rewards/signed", "logps/completion"):
        ours, theirs = ([run.steps[step][name] for step in range(1, 10)] for run in runs.values())
        # What is a difference of log-probs, near 0 too, is as far off as they are.
        atol = tiny.LOGP_TOLERANCE if name == "kl" else 1e-6
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=atol, err_msg=name)
    assert len({round(x, 6) for x in runs[1].losses}) > 5
    assert "36" in (tmp_path / "rows1/data.txt").read_text()


@pytest.mark.slow
def test_carried_statistics_and_a_moving_reference_continue_bit_for_bit(tiny_files, tmp_path):
    settings = {"objective": [{"name": "bco_pair_centred", "beta": 0.5}], "reference": {"sync_every": 4}}
    whole = tiny.run(tiny.long_config(tmp_path / "whole", tiny_files, **settings))
    config = tiny.long_config(tmp_path / "killed", tiny_files, **settings)
    tiny.run(config, die_at=8)
    again = tiny.run(config)
    assert list(again.steps) == [7, 8, 9, 10]
    assert [again.steps[s]["loss"] for s in again.steps] == [whole.steps[s]["loss"] for s in again.steps]
    one, other = (tiny.stored_state(run.out, 10) for run in (whole, again))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(tiny.numpy(a), tiny.numpy(b))
    assert float(one["running"]["bco_pair_centred"]["count"]) == 2 * 36
    moved = jax.tree.map(lambda r, p: float(np.abs(r - p).max()), one["ref_params"], one["params"])
    assert max(jax.tree.leaves(moved)) > 0, "the reference follows, it is not the policy"
    # Evaluation takes the statistics and the reference from the checkpoint, not those of the start.
    assert evaluate_run(whole.out, step="latest")[0] == pytest.approx(whole.result.last_eval, rel=1e-5)
    fixed = tiny.run(tiny.long_config(tmp_path / "fixed", tiny_files, objective=settings["objective"]))
    assert fixed.losses[:4] == whole.losses[:4] and fixed.losses[4] != whole.losses[4]


def test_reward_model_and_its_export(tiny_files, tmp_path):
    model = tiny.write_model(tmp_path / "model_that_pads_with_its_end")
    end = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": end, "pad_token_id": end}))
    config = tiny.config(
        tmp_path / "run", model, tiny_files.train, tiny_files.held_out,
        objective=[{"name": "bradley_terry", "centering": 0.01}], train={"epochs": 8},
    )  # fmt: skip
    run = tiny.run(config)
    assert run.losses[0] == pytest.approx(np.log(2), abs=1e-6), "the head starts at zero"
    assert run.result.last_eval["eval/rewards/accuracies"] > 0.9
    export_run(run.out, tmp_path / "model")
    written = json.loads((tmp_path / "model/config.json").read_text())
    assert written["architectures"] == ["LlamaForSequenceClassification"] and written["num_labels"] == 1
    from safetensors.numpy import load_file

    # transformers reads the score before the padding, so config and tokenizer name the same token, which is no end.
    tokenizer = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    pad = load_tokenizer(tmp_path / "model").pad_token_id
    assert written["pad_token_id"] == pad and tokenizer["pad_token"] != tokenizer["eos_token"]
    weights = load_file(tmp_path / "model/model.safetensors")
    assert weights["score.weight"].shape == (1, 32) and "lm_head.weight" not in weights


@pytest.mark.slow
def test_further_references(tiny_files, tmp_path):
    """Their log-probs are computed once; the same model as a second reference makes MRPO DPO."""
    changes = {"reference": {"extra": [str(tiny_files.model)], "cache_dir": str(tmp_path / "cache")}}
    make = lambda name, objective, **more: tiny.config(
        tmp_path / name, tiny_files.model, tiny_files.train, objective=[objective], train={"max_steps": 2}, **more
    )
    mrpo = tiny.run(make("mrpo", {"name": "mrpo", "eps": 1.0}, **changes))
    dpo = tiny.run(make("dpo", {"name": "dpo"}))
    np.testing.assert_allclose(mrpo.losses, dpo.losses, rtol=1e-4)
    other = tiny.write_model(tmp_path / "other", scale=1.5)
    changes["reference"]["extra"] = [str(other)]
    assert abs(tiny.run(make("two", {"name": "multi_dpo"}, **changes)).losses[0] - np.log(2)) > 1e-4
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.slow
def test_ranked_lists_of_different_length(tiny_files, tmp_path):
    rows = [{"prompt": f"n {i}", "completions": [f"a{i}", "b" * (i + 1), "no", "never"][: 2 + i % 3]} for i in range(8)]
    data = tiny.write_rows(tmp_path / "ranked.jsonl", rows)
    config = tiny.config(
        tmp_path / "run", tiny_files.model, data, data, objective=[{"name": "plackett_luce"}], train={"epochs": 5}
    )
    run = tiny.run(config)
    lines = [line for line in read_jsonl(run.out / "metrics.jsonl") if "eval/loss" in line]
    assert lines[-1]["eval/loss"] < lines[0]["eval/loss"] and lines[-1]["eval/logps/best"] > lines[0]["eval/logps/best"]
    # ln(2!), ln(3!), ln(4!) where all completions of a list are equally likely relative to the reference
    expected = np.mean([np.log([2, 6, 24][i % 3]) for i in range(8)])
    assert lines[0]["eval/loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective": [{"name": "tdpo1"}], "reference": {"mode": "cache"}}, "tdpo1 needs `kl` of the reference"),
        ({"objective": [{"name": "ld_dpo"}], "reference": {"mode": "cache"}}, "ld_dpo needs `common`"),
        ({"objective": [{"name": "dpo"}], "reference": {"mode": "cache", "sync_every": 5}}, "cannot be cached"),
        ({"objective": [{"name": "simpo"}], "reference": {"sync_every": 5}}, "no objective uses a reference"),
        ({"objective": [{"name": "mrpo"}]}, "list them in reference.extra"),
        ({"objective": [{"name": "dpo"}], "reference": {"extra": ["x"]}}, "no objective reads further references"),
        ({"objective": [{"name": "dpo"}, {"name": "kto"}]}, "cannot be summed"),
        ({"objective": [{"name": "dpo", "beta": 0}]}, "greater than 0"),
        ({"objective": [{"name": "wpo", "transform": "ld"}]}, "wpo does not take one"),
        ({"objective": [{"name": "ipo", "transform": ["forward_kl", "ld"]}]}, "at most one transform that leaves out"),
        ({"objective": [{"name": "modpo", "w": [0.0, 1.0]}]}, "modpo.w"),
        ({"objective": [{"name": "modpo_implicit", "w": [1, 1, 1]}], "reference": {"extra": ["x"]}}, "has 3 numbers"),
        (
            {"objective": [{"name": "modpo_implicit", "w": [1, 1]}], "reference": {"extra": ["x"], "sync_every": 2}},
            "must not move",
        ),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(InputError, match=message):
        make_config(changes)


def own_loss(policy, confidence, quality, *, scale: float = 1.0):
    """Of a user's own: columns that jaxpref does not know, a number of the pair and one of each answer."""
    margin = policy.sum[:, 0] - policy.sum[:, 1] + quality[:, 0] - quality[:, 1]
    present = (policy.count[:, 0] > 0).astype(policy.sum.dtype)
    return ObjectiveOutput(-jax.nn.log_sigmoid(scale * confidence * margin), present, {"quality": quality[:, 0]})


def test_an_objective_from_python_with_columns_of_its_own(tiny_files, tmp_path):
    rows = [row | {"confidence": 0.5, "quality_chosen": 0.25, "quality_rejected": -1.0} for row in tiny.rows(4)]
    data = tiny.write_rows(tmp_path / "own.jsonl", rows)
    config = tiny.config(tmp_path / "run", tiny_files.model, data, data)
    in_config = tiny.config(tmp_path / "run", tiny_files.model, data, data, objective=own_loss)
    result = train(in_config)  # and below beside it: the same run
    assert result.last_eval["eval/quality"] == 0.25
    with pytest.raises(InputError, match="trained with own_loss"):
        evaluate_run(result.out)
    again, _ = evaluate_run(result.out, objective=own_loss, step="latest")
    assert again["eval/loss"] == pytest.approx(result.last_eval["eval/loss"], rel=1e-5)
    data.write_text(data.read_text().replace('"quality_rejected": -1.0', '"quality_rejected": null', 1))
    with pytest.raises(InputError, match='row .*"quality_chosen" has a number, "quality_rejected" has none'):
        train(config, objective=[own_loss])


@pytest.mark.slow
def test_a_run_on_eight_devices_is_exported_on_one(tiny_files, tmp_path, monkeypatch):
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    config = tiny.config(tmp_path / "run", tiny_files.model, tiny_files.train, mesh=mesh, train={"max_steps": 2})
    tiny.run(config)
    monkeypatch.setattr("jaxpref.runs.build.make_mesh", None)  # whoever needs a mesh of the run's size fails
    export_run(config.out, tmp_path / "model", step="latest")
    stored = tiny.stored_state(config.out, 2)["params"]
    written = open_checkpoint(tmp_path / "model").load_params(dtype=np.float32)
    jax.tree.map(np.testing.assert_array_equal, written, stored)


def test_data_that_cannot_serve_the_objective(tiny_files, tmp_path):
    config = tiny.config(tmp_path / "run", tiny_files.model, tiny_files.train, objective=[{"name": "plackett_luce"}])
    with pytest.raises(InputError, match="ranked"):
        tiny.run(config)
    config = tiny.config(tmp_path / "run", tiny_files.model, tiny_files.train, objective=[{"name": "odpo"}])
    with pytest.raises(InputError, match="odpo needs 'score'"):
        tiny.run(config)
