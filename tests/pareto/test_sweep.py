"""`jaxpref pareto` on a tiny model: every stage for real, once together and once one by one."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from jaxpref.cli import main
from jaxpref.errors import InputError
from jaxpref.pareto.front import read_front
from jaxpref.pareto.inputs import _in_turns, asked_prompts, start_front
from jaxpref.pareto.run_configs import point_run, single_run
from jaxpref.pareto.settings import doubtful_bases, load_front_config, make_front_config
from jaxpref.pareto.sweep import Watch, run_front
from jaxpref.runs.build import build
from jaxpref.runs.lock import sole_writer
from jaxpref.settings import load_config
from jaxpref.types import Group, Picture

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

WEIGHTS = [[0.2, 0.8], [0.6, 0.4], [0.8, 0.2]]
QUIET = Watch(say=lambda line: None)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("front")
    model = tiny.write_model(directory / "model")
    train = tiny.write_rows(directory / "train.jsonl", tiny.rows(18))
    return tiny.Files(model, train, tiny.write_rows(directory / "test.jsonl", tiny.rows(6, first=100)))


def settings(out: Path, files: tiny.Files, **pareto) -> dict:
    """`likes` are the pairs as they are labelled; `short` relabels them by the number of characters."""
    raw = tiny.settings(out, files.model, files.train, files.held_out, adapter={"rank": 2, "alpha": 8.0})
    raw["train"] |= {"epochs": 2, "save_every": 4}
    objectives = [
        {"name": "likes", "train": [str(files.train)], "eval": [str(files.held_out)]},
        {"name": "short", "reward": f"{Path(__file__).parent / 'judges.py'}:short", "temperature": 4.0},
    ]
    answers = {"count": 4, "max_new_tokens": 6, "samples": 2}
    return raw | {"pareto": {"objectives": objectives, "weights": WEIGHTS, "answers": answers, **pareto}}


EVERY_METHOD = ["dpo", "modpo", "mod", "soup_deltas", "soup_factors", "mpo", "raco", "cos_dpo"]


@pytest.fixture(scope="module")
def front(files, tmp_path_factory, compile_cache):
    with pytest.MonkeyPatch.context() as monkeypatch, tiny.quick_compile(compile_cache):
        tiny.allow_any_mesh(monkeypatch)
        out = tmp_path_factory.mktemp("runs") / "front"
        config = make_front_config(settings(out, files, methods=EVERY_METHOD))
        return run_front(config, QUIET), out, config


def test_a_front_is_made_by_one_process(files, tmp_path):
    with sole_writer(tmp_path / "front"), pytest.raises(InputError, match=f"front is in use by process {os.getpid()}"):
        run_front(make_front_config(settings(tmp_path / "front", files, methods=["dpo"])), QUIET)
    assert not (tmp_path / "front").exists()


def test_every_policy_is_measured(front):
    found, out, _ = front
    names = [point.name for point in found.points]
    at_all = lambda method: [f"{method}_{w:.4g}_{1 - w:.4g}" for w in (0.2, 0.6, 0.8)]
    weighted = [name for m in EVERY_METHOD[1:] for name in ([m] if m == "mpo" else at_all(m))]
    assert names == ["reference", "dpo_likes", "dpo_short", *weighted]
    for point in found.points:
        assert len(point.answers) == len(found.prompts) == 8
        assert set(point.estimates["reward"]) == set(point.estimates["accuracy"]) == {"likes", "short"}
        np.testing.assert_allclose(np.mean(point.rewards["short"]), point.estimates["reward"]["short"].value)
        assert point.rewards["short"] == [-len(text) / 4.0 for text in point.answers]
    reference = found.points[0]
    assert reference.estimates["accuracy"]["likes"].value == 0  # all log-ratios are 0
    assert abs(reference.estimates["kl"]["to the reference, nats"].value) < 1e-4
    assert found.points[1].estimates["accuracy"]["likes"].value == 1
    # Two points share a base and are trained together; the third has the other base.
    assert [p.cost.together for p in found.points if p.method == "modpo"] == [1, 2, 2]


def test_data_carry_the_scores_of_all(front):
    _, out, _ = front
    read = lambda name: [json.loads(line) for line in (out / "data" / name).read_text().splitlines()]
    for row in read("likes-train-explicit.jsonl"):
        assert row["scores_chosen"]["short"] == -len(row["chosen"][0]["content"]) / 4.0
        assert set(row["scores_chosen"]) == set(row["scores_rejected"]) == {"short"}
    for row in read("data.train-train-implicit.jsonl"):
        assert set(row["scores_chosen"]) == set(row["scores_rejected"]) == {"likes", "short"}
    # Nothing is scored that no run reads.
    assert sorted(path.name for path in (out / "data").iterdir()) == [
        "data.train-eval-explicit.jsonl",
        "data.train-train-explicit.jsonl",
        "data.train-train-implicit.jsonl",
        "labels.jsonl",
        "likes-train-explicit.jsonl",
        "rows-cos_dpo.jsonl",
    ]


def test_cost_counts_shared_work_apart(front):
    found, _, _ = front
    cost = {point.name: point.cost for point in found.points}
    assert cost["dpo_likes"].own.flops > 0 and not cost["dpo_likes"].shared
    both = {"DPO on likes": cost["dpo_likes"].own, "DPO on short": cost["dpo_short"].own}
    labels = cost["dpo_short"].shared
    assert set(labels) == {"explicit scores of data.train"}
    assert cost["mod_0.2_0.8"].own.flops == 0 and cost["mod_0.2_0.8"].shared == both | labels
    # Trained on the shared pairs, which `short` relabels: the reward of `likes` is learned.
    assert set(cost["modpo_0.2_0.8"].shared) == {
        "DPO on likes",
        "explicit scores of data.train",
        "implicit scores of data.train",
    }
    assert cost["modpo_0.2_0.8"].all_shared.flops > cost["dpo_likes"].own.flops
    # Trained on the pairs of `likes`, with an explicit reward: no policy comes before.
    assert set(cost["modpo_0.6_0.4"].shared) == {"explicit scores of likes"}
    assert cost["modpo_0.6_0.4"].own.flops < cost["modpo_0.2_0.8"].own.flops * 1.1  # the reference is shared


def test_labels_are_those_of_all_objectives(front):
    """The pairs of `likes`, and the same pairs relabelled by their length, but for ties."""
    _, out, _ = front
    read = lambda name: [json.loads(line) for line in (out / "data" / name).read_text().splitlines()]
    labels = [(row["label/likes"], row["label/short"]) for row in read("labels.jsonl")]
    by_length = [np.sign(len(r["rejected"][0]["content"]) - len(r["chosen"][0]["content"])) for r in tiny.rows(18)]
    assert labels == [(1.0, 0.0)] * 18 + [(0.0, sign) for sign in by_length if sign]
    rows = read("rows-cos_dpo.jsonl")
    assert len(rows) == 2 * len(labels), "an epoch each"
    content = rows[0]["prompt"][0]["content"]
    assert content.startswith(f"< likes: {rows[0]['w/likes']:g} > < short: ") and content.endswith(" > n 0")


def test_max_min_weights_are_chosen_once(front):
    found, out, _ = front
    (point,) = [point for point in found.points if point.method == "mpo"]
    assert sum(point.weights.values()) == pytest.approx(1)
    assert json.loads((out / "stages" / "max-min.json").read_text())["weights"] == point.weights
    assert point.cost.own.flops is None and point.cost.own.seconds > 0


def test_one_run_serves_all_weights(front):
    found, out, _ = front
    points = {point.name: point for point in found.points}
    one, other = points["cos_dpo_0.2_0.8"], points["cos_dpo_0.8_0.2"]
    assert one.run == other.run == str(out / "cos_dpo") and one.cost == other.cost
    assert one.answers != other.answers
    assert set(one.cost.shared) == {
        "the run of cos_dpo", "rows of cos_dpo", "labels", "explicit scores of data.train",
    }  # fmt: skip
    assert one.cost.own.flops == 0 < one.cost.shared["the run of cos_dpo"].flops
    raco = points["raco_0.6_0.4"]
    assert raco.cost.together == 3 and Path(raco.run).is_dir()
    assert {"combined/signed_dpo", "combined/signed_dpo_2", "gradient_cosine"} <= raco.curves[-1].keys()
    weights = [points[name].curves[0]["combined/signed_dpo"] for name in ("raco_0.2_0.8", "raco_0.8_0.2")]
    assert weights[0] < weights[1]


def test_a_second_call_does_nothing_again(front, monkeypatch):
    found, out, config = front

    def refuse(*_, **__):
        raise AssertionError("done again")

    for name in ("sweep.train", "sweep.train_stacked", "sweep.score_data", "measure.EvaluationSet.answers"):
        monkeypatch.setattr(f"jaxpref.pareto.{name}", refuse)
    assert run_front(config, QUIET) == found


def test_a_judge_may_be_mended(front, monkeypatch):
    """Answers are judged again by another judge; nothing is trained or answered again."""
    found, out, config = front
    judge = out.parent / "judge.py"
    objectives = [replace(o, judge=f"{judge}:long" if o.name == "likes" else None) for o in config.pareto.objectives]
    other = replace(config, pareto=replace(config.pareto, objectives=objectives))
    copy = out.parent / "copy"
    shutil.copytree(out, copy)
    other = replace(other, run=replace(other.run, out=str(copy)))
    judge.write_text("def long(prompt, answer):\n    raise ValueError\n")
    (copy / "front.yaml").unlink(), (copy / "inputs.json").unlink()
    monkeypatch.setattr("jaxpref.pareto.sweep.train", None)
    monkeypatch.setattr("jaxpref.pareto.measure.EvaluationSet.answers", None)
    with pytest.raises((InputError, ValueError)):
        run_front(other, QUIET)
    judge.write_text("def long(prompt, answer):\n    return len(answer)\n")
    mended = run_front(other, QUIET)
    assert mended.points[0].rewards["likes"] == [float(len(text)) for text in found.points[0].answers]


def test_other_settings_and_other_files_are_refused(front, files):
    _, out, config = front
    raw = settings(out, files, methods=["modpo"])
    raw["train"] |= {"seed": 3}
    with pytest.raises(InputError, match=r"with which(.|\n)*changed: train.seed 0 -> 3; pareto.methods \['dpo', 'mo"):
        run_front(make_front_config(raw), QUIET)
    noisy = replace(config, run=replace(config.run, log=replace(config.run.log, progress=True)))
    assert start_front(noisy, out).run.log.progress and start_front(config, out) == config
    text = files.train.read_text()
    try:
        files.train.write_text(text + text.splitlines()[0] + "\n")
        with pytest.raises(InputError, match=f"from which.*\n.*{files.train}"):
            run_front(config, QUIET)
    finally:
        files.train.write_text(text)


@pytest.mark.slow
def test_one_by_one_gives_the_same_points(front, files, tmp_path):
    found, _, _ = front
    config = make_front_config(settings(tmp_path / "front", files, together=False, methods=["modpo"]))
    alone = run_front(config, QUIET)
    together = {point.name: point for point in found.points}
    for point in alone.points[1:]:
        assert point.method == "modpo"
        other = together[point.name]
        assert point.cost.together == 1
        assert point.curves[-1]["loss"] == pytest.approx(other.curves[-1]["loss"], rel=1e-3)
        assert point.curves[-1]["loss"] != pytest.approx(point.curves[0]["loss"], rel=1e-2)


@pytest.mark.slow
def test_warm_start_begins_with_the_policy_of_the_base(front, files, tmp_path):
    found, _, _ = front
    changes = {"warm_start": True, "weights": WEIGHTS[1:], "methods": ["modpo"]}
    warm = run_front(make_front_config(settings(tmp_path / "front", files, **changes)), QUIET)
    cold = {point.name: point.curves[0] for point in found.points if point.method == "modpo"}
    for point in warm.points[1:]:
        # Against the model as it was, the DPO policy tells chosen from rejected before the first step.
        assert point.curves[0]["rewards/accuracies"] == 1 and point.curves[0]["rewards/margins"] > 0.01
        assert abs(cold[point.name]["rewards/margins"]) < 1e-4


@pytest.mark.slow
def test_killed_it_goes_on(files, tmp_path):
    out, seen = tmp_path / "front", []
    config = make_front_config(settings(out, files, weights=[[0.7, 0.3]], methods=["modpo"]))

    class Dies:
        def __init__(self, title):
            self.title = title

        def __enter__(self):
            def on_log(step, *_):
                seen.append((self.title, step))
                if self.title.startswith("MODPO") and step == 6 and seen.count((self.title, 6)) == 1:
                    raise tiny.Killed

            return on_log

        def __exit__(self, *_):
            pass

    watch = Watch(QUIET.say, Dies)
    with pytest.raises(tiny.Killed):
        run_front(config, watch)
    before = len(seen)
    run_front(config, watch)
    again = seen[before:]
    assert {title for title, _ in again} == {"MODPO likes 0.7, short 0.3"}  # DPO is not trained a second time
    assert again[0][1] == 5  # the checkpoint after step 4


@pytest.mark.slow
def test_the_command_writes_and_draws_again(files, tmp_path, capsys):
    import yaml

    out = tmp_path / "front"
    raw = settings(out, files, weights=[[0.7, 0.3]], methods=["dpo", "modpo"])
    (tmp_path / "front.yaml").write_text(yaml.safe_dump(raw))
    assert main(["pareto", str(tmp_path / "front.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "modpo_0.7_0.3" in shown and "hypervolume" in shown
    for name in ("front.json", "front.csv", "front.png", "report.html"):
        (out / name).rename(out / f"{name}.before")
    (out / "front.json.before").rename(out / "front.json")
    assert main(["pareto", str(out), "--reference-point", "likes=-5", "short=-9"]) == 0
    record = json.loads((out / "front.json").read_text())
    assert record["results"]["reference_point"] == {"likes": -5.0, "short": -9.0}
    assert read_front(out).objectives == ["likes", "short"] and (out / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"weights": [[0.0, 1.0]]}, "not > 0"),
        ({"weights": [[-0.5, 1.5]]}, "not > 0"),
        ({"weights": [[1.0]]}, "1 entries for 2 objectives"),
        ({"weights": None}, "give one of them"),
        ({"grid": 4}, "give one of them"),
        ({"base": "kind"}, "none of"),
        ({"methods": ["rlhf"]}, "methods"),
        ({"methods": ["mod", "mod"]}, "each once"),
        ({"seeds": [0, 1, 0]}, "pareto.seeds.*each once"),
        ({"dirichlet": 0.0}, "pareto.dirichlet"),
        ({"weights": []}, "no vector"),
        ({"weights": [[1, 1], [2, 2.00001]]}, "the same point"),
        ({"methods": []}, "methods: none"),
        ({"answers": {"prompts": ""}}, "answers.prompts is an empty text"),
        ({"objectives": [{"name": "likes", "reward": ""}, {"name": "short"}]}, "likes: reward is an empty text"),
        ({"objectives": [{"name": "likes"}, {"name": "short", "reward": len}]}, "FILE.py:FUNCTION"),
        ({"objectives": [{"name": "likes", "train": tiny.rows(2)}]}, "objectives.train.*got rows: write them into"),
    ],
)
def test_what_is_wrong_is_said(files, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        make_front_config(settings(tmp_path / "front", files, **changes))


def test_settings_in_python_may_hold_paths_and_arrays(files, tmp_path):
    raw = settings(tmp_path / "front", files)
    written = make_front_config(raw)
    raw["pareto"]["weights"] = np.array(WEIGHTS, np.float64)
    raw["pareto"]["objectives"][0] |= {"train": [files.train], "eval": files.held_out}
    assert make_front_config(raw) == written


@pytest.mark.parametrize("section", [None, []])
def test_a_section_that_is_none_is_named(files, tmp_path, section):
    with pytest.raises(InputError, match=r"- pareto: a section with keys \(objectives, weights, "):
        make_front_config(settings(tmp_path / "front", files) | {"pareto": section})


def test_what_is_wrong_with_the_runs_is_not_lost(files, tmp_path):
    """An error of their settings that is no list of keys."""
    raw = settings(tmp_path / "front", files)
    with pytest.raises(InputError, match="data.margins, its former name"):
        make_front_config(raw | {"data": {"margins": [], "other_rewards": []}})


def test_what_is_no_front_config_is_told(files, tmp_path):
    raw = settings(tmp_path / "front", files)
    with pytest.raises(InputError, match="a FrontConfig\n.* of dict\n.*make_front_config"):
        run_front(raw)
    with pytest.raises(InputError, match="settings as a dict, for make_front_config"):
        make_front_config(make_front_config(raw))


@pytest.mark.slow
def test_one_adapter_serves_all_weights(files, tmp_path):
    """Each point is an ordinary adapter, made of the run of its kind; prompts say no weights."""
    out, methods = tmp_path / "front", ["panacea", "pblora"]
    found = run_front(make_front_config(settings(out, files, methods=methods)), QUIET)
    points = {point.name: point for point in found.points}
    assert len(points) == 1 + 2 * len(WEIGHTS)
    for method in methods:
        one, other = points[f"{method}_0.2_0.8"], points[f"{method}_0.8_0.2"]
        assert one.run == other.run == str(out / method) and one.cost == other.cost
        assert one.estimates["kl"] != other.estimates["kl"]
        assert set(one.cost.shared) >= {f"the run of {method}", "labels"}
        assert load_config(Path(one.run) / "config.yaml").adapter.kind == method
        adapter = json.loads((out / "adapters" / one.name / "adapter_config.json").read_text())
        assert adapter["r"] == 4 and adapter["lora_alpha"] == 16.0
    rows = [json.loads(line) for line in (out / "data" / "rows-panacea.jsonl").read_text().splitlines()]
    assert rows[0]["prompt"][0]["content"] == "n 0" and 0 < rows[0]["w/likes"] < 1


@pytest.mark.slow
def test_every_seed_is_a_front_of_its_own(files, tmp_path):
    """In a directory of its own; what comes out is one front, whose points are called by their seed."""
    raw = settings(tmp_path / "front", files, seeds=[3, 5], weights=[[0.5, 0.5]], methods=["raco"])
    found = run_front(make_front_config(raw), QUIET)
    assert [p.name for p in found.points] == ["reference", "raco_0.5_0.5_seed3", "raco_0.5_0.5_seed5"]
    first, second = found.points[1:]
    assert first.run == str(tmp_path / "front" / "seed_3" / "points" / "raco_0.5_0.5")
    assert first.curves != second.curves and (first.seed, second.seed) == (3, 5)


def test_settings_that_a_front_chooses_itself_are_refused(files, tmp_path):
    raw = settings(tmp_path / "front", files)
    raw["data"]["prefer"] = "short"
    with pytest.raises(InputError, match="a front chooses them"):
        make_front_config(raw)
    raw["data"]["prefer"], raw["pareto"]["objectives"][0]["name"] = None, "höflich"
    with pytest.raises(InputError, match="no name of letters"):
        make_front_config(raw)
    raw["pareto"]["objectives"][0]["name"], raw["optim"] = "likes", {"combine": "mgda"}
    with pytest.raises(InputError, match="optim.combine: methods of a front choose it"):
        make_front_config(raw)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"answers": {"prompts": "nowhere.txt"}}, "no such file"),
        ({"answers": {"temperature": 0.0, "samples": 2}}, "all be the same"),
        ({"judge": "rule:wrds"}, "a rule: rule:words"),
    ],
)
def test_what_cannot_be_measured_is_said_before_training(files, tmp_path, changes, message):
    raw = settings(tmp_path / "front", files)
    raw["pareto"]["objectives"][1]["judge"] = changes.pop("judge", None)
    raw["pareto"] |= changes
    with pytest.raises(InputError, match=message):
        run_front(make_front_config(raw), QUIET)
    assert not (tmp_path / "front").exists()  # so that the corrected settings may take its place


def test_all_runs_of_a_front_print_the_date_on_which_it_began(files, tmp_path, monkeypatch):
    model = shutil.copytree(files.model, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ strftime_now('%Y-%m-%d') }}" + tiny.CHATML)
    out = tmp_path / "front"
    front = make_front_config(settings(out, replace(files, model=model)))
    dates = []
    for day in ("2026-11-27", "2026-11-28"):
        monkeypatch.setattr("jaxpref.runs.build._today", lambda day=day: day)
        begun = start_front(front, out)
        runs = [single_run(begun, "likes", [], []), point_run(begun, begun.points[0], [], [])]
        dates += [begun.run.data.date, *(run.data.date for run in runs)]
    assert dates == ["2026-11-27"] * 6 and load_front_config(out / "front.yaml") == begun
    other = replace(front, run=replace(front.run, data=replace(front.run.data, date="2026-11-28")))
    with pytest.raises(InputError, match="settings with which"):
        start_front(other, out)


def test_prompts_are_as_long_as_in_training(files, tmp_path):
    long = [{"prompt": "a cat " * 40, "chosen": "b", "rejected": "c"}, {"prompt": "a", "completions": ["b", "c", "d"]}]
    held_out = tiny.write_rows(tmp_path / "held_out.jsonl", long)
    raw = settings(tmp_path / "front", files)
    raw["data"] |= {"eval": [str(held_out)], "max_length": 16}
    config = make_front_config(raw)
    prompts, ids = asked_prompts(config, build(config.run))
    asked = [prompt.prompt for prompt in prompts]
    assert "a" in asked and long[0]["prompt"] not in asked and max(map(len, ids)) <= 16


def test_a_question_about_another_picture_is_another_prompt():
    asked = [Group("what", (), i, f"row {i}", pictures=(Picture(digest=digest),)) for i, digest in enumerate("aba")]
    assert [group.row_id for group in _in_turns({"likes": asked[:1], "short": asked[1:]})] == [0, 1]


def test_weights(files, tmp_path):
    raw = settings(tmp_path / "front", files, weights=[[1, 3], [99, 1]])
    front = make_front_config(raw)
    assert front.points == [{"likes": 0.25, "short": 0.75}, {"likes": 0.99, "short": 0.01}]
    assert [front.base(point) for point in front.points] == ["short", "likes"]
    assert ["labelled by its reward" in line for line in doubtful_bases(front)] == [True]
    raw["pareto"]["base"] = "short"
    assert "weight 0.01" in doubtful_bases(make_front_config(raw))[1]
    raw["pareto"]["base"] = "likes"
    assert not doubtful_bases(make_front_config(raw))
    raw["pareto"] |= {"weights": None, "grid": 4, "base": None}
    assert [list(point.values()) for point in make_front_config(raw).points] == [[0.25, 0.75], [0.5, 0.5], [0.75, 0.25]]
