"""On-policy runs of a tiny model: what they draw, what they train on, and that a kill changes nothing."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from jaxpref.errors import InputError
from jaxpref.objectives import OBJECTIVES, bind
from jaxpref.online.asking import Asking
from jaxpref.online.data import RolloutData
from jaxpref.online.prompts import read_prompts
from jaxpref.online.rollouts import kind_of_rollouts
from jaxpref.runs.build import build
from jaxpref.runs.made_from import MadeFrom
from jaxpref.runs.params import load_params
from jaxpref.step.policy import split
from jaxpref.step.state import TrainState

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

BETA = 0.1
SAME = 1e-5
"""Nats of an answer between the log-probs of drawing and of training, in float32."""


def vowels(prompt, answer):
    return float(sum(letter in "aeiou" for letter in answer))


def short(prompt, answer):
    return -0.1 * len(answer)


def config(out, files, *, objective="rloo", online=(), **changes):
    rewards = {name: f"{__file__}:{name}" for name in ("vowels", "short")}
    return tiny.config(
        out,
        files.model,
        files.train,
        objective=[{"name": objective, "beta": BETA}],
        online={"rewards": rewards, "weights": {"vowels": 0.75, "short": 0.25}, "max_new_tokens": 6} | dict(online),
        train={"batch_size": 4, "max_steps": 5, "save_every": 2, "log_every": 1},
        adapter={"rank": 2},
        **changes,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_files):
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.allow_any_mesh(monkeypatch)
        held_out = {"data": {"train": [str(tiny_files.train)], "eval": [str(tiny_files.held_out)]}}
        return tiny.run(config(tmp_path_factory.mktemp("online") / "run", tiny_files, **held_out))


def test_answers_are_scored_as_they_were_drawn(uninterrupted):
    differences = [values["sampled/difference"] for values in uninterrupted.steps.values()]
    assert len(differences) == 5 and max(differences) < SAME
    assert uninterrupted.steps[5]["kl"] != 0, "the policy has moved"


def test_the_log_has_each_reward_and_their_weighted_sum(uninterrupted):
    for values in uninterrupted.steps.values():
        own = 0.75 * values["rollout/reward/vowels"] + 0.25 * values["rollout/reward/short"]
        assert values["rollout/reward"] == pytest.approx(own) == pytest.approx(values["score"], abs=1e-5)
    result = uninterrupted.result
    assert result.first_eval["eval/reward"] != result.last_eval["eval/reward"]
    assert "eval/reward" in result.best


def test_a_kill_changes_nothing(uninterrupted, tiny_files, tmp_path):
    """From the checkpoint of step 2, the same answers are drawn and the same steps taken, to the bit."""
    data = {"data": {"train": [str(tiny_files.train)], "eval": [str(tiny_files.held_out)]}}
    killed = config(tmp_path / "run", tiny_files, **data)
    tiny.run(killed, die_at=3)
    assert tiny.stored_steps(killed.out) == [2]
    tiny.run(killed)

    def logged(out):
        return [{k: v for k, v in line.items() if k != "rollout/seconds"} for line in tiny.logged(out)]

    assert logged(killed.out) == logged(uninterrupted.out)
    ours, theirs = (tiny.stored_state(out, 5)["params"] for out in (killed.out, uninterrupted.out))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_online_dpo_trains_on_pairs_that_the_rewards_label(tiny_files, tmp_path):
    """Its first loss is ln 2, which the run checks itself; `score` of the first answer is the larger one."""
    run = tiny.run(config(tmp_path / "run", tiny_files, objective="dpo", online={"samples": 2}))
    assert run.losses[0] == pytest.approx(np.log(2), abs=1e-3) and abs(run.losses[-1] - np.log(2)) > 1e-4


def drawn_groups(config, step=0):
    pieces = build(config)
    data = RolloutData(pieces)
    params = load_params(pieces)
    trained, _ = split(params)
    planned = data.planned(params)
    feed = planned.open_feed()
    feed.set_state({"steps": step})
    item, *_ = feed.next(TrainState(trained, (), step, None, {}, None))
    return planned, item


@pytest.mark.slow
def test_the_plan_has_room_for_every_answer_and_pairs_their_columns(tiny_files, tmp_path):
    """Packed, shared, weighed: what the batch holds is what was drawn."""
    columns = {"labels": ["label/vowels", "label/short"], "objective_weights": ["w/vowels", "w/short"]}
    asked = config(
        tmp_path / "run", tiny_files, objective="dpo", online={"samples": 2, "weights": {}, "dirichlet": 1.0}
    )
    asked = dataclasses.replace(asked, objective=[{"name": "cos_dpo", "columns": columns}])
    planned, item = drawn_groups(asked)
    batch = item.batch
    assert item.groups == 4 and batch.valid_RG.sum() == 4 and item.made_flops > 0
    real = batch.valid_RG.reshape(-1) > 0
    weights = np.stack([batch.columns[f"w/{name}"].reshape(-1)[real] for name in ("vowels", "short")], -1)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
    assert len(np.unique(weights[:, 0])) > 1, "every prompt has weights of its own"
    assert batch.valid_RG.shape == (planned.plan.micro_batches, planned.plan.micro_rows, planned.plan.shape.groups)
    again = drawn_groups(asked)[1].batch
    np.testing.assert_array_equal(again.token_RL, batch.token_RL)
    other = drawn_groups(asked, step=1)[1].batch
    assert not np.array_equal(other.token_RL, batch.token_RL)


def test_prompts_say_their_weights(tiny_files, tmp_path):
    pieces = build(config(tmp_path / "run", tiny_files, online={"weights": {}, "dirichlet": 1.0}))
    asking = Asking(pieces, read_prompts(pieces, "train"))
    asked = asking.at(3, [0, 1])
    first = asked.given[0].prompt[-1]["content"]
    w = asked.weight_BO[0]
    assert first == f"< vowels: {w[0]:g} > < short: {w[1]:g} > n 0" and asked.prompts[0].prompt[-1]["content"] == "n 0"
    assert not np.array_equal(asked.weight_BO, asking.at(4, [0, 1]).weight_BO)
    np.testing.assert_array_equal(asked.weight_BO[1], asking.at(3, [1]).weight_BO[0])


def test_weights_may_be_drawn_among_a_few(tiny_files, tmp_path):
    vectors = [[0.25, 0.75], [1.0, 0.0]]
    pieces = build(config(tmp_path / "run", tiny_files, online={"weights": {}, "weight_vectors": vectors}))
    asking = Asking(pieces, read_prompts(pieces, "train"))
    asked = [asking.at(step, [0]) for step in range(20)]
    assert {tuple(item.weight_BO[0]) for item in asked} == set(map(tuple, vectors))
    said = {item.given[0].prompt[-1]["content"] for item in asked}
    assert said == {"< vowels: 0.25 > < short: 0.75 > n 0", "< vowels: 1 > < short: 0 > n 0"}


def test_objectives_decide_what_answers_are():
    kind = lambda name, samples: kind_of_rollouts(bind([{"name": name}], OBJECTIVES), samples)
    assert (kind("dpo", 2), kind("rloo", 2), kind("rloo", 4), kind("plackett_luce", 3)) == ("pair", *["ranked"] * 3)
    with pytest.raises(InputError, match="online.samples=2 for ipo"):
        kind("ipo", 4)
    with pytest.raises(InputError, match="kto"):
        kind("kto", 2)


@pytest.mark.parametrize(
    "online, said",
    [
        ({"weights": {"vowels": 1.0}}, "online.weights names vowels"),
        ({"scales": {"long": 2.0}}, "online.scales names long"),
        ({"dirichlet": 1.0}, "remove online.weights"),
        ({"weights": {}, "dirichlet": 1.0, "weight_vectors": [[0.5, 0.5]]}, "both draw weights"),
        ({"weights": {}, "weight_vectors": [[0.5, 0.5], [1.0]]}, "a weight for vowels, short"),
        (
            {"rewards": {"old": "rule:words"}, "weights": {}, "dirichlet": 1.0},
            "two or more, not of old: remove it",
        ),
        ({"rewards": {"old": "column:old"}, "weights": {}}, "a score that is in the data"),
        ({"rewards": {"old": ""}, "weights": {}}, "'old' is '': give name"),
        ({"rewards": {"": "rule:words"}, "weights": {}}, "'' is 'rule:words': give name"),
        ({"max_new_tokens": 2000}, "leaves no room for a prompt"),
    ],
)
def test_settings_that_do_not_fit(tiny_files, tmp_path, online, said):
    with pytest.raises(InputError, match=said):
        config(tmp_path / "run", tiny_files, online=online)


def test_a_run_goes_on_from_the_rewards_it_was_started_with(tiny_files, tmp_path):
    """A function of another file's bytes is another reward."""
    judge = tmp_path / "judge.py"
    judge.write_text("def words(prompt, answer):\n    return -float(len(answer.split()))\n")
    one = lambda: RolloutData(build(config(tmp_path / "run", tiny_files, online=own))).digests
    own = {"rewards": {"words": f"{judge}:words"}, "weights": {}}
    before = MadeFrom({}, "run", None)
    before.add(one())
    MadeFrom(before.known, "run", 1).add(one())
    judge.write_text(judge.read_text().replace("-float", "+float"))
    with pytest.raises(InputError, match="online.rewards: what words says"):
        MadeFrom(before.known, "run", 1).add(one())


def test_what_is_trained_on_is_said_before(tiny_files, tmp_path, call):
    path = tiny.write_config(config(tmp_path / "run", tiny_files), tmp_path / "config.yaml")
    code, printed, _ = call("data", path)
    assert code == 0 and "train: 18 rows, 18 prompts; 0 dropped" in printed
