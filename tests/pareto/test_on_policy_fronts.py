"""Fronts of methods that train on their own answers."""

from pathlib import Path

import pytest
import tiny

from jaxpref.errors import InputError
from jaxpref.pareto.on_policy import on_policy_run
from jaxpref.pareto.settings import make_front_config
from jaxpref.pareto.stages import Stages
from jaxpref.pareto.sweep import Watch, run_front
from jaxpref.runs.metrics import read_jsonl

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

QUIET = Watch(say=lambda line: None)
METHODS = ["rloo", "online_dpo", "mo_odpo"]


def settings(out: Path, files: tiny.Files, *, short=None, **changes) -> dict:
    """`likes` are the pairs as they are labelled; `short` counts characters."""
    raw = tiny.settings(out, files.model, files.train, files.held_out, adapter={"rank": 2})
    raw["train"] |= {"max_steps": 2}
    raw["online"] = {"samples": 3, "max_new_tokens": 4} | changes.pop("online", {})
    objectives = [
        {"name": "likes", "train": [str(files.train)], "eval": [str(files.held_out)]},
        {"name": "short", "reward": f"{Path(__file__).parent / 'judges.py'}:short", "temperature": 4.0} | (short or {}),
    ]
    pareto = {"objectives": objectives, "weights": [[0.2, 0.8], [0.6, 0.4]], "methods": METHODS, "beta": 0.3}
    return raw | {"pareto": pareto | {"answers": {"count": 4, "max_new_tokens": 4}} | changes}


def test_the_runs_have_the_same_prompts_rewards_and_beta(tiny_files, tmp_path):
    front = make_front_config(settings(tmp_path, tiny_files, dirichlet=0.5))
    weights, stages = front.points[0], Stages(tmp_path / "stages")
    runs = {
        method: on_policy_run(front, method, None if method == "mo_odpo" else weights, stages) for method in METHODS
    }
    assert {tuple(run.data.train) for run in runs.values()} == {(str(tiny_files.train),)}
    for run in runs.values():
        assert run.online.rewards == {"likes": str(tmp_path / "dpo/likes"), "short": front.objective("short").reward}
        assert run.online.scales == {"likes": 1.0, "short": 4.0} and run.objective[0]["beta"] == 0.3
    assert runs["rloo"].online.weights == weights and runs["rloo"].online.dirichlet is None
    assert runs["mo_odpo"].online.weights == {} and runs["mo_odpo"].online.dirichlet == 0.5
    assert runs["mo_odpo"].online.weight_vectors == []
    assert [runs[method].online.samples for method in METHODS] == [3, 2, 2]
    assert len({run.out for run in runs.values()}) == 3
    front = make_front_config(settings(tmp_path, tiny_files, dirichlet=None))
    online = on_policy_run(front, "mo_odpo", None, stages).online
    assert (online.dirichlet, online.weight_vectors) == (None, [[0.2, 0.8], [0.6, 0.4]])


def test_a_run_names_itself_and_answers_nothing_on_the_way(tiny_files, tmp_path):
    """It has no held-out data, without which `train.samples` and `train.eval_every` would be refused."""
    raw = settings(tmp_path, tiny_files)
    raw["train"] |= {"samples": 2, "eval_every": 1}
    front = make_front_config(raw | {"log": {"name": "front"}})
    run = on_policy_run(front, "rloo", front.points[0], Stages(tmp_path / "stages"))
    assert (run.data.eval, run.train.samples, run.train.eval_every) == ([], 0, None)
    assert run.log.name == f"front-{Path(run.out).name}"


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"online": {"rewards": {"words": "rule:words"}}}, "a front chooses them for every run"),
        ({"short": {"reward": "column:short", "judge": "rule:words"}}, "cannot score the answers of rloo"),
    ],
)
def test_settings_that_do_not_fit(tiny_files, tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        make_front_config(settings(tmp_path, tiny_files, **changes))


@pytest.mark.slow
def test_a_front_on_its_own_answers(tiny_files, tmp_path):
    """Every method at every weight, one run for all of mo_odpo's; drawing is a part of the cost."""
    front = make_front_config(settings(tmp_path / "front", tiny_files))
    found = run_front(front, QUIET)
    names = [f"{method}_{w}" for method in METHODS for w in ("0.2_0.8", "0.6_0.4")]
    assert [point.name for point in found.points] == ["reference", *names]
    cost = {point.name: point.cost for point in found.points}
    assert set(cost["rloo_0.2_0.8"].shared) == {"DPO on likes"}
    assert cost["rloo_0.2_0.8"].own.flops is None, "the DPO policy that judges is a model"
    assert cost["rloo_0.2_0.8"].own.seconds > 0
    assert cost["mo_odpo_0.2_0.8"] == cost["mo_odpo_0.6_0.4"] and cost["mo_odpo_0.2_0.8"].own.seconds == 0
    points = {point.name: point for point in found.points}
    assert points["mo_odpo_0.2_0.8"].answers != points["mo_odpo_0.6_0.4"].answers, "the prompts say other weights"


@pytest.mark.slow
def test_flops_of_drawing_count_where_rules_judge(tiny_files, tmp_path):
    raw = settings(tmp_path / "front", tiny_files, methods=["rloo"])
    raw["pareto"]["objectives"][0] |= {"reward": "rule:words"}
    raw["pareto"]["weights"] = [[0.5, 0.5]]
    front = make_front_config(raw)
    (_, point) = run_front(front, QUIET).points
    trained = read_jsonl(Path(point.run) / "metrics.jsonl")
    assert not point.cost.shared and len(trained) == 2 and all(line["rollout/seconds"] > 0 for line in trained)
    assert point.cost.own.flops > 0
