"""Evaluation of runs on held-out preferences, of every kind of group."""

import json

import jax
import numpy as np
import pytest
import tiny
from rich.console import Console
from scipy.special import log_softmax

from jaxpref.errors import InputError
from jaxpref.evaluation import Bootstrap, evaluate_preferences, evaluate_run
from jaxpref.evaluation.bootstrap import Estimate
from jaxpref.evaluation.figures import plot_preferences
from jaxpref.evaluation.preference_report import UNDEFINED
from jaxpref.evaluation.preferences import _check_finite, evaluate_groups
from jaxpref.evaluation.records import Records
from jaxpref.evaluation.report import Report, split_defined
from jaxpref.models.logprobs import Logps
from jaxpref.runs.build import build
from jaxpref.runs.cached_reference import with_reference_logps
from jaxpref.runs.directory import OpenRun, load_run, run_params
from jaxpref.runs.feed import read_data
from jaxpref.runs.params import load_params, reference_params, runs_reference
from jaxpref.step.batch_loss import init_running

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

FEW = Bootstrap(resamples=100)
METRIC_TOLERANCE = 1e-5
"""Relative: the sums behind the metrics are float32, those of the estimates float64."""
LAYOUT_TOLERANCE = tiny.LOGP_TOLERANCE * 12**0.5
"""5.8e-4 nats: log-probs of answers of up to 12 tokens in other layouts and meshes."""


@pytest.fixture(scope="module")
def found(finished_run, tiny_files, quick_compile):
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.allow_any_mesh(monkeypatch)
        overrides = [f"data.eval=[{tiny_files.train}]"]
        return evaluate_preferences(finished_run.out, step="9", overrides=overrides, bootstrap=FEW)


def token_logps(pieces, params, groups):
    """[(group, completion)] -> log-probs of its tokens: one plain causal row each, the whole softmax, in float64."""
    rows = [(g, k) for g in range(len(groups)) for k in range(2)]
    ids = [np.concatenate([groups[g].prompt_ids, groups[g].completion_ids[k]]) for g, k in rows]
    length = -(-max(map(len, ids)) // 16) * 16
    token = np.stack([np.pad(x, (0, length - len(x))) for x in ids]).astype(np.int32)
    position = np.broadcast_to(np.arange(length, dtype=np.int32), token.shape)
    hidden = jax.jit(pieces.model.hidden)(params, token, position, np.full_like(token, length))
    logits = np.asarray(hidden, np.float64) @ np.asarray(pieces.model.head(params), np.float64).T
    found = {}
    for (g, k), x, logp in zip(rows, ids, log_softmax(logits, axis=-1), strict=True):
        start = len(groups[g].prompt_ids)
        found[g, k] = logp[np.arange(start - 1, len(x) - 1), x[start:]]
    return found


def test_every_value_against_whole_rows_and_the_whole_softmax(found, finished_run, tiny_files):
    """Log-probs, both KL estimates per answer and per token, lengths and rewards of 18 pairs."""
    pieces = build(load_run(finished_run.out, [f"data.eval=[{tiny_files.train}]"]))
    groups, _ = read_data(pieces, "eval")
    policy = token_logps(pieces, run_params(pieces, finished_run.out, "9")[0], groups)
    start = token_logps(pieces, load_params(pieces), groups)
    values = {name: e.value for name, e in found.report.estimates.items()}
    margins = np.zeros(len(groups))
    for k, side in enumerate(("chosen", "rejected")):
        rows = [(policy[g, k], start[g, k]) for g in range(len(groups))]
        r = [pi - ref for pi, ref in rows]
        tokens, whole = sum(map(len, r)), np.array([x.sum() for x in r])
        k3 = lambda x: np.exp(-x) - 1 + x
        expected = {
            "logps": np.mean([pi.sum() for pi, _ in rows]),
            "logps_per_token": sum(pi.sum() for pi, _ in rows) / tokens,
            "kl_k1": whole.mean(),
            "kl_k1_per_token": whole.sum() / tokens,
            "kl_k3_per_token": sum(k3(x).sum() for x in r) / tokens,
            "lengths": tokens / len(groups),
        }
        for name, value in expected.items():
            assert values[f"{name}/{side}"] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        assert np.log(values[f"kl_k3/{side}"]) == pytest.approx(np.log(k3(whole).mean()), abs=1e-3)
        for row, (pi, ref), x in zip(found.groups, rows, whole, strict=True):
            answer = row[side]
            assert answer["tokens"] == len(pi)
            assert (answer["logp"], answer["ref_logp"]) == pytest.approx((pi.sum(), ref.sum()), abs=LAYOUT_TOLERANCE)
            assert answer["reward"] == pytest.approx(0.1 * x, abs=LAYOUT_TOLERANCE)
        margins += (1 - 2 * k) * 0.1 * whole
    np.testing.assert_allclose(found.margin_B, margins, atol=LAYOUT_TOLERANCE)
    assert values["calibration/nll"] == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-4)
    assert values["rewards/accuracies"] == np.mean(margins > 0)
    difference = [len(g.completion_ids[0]) - len(g.completion_ids[1]) for g in groups]
    np.testing.assert_array_equal(found.length_difference_B, difference)
    assert values["lengths/margin_correlation"] == pytest.approx(np.corrcoef(margins, difference)[0, 1], abs=1e-3)
    assert len(set(difference)) > 4 and min(values["kl_k1/chosen"], -values["kl_k1/rejected"]) > 1, "the policy moved"
    assert [row["where"] for row in found.groups] == [g.where for g in groups]


def test_metrics_are_those_of_training_and_the_estimates_agree(found, finished_run, tiny_files):
    metrics, step = evaluate_run(finished_run.out, step="9", overrides=[f"data.eval=[{tiny_files.train}]"])
    assert found.report.about["step"] == step == 9
    assert found.report.metrics == pytest.approx(metrics, rel=METRIC_TOLERANCE)
    estimates = found.report.estimates
    for name, value in metrics.items():
        estimate = estimates[name.removeprefix("eval/")]
        assert estimate.value == pytest.approx(value, rel=METRIC_TOLERANCE, abs=1e-7), name
        assert estimate.low <= estimate.value <= estimate.high
    assert estimates["calibration/nll"].value == pytest.approx(metrics["eval/loss"], rel=METRIC_TOLERANCE)
    assert estimates["rewards/margins"].high - estimates["rewards/margins"].low > 0.1
    assert found.report.left_out == {}


def test_other_layouts_and_meshes_find_the_same(found, finished_run, tiny_files):
    overrides = [
        f"data.eval=[{tiny_files.train}]", "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "data.share_prefix=false",
        "train.batch_size=5",
    ]  # fmt: skip
    other = evaluate_preferences(finished_run.out, step="9", overrides=overrides, bootstrap=FEW)
    for ours, theirs in zip(found.groups, other.groups, strict=True):
        assert ours["row_id"] == theirs["row_id"]
        for side in ("chosen", "rejected"):
            assert theirs[side] == pytest.approx(ours[side], abs=LAYOUT_TOLERANCE)
    np.testing.assert_allclose(other.margin_B, found.margin_B, atol=LAYOUT_TOLERANCE)
    k3 = "kl_k3_per_token/chosen"
    assert other.report.estimates[k3].value == pytest.approx(found.report.estimates[k3].value, rel=1e-4)
    assert other.report.estimates[k3].low == pytest.approx(found.report.estimates[k3].low, rel=1e-4)


def test_strict_json_and_figure(found, tmp_path):
    path = found.report.write(tmp_path / "deep" / "result.json")
    stored = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert stored["estimates"]["rewards/accuracies"]["unit"] == "share of groups"
    assert stored["tables"]["lengths"][0]["completions"] == 18
    assert sum(row["pairs"] for row in stored["tables"]["reliability"]) == 18
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]
    assert plot_preferences(found, tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


# ---- other kinds of groups


def evaluated(tmp_path, files, rows, **changes):
    """Of a policy that is not its reference: the starting model with other weights in its MLPs, not trained."""
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    pieces = build(tiny.config(tmp_path / "run", files.model, data, data, **changes))
    groups, report = read_data(pieces, "eval")
    groups, _ = with_reference_logps(pieces, groups)
    params = load_params(pieces)
    reference = reference_params(pieces, params) if runs_reference(pieces) else None
    params["layers"]["mlp"]["down"] = 1.3 * params["layers"]["mlp"]["down"]
    opened = OpenRun(pieces, params, reference, init_running(pieces.parts), 0)
    return evaluate_groups(opened, groups, report.kind, {"title": "tiny"}, FEW, 10)


def test_names_are_whole_on_a_narrow_terminal():
    """Units are broken between words instead."""
    names = ["rewards/accuracies_chosen_shorter", "calibration/brier"]
    sections = {
        "rewards": {names[0]: Estimate(1.0, 1.234e-6, 1.234e11)},
        "calibration": {names[1]: Estimate(0.1, 0, 1)},
    }
    console = Console(width=80)
    with console.capture() as shown:
        Report({"title": "held out", "bootstrap": {"level": 0.95}}, sections).show(console)
    lines = shown.get().splitlines()
    assert any(line.startswith("    accuracies_chosen_shorter  ") for line in lines)
    assert any(line.endswith("at equal") or "0 to 1; 0.25" in line for line in lines) and max(map(len, lines)) <= 80


def test_reference_in_a_cache(tiny_files, tmp_path):
    """Sums alone are known of it: everything but the tokens' k3."""
    cached = {"mode": "cache", "cache_dir": str(tmp_path / "cache")}
    found = evaluated(tmp_path, tiny_files, tiny.rows(6), reference=cached)
    assert list(found.report.left_out) == ["kl_k3_per_token"]
    assert "reference.mode=cache" in found.report.left_out["kl_k3_per_token"]
    ratios = [row["chosen"]["logp"] - row["chosen"]["ref_logp"] for row in found.groups]
    assert found.report.estimates["kl_k1/chosen"].value == pytest.approx(np.mean(ratios))
    assert found.report.estimates["kl_k3/chosen"].value == pytest.approx(
        np.mean(np.expm1(np.negative(ratios)) + ratios)
    )
    assert np.abs(ratios).min() > 0.01


def test_judged_answers(tiny_files, tmp_path):
    rows = [{"prompt": f"n {i}", "completion": " yes" * (1 + i % 3), "label": i % 3 > 0} for i in range(9)]
    found = evaluated(tmp_path, tiny_files, rows, objective=[{"name": "bco", "beta": 0.5}])
    estimates = found.report.estimates
    rewards, labels = (np.array([f(row) for row in found.groups]) for f in (
        lambda row: row["completion"]["reward"], lambda row: row["label"]))  # fmt: skip
    assert labels.tolist() == [0, 1, 1] * 3
    wins = [(a > c) + 0.5 * (a == c) for a in rewards[labels == 1] for c in rewards[labels == 0]]
    assert estimates["rewards/roc_area"].value == pytest.approx(np.mean(wins))
    assert estimates["rewards/chosen"].value == pytest.approx(rewards[labels == 1].mean())
    assert estimates["lengths/undesirable"].value < estimates["lengths/desirable"].value
    ratio = [row["completion"]["logp"] - row["completion"]["ref_logp"] for row in found.groups]
    np.testing.assert_allclose(rewards, 0.5 * np.array(ratio), atol=LAYOUT_TOLERANCE)
    assert list(found.report.left_out) == ["calibration"] and found.margin_B is None
    assert any("bco couples the groups" in note for note in found.report.notes)
    assert plot_preferences(found, tmp_path / "none.png") is None and not (tmp_path / "none.png").exists()


@pytest.mark.slow
def test_judged_answers_of_one_label_leave_out_what_needs_both(tiny_files, tmp_path):
    rows = [{"prompt": f"n {i}", "completion": " yes" * (1 + i % 3), "label": True} for i in range(5)]
    found = evaluated(tmp_path, tiny_files, rows, objective=[{"name": "apo_zero_unpaired"}])
    left_out = found.report.left_out
    assert left_out["rewards/roc_area"] == "needs desirable and undesirable groups"
    assert left_out["logps/undesirable"] == left_out["rewards/rejected"] == "no group has a finite value"
    assert "logps/desirable" in found.report.estimates and "rewards/rejected" not in found.report.estimates


def test_ranked_lists(tiny_files, tmp_path):
    rows = [{"prompt": f"n {i % 4}", "completions": [f"a{i}", "b" * (i + 1), "no"][: 2 + i % 2]} for i in range(6)]
    found = evaluated(tmp_path, tiny_files, rows, objective=[{"name": "plackett_luce"}])
    estimates = found.report.estimates
    right = []
    for row in found.groups:
        ratios = [x["logp"] - x["ref_logp"] for x in row.values() if isinstance(x, dict)]
        assert len(ratios) == 2 + row["row_id"] % 2
        right.append(np.mean([a > c for i, a in enumerate(ratios) for c in ratios[i + 1 :]]))
    assert estimates["rewards/accuracies"].value == pytest.approx(np.mean(right))
    others = [x["tokens"] for row in found.groups for name, x in row.items() if name.startswith("completion")]
    assert len(others) == 9 and estimates["lengths/others"].value == pytest.approx(np.mean(others))
    assert list(found.report.left_out) == ["calibration"]
    assert found.report.about["prompts"] == 4 and "4 prompts with all their groups" in found.report.notes[0]


def test_single_answers_without_a_reference(tiny_files, tmp_path):
    rows = [{"prompt": f"n {i}", "completion": " yes" * (1 + i)} for i in range(5)]
    found = evaluated(tmp_path, tiny_files, rows, objective=[{"name": "sft"}])
    assert found.report.left_out == {
        "kl": "sft has no reference",
        "rewards, calibration": "one answer per prompt and no label: nothing to compare",
    }
    estimates = found.report.estimates
    assert estimates["logps_per_token/completion"].value == pytest.approx(-estimates["loss"].value, rel=1e-5)


def test_a_sum_of_objectives_has_the_metrics_of_its_parts(tiny_files, tmp_path):
    objective = [{"name": "ipo", "transform": "ld"}, {"name": "cpo", "alpha": 1.0, "weight": 0.5}]
    found = evaluated(tmp_path, tiny_files, tiny.rows(5), objective=objective)
    values = {name: estimate.value for name, estimate in found.report.estimates.items()}
    for name in ("loss", "loss/ipo", "loss/cpo", "entropy"):
        assert values[name] == pytest.approx(found.report.metrics[f"eval/{name}"], rel=METRIC_TOLERANCE)
    assert values["loss"] == pytest.approx(values["loss/ipo"] + 0.5 * values["loss/cpo"])
    assert any("the loss of ipo + cpo is not the likelihood" in note for note in found.report.notes)


def test_a_log_ratio_that_overflows_is_said():
    """exp(800) is no float64; the other estimates stay."""
    found = {"kl_k3/chosen": Estimate(float("inf")), "kl_k1/chosen": Estimate(-800.0, -900.0, -700.0)}
    defined, left_out = split_defined(found, UNDEFINED)
    assert list(defined) == ["kl_k1/chosen"] and "overflows" in left_out["kl_k3/chosen"]


def test_log_probs_that_are_no_numbers_are_named(tiny_files):
    groups = tiny.groups_of(tiny.config("unused", tiny_files.model, tiny_files.train))[:3]
    sums = np.array([[-1.0, -2.0], [-3.0, np.nan], [-1.0, -np.inf]])
    bad, good = (Logps(x, np.ones((3, 2)), None, None) for x in (sums, np.zeros((3, 2))))
    with pytest.raises(InputError) as caught:
        _check_finite(Records(np.arange(3), bad, None, None, {}), groups)
    assert f"{groups[1].where}: those of the policy are not; 2 of 3" in caught.value.got
    with pytest.raises(InputError, match="those of the reference"):
        _check_finite(Records(np.arange(3), good, bad, None, {}), groups)


def test_options_are_checked_before_anything_is_read(finished_run):
    with pytest.raises(InputError, match="bins=0"):
        evaluate_preferences(finished_run.out, bins=0)
    with pytest.raises(InputError, match="config.yaml"):
        evaluate_preferences(finished_run.out / "checkpoints")
