"""Scores of a data set: what is written, what is run again, and that training reads it."""

import gzip
import json
import sqlite3

import numpy as np
import pytest
import tiny

from jaxpref.data.rewrite import Source
from jaxpref.errors import InputError, RowError
from jaxpref.evaluation import Bootstrap, evaluate_preferences
from jaxpref.rewards import Limits, Reward, Scalariser, function_reward, open_reward, score_data
from jaxpref.rewards.cache import group_key
from jaxpref.rewards.reward import WHOLE
from jaxpref.runs.build import build
from jaxpref.runs.feed import read_data
from jaxpref.types import Group, Picture

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

SAME_WEIGHTS_TOLERANCE = 1e-5
"""In nats: float32 log-probs of the same weights in rows of another length."""

PAIRS = [
    {"prompt": f"q{i}", "chosen": " a" * (i + 1), "rejected": " b" * (3 - i), "note": {"kept": [i, None]}}
    for i in range(3)
]
MIXED = [
    PAIRS[0],
    {"prompt": "q", "completion": " x y", "label": True, "scores": {"old": 1}},
    {"prompt": "q", "completions": [" a", " a b", " c d e"], "scores": [1, 3, 2]},
    {"messages": "ignored", "chosen": "\n\nHuman: hi\n\nAssistant: a b", "rejected": "\n\nHuman: hi\n\nAssistant: c"},
]


def read(path):
    with gzip.open(path, "rt") if path.name.endswith(".gz") else path.open() as file:
        return [json.loads(line) for line in file]


def counting(calls, name="f"):
    """A reward that may be kept, and notes what it is run on."""

    def score(prompts, answers):
        calls.append(list(answers))
        return [len(answer) / 2 for answer in answers]

    return Reward(name, score, identity=lambda: name)


@pytest.fixture
def data(tmp_path):
    return lambda rows, name="data.jsonl": str(tiny.write_rows(tmp_path / name, rows))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


# ---- what is written


def test_pictures_are_named_by_their_whole_paths(data, tmp_path, monkeypatch):
    """The rows are written into another folder, where names would mean other files."""
    monkeypatch.chdir(tmp_path)
    held = [{"type": "image", "path": "b.png"}, {"type": "text", "text": "b.png"}]
    rows = [
        {**PAIRS[0], "pictures": [{"bytes": None, "path": "a.png"}, "/c.png"]},
        {**PAIRS[1], "prompt": [{"role": "user", "content": held}]},
    ]
    for side in ("chosen", "rejected"):
        rows[1][side] = [{"role": "assistant", "content": side}]
    data(rows)
    source = Source(["data.jsonl"], columns={"images": "pictures"})
    score_data(source, {"f": counting([])}, tmp_path / "other" / "out.jsonl", cache=None)
    first, second = read(tmp_path / "other" / "out.jsonl")
    assert first["pictures"] == [{"bytes": None, "path": str(tmp_path / "a.png")}, "/c.png"]
    assert second["prompt"][0]["content"] == [{**held[0], "path": str(tmp_path / "b.png")}, held[1]]


def test_scores_stand_beside_every_answer_and_nothing_else_changes(data, tmp_path, cache):
    out = tmp_path / "scored.jsonl"
    rewards = {"len": counting([]), "words": open_reward("rule:words")}
    report = score_data(data(MIXED), rewards, out, cache=cache)
    pair, judged, ranked, dialog = read(out)
    assert pair == PAIRS[0] | {
        "scores_chosen": {"len": 1.0, "words": -1.0}, "scores_rejected": {"len": 3.0, "words": -3.0}
    }  # fmt: skip
    assert judged == MIXED[1] | {"scores": {"old": 1, "len": 2.0, "words": -2.0}}
    assert ranked == MIXED[2] | {"scores_completions": {"len": [1, 2, 3], "words": [-1, -2, -3]}}, "in the row's order"
    assert dialog == MIXED[3] | {
        "scores_chosen": {"len": 1.5, "words": -2.0}, "scores_rejected": {"len": 0.5, "words": -1.0}
    }  # fmt: skip
    assert report.rows == {"pair": 2, "judged": 1, "ranked": 1} and not report.dropped
    assert report.agreement == {"len": {"higher": 1, "lower": 1}, "words": {"higher": 1, "lower": 1}}
    assert "words: higher for chosen in 50.0% of 2 pairs, lower in 50.0%, equal in 0.0%" in str(report)


def test_several_files_into_one_and_packed(data, tmp_path):
    out = tmp_path / "new" / "scored.jsonl.gz"
    paths = [data(PAIRS[:1]), data(PAIRS[1:], "more.jsonl")]
    score_data(paths, {"w": open_reward("rule:words")}, out, cache=None)
    assert [row["scores_chosen"]["w"] for row in read(out)] == [-1, -2, -3]
    assert [path.name for path in out.parent.iterdir()] == ["scored.jsonl.gz"], "no partial file is left"


def test_text_beyond_utf8_is_written_as_it_was_read(tmp_path, data):
    row = PAIRS[0] | {"prompt": "straße 🚂", "other": "\ud83d"}
    path = data([json.dumps(row)])
    out = tmp_path / "out.jsonl"
    score_data(path, {"w": open_reward("rule:words")}, out, cache=None)
    assert read(out)[0]["prompt"] == "straße 🚂" and read(out)[0]["other"] == "\ud83d"


def test_a_score_made_of_others(data, tmp_path):
    rows = [row | {"scores_chosen": {"b": 4.0}, "scores_rejected": {"b": 1.0}} for row in PAIRS]
    out, w = tmp_path / "out.jsonl", Scalariser("worst_case", {"words": 2.0, "b": -1.0})
    score_data(data(rows), {"words": open_reward("rule:words")}, out, scalarise={"worst": w}, cache=None)
    assert [row["scores_chosen"]["worst"] for row in read(out)] == [-4, -4, -6]
    assert [row["scores_rejected"]["worst"] for row in read(out)] == [-6, -4, -2]
    with pytest.raises(RowError, match="(?s)'nothing'.*row 1: the scores there are: b"):
        score_data(data(rows), {}, tmp_path / "o.jsonl", scalarise={"x": Scalariser("linear", {"nothing": 1})})


def test_a_score_is_not_written_over_by_chance(data, tmp_path):
    rows = [PAIRS[0], PAIRS[1] | {"scores_chosen": {"w": 1}, "scores_rejected": {"w": 2}}]
    out, rewards = tmp_path / "out.jsonl", {"w": open_reward("rule:words")}
    with pytest.raises(InputError, match="row 2: scores_chosen has w already"):
        score_data(data(rows), rewards, out, cache=None)
    assert not out.exists()
    score_data(data(rows), rewards, out, cache=None, replace=True)
    assert read(out)[1]["scores_chosen"] == {"w": -2.0}
    with pytest.raises(InputError, match="exists"):
        score_data(data(rows), rewards, out, cache=None, replace=True)
    for wrong, said in ((tmp_path / "x.json", "a .jsonl"), (tmp_path / "x.parquet", "a .jsonl")):
        with pytest.raises(InputError, match=said):
            score_data(data(rows), rewards, wrong)
    with pytest.raises(InputError, match="different names"):
        score_data(data(PAIRS), rewards, tmp_path / "y.jsonl", scalarise={"w": Scalariser("linear", {"w": 1})})


def test_unusable_rows_stop_or_are_counted(data, tmp_path):
    turns = [{"role": role, "content": "a"} for role in ("assistant", "user", "assistant")]
    chat = {"prompt": [{"role": "user", "content": "q"}], "chosen": turns, "rejected": turns[:1]}
    path = data([PAIRS[0], PAIRS[1] | {"chosen": ""}, chat, PAIRS[2]])
    rewards = {"w": open_reward("rule:words"), "v": open_reward("rule:words")}
    with pytest.raises(RowError, match="row 2"):
        score_data(path, rewards, tmp_path / "out.jsonl", cache=None)
    source = Source([path], on_bad_row="drop")
    report = score_data(source, rewards, tmp_path / "out.jsonl", cache=None)
    assert report.dropped == {"empty completion": 1, "an answer of more than one text": 1}
    assert [row["scores_chosen"]["w"] for row in read(tmp_path / "out.jsonl")] == [-1, -3]


def test_columns_of_the_data_as_rewards(data, tmp_path):
    rows = [row | {"rating_chosen": i, "rating_rejected": -i} for i, row in enumerate(PAIRS)]
    score_data(data(rows), {"help": open_reward("column:rating")}, tmp_path / "out.jsonl")
    assert [row["scores_rejected"]["help"] for row in read(tmp_path / "out.jsonl")] == [0, -1, -2]


# ---- what is run again


def test_nothing_is_run_twice(data, tmp_path, cache):
    calls, path = [], data(PAIRS)
    reward = counting(calls)
    first = score_data(path, {"a": reward}, tmp_path / "1.jsonl", cache=cache)
    second = score_data(path, {"b": reward}, tmp_path / "2.jsonl", cache=cache)
    assert len(calls) == 1 and len(calls[0]) == 6
    assert [row["scores_chosen"]["a"] for row in read(tmp_path / "1.jsonl")] == [
        row["scores_chosen"]["b"] for row in read(tmp_path / "2.jsonl")
    ]
    assert first.agreement["a"] == second.agreement["b"]
    changed = [PAIRS[0], PAIRS[1] | {"prompt": "another"}, PAIRS[2]]
    score_data(data(changed, "c.jsonl"), {"a": reward}, tmp_path / "3.jsonl", cache=cache)
    assert len(calls) == 2 and len(calls[1]) == 2, "the row with the new prompt only"
    score_data(path, {"a": counting(calls, "g")}, tmp_path / "4.jsonl", cache=cache)
    assert len(calls) == 3, "another identity"
    score_data(path, {"a": reward}, tmp_path / "5.jsonl", cache=cache, limits=Limits(7))
    assert len(calls) == 4, "other limits"
    score_data(path, {"a": reward}, tmp_path / "6.jsonl", cache=None)
    assert len(calls) == 5, "nothing was kept"


def test_the_same_question_about_another_picture_is_scored_anew():
    of_bytes = lambda data: Group("q", ("a",), 0, "w", pictures=(Picture(data=data),))
    keys = {group_key(group, WHOLE) for group in (of_bytes(b"1"), of_bytes(b"2"), Group("q", ("a",), 0, "w"))}
    assert len(keys) == 3 and group_key(of_bytes(b"1"), WHOLE) in keys


def test_after_a_kill_it_goes_on_where_it_was(data, tmp_path, cache):
    rows = [{"prompt": "q", "chosen": f" c{i}", "rejected": f" r{i}"} for i in range(10)]
    calls, path, out = [], data(rows), tmp_path / "out.jsonl"

    def killed(name, done, total):
        assert total == 10
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_data(path, {"a": counting(calls)}, out, cache=cache, chunk=2, watch=killed)
    assert not out.exists() and sum(map(len, calls)) == 12
    seen = []
    score_data(path, {"a": counting(calls)}, out, cache=cache, chunk=2, watch=lambda *now: seen.append(now))
    assert sum(map(len, calls)) == 20 and seen[-1] == ("a", 10, 10)
    assert len({answer for call in calls for answer in call}) == 20 and len(read(out)) == 10


def test_a_cache_that_is_none_is_named(data, tmp_path, cache):
    score_data(data(PAIRS), {"a": counting([])}, tmp_path / "1.jsonl", cache=cache)
    [file] = cache.iterdir()
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT COUNT(*) FROM scores").fetchone() == (3,)
    connection.close()
    file.write_bytes(b"no database " * 100)
    with pytest.raises(InputError, match="a cache of scores"):
        score_data(data(PAIRS), {"a": counting([])}, tmp_path / "2.jsonl", cache=cache)


def test_identities_of_functions_follow_their_file(tmp_path):
    file = tmp_path / "judge.py"
    file.write_text("def f(prompt, answer):\n    return 1\n")
    first = open_reward(f"{file}:f").identity()
    assert open_reward(f"{file}:f").identity() == first
    file.write_text("def f(prompt, answer):\n    return 2\n")
    assert open_reward(f"{file}:f").identity() != first
    assert function_reward(lambda prompt, answer: 1.0).identity is None


# ---- models


@pytest.fixture(scope="module")
def scored(tmp_path_factory, finished_run, tiny_files):
    """The held-out pairs, scored by a run's implicit reward."""
    directory = tmp_path_factory.mktemp("scored")
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.allow_any_mesh(monkeypatch)
        rewards = {"dpo": open_reward(str(finished_run.out), step="9")}
        score_data(str(tiny_files.held_out), rewards, directory / "out.jsonl", cache=directory / "cache", chunk=4)
    return directory


def test_implicit_scores_are_the_rewards_of_the_evaluation(scored, finished_run):
    found = evaluate_preferences(finished_run.out, step="9", bootstrap=Bootstrap(100))
    for side in ("chosen", "rejected"):
        scores = [row[f"scores_{side}"]["dpo"] for row in read(scored / "out.jsonl")]
        expected = [row[side]["reward"] for row in found.groups]
        np.testing.assert_allclose(scores, expected, atol=SAME_WEIGHTS_TOLERANCE)
        assert np.ptp(expected) > 100 * SAME_WEIGHTS_TOLERANCE


def test_a_model_is_not_loaded_for_what_is_kept(scored, finished_run, tiny_files, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxpref.rewards.models.open_run", lambda *_: pytest.fail("loaded"))
    reward = open_reward(str(finished_run.out), step="9")
    score_data(str(tiny_files.held_out), {"dpo": reward}, tmp_path / "out.jsonl", cache=scored / "cache")
    assert read(tmp_path / "out.jsonl") == read(scored / "out.jsonl")
    other = open_reward(str(finished_run.out), step="10")
    assert other.identity() != reward.identity()


def test_chunks_share_compiled_programs(finished_run, tiny_files, tmp_path):
    reward, compiled = open_reward(str(finished_run.out)), []
    import jax

    def on_compile(event, _, **about):
        if event == "/jax/core/compile/backend_compile_duration" and about.get("fun_name"):
            compiled.append(about["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(on_compile)
    try:
        score_data(str(tiny_files.train), {"a": reward}, tmp_path / "out.jsonl", cache=None, chunk=4)
    finally:
        jax.monitoring.unregister_event_duration_listener(on_compile)
    assert len(read(tmp_path / "out.jsonl")) == 18, "five chunks of other lengths"
    assert 1 <= sum("step" in name for name in compiled) <= 2, compiled


@pytest.mark.slow
def test_long_answers_are_cut_as_training_cuts_them(finished_run, tiny_files, tmp_path):
    rows = tiny.rows(4)
    rows[1]["chosen"][0]["content"] += "x" * 30
    path, limits = str(tiny.write_rows(tmp_path / "long.jsonl", rows)), Limits(40)
    reward = open_reward(str(finished_run.out))
    score_data(path, {"a": reward}, tmp_path / "out.jsonl", cache=None, limits=limits)
    found = evaluate_preferences(
        finished_run.out, overrides=[f"data.eval=[{path}]", "data.max_length=40"], bootstrap=Bootstrap(100)
    )
    scores = [row["scores_chosen"]["a"] for row in read(tmp_path / "out.jsonl")]
    np.testing.assert_allclose(scores, [row["chosen"]["reward"] for row in found.groups], atol=SAME_WEIGHTS_TOLERANCE)
    score_data(path, {"a": reward}, tmp_path / "whole.jsonl", cache=None)
    whole = [row["scores_chosen"]["a"] for row in read(tmp_path / "whole.jsonl")]
    assert abs(whole[1] - scores[1]) > 100 * SAME_WEIGHTS_TOLERANCE
    report = score_data(path, {"a": reward}, tmp_path / "d.jsonl", cache=None, limits=Limits(40, "drop"))
    assert report.dropped == {"nothing left by the limits on length": 1} and report.rows == {"pair": 3}


def test_answers_made_equal_by_the_limit_have_equal_scores(finished_run, tmp_path):
    row = tiny.rows(1)[0]
    row |= {side: [{"role": "assistant", "content": "same start" + end}] for side, end in
            (("chosen", "a"), ("rejected", "b"))}  # fmt: skip
    prompt = len(tiny.make_tokenizer().apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"])
    path = str(tiny.write_rows(tmp_path / "rows.jsonl", [row]))
    report = score_data(
        path, {"a": open_reward(str(finished_run.out))}, tmp_path / "out.jsonl", cache=None, limits=Limits(prompt + 5)
    )
    assert report.agreement["a"] == {"tie": 1}


@pytest.mark.slow
def test_implicit_reward_of_an_adapter(tiny_files, tmp_path):
    """A LoRA run's reward, and the same from its exported PEFT directory."""
    from jaxpref.runs.export import export_run

    config = tiny.config(
        tmp_path / "run", tiny_files.model, tiny_files.train, adapter={"rank": 4},
        objective=[{"name": "dpo", "beta": 0.3}], train={"max_steps": 5},
    )  # fmt: skip
    tiny.run(config)
    export_run(config.out, tmp_path / "peft", adapter=True, step="latest")
    run = open_reward(config.out, step="latest")
    adapter = open_reward(f"adapter:{tmp_path / 'peft'},base={tiny_files.model},beta=0.3")
    rows = tiny.rows(5)
    prompts, answers = [row["prompt"] for row in rows], [row["chosen"][0]["content"] for row in rows]
    np.testing.assert_allclose(adapter(prompts, answers), run(prompts, answers), atol=SAME_WEIGHTS_TOLERANCE)
    assert np.ptp(run(prompts, answers)) > 100 * SAME_WEIGHTS_TOLERANCE
    assert adapter.bradley_terry and adapter.identity() != run.identity()
    other = open_reward(f"adapter:{tmp_path / 'peft'},base={tiny_files.model},beta=0.6")
    np.testing.assert_allclose(other(prompts, answers), 2 * adapter(prompts, answers), rtol=1e-5)


@pytest.mark.slow
def test_modpo_with_token_counts_is_length_regularised_dpo(tiny_files, tmp_path):
    """MODPO with the other reward -|y| and w = (1, a) is r_dpo with alpha = a, through score and training."""
    score_data(
        str(tiny_files.train), {"short": open_reward(f"rule:tokens:{tiny_files.model}")}, tmp_path / "out.jsonl",
        cache=tmp_path / "cache",
    )  # fmt: skip
    losses = []
    for name, objective, other_rewards in (
        ("modpo", {"name": "modpo", "w": [1, 0.05], "beta": 0.2}, ["short"]),
        ("r_dpo", {"name": "r_dpo", "alpha": 0.05, "beta": 0.2}, []),
    ):
        config = tiny.config(
            tmp_path / name, tiny_files.model, tmp_path / "out.jsonl", objective=[objective],
            data={"train": [str(tmp_path / "out.jsonl")], "eval": [], "other_rewards": other_rewards},
            train={"max_steps": 4},
        )  # fmt: skip
        losses.append(tiny.run(config).losses)
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert abs(losses[0][0] - np.log(2)) > 0.01, "the margin is felt"


# ---- the command


def test_the_command_scores_calibrates_and_scalarises(call, data, tmp_path, cache):
    rng = np.random.default_rng(0)
    texts = [(" w" * int(a), " v" * int(c)) for a, c in rng.integers(1, 9, (200, 2)) if a != c]
    rows = []
    for a, c in texts:  # shorter is better, at a temperature of 4 words
        better = rng.random() < 1 / (1 + np.exp(-(len(c) - len(a)) / 2 / 4))
        rows.append({"prompt": "q", "chosen": a if better else c, "rejected": c if better else a})
    pairs, path, out = data(rows, "pairs.jsonl"), data(PAIRS), tmp_path / "out.jsonl"
    code, printed, err = call(
        "score", path, "--reward", "brief=rule:words", "--reward", "kind=rule:vader", "--calibrate", f"brief={pairs}",
        "--scalarise", "both=linear:brief=0.5,kind=0.5", "--out", out, "--cache", cache, "--chunk", "2",
    )  # fmt: skip
    assert code == 0, err
    assert "brief: temperature" in printed and "brief: higher for chosen in 33.3% of 3 pairs" in printed
    found = [row["scores_chosen"] for row in read(out)]
    temperature = -1 / found[0]["brief"]
    assert 2 < temperature < 8 and found[1]["brief"] == pytest.approx(-2 / temperature)
    for scores in found:
        assert scores["both"] == pytest.approx(0.5 * scores["brief"] + 0.5 * scores["kind"])


def test_arguments_of_another_kind_are_told(data, tmp_path):
    path, words = data(PAIRS), open_reward("rule:words")
    both = Scalariser("linear", {"a": 1.0})
    for given, settings, said in [
        ((path, {"a": "rule:words"}), {}, "rewards.'a'.: str 'rule:words'"),
        ((path, words), {}, "rewards: Reward"),
        ((path, {"a": lambda prompt, answer: 1.0}), {}, "missing a required argument(.|\n)*function_reward"),
        ((path, {"a": lambda: 1.0}), {}, "it gives float 1.0"),
        ((path, {"a": words}), {"scalarise": {"b": "linear:a=1"}}, "scalarise.'b'.: str"),
        ((path, {"a": words}), {"chunk": 0}, "chunk=0"),
        ((PAIRS, {"a": words}), {}, "paths of data(.|\n)*dict"),
        ((None, {"a": words}), {}, "paths of data(.|\n)*NoneType"),
    ]:
        with pytest.raises(InputError, match=said):
            score_data(*given, tmp_path / "out.jsonl", cache=None, **settings)
    for settings, said in (({"max_length": 0}, "max_length=0"), ({"truncation": "end"}, "truncation='end': one of")):
        with pytest.raises(InputError, match=said):
            Limits(**settings)
    assert not (tmp_path / "out.jsonl").exists()
    score_data(tmp_path / "data.jsonl", {"a": words}, tmp_path / "out.jsonl", cache=None, scalarise={"b": both})
    assert read(tmp_path / "out.jsonl")[0]["scores_chosen"] == {"a": -1.0, "b": -1.0}


def test_an_error_in_a_judge_says_for_which_answer(data, tmp_path):
    judge = function_reward(lambda prompt, answer: 1 / (answer != " a a"), "judge")
    with pytest.raises(ZeroDivisionError) as error:
        score_data(data(PAIRS), {"a": judge}, tmp_path / "out.jsonl", cache=None)
    assert error.value.__notes__ == [f"in the reward judge, of {tmp_path / 'data.jsonl'}, row 2, answer ' a a'"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "different names"),
        (("--reward", "rule:words"), "NAME=..."),
        (("--reward", "a=rule:words", "--reward", "a=rule:vader"), "each name once"),
        (("--reward", "a=rule:words", "--calibrate", "b=x.jsonl"), "b=x.jsonl"),
        (("--reward", "a=rule:words", "--reward", "b=rule:words", "--calibrate", "c=x"), "--calibrate with a name"),
        (("--reward", "a=rule:words", "data.max_length=3"), "mesh.*, model.compute_dtype or data.date"),
        (("--reward", "a=rule:words", "--chunk", "0"), "--chunk"),
        (("--reward", "a=rule:words", "--step", "9"), "--step 9 with rule:words"),
        (("--reward", "a=nothing"), "none of these"),
        (("--scalarise", "b=linear@3:a=1"), "no parameter for linear"),
        (("--scalarise", "b=lower_third:a=1"), "three rewards or more"),
        (("--scalarise", "b=soft_max_min@-1:a=1"), "a temperature > 0"),
        (("--reward", "a=rule:words", "--columns", "prompt"), "--columns OURS=THEIRS"),
        (("--reward", "a=rule:words", "--columns", "promt=q"), "promt"),
    ],
)
def test_bad_commands(call, data, tmp_path, arguments, said):
    code, _, err = call("score", data(PAIRS), "--out", tmp_path / "out.jsonl", "--cache", "none", *arguments)
    assert code == 2 and said in err and "Traceback" not in err, err
    assert not (tmp_path / "out.jsonl").exists()


def test_rows_under_other_names_keep_them(call, data, tmp_path):
    rows = [
        {"q": "sky?", "system": "Be brief.", "chosen": "blue", "rejected": "it is red", "margin": "large"},
        {"q": "sea?", "chosen": "green"},
        {"q": "sun?"},
    ]
    out = tmp_path / "out.jsonl"
    names = ("--format", "orca", "--columns", "question=q", "--on-bad-row", "drop")
    code, printed, err = call("score", data(rows), "--reward", "a=rule:words", "--out", out, "--cache", "none", *names)
    assert code == 0, err
    assert "2 dropped: missing value" in printed
    scores = {"scores_chosen": {"a": -1}, "scores_rejected": {"a": -3}}
    assert read(out) == [rows[0] | scores]


def test_scores_reach_the_groups(tmp_path, data, tiny_files):
    """What is written is what data.prefer and data.other_rewards read."""
    out = tmp_path / "out.jsonl"
    rows = tiny.rows(6)
    score_data(data(rows), {"w": open_reward("rule:words"), "len": counting([])}, out, cache=None)
    config = tiny.config(
        tmp_path / "run", tiny_files.model, out, objective=[{"name": "modpo", "w": [0.5, 0.5]}],
        data={"train": [str(out)], "eval": [], "prefer": "len", "other_rewards": ["w"]},
    )  # fmt: skip
    groups, report = read_data(build(config), "train")
    assert report.preferred.kept + report.preferred.swapped == len(groups) and report.preferred.swapped
    assert all(group.columns["scores/len"][0] > group.columns["scores/len"][1] for group in groups)
    assert all(group.columns["other_rewards"] == ((-1.0,), (-1.0,)) for group in groups)
