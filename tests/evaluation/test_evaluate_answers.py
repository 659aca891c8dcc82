"""Rewards of answers, win rates, and `jaxpref eval --reward`."""

import json
from functools import partial

import numpy as np
import pytest
import tiny

from jaxpref.data.pictures.decode import named, stored_bytes
from jaxpref.errors import InputError, RowError
from jaxpref.evaluation import Bootstrap
from jaxpref.evaluation.answers import Answers, in_order_of, read_answers
from jaxpref.evaluation.figures import _edges, plot_generations
from jaxpref.evaluation.generations import evaluate_answers
from jaxpref.generation.prompts import given_prompts
from jaxpref.rewards import Reward, function_reward

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

FEW = Bootstrap(resamples=200)
LENGTH = function_reward(lambda _, answer: len(answer), "length")
JUDGE = Reward("judge", lambda _, answers: [float(answer) for answer in answers], bradley_terry=True)


def answers(name, *of):
    """Of (prompt, answer) pairs."""
    return Answers(name, given_prompts([prompt for prompt, _ in of]), [answer for _, answer in of])


def values(found):
    return {name: estimate.value for name, estimate in found.report.estimates.items()}


# ---- values


def test_win_rate_and_sign_test_by_hand():
    ours = answers("ours", *((f"q{i}", x) for i, x in enumerate(["3", "2", "1", "5", "4", "2"])))
    theirs = answers("theirs", *((f"q{i}", x) for i, x in enumerate(["1", "2", "2", "1", "1", "1"])))
    found = evaluate_answers(ours, [JUDGE], against=theirs, bootstrap=FEW)
    difference = np.array([2, 0, -1, 4, 3, 1])
    assert values(found) == pytest.approx({
        "reward/judge": 17 / 6, "reward_against/judge": 8 / 6, "difference/judge": 9 / 6,
        "win_rate/judge": 4.5 / 6, "ties/judge": 1 / 6,
        "expected_win_rate/judge": np.mean(1 / (1 + np.exp(-difference))),
        "characters/lengths of the answers": 1.0, "characters_against/lengths of the answers": 1.0,
    })  # fmt: skip
    assert found.report.left_out == {"length_correlation/judge": "rewards or lengths are all equal"}
    assert found.report.tables["sign_test"] == [{"reward": "judge", "wins": 4, "losses": 1, "ties": 1, "p": 2 * 6 / 32}]
    rate = found.report.estimates["win_rate/judge"]
    assert 0 < rate.low < rate.value < rate.high <= 1
    assert found.rows[2] == {
        "prompt": "q2", "completion": "1", "rewards": {"judge": 1.0},
        "against": {"completion": "2", "rewards": {"judge": 2.0}},
    }  # fmt: skip


def test_against_itself_everything_ties():
    ours = answers("ours", ("q", "a"), ("r", "bcd"))
    found = evaluate_answers(ours, [LENGTH], against=ours, bootstrap=FEW)
    assert values(found)["win_rate/length"] == 0.5 and values(found)["ties/length"] == 1.0
    assert found.report.tables["sign_test"][0]["p"] == 1.0
    assert "expected_win_rate/length" not in values(found)  # a length is no log-odds


def test_samples_of_a_prompt_are_one_unit():
    """3 answers to each of 2 prompts: intervals and the sign test know only two prompts."""
    ours = answers("ours", *((q, "5") for q in "qr" for _ in range(3)))
    theirs = answers("theirs", *((q, x) for q in "qr" for x in ("1", "1", "9" if q == "q" else "1")))
    found = evaluate_answers(ours, [JUDGE], against=theirs, bootstrap=FEW)
    assert values(found)["win_rate/judge"] == 5 / 6
    assert found.report.tables["sign_test"][0] == {"reward": "judge", "wins": 2, "losses": 0, "ties": 0, "p": 0.5}
    rate = found.report.estimates["win_rate/judge"]
    assert (rate.low, rate.high) == pytest.approx((4 / 6, 1.0))  # the prompt q alone, the prompt r alone


def test_prompts_with_other_pictures_are_others():
    seen = [{"prompt": [{"role": "user", "content": "q"}], "images": [f"{i}.png"]} for i in range(2)]
    ours, theirs = answers("ours", *zip(seen, "ab", strict=True)), answers("theirs", (seen[1], "b"), (seen[0], "a"))
    assert in_order_of(ours, theirs).texts == ["a", "b"]


def test_a_picture_of_bytes_is_told_by_its_digest(tmp_path):
    """As `jaxpref generate` writes it; in a file of answers it is the same picture, and no other."""
    asked = [{"prompt": [{"role": "user", "content": "q"}], "images": [{"bytes": bytes([i])}]} for i in range(2)]
    names = [named(prompt.pictures[0]) for prompt in given_prompts(asked)]
    lines = [{**row, "images": [name], "completion": name} for row, name in zip(asked, names, strict=True)]
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ours = answers("ours", (asked[1], "b"), (asked[0], "a"))
    assert in_order_of(ours, read_answers(file)).texts == names[::-1] and names[0].startswith("sha256:")
    with pytest.raises(RowError, match=f"row 1: only the digest of its bytes, {names[0]}"):
        stored_bytes(read_answers(file).prompts[0].pictures[0], f"{file}, row 1")


def test_answers_are_matched_by_prompt():
    ours = answers("ours", ("q", "1"), ("r", "2"), ("q", "3"))
    theirs = answers("theirs", ("r", "b"), ("q", "a"), ("q", "c"))
    assert in_order_of(ours, theirs).texts == ["a", "b", "c"]
    for other, said in (
        (answers("theirs", ("q", "a"), ("r", "b")), "2 of ours and 1 of theirs to the prompt 'q'"),
        (answers("theirs", ("q", "a"), ("q", "b"), ("x", "b")), "1 of ours and 0 of theirs to the prompt 'r'"),
    ):
        with pytest.raises(InputError) as caught:
            in_order_of(ours, other)
        assert said in caught.value.got


def test_rewards_need_different_names():
    with pytest.raises(InputError, match="length, length"):
        evaluate_answers(answers("ours", ("q", "a")), [LENGTH, LENGTH], bootstrap=FEW)


@pytest.mark.parametrize("zero", [True, False])
def test_bars_hold_every_number_and_do_not_mix_signs(zero):
    rng = np.random.default_rng(0)
    for trial in range(300):
        x = rng.normal(10.0 ** rng.integers(-3, 3) * rng.normal(), 10.0 ** rng.integers(-4, 3), rng.integers(1, 60))
        x = np.round(x) if trial % 3 == 0 else x
        edges = _edges(x, zero=zero)
        assert np.histogram(x, edges)[0].sum() == len(x) and (np.diff(edges) > 0).all() and len(edges) < 100
        if zero and x.min() < 0 < x.max():
            assert np.abs(edges).min() < 1e-9 * np.diff(edges)[0]


def test_figures(tmp_path):
    ours, theirs = (answers(n, *((f"q{i}", "x" * (i * k % 7 + 1)) for i in range(9))) for n, k in (("a", 3), ("b", 5)))
    for name, against in (("alone", None), ("two", theirs)):
        found = evaluate_answers(ours, [LENGTH], against=against, bootstrap=FEW)
        assert plot_generations(found, tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


# ---- files


def test_rows_of_answers(tmp_path):
    rows = [
        {"prompt": "q", "completion": "", "seed": 3},
        {
            "prompt": [{"role": "user", "content": "n"}],
            "completion": [{"role": "assistant", "content": "b"}],
            "label": 1,
        },
    ]
    read = read_answers(tiny.write_rows(tmp_path / "a.jsonl", rows))
    assert read.texts == ["", "b"] and [p.prompt for p in read.prompts] == ["q", rows[1]["prompt"]]
    orca = read_answers(tiny.write_rows(tmp_path / "o.jsonl", [{"system": "s", "question": "q", "completion": "a"}]))
    assert [message["content"] for message in orca.prompts[0].prompt] == ["s", "q"]
    for row, said in (
        ({"prompt": "q"}, "row 3: prompt"),
        ({"prompt": "q", "completion": 3}, 'row 3, key "completion": 3'),
        ({"completion": "a"}, "row 3"),
    ):
        with pytest.raises(InputError) as caught:
            read_answers(tiny.write_rows(tmp_path / "a.jsonl", [*rows, row]))
        assert said in caught.value.got


# ---- the command


@pytest.fixture
def call(call):
    return partial(call, "eval")


@pytest.fixture
def judge(tmp_path):
    (tmp_path / "judge.py").write_text("def bees(prompt, answer):\n    return answer.count('b') - answer.count('z')\n")
    return f"{tmp_path}/judge.py:bees"


def test_two_files_of_answers(call, judge, tmp_path):
    ours = tiny.write_rows(tmp_path / "ours.jsonl", [{"prompt": f"q{i}", "completion": "b" * i} for i in range(4)])
    theirs = tiny.write_rows(tmp_path / "theirs.jsonl", [{"prompt": f"q{i}", "completion": "b"} for i in (3, 1, 2, 0)])
    out = tmp_path / "results" / "compared.json"
    code, printed, err = call(ours, "--against", theirs, "--reward", judge, "--out", out, "--resamples", 100)
    assert code == 0, err
    stored = json.loads(out.read_text())
    assert stored["estimates"][f"win_rate/{judge}"]["value"] == 2.5 / 4
    assert stored["tables"]["sign_test"][0]["wins"] == 2
    rows = out.with_suffix(".jsonl").read_text().splitlines()
    assert [json.loads(row)["against"]["completion"] for row in rows] == ["b"] * 4
    assert out.with_suffix(".png").is_file() and "2 won, 1 lost, 1 tied" in printed
    refused = call(ours, "--reward", judge)
    assert refused[0] == 2 and "add --out" in refused[2]


def test_a_run_against_its_starting_model(call, judge, finished_run, tiny_files, tmp_path):
    """Generated by both, judged by a function and by the run's own implicit reward."""
    run = tiny.copy_run(finished_run.out, tmp_path / "run")
    rows = [{"prompt": [{"role": "user", "content": f"n {i}"}]} for i in range(200, 208)]
    prompts = tiny.write_rows(tmp_path / "prompts.jsonl", rows)
    arguments = [
        run, "--prompts", prompts, "--against", tiny_files.model, "--reward", judge, "--reward", run,
        "--max-new-tokens", 10, "--temperature", 1, "--samples", 2, "--resamples", 100, "model.compute_dtype=float32",
    ]  # fmt: skip
    code, printed, err = call(*arguments)
    assert code == 0, err
    stored = json.loads((run / "eval" / "answers_prompts_best_against_model.json").read_text())
    assert (stored["about"]["answers"], stored["about"]["prompts"]) == (16, 8)
    implicit = f"implicit reward of {run}"
    assert stored["estimates"][f"win_rate/{implicit}"]["value"] > 0.6
    # E_pi[log pi / ref] = KL(pi || ref) > 0 > -KL(ref || pi) = E_ref[log pi / ref], up to the cut at 10 tokens
    assert (
        stored["estimates"][f"reward/{implicit}"]["value"]
        > 0
        > stored["estimates"][f"reward_against/{implicit}"]["value"]
    )
    rows = (run / "eval" / "answers_prompts_best_against_model.jsonl").read_text().splitlines()
    assert len({json.loads(row)["completion"] for row in rows}) > 4


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--prompts", "p.jsonl"], "--prompts without it"),
        (["--temperature", "1", "--against", "x"], "--against, --temperature without it"),
        (["--reward", "test_evaluate_answers:answers", "--bins", "5"], "--bins and --reward"),
        (["--reward", "test_evaluate_answers:answers"], "--prompts FILE, for a policy to answer"),
        (["--reward", "test_evaluate_answers:answers", "data.eval=[x]"], "data.eval=[x]"),
        (["--resamples", "3"], "resamples=3"),
        (["--out", "found.jsonl"], "--out FILE.json"),
        (["--reward", "test_evaluate_answers:answers", "--prompts", "p.jsonl", "--out", "p.json"], "p.jsonl"),
    ],
)
def test_options_that_do_not_fit(arguments, said, call, finished_run):
    code, _, err = call(finished_run.out, *arguments)
    assert code == 2 and said in err and "Traceback" not in err


@pytest.mark.parametrize(
    "options, said",
    [
        (["--step", "9"], "--step with"),
        (["--against", "b.jsonl", "--prompts", "p.jsonl", "--samples", "2"], "--prompts, --samples with a.jsonl and b"),
    ],
)
def test_options_that_a_file_of_answers_has_no_use_for(options, said, call):
    code, _, err = call("a.jsonl", "--reward", "rule:words", "--out", "x.json", *options)
    assert code == 2 and said in err and "Traceback" not in err


@pytest.mark.parametrize(
    "options, said",
    [
        (["--reward", "rule:words", "--reward", "rule:words"], "of different names"),
        (["--reward", "rule:words", "--against", "none.jsonl"], "none.jsonl, which does not exist"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_generated(options, said, call, finished_run, monkeypatch):
    monkeypatch.setattr("jaxpref.evaluation.command.generated_answers", lambda *_, **__: pytest.fail("generated"))
    code, _, err = call(finished_run.out, "--prompts", "p.txt", *options)
    assert code == 2 and said in err


def test_what_is_no_answers_or_rewards_is_told():
    one = answers("ours", ("a", "b"))
    for given, said in [
        (("a.jsonl", [LENGTH]), "answers: str 'a.jsonl'"),
        ((one, ["rule:words"]), "rewards: str 'rule:words'"),
        ((one, LENGTH), "a list of rewards"),
    ]:
        with pytest.raises(InputError, match=said):
            evaluate_answers(*given)
    with pytest.raises(InputError, match="against: str"):
        evaluate_answers(one, [LENGTH], against="b.jsonl")
    for settings in ({"resamples": 200.5}, {"level": "0.9"}, {"seed": None}):
        with pytest.raises(InputError, match=f"{next(iter(settings))}={next(iter(settings.values()))!r}"):
            Bootstrap(**settings)
    with pytest.raises(InputError, match="bootstrap=200"):
        evaluate_answers(one, [LENGTH], bootstrap=200)
    short = Reward("short", lambda prompts, answers: [])
    with pytest.raises(InputError, match="0 for 1 answers"):
        evaluate_answers(one, [short])


def test_held_out_data_are_not_written_over(call, finished_run, tiny_files, tmp_path):
    data = tmp_path / "held_out.jsonl"
    data.write_bytes(tiny_files.held_out.read_bytes())
    code, _, err = call(finished_run.out, "--out", data.with_suffix(".json"), f"data.eval=[{data}]")
    assert code == 2 and "choose another name" in err
    assert data.read_bytes() == tiny_files.held_out.read_bytes()
