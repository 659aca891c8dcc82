"""The record: complete, checked, and equal after a round trip."""

import csv
import dataclasses
import json
import math

import fronts
import numpy as np
import pytest

from jaxpref.errors import InputError
from jaxpref.evaluation.bootstrap import Bootstrap, Estimate
from jaxpref.pareto.cost import Cost, Work
from jaxpref.pareto.front import Front, Point, read_front
from jaxpref.pareto.report.write import write_front

QUICK = Bootstrap(resamples=100)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory, front = tmp_path_factory.mktemp("front"), fronts.study()
    return front, directory, write_front(front, directory, bootstrap=QUICK)


def test_a_front_is_read_as_it_was_written(written):
    front, directory, _ = written
    assert read_front(directory) == read_front(directory / "front.json") == front
    other = dataclasses.replace(front, points=front.points[1:])
    assert read_front(directory) != other


def test_results_stand_beside_the_front(written):
    front, directory, results = written
    assert json.loads((directory / "front.json").read_text())["results"] == results
    assert "reference" in results["dominated"] and "modpo_0.3" not in results["dominated"]
    assert [s["method"] for s in results["sweeps"]] == ["reference", "dpo", "modpo", "soup_deltas"]
    assert results["sweeps"][2]["ends"] == ["dpo_helpful", "dpo_harmless"]
    assert results["sweeps"][2]["cost"] == {"flops": 6e12, "seconds": 300.0}
    assert results["sweeps"][2]["separate_cost"] == {"flops": 8e12, "seconds": 420.0}
    assert results["sweeps"][3]["cost"]["seconds"] is None  # one of its points was not timed


def test_a_front_writes_itself_again_from_its_file(written, tmp_path):
    _, directory, _ = written
    write_front(read_front(directory), tmp_path, bootstrap=QUICK)
    for name in ("front.json", "front.csv", "report.html"):
        assert (tmp_path / name).read_bytes() == (directory / name).read_bytes()


def test_the_table_has_one_row_per_point(written):
    front, directory, results = written
    with (directory / "front.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == [point.name for point in front.points]
    for row, point in zip(rows, front.points, strict=True):
        for name in front.objectives:
            found = Estimate(*(float(row[f"reward/{name}{end}"]) for end in ("", "/low", "/high")))
            assert found == point.estimates["reward"][name]
            assert row[f"weight/{name}"] == ("" if point.weights is None else str(point.weights[name]))
        assert row["dominated"] == str(int(point.name in results["dominated"]))
    assert (rows[-1]["seconds"], float(rows[-1]["shared_seconds"])) == ("", 120.0)


def test_numbers_of_any_kind_become_plain_ones(tmp_path):
    estimate = Estimate(np.float32(0.5), np.float64(0.25), None)
    point = Point(
        "a",
        "modpo",
        {"x": np.float32(1), "y": 0},
        None,
        0,
        None,
        {"accuracy": {"x": estimate, "y": estimate}},
        cost=Cost(Work(np.float32(2.0), 1), {"x": Work(np.int32(3), None)}, np.int64(2)),
        curves=({"step": np.int32(1), "loss": np.float32("nan")},),
    )
    front = Front("t", ("x", "y"), "accuracy", (point,), about={"at": tmp_path, "list": (1, np.arange(2))})
    write_front(front, tmp_path, bootstrap=QUICK)
    assert read_front(tmp_path) == front
    assert front.points[0].curves == [{"step": 1, "loss": None}]
    assert front.about == {"at": str(tmp_path), "list": [1, [0, 1]]}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"name": "../up"}, "../up"),
        ({"method": "a b"}, "a b"),
        ({"estimates": {"reward": {"helpful": Estimate(math.nan)}}}, "reward of helpful: nan"),
        ({"weights": {"helpful": -1.0, "harmless": 2.0}}, "weights >= 0"),
        ({"weights": {"helpful": 0.0, "harmless": 0.0}}, "not all 0"),
    ],
)
def test_a_point_that_cannot_be_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(fronts.point("a", (1, 2), (0.5, 0.5)), **change)


@pytest.mark.parametrize(
    "points, others, said",
    [
        ([], {}, "no points"),
        ([fronts.point("a", (1, 2)), fronts.point("a", (2, 1))], {}, "2 points named a"),
        ([fronts.point("a", (1, 2))], {"measure": "accuracy"}, "a: no accuracy of helpful"),
        ([fronts.point("a", (1, 2), measure="kl")], {"measure": "kl"}, "'kl'"),
        ([fronts.point("a", (1, 2), answers=["x"])], {"prompts": ["p", "q"]}, "1 answers to 2 prompts"),
        ([fronts.point("a", (1, 2), rewards={"helpful": [1.0]})], {"prompts": ["p"]}, "1 rewards of helpful for 0"),
        ([fronts.point("a", (1, 2), rewards={"brief": []})], {}, "brief, which is no objective"),
        ([fronts.point("a", (1, 2), (1, 1), objectives=("x", "y"))], {}, "weights of x, y"),
    ],
)
def test_points_that_do_not_fit_are_refused_together(points, others, said):
    with pytest.raises(InputError, match=said):
        fronts.front(points, **others)


def test_one_objective_is_no_front():
    with pytest.raises(InputError, match="two or more"):
        fronts.front([fronts.point("a", (1,), objectives=("x",))], ("x",))


@pytest.mark.parametrize("text", ["", "{}", '{"front": {"title": "t"}}', '{"front": []}', '{"front": 1}'])
def test_a_file_that_is_no_front_is_named(tmp_path, text):
    (tmp_path / "front.json").write_text(text)
    with pytest.raises(InputError, match=r"front\.json"):
        read_front(tmp_path)
    with pytest.raises(InputError, match="missing"):
        read_front(tmp_path / "missing")
