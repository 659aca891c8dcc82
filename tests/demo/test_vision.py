"""The demo of mDPO, in small: every stage leaves what the next needs, and none is done again."""

import json

import pytest
from rich.console import Console

from jaxpref.demo.vision import MISLEADING, USUAL, Scale, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile", "any_mesh")]

SCALE = Scale(pictures=40, seeing_steps=2, pairs=64, steps=2, held_out=12, seeds=2)


def test_demo_measures_and_shows_every_policy(tmp_path, capsys):
    run(tmp_path, SCALE, Console(width=140))
    shown = capsys.readouterr().out
    assert all(word in shown for word in (MISLEADING, USUAL, "DPO", "mDPO", "written:"))
    front = json.loads((tmp_path / "front.json").read_text())["front"]
    assert [point["name"] for point in front["points"]] == ["base-0", "DPO-0", "DPO-1", "mDPO-0", "mDPO-1"]
    for point in front["points"]:
        assert set(point["estimates"]["accuracy"]) == {MISLEADING, USUAL} and len(point["answers"]) == 12
    first_pairs = [(tmp_path / f"data/pairs_{seed}.jsonl").read_text() for seed in range(2)]
    assert first_pairs[0] != first_pairs[1], "seeds have pairs of their own"
    page = (tmp_path / "report.html").read_text()
    assert all(url in page for [url] in front["pictures"]) and front["pictures"][0][0].startswith("data:image/png")

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    run(tmp_path, SCALE, Console(width=140))
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    assert json.loads((tmp_path / "front.json").read_text())["front"] == front
