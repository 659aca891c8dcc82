"""The benchmarks' report is what the records say, and README's figures are those of the report."""

import ast
import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def modules():
    """record.py and report.py, which are not on the path."""
    sys.path.insert(0, str(FOLDER))
    try:
        loaded = {}
        for name in ("record", "report"):
            spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
            sys.modules[name] = loaded[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(loaded[name])
        yield loaded
    finally:
        sys.path.remove(str(FOLDER))
        for name in loaded:
            del sys.modules[name]


def test_the_report_and_readme_are_made_of_the_records(modules):
    report = modules["report"]
    records = report.all_records(report.RESULTS)
    assert {"gpu", "peers"} <= {record.benchmark for record in records}
    assert (FOLDER / "report.md").read_text() == report.page(records), "run `python benchmarks/report.py`"
    readme = report.README.read_text()
    assert readme == report.with_figures(readme, records), "run `python benchmarks/report.py`"


def test_a_record_is_read_as_it_was_written(modules, tmp_path):
    record = modules["record"]
    made = record.record("scaling", "8 rows", {"s": [2.0, 1.0], "MiB": 3, "not measured": None}, versions={"jax": "1"})
    record.append(tmp_path / "records.jsonl", [made])
    record.append(tmp_path / "records.jsonl", [made])
    assert record.read(tmp_path / "records.jsonl") == [made, made]
    assert made.measured == {"s": [2.0, 1.0], "MiB": [3.0]}


def test_a_line_of_another_form_is_refused(modules, tmp_path):
    file = tmp_path / "records.jsonl"
    file.write_text(json.dumps({"job": "1b-2048", "seconds": 0.4}) + "\n")
    with pytest.raises(TypeError, match="job"):
        modules["record"].read(file)


def test_the_report_says_what_a_lever_was_predicted_to_gain_and_what_it_did(modules):
    record, report = modules["record"], modules["report"]
    measured = {"before, s": [4.0, 5.0, 6.0], "after, s": [2.0, 2.5, 2.0]}
    lever = record.record("step_profile", "larger chunks", measured, predicted="3 times less")
    page = report.page([lever])
    assert "| larger chunks | s | 3 times less | 5 (4-6) | 2 (2-2.5) | 2.50 times less | n = 3 |" in page


@pytest.mark.parametrize("script", sorted(path.name for path in FOLDER.glob("*.py")))
def test_every_benchmark_appends_records(script):
    if script in {"record.py", "report.py", "step_times.py", "small_front.py"} or script.endswith("_side.py"):
        return
    calls = [node for node in ast.walk(ast.parse((FOLDER / script).read_text())) if isinstance(node, ast.Call)]
    assert "append" in {call.func.id for call in calls if isinstance(call.func, ast.Name)}
