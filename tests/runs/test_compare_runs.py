"""Runs side by side, from what runs leave on disk."""

import json
from types import SimpleNamespace

import pandas
import pytest
from rich.console import Console

from jaxpref import cli
from jaxpref.errors import InputError
from jaxpref.runs.compare import compare
from jaxpref.settings import make_config, save_config
from jaxpref.training.sweep import Swept


def write_run(directory, objective, lines, **settings):
    directory.mkdir()
    save_config(
        make_config({"data": {"train": ["x.jsonl"]}, "objective": objective, **settings}), directory / "config.yaml"
    )
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


@pytest.fixture
def runs(tmp_path):
    lines = [{"step": 0, "eval/loss": 0.7}, {"step": 5, "loss": 0.5}, {"step": 5, "eval/loss": 0.4}]
    low = write_run(tmp_path / "low", [{"name": "dpo", "beta": 0.1}], lines, log={"progress": False})
    high = write_run(tmp_path / "high", [{"name": "dpo", "beta": 0.5}], lines[:2], optim={"learning_rate": 1e-3})
    return [low, high]


def test_rows_hold_what_differs_and_the_last_metrics(runs):
    comparison = compare(runs)
    assert comparison.settings == ["objective.0.beta", "optim.learning_rate"]
    frame = pandas.DataFrame(comparison.rows).set_index("run")
    assert frame["objective.0.beta"].tolist() == [0.1, 0.5] and frame["step"].tolist() == [5, 5]
    assert frame.loc["low", "eval/loss"] == 0.4 and frame.loc["high", "eval/loss"] == 0.7
    text = repr(comparison)
    assert "held-out loss" in text and "0.4" in text and "log.progress" not in text
    assert comparison._repr_html_().count("data:image/png;base64,iVBOR") == 1


def test_a_default_that_is_written_out_is_no_difference(tmp_path):
    """Nor are defaults of hyperparameters that no run sets worth a row."""
    given = [{"name": "dpo"}], [{"name": "dpo", "beta": 0.1, "weight": 1.0}], [{"name": "kto", "desirable_weight": 2.0}]
    runs = [write_run(tmp_path / str(i), objective, []) for i, objective in enumerate(given)]
    assert compare(runs[:2]).settings == []
    comparison = compare(runs)
    assert comparison.settings == ["objective.0.name", "objective.0.desirable_weight"]
    assert [row["objective.0.desirable_weight"] for row in comparison.rows] == [None, None, 2.0]


def test_an_objective_from_python_and_held_out_sets_with_names(runs, tmp_path):
    """Its name is in no config: functions are not written there."""
    sets = [{"step": 5, "eval/a/loss": 0.7, "eval/b/loss": 0.2, "eval/a/rewards/accuracies": 0.9}]
    mine = write_run(tmp_path / "mine", [{"name": "dpo"}], sets)
    (mine / "objective.json").write_text('["asymmetric"]')
    comparison = compare([runs[0], mine])
    assert [row["objective.0.name"] for row in comparison.rows] == ["dpo", "asymmetric"]
    text = repr(comparison)
    assert text.count("held-out loss") == 3 and text.count("held-out accuracy") == 1
    assert comparison.plot(tmp_path / "all.png").is_file()


@pytest.mark.parametrize("width, tables", [(60, 2), (80, 1), (240, 1)])
def test_nothing_is_cut_at_any_width(runs, tmp_path, width, tables):
    """Runs are rows at 240 columns, and side by side at fewer."""
    metrics = ["loss", "rewards/accuracies", "rewards/margins", "logps/chosen"]
    names = [f"eval/{of}/{metric}" for metric in metrics for of in ("helpful", "harmless")]
    line = {name: 0.1234 + i for i, name in enumerate(names)}
    mine = write_run(tmp_path / "mine", [{"name": "dpo"}], [line | {"step": 5}])
    console = Console(width=width, color_system=None)
    with console.capture() as printed:
        console.print(compare([*runs, mine]))
    text = printed.get()
    assert text.count(" run ") == text.count("objective.0.beta") == tables
    assert text.count(" mine ") == text.count(" low ") == text.count(" high ") == 1
    assert all(text.count(f" {value:.4g} ") == 1 for value in line.values())
    assert text.count(", helpful") == text.count(", harmless") == len(metrics) * tables
    assert max(map(len, text.splitlines())) <= width


def test_command(runs, tmp_path, capsys):
    (tmp_path / "sweep.png").touch()  # RUNS/* names it too
    named = [*map(str, runs), str(tmp_path / "sweep.png")]
    assert cli.main(["compare", *named, "--png", str(tmp_path / "all.png")]) == 0
    assert "objective.0.beta" in capsys.readouterr().out
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["compare", str(tmp_path / "none")]) == 2


def test_what_is_no_run_is_named(runs, tmp_path):
    with pytest.raises(InputError, match="none"):
        compare([runs[0], tmp_path / "none"])


def test_one_run_and_sweeps_need_no_list(runs, tmp_path):
    swept = Swept([SimpleNamespace(out=run) for run in runs], compare(runs), tmp_path / "sweep.png")
    for given in (swept, [swept], iter(runs)):
        assert compare(given).runs == runs
    assert compare(str(runs[0])).runs == compare(runs[0]).runs == runs[:1]
