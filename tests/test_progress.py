"""What is shown of long work: lines in files and pipes, bars on terminals and in notebooks."""

import io
import re
import sys
from types import SimpleNamespace

import pytest
import tiny
from rich.console import Console

from jaxpref.progress import progress
from jaxpref.runs.metrics import read_jsonl
from jaxpref.training.run import train


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(steps, every=None, file=None, **console) -> str:
    file = file or io.StringIO()
    with progress(Console(file=file, width=60, **console), every=every) as update:
        for step in steps:
            update(*step)
    return file.getvalue()


def test_lines_come_every_so_often_and_at_the_end():
    text = shown([("scores", 0, None, "loading")] + [("scores", i, 7, f"x{i}") for i in range(1, 8)], every=3)
    assert text.splitlines() == ["scores: loading", "scores 3/7  x3", "scores 6/7  x6", "scores 7/7  x7"]


def test_without_an_interval_a_line_comes_every_tenth_of_all():
    chunks = [*range(256, 4000, 256), 4000]  # as rows are scored; a line wherever a multiple of 400 is passed
    lines = shown([("a", done, 4000) for done in chunks]).splitlines()
    assert len(lines) == 10 and lines[-1] == "a 4000/4000"
    assert [int(line.split("/")[0].split()[1]) // 400 for line in lines] == list(range(1, 11))


def test_work_that_goes_on_is_counted_from_where_it_is():
    assert shown([("a", i, 100) for i in range(51, 61)], every=10) == "a 60/100\n"


def test_lines_stay_whole_and_are_no_markup():
    assert shown([("a", 1, 1, "[b]" + "x" * 100)]) == "a 1/1  [b]" + "x" * 100 + "\n"


def test_a_terminal_has_a_bar_for_each_work():
    text = shown([("one", 1, 2, "first"), ("two", 2, 4, "second")], file=Screen(), color_system=None)
    assert "━" in text and re.search(r"one .*1/2.*first", text) and re.search(r"two .*2/4.*second", text)


def test_a_pipe_that_is_to_have_colours_has_lines_all_the_same(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in CI, and for commands in a notebook
    assert shown([("a", i, 2) for i in (1, 2)], every=1) == "a 1/2\na 2/2\n"


def test_a_notebook_has_a_bar_that_is_replaced(monkeypatch):
    made = []

    def display(content, *, raw, display_id):
        assert raw and display_id
        made.append([content])
        return SimpleNamespace(update=lambda content, raw: made[-1].append(content))

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    assert shown([("a", i, 1000, "<b>") for i in range(1, 1001)], force_jupyter=True) == ""
    (states,) = made
    assert 2 <= len(states) < 100, "it is redrawn now and then, not for every step"
    assert states[-1]["text/plain"] == "a 1000/1000  <b>" and "&lt;b&gt;" in states[-1]["text/html"]


# ---- a run's


@pytest.mark.usefixtures("quick_compile", "any_mesh")
@pytest.mark.parametrize("show", [True, False])
def test_a_run_says_in_lines_what_its_metrics_say(show, tiny_files, tmp_path, capsys):
    config = tiny.long_config(tmp_path / "run", tiny_files, train={"log_every": 3}, log={"progress": show})
    train(config)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    if not show:
        assert lines == []
        return
    assert lines[0] == "step: loading, compiling"
    logged = {line["step"]: line for line in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "loss" in line}
    assert list(logged) == [3, 6, 9, 10]
    for line, (step, values) in zip(lines[1:], logged.items(), strict=True):
        assert line.startswith(
            f"step {step}/10  loss {values['loss']:.4f}  accuracy {values['rewards/accuracies']:.2f}"
            f"  margin {values['rewards/margins']:+.3f}  "
        )
