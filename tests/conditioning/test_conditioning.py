"""Preferences in prompts: what stands there, how pairs are labelled by it, and the prompts that ask for answers."""

import json
import re
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import tiny

from jaxpref.conditioning import (
    ConditionReport,
    ControllableDPO,
    ScoreStatistics,
    cdpo_prompt,
    cdpo_rows,
    instructed,
    metaalign_rows,
    ric_prompt,
    ric_rows,
    ric_targets,
    score_statistics,
)
from jaxpref.conditioning.prompts import before, behind
from jaxpref.config import DataConfig
from jaxpref.data.dataset import load_groups
from jaxpref.data.rewrite import Source
from jaxpref.errors import InputError, RowError

CHAT = [
    {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"}
]  # fmt: skip
RANKED = {
    "prompt": "tell me", "completions": ["a", "b", "c", "d"], "scores": [1, 2, 3, 4], "note": 1,
    "scores_completions": {"help": [5, 3, 1, 3], "honest": [1, 4, 5, 2]},
}  # fmt: skip
PAIR = {
    "prompt": CHAT, **{side: [{"role": "assistant", "content": side[0]}] for side in ("chosen", "rejected")},
    "scores_chosen": {"help": 2, "honest": 1.5}, "scores_rejected": {"help": 1, "honest": 4}, "margin": 0.5,
    "tools": None, "note": "kept",
}  # fmt: skip


@pytest.fixture
def source(tmp_path):
    return lambda *rows, **options: Source([str(tiny.write_rows(tmp_path / "rows.jsonl", rows))], **options)


# ---- prompts


def test_tags_before_and_behind_texts_and_messages():
    assert cdpo_prompt("tell me", {"help": 5.0, "honest": 2.5}) == "< help: 5 > < honest: 2.5 > tell me"
    assert before(CHAT, "< x > ") == [*CHAT[:2], {"role": "user", "content": "< x > three"}]
    assert ric_prompt("tell me", [0.26, -1.0]) == "tell me <rm1_score> 0.3 <rm2_score> -1.0 "
    assert ric_prompt("Human: hi\n\nAssistant:", [1, -0.04], ending="\n\nAssistant:") == (
        "Human: hi <rm1_score> 1.0 <rm2_score> 0.0 \n\nAssistant:"
    )
    assert behind(CHAT, "<a> 1 ")[2]["content"] == "three <a> 1" and CHAT[2]["content"] == "three"
    with pytest.raises(InputError, match="message of the user"):
        before([{"role": "system", "content": "s"}], "x")


def test_words_before_texts_and_messages():
    assert instructed("tell me", "Be brief.") == "Be brief.\n\ntell me"
    assert instructed(CHAT, "Be brief.") == [{"role": "system", "content": "Be brief."}, *CHAT]
    system = [{"role": "system", "content": "You know."}, *CHAT]
    assert instructed(system, "Be brief.") == [{"role": "system", "content": "Be brief.\n\nYou know."}, *CHAT]


def test_tags_beside_pictures():
    place = {"type": "image"}
    asked = [{"role": "user", "content": [place, {"type": "text", "text": "what"}, place]}]
    texts = lambda prompt: [part.get("text") for part in prompt[0]["content"]]
    assert texts(before(asked, "< x > ")) == [None, "< x > what", None]
    assert texts(behind(asked, "<a> 1 ")) == [None, "what <a> 1", None]
    alone = [{"role": "user", "content": [place]}]
    assert texts(before(alone, "< x > ")) == ["< x > ", None]
    assert texts(instructed([{**alone[0], "role": "system"}], "Look.")) == ["Look.\n\n", None]


# ---- controllable DPO


def g(scores, targets, strength=1.0):
    return sum(-strength * abs(s - targets[name]) if name in targets else s for name, s in scores.items())


def asked_of(prompt):
    return {name: float(value) for name, value in re.findall(r"< (\w+): ([-\d.]+) >", prompt)}


@pytest.mark.parametrize("control, subsets, strength", [(["honest"], False, 1.0), (["help", "honest"], True, 3.0)])
def test_pairs_are_labelled_by_what_is_asked_for(source, control, subsets, strength):
    rows = [RANKED | {"prompt": f"p{i}"} for i in range(40)]
    how = ControllableDPO(["help", "honest"], control, subsets, strength, copies=2)
    report, made = ConditionReport(), []
    made = list(cdpo_rows(source(*rows), how, report))
    by_answer = {a: {n: x[k] for n, x in RANKED["scores_completions"].items()} for k, a in enumerate("abcd")}
    asked = [asked_of(row["prompt"]) for row in made]
    for row, targets in zip(made, asked, strict=True):
        assert targets and targets.keys() <= set(control)
        assert any(all(s[n] == v for n, v in targets.items()) for s in by_answer.values()), "an answer's own scores"
        better, worse = by_answer[row["chosen"]], by_answer[row["rejected"]]
        assert g(better, targets, strength) > g(worse, targets, strength)
        assert (row["scores_chosen"], row["scores_rejected"]) == (better, worse)
        assert row["note"] == 1 and "completions" not in row and "scores_completions" not in row
    assert {frozenset(targets) for targets in asked} == (
        {frozenset(part) for n in (1, 2) for part in combinations(control, n)} if subsets else {frozenset(control)}
    )
    values = {n: {targets[n] for targets in asked if n in targets} for n in control}
    assert all(len(found) > 2 for found in values.values()), "different answers are drawn"
    assert report.rows == 40 and report.written == len(made) == 2 * 40 * 6 - report.tied > 400
    assert list(cdpo_rows(source(*rows), how, ConditionReport())) == made, "the draw is the seed's"
    other = ControllableDPO(["help", "honest"], control, subsets, strength, copies=2, seed=1)
    assert list(cdpo_rows(source(*rows), other, ConditionReport())) != made


def test_a_pair_keeps_its_other_columns_and_turns_the_rest(source):
    how = ControllableDPO(["honest"], ["honest"])
    rows = [PAIR | {"note": i} for i in range(20)]
    report = ConditionReport()
    made = list(cdpo_rows(source(*rows), how, report))
    assert {row["chosen"][0]["content"] for row in made} == {"c", "r"} and len(made) == 20
    assert report.swapped == sum(row["chosen"][0]["content"] == "r" for row in made)
    for row in made:
        asked, turned = asked_of(row["prompt"][2]["content"])["honest"], row["chosen"][0]["content"] == "r"
        assert asked == (4.0 if turned else 1.5) and row["margin"] == (-0.5 if turned else 0.5)
        assert row["scores_chosen"] == (PAIR["scores_rejected"] if turned else PAIR["scores_chosen"])
        assert row["prompt"][:2] == CHAT[:2] and row["note"] in range(20)


def test_what_is_made_can_be_trained_on(source, tmp_path):
    how = ControllableDPO(["help", "honest"], ["help"])
    path = tiny.write_rows(tmp_path / "made.jsonl", list(cdpo_rows(source(RANKED, PAIR), how, ConditionReport())))
    groups, _ = load_groups(DataConfig(other_rewards=["honest"]), tiny.make_tokenizer(), [str(path)], "train")
    assert len(groups) > 4 and all("other_rewards" in group.columns for group in groups)
    assert "< help: " in tiny.make_tokenizer().decode(groups[0].prompt_ids.tolist())


@pytest.mark.parametrize(
    "change, said",
    [
        ({"control": ["other"]}, "scores to control"),
        ({"control": []}, "scores to control"),
        ({"copies": 0}, "copies >= 1"),
        ({"strength": 0.0}, "strength > 0"),
    ],
)
def test_settings_of_cdpo_that_make_no_sense(source, change, said):
    settings = {"scores": ["help"], "control": ["help"]} | change
    with pytest.raises(InputError, match=said):
        list(cdpo_rows(source(RANKED), ControllableDPO(**settings), ConditionReport()))


def test_rows_that_cannot_be_conditioned(source):
    how, single = ControllableDPO(["help"], ["help"]), {"prompt": "q", "completion": "a", "scores": {"help": 1}}
    with pytest.raises(InputError, match="row 1: one answer"):
        list(cdpo_rows(source(single), how, ConditionReport()))
    lacking = {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(RowError, match="row 2: no scores"):
        list(cdpo_rows(source(RANKED, lacking), how, ConditionReport()))
    report = ConditionReport()
    list(cdpo_rows(source(RANKED, lacking, PAIR | {"chosen": []}, on_bad_row="drop"), how, report))
    assert (report.rows, report.dropped) == (3, {"no score help": 1, "empty completion": 1})
    assert "1 dropped: no score help" in str(report)


# ---- MetaAlign


def test_words_decide_by_their_score(source):
    report = ConditionReport()
    words = {"help": "Be helpful.", "honest": "Be honest."}
    made = list(metaalign_rows(source(PAIR, RANKED), words, report))
    first, second = made[:2]
    assert [row["prompt"][0] for row in (first, second)] == [{"role": "system", "content": x} for x in words.values()]
    assert [row["chosen"][0]["content"] for row in (first, second)] == ["c", "r"]
    ranked = made[2:]
    for name, text in words.items():
        score = dict(zip("abcd", RANKED["scores_completions"][name], strict=True))
        pairs = {(row["chosen"], row["rejected"]) for row in ranked if row["prompt"] == f"{text}\n\ntell me"}
        assert pairs == {(x, y) for x in "abcd" for y in "abcd" if score[x] > score[y]}
    assert (report.written, report.tied, report.swapped) == (len(made), 1, 1) and len(made) == 2 + 11


# ---- rewards-in-context


def test_answers_stand_after_their_own_scores(source):
    single = {"prompt": "q", "completion": "s", "label": True, "scores": {"help": 9, "honest": 0}, "weight": 2}
    from_rows, report = source(RANKED, PAIR, single), ConditionReport()
    statistics = score_statistics(from_rows, ["honest", "help"])
    made = list(ric_rows(from_rows, statistics, report))
    help_ = np.array([5, 3, 1, 3, 2, 1, 9.0])
    honest = np.array([1, 4, 5, 2, 1.5, 4, 0])
    z = [(x - x.mean()) / x.std() for x in (honest, help_)]
    assert (report.rows, report.written) == (3, 7) == (3, len(made))
    for row, a, c, raw in zip(made, *z, help_, strict=True):
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][2]["content"] + " "
        assert prompt.endswith(f" <rm1_score> {round(a, 1) + 0.0} <rm2_score> {round(c, 1) + 0.0} ")
        assert row["scores"]["help"] == raw
    assert [row["completion"] for row in made[:4]] == ["a", "b", "c", "d"] and made[6]["weight"] == 2
    assert statistics["help"].low == z[1].min() and statistics["help"].high == z[1].max()
    flat = [RANKED | {"scores_completions": {"x": [1, 1, 1, 1]}}]
    with pytest.raises(InputError, match="x: 4 equal ones"):
        score_statistics(source(*flat), ["x"])


def test_targets_by_hand():
    statistics = [ScoreStatistics(0, 1, -2.0, 2.0), ScoreStatistics(5, 2, -1.0, 3.0)]
    assert ric_targets([0.75, 0.25], statistics, "linf") == [2.0, 1.0]
    assert ric_targets([0.2, 0.8], statistics, "linf") == [-0.4, 3.0]
    assert ric_targets([0.5, 0.5], statistics, "linf") == [2.0, 3.0]
    assert ric_targets([3, 4], statistics, "l2") == [0.4, 2.2]
    assert ric_targets([0.75, 0.25], statistics, "linear") == [1.0, 0.0]
    for wrong in ([1], [0, 0], [-1, 2], [np.nan, 1]):
        with pytest.raises(InputError, match="a weight >= 0 for each of 2 scores"):
            ric_targets(wrong, statistics)


# ---- the command


@pytest.fixture
def call(call):
    return partial(call, "condition")


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_training_data_and_prompts_of_each_way(call, tmp_path):
    data = tiny.write_rows(tmp_path / "rows.jsonl", [RANKED, PAIR])
    prompts = tiny.write_rows(tmp_path / "prompts.jsonl", [{"prompt": "tell me"}, {"messages": CHAT}])
    ways = {
        "cdpo": (["--scores", "help,honest", "--control", "help"], ["--target", "help=5"], "< help: 5 > tell me"),
        "ric": (
            ["--scores", "help,honest"],
            ["--weights", "honest=0.5,help=0.5", "--statistics", tmp_path / "ric.statistics.json"],
            "tell me <rm1_score> 1.8 <rm2_score> 1.4 ",
        ),
        "metaalign": (["--preference", "help=Be helpful."], ["--words", "Be kind."], "Be kind.\n\ntell me"),
    }
    for way, (training, asking, expected) in ways.items():
        code, out, err = call(data, "--as", way, "--out", tmp_path / f"{way}.jsonl", *training)
        assert code == 0 and "2 rows in" in out, err
        assert len(read(tmp_path / f"{way}.jsonl")) > 4
        code, out, err = call(prompts, "--as", way, "--out", tmp_path / f"{way}_asked.jsonl", *asking)
        assert code == 0 and "2 prompts written" in out, err
        first, second = read(tmp_path / f"{way}_asked.jsonl")
        assert first == {"prompt": expected} and len(second["prompt"]) == 3 + (way == "metaalign")
    help_ = np.array([5, 3, 1, 3, 2, 1.0])
    assert round((5 - help_.mean()) / help_.std(), 1) == 1.8
    # Held-out data is normalised as the training data was.
    held_out = tiny.write_rows(tmp_path / "held_out.jsonl", [PAIR])
    again = tmp_path / "again.jsonl"
    call(held_out, "--as", "ric", "--statistics", tmp_path / "ric.statistics.json", "--out", again)
    assert read(again) == read(tmp_path / "ric.jsonl")[4:]


def test_rows_keep_their_pictures_wherever_they_are_written(call, tmp_path, monkeypatch):
    """By their column and in a message, of a file that is named from the working directory."""
    monkeypatch.chdir(tmp_path)
    held = {"type": "image", "path": "b.png"}
    prompts = [
        [{"role": "user", "content": "what"}],
        [{"role": "user", "content": [held, {"type": "text", "text": "what"}]}],
    ]
    answers = {key: [{"role": "assistant", "content": key}] for key in ("chosen", "rejected")}
    scores = {"scores_chosen": {"help": 1}, "scores_rejected": {"help": 0}}
    rows = [{"prompt": prompt, **answers, **scores} for prompt in prompts]
    rows[0]["image"] = "a.png"
    tiny.write_rows(Path("rows.jsonl"), rows)
    Path("other").mkdir()
    words = ["--as", "cdpo", "--out", "other/rows.jsonl", "--scores", "help", "--control", "help"]
    assert call("rows.jsonl", *words)[0] == 0
    words = ["--as", "metaalign", "--out", "other/asked.jsonl", "--words", "Be kind."]
    assert call("rows.jsonl", *words)[0] == 0
    for file in ("rows", "asked"):
        made = read(Path(f"other/{file}.jsonl"))
        named = [row["images"] for row in made]
        assert named == [[str(tmp_path / "a.png")], [str(tmp_path / "b.png")]]
        assert not any("image" in row for row in made)
        places = [part for row in made for part in row["prompt"][-1]["content"] if part["type"] == "image"]
        assert len(places) == len(made)


def test_split_of_a_folder(call, tmp_path):
    """Of rows and of prompts: the one that is asked for, else `train`."""
    folder = tmp_path / "folder"
    folder.mkdir()
    pair = {"chosen": "x", "rejected": "y", "scores_chosen": {"help": 2}, "scores_rejected": {"help": 1}}
    for name in ("train_a", "train_b", "test"):
        tiny.write_rows(folder / f"{name}.jsonl", [pair | {"prompt": name}])
    for number, way in enumerate((["--words", "Be kind."], ["--preference", "help=Be helpful."])):
        code, _, err = call(folder, "--as", "metaalign", "--out", tmp_path / f"no{number}.jsonl", *way)
        assert code == 2 and "to one of: train_a, train_b" in err
        out = tmp_path / f"{number}.jsonl"
        code, _, err = call(folder, "--as", "metaalign", "--split", "train_b", "--out", out, *way)
        assert code == 0 and all(row["prompt"].endswith("\n\ntrain_b") for row in read(out)), err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--as", "cdpo"), "--scores A,B"),
        (("--as", "ric"), "--scores A,B"),
        (("--as", "metaalign"), "--preference SCORE=WORDS"),
        (("--as", "cdpo", "--target", "help=x"), "numbers"),
        (("--as", "ric", "--scores", "help,honest,help"), "different scores"),
        (("--as", "cdpo", "--target", "help=nan"), "not finite: help"),
        (("--as", "ric", "--weights", "help=1"), "--statistics FILE"),
        (("--as", "ric", "--weights", "help=1", "--statistics", __file__), "statistics that the conditioning"),
        (("--as", "metaalign", "--preference", "help"), "NAME=..."),
        (("--as", "cdpo", "--scores", "help", "--copies", "0"), "copies >= 1"),
        (("--as", "cdpo", "--scores", "help", "--weights", "help=1"), "got: --weights"),
        (("--as", "cdpo", "--target", "help=1", "--copies", "1", "--subsets"), "got: --copies, --subsets"),
        (("--as", "ric", "--scores", "help", "--map", "linf"), "got: --map"),
        (("--as", "ric", "--scores", "help", "--statistics", "x.json"), "got: --scores"),
        (("--as", "metaalign", "--words", "Be kind.", "--preference", "help=Be kind."), "got: --preference"),
    ],
)
def test_bad_commands(call, tmp_path, arguments, said):
    data = tiny.write_rows(tmp_path / "rows.jsonl", [RANKED])
    code, _, err = call(data, "--out", tmp_path / "out.jsonl", *arguments)
    assert code == 2 and said in err and "Traceback" not in err, err
    assert not (tmp_path / "out.jsonl").exists()
