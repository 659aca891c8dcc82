"""Rewards: Python functions, reward models of runs and directories, implicit rewards."""

import numpy as np
import pytest
import tiny

from jaxpref.errors import InputError
from jaxpref.evaluation import Bootstrap, evaluate_preferences
from jaxpref.rewards import Reward, classifier_reward, function_reward, open_reward, run_reward
from jaxpref.runs.build import build
from jaxpref.runs.export import export_run

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

SAME_WEIGHTS_TOLERANCE = 1e-5
"""In nats: float32 log-probs of the same weights in rows of another length."""


def pairs(rows):
    """(prompts, texts of chosen, texts of rejected)."""
    return ([row["prompt"] for row in rows], *([row[side][0]["content"] for row in rows] for side in
                                               ("chosen", "rejected")))  # fmt: skip


# ---- functions


def shouts(prompt, answer):
    return answer.count("!") + (len(prompt) if isinstance(prompt, str) else 10 * len(prompt))


def test_a_function_gets_prompt_and_answer_as_they_are():
    reward = function_reward(shouts)
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
    ]
    np.testing.assert_array_equal(reward(["abc", messages, ""], ["!", "!!", "x"]), [4, 32, 0])
    assert reward.name == "shouts" and not reward.bradley_terry


def test_functions_by_name(tmp_path):
    (tmp_path / "judge.py").write_text("def length(prompt, answer):\n    return len(answer)\nlimit = 3\n")
    for where in (f"{tmp_path}/judge.py:length", f"{__name__}:shouts"):
        reward = open_reward(where)
        assert reward.name == where and reward(["ab"], ["abc!"]).tolist() == [{"length": 4, "shouts": 3}[where[-6:]]]
    for wrong, said in (
        (f"{tmp_path}/judge.py:lenght", "has no attribute 'lenght'"),
        (f"{tmp_path}/judge.py:limit", "int"),
        (f"{tmp_path}/juge.py:length", "No such file"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("nothing", "none of these"),
    ):
        with pytest.raises(InputError) as caught:
            open_reward(wrong)
        assert said in caught.value.got


async def later(prompt, answer):
    return 1.0


def one_by_one(prompt, answer):
    yield 1.0


@pytest.mark.parametrize(
    "function, said",
    [(lambda answer: 1.0, "too many positional"), (later, "a coroutine"), (one_by_one, "a generator")],
)
def test_a_function_that_cannot_be_a_reward_is_refused_before_it_is_called(function, said):
    with pytest.raises(InputError, match=said):
        function_reward(function)


def test_an_error_of_a_function_says_of_what():
    with pytest.raises(ZeroDivisionError) as caught:
        function_reward(lambda prompt, answer: 1 / len(answer), "mine")(["q", "q"], ["fine", ""])
    assert caught.value.__notes__ == ["in the reward mine, of prompts[1], answer ''"]


@pytest.mark.parametrize("value", [float("nan"), None, "3", True, np.array([1.0, 2.0])])
def test_what_is_no_finite_number_is_refused_with_its_prompt(value):
    reward = Reward("odd", lambda prompts, answers: [0.5, value])
    with pytest.raises(InputError) as caught:
        reward(["q", "q"], ["fine", "not fine"])
    assert "prompts[1], answer 'not fine'" in caught.value.got


def test_as_many_answers_as_prompts():
    with pytest.raises(InputError, match="2 prompts, 1 answers"):
        function_reward(shouts)(["a", "b"], ["c"])


# ---- models


@pytest.fixture(scope="module")
def reward_run(tiny_files, tmp_path_factory, quick_compile):
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.allow_any_mesh(monkeypatch)
        config = tiny.config(
            tmp_path_factory.mktemp("rewards") / "run", tiny_files.model, tiny_files.train, tiny_files.held_out,
            objective=[{"name": "bradley_terry"}], train={"max_steps": 6},
        )  # fmt: skip
        return tiny.run(config)


def test_reward_head_of_a_run_is_what_its_evaluation_sees(reward_run, tiny_files):
    rows = tiny.rows(6, first=100)
    prompts, chosen, rejected = pairs(rows)
    reward = open_reward(str(reward_run.out))
    assert reward.bradley_terry
    scores = reward(prompts + prompts, chosen + rejected)
    found = evaluate_preferences(reward_run.out, bootstrap=Bootstrap(100))
    expected = [row[side]["reward"] for side in ("chosen", "rejected") for row in found.groups]
    np.testing.assert_allclose(scores, expected, atol=SAME_WEIGHTS_TOLERANCE)
    assert np.ptp(scores) > 100 * SAME_WEIGHTS_TOLERANCE


def test_exported_reward_model_scores_as_its_run(reward_run, tmp_path):
    export_run(reward_run.out, tmp_path / "model")
    reward, run = open_reward(str(tmp_path / "model")), open_reward(str(reward_run.out))
    assert reward.bradley_terry
    prompts, chosen, _ = pairs(tiny.rows(5))
    np.testing.assert_allclose(reward(prompts, chosen), run(prompts, chosen), atol=SAME_WEIGHTS_TOLERANCE)


@pytest.mark.slow
def test_exported_reward_model_over_a_mesh(reward_run, tmp_path):
    export_run(reward_run.out, tmp_path / "model")
    prompts, chosen, _ = pairs(tiny.rows(5))
    split = classifier_reward(tmp_path / "model", overrides=["mesh.fsdp=2", "mesh.tensor=2"])
    np.testing.assert_allclose(split(prompts, chosen), open_reward(str(reward_run.out))(prompts, chosen), atol=1e-4)


def test_directories_that_are_no_reward_model(reward_run, tiny_files, tmp_path):
    with pytest.raises(InputError, match="a model without a reward head"):
        open_reward(str(tiny_files.model))
    export_run(reward_run.out, tmp_path / "model")
    from safetensors.numpy import load_file, save_file

    tensors = load_file(tmp_path / "model/model.safetensors")
    for change, said in (({"score.weight": np.zeros((2, 32), np.float32)}, r"\[2, 32\]"), ({}, "there is none")):
        save_file(
            {k: v for k, v in tensors.items() if k != "score.weight"} | change, tmp_path / "model/model.safetensors",
            {"format": "pt"},
        )  # fmt: skip
        with pytest.raises(InputError, match=said):
            open_reward(str(tmp_path / "model"))


def test_implicit_reward_is_the_margin_of_the_evaluation(finished_run):
    prompts, chosen, rejected = pairs(tiny.rows(6, first=100))
    reward = open_reward(str(finished_run.out), step="9")
    assert reward.bradley_terry and reward.name == f"implicit reward of {finished_run.out}"
    # Of an empty answer the template's end of turn is scored.
    answers = [*chosen, *rejected, "", rejected[0]]
    scores = reward(prompts + prompts + prompts[:1] * 2, answers)
    assert scores[13] == scores[6], "the same answer twice is the same to the bit, wherever it stands"
    found = evaluate_preferences(finished_run.out, step="9", bootstrap=Bootstrap(100))
    np.testing.assert_allclose(scores[:6] - scores[6:12], found.margin_B, atol=SAME_WEIGHTS_TOLERANCE)
    assert scores[12] != 0 and np.ptp(found.margin_B) > 100 * SAME_WEIGHTS_TOLERANCE


def test_no_implicit_reward_without_reference_or_beta(tiny_files, tmp_path, finished_run):
    config = tiny.config(tmp_path / "simpo", tiny_files.model, tiny_files.train, objective=[{"name": "simpo"}])
    tiny.write_config(config, tmp_path / "config.yaml")
    for beta in (None, 0.1):
        with pytest.raises(InputError, match="trained with simpo"):
            run_reward(tmp_path, beta=beta)
    two = [{"name": "dpo", "beta": 0.1}, {"name": "ipo", "beta": 0.2}]
    overrides = ["objective=" + str(two).replace("'", "")]
    with pytest.raises(InputError, match=r"dpo, ipo with \[0.1, 0.2\]"):
        run_reward(finished_run.out, overrides=overrides)


def test_answers_longer_than_the_model(finished_run):
    reward = open_reward(str(finished_run.out))
    most = build(finished_run.config).source.spec.max_positions
    with pytest.raises(InputError, match=f"within the model's {most} positions"):
        reward([[{"role": "user", "content": "q"}]], ["x" * most])
