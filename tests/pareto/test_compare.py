"""Two fronts as one: a table, a figure and a page in which equal methods stand beside each other."""

import dataclasses
import json

import fronts
import numpy as np
import pytest

from jaxpref.errors import InputError
from jaxpref.evaluation.bootstrap import Bootstrap
from jaxpref.pareto.compare import compared, of_seeds
from jaxpref.pareto.dominance import sweeps
from jaxpref.pareto.front import read_front, read_reference_point
from jaxpref.pareto.report.style import styles
from jaxpref.pareto.report.write import write_front

QUICK = Bootstrap(resamples=100)


def better(front, gain):
    """The same front with all rewards higher."""
    points = []
    for point in front.points:
        rewards = {name: [x + gain for x in values] for name, values in point.rewards.items()}
        estimates = {
            "reward": {
                name: dataclasses.replace(e, value=e.value + gain) for name, e in point.estimates["reward"].items()
            }
        }
        points.append(dataclasses.replace(point, rewards=rewards, estimates=estimates))
    return dataclasses.replace(front, points=points)


@pytest.fixture(scope="module")
def two():
    first = fronts.study()
    return first, better(first, 0.5)


def test_methods_are_called_by_their_front_and_keep_its_ends(two):
    front, pairs = compared([("old run", two[0]), ("new", two[1])])
    assert pairs == [("modpo.new", "modpo.old_run"), ("soup_deltas.new", "soup_deltas.old_run")]
    by_method = {sweep.method: sweep for sweep in sweeps(front)}
    ends = [front.points[i].name for i in by_method["modpo.new"].ends]
    assert ends == ["dpo_helpful.new", "dpo_harmless.new"]
    assert by_method["dpo.new"].ends == () == by_method["reference.new"].ends
    looks = styles(front)
    assert looks["modpo.new"].label == "MODPO, new" and looks["modpo.new"].marker == looks["modpo.old_run"].marker
    assert looks["modpo.new"].light != looks["modpo.old_run"].light


def test_the_command_holds_the_second_front_against_the_first(two, tmp_path, call, monkeypatch):
    monkeypatch.setattr("jaxpref.pareto.report.write.front_measures.__defaults__", (QUICK, None))
    for name, front in zip(("old", "new"), two, strict=True):
        (tmp_path / name).mkdir()
        write_front(front, tmp_path / name, bootstrap=QUICK)
    code, out, err = call("pareto", "--compare", tmp_path / "old", tmp_path / "new")
    assert code == 0, err
    assert "modpo.new - modpo.old" in out and "above the reference point" in out
    made = tmp_path / "new-against-old"
    assert {path.name for path in made.iterdir()} == {"front.json", "front.csv", "front.png", "report.html"}
    results = json.loads((made / "front.json").read_text())["results"]
    (difference, _) = results["differences"]
    assert difference["measures"]["mean_inner_product"] == pytest.approx({"value": 0.5, "low": 0.5, "high": 0.5})
    assert difference["measures"]["hypervolume"]["low"] > 0
    # The lower point of the two, which a later report keeps.
    lower = {name: min(read_reference_point(tmp_path / d)[name] for d in ("old", "new")) for name in fronts.OBJECTIVES}
    assert read_reference_point(made) == lower
    assert call("pareto", made)[0] == 0
    assert json.loads((made / "front.json").read_text())["results"] == results
    code, _, _ = call("pareto", made, "--reference-point", "helpful=-9", "harmless=-8")
    assert code == 0 and read_reference_point(made) == {"helpful": -9.0, "harmless": -8.0}
    assert call("pareto", made)[0] == 0 and read_reference_point(made) == {"helpful": -9.0, "harmless": -8.0}
    assert read_front(made).title == "new against old"
    code, _, err = call("pareto", made, "--out", tmp_path / "copy")
    assert code == 2 and "out=DIR" in err and not (tmp_path / "copy").exists()


def test_fronts_of_other_prompts_are_not_compared(two, tmp_path, call):
    other = dataclasses.replace(two[1], prompts=["else"] * len(two[1].prompts))
    with pytest.raises(InputError, match="old and new have other prompts"):
        compared([("old", two[0]), ("new", other)])
    code, _, err = call("pareto")
    assert code == 2 and "--compare" in err


def test_seeds_are_one_front_with_one_reference(two):
    first = two[0]
    second = dataclasses.replace(first, points=[dataclasses.replace(p, seed=1) for p in two[1].points])
    front = of_seeds([first, second])
    assert [p.name for p in front.points if p.method == "reference"] == ["reference"]
    assert "modpo_0.3_seed0" in [p.name for p in front.points] and front.about["seeds"] == [0, 1]
    sweep = next(s for s in sweeps(front) if (s.method, s.seed) == ("modpo", 1))
    assert [front.points[i].name for i in sweep.ends] == ["dpo_helpful_seed1", "dpo_harmless_seed1"]
    np.testing.assert_allclose(front.points[0].rewards["helpful"], first.points[0].rewards["helpful"])
