"""Pairs with a label of every objective, and the same with drawn weights in their prompts."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from jaxpref.conditioning.weights import draw_weights, weight_draw, weighted_prompt
from jaxpref.data.rewrite import Source
from jaxpref.errors import InputError
from jaxpref.pareto.config import SHARED
from jaxpref.pareto.labels import (
    check_preferences,
    conditioned_rows,
    labelled_rows,
    write_conditioned_rows,
    write_labels,
)
from jaxpref.pareto.settings import make_front_config
from jaxpref.pareto.stages import Stages

NAMES = ["likes", "short"]


def test_weights_are_hundredths_that_sum_to_one():
    drawn = [draw_weights(np.random.default_rng(seed), 3, 1.0) for seed in range(300)]
    for w in drawn:
        assert sum(w) == pytest.approx(1, abs=1e-12) and min(w) >= 0
        assert all(round(100 * x) == pytest.approx(100 * x, abs=1e-9) for x in w)
    np.testing.assert_allclose(np.mean(drawn, 0), 1 / 3, atol=0.05)
    near_ends = [max(draw_weights(np.random.default_rng(seed), 3, 0.1)) for seed in range(300)]
    assert np.mean(near_ends) > np.mean([max(w) for w in drawn]) + 0.2


def test_weights_are_drawn_among_vectors_alike():
    vectors = [[0.1, 0.9], [0.5, 0.5], [1.0, 0.0]]
    draw = weight_draw(2, None, vectors)
    drawn = [draw(np.random.default_rng(seed)) for seed in range(300)]
    assert all(80 < drawn.count(vector) < 120 for vector in vectors)


def test_weights_stand_in_the_prompt():
    weights = {"likes": 0.3, "short": 0.7}
    assert weighted_prompt("Hi", weights) == "< likes: 0.3 > < short: 0.7 > Hi"
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "Hi"}]
    assert weighted_prompt(messages, weights)[1]["content"] == "< likes: 0.3 > < short: 0.7 > Hi"
    assert weighted_prompt("Hi", {"likes": 1 / 3, "short": 2 / 3}) == "< likes: 0.33 > < short: 0.67 > Hi"


def test_pairs_are_labelled_by_their_owner_or_by_scores(tmp_path):
    lines = tiny.rows(3)
    own = Source([str(tiny.write_rows(tmp_path / "own.jsonl", lines))])
    rows = list(labelled_rows(own, NAMES, owner="likes"))
    assert [(row["label/likes"], row["label/short"]) for row in rows] == [(1.0, 0.0)] * 3
    assert [row["chosen"] for row in rows] == [line["chosen"] for line in lines]

    for line, short in zip(lines, [(-1, -2), (-3, -2), (-2, -2)], strict=True):
        line["scores_chosen"], line["scores_rejected"] = {"short": short[0]}, {"short": short[1]}
    shared = Source([str(tiny.write_rows(tmp_path / "shared.jsonl", lines))])
    rows = list(labelled_rows(shared, NAMES, scored=["short"]))
    assert [(row["label/likes"], row["label/short"]) for row in rows] == [(0.0, 1.0), (0.0, -1.0)], "ties are left out"
    with pytest.raises(InputError, match="no score|score 'likes'"):
        list(labelled_rows(shared, NAMES, scored=["likes"]))


def test_rows_of_several_answers_give_all_their_pairs(tmp_path):
    line = {"prompt": "n", "completions": ["a", "b", "c"], "scores_completions": {"short": [1, 3, 2]}, "weight": 2.0}
    source = Source([str(tiny.write_rows(tmp_path / "ranked.jsonl", [line]))])
    rows = list(labelled_rows(source, NAMES, scored=["short"]))
    assert [(r["chosen"], r["rejected"], r["label/short"]) for r in rows] == [
        ("a", "b", -1.0), ("a", "c", -1.0), ("b", "c", 1.0),
    ]  # fmt: skip
    assert {row["weight"] for row in rows} == {2.0}


def test_every_pass_draws_weights_anew_and_labels_weigh_alike():
    """Three rows of one objective, one of the other: their mean losses weigh by w alone."""
    rows = [{"prompt": f"n {i}", "label/likes": float(i < 3), "label/short": -float(i == 3)} for i in range(4)]

    def make(seed, told=True):
        settings = {"passes": 200, "draw": weight_draw(2, 1.0, ()), "seed": seed, "told": told}
        return list(conditioned_rows(rows, NAMES, **settings))

    made = make(0)
    prompts = [row["prompt"] for row in rows] * 200
    assert make(0, told=False) == [row | {"prompt": p} for row, p in zip(made, prompts, strict=True)]
    assert made == make(0) != make(1) and len(made) == 800
    for i, row in enumerate(made):
        w = {name: row[f"w/{name}"] for name in NAMES}
        assert row["prompt"] == weighted_prompt(rows[i % 4]["prompt"], w)
    assert len({row["prompt"] for row in made[::4]}) > 50
    assert {row["label/likes"] for row in made} == {4 / 3, 0.0}
    assert {row["label/short"] for row in made} == {-4.0, 0.0}


def front_of(tmp_path, line):
    """A front whose pairs are one file, labelled by the scores of an objective `short`."""
    train = tiny.write_rows(tmp_path / "scored.jsonl", [line])
    raw = tiny.settings(tmp_path / "front", tmp_path, train, train, adapter={"rank": 2})
    objectives = [{"name": name, "reward": "rule:words"} for name in NAMES]
    raw["pareto"] = {"objectives": objectives, "weights": [[0.5, 0.5]], "methods": ["cos_dpo"]}
    (tmp_path / "front" / "data").mkdir(parents=True)
    return make_front_config(raw), {SHARED: {"train": [str(train)]}}, Stages(tmp_path / "front" / "stages")


def scored(short, likes, prompt="n"):
    pair = {"prompt": prompt, "chosen": "a", "rejected": "b"}
    sides = [{"short": short[k], "likes": likes[k]} for k in (0, 1)]
    return pair | {"scores_chosen": sides[0], "scores_rejected": sides[1]}


def test_any_text_survives_in_the_files(tmp_path):
    prompt = "one\u2028two\x85three\x0cfour"
    front, pools, stages = front_of(tmp_path, scored((1, 2), (2, 1), prompt))
    rows = write_conditioned_rows(front, "cos_dpo", write_labels(front, pools, stages), stages)
    (row,) = (json.loads(line) for line in Path(rows).read_text().split("\n") if line)
    assert row["prompt"].endswith(prompt) and (row["label/likes"], row["label/short"]) == (1.0, -1.0)


@pytest.mark.parametrize("side, method", [("train", "dpo"), ("eval", "raco"), ("train", "raco")])
def test_a_reward_that_prefers_nothing_is_told_before_training(tmp_path, side, method):
    """Held-out pairs are relabelled for every method, training pairs for those with runs on one label."""
    front, pools, _ = front_of(tmp_path, scored((1, 2), (2, 1)))
    ties = tiny.write_rows(tmp_path / "ties.jsonl", [scored((1, 2), (3, 3))])
    front = dataclasses.replace(front, pareto=dataclasses.replace(front.pareto, methods=[method]))
    shared = pools[SHARED] | {"eval": pools[SHARED]["train"]}
    assert check_preferences(front, {SHARED: shared}) == check_preferences(front, {}) == {}
    given = {SHARED: shared | {side: [str(ties)]}}
    if (side, method) == ("train", "raco"):  # it is told with its labels
        assert check_preferences(front, given) == {}
        return
    with pytest.raises(InputError, match=f"none for likes: .*of all pairs of data.{side}"):
        check_preferences(front, given)


def test_an_objective_without_labels_is_told(tmp_path):
    front, pools, stages = front_of(tmp_path, scored((1, 2), (3, 3)))
    with pytest.raises(InputError, match="none for likes"):
        write_labels(front, pools, stages)
    assert not (tmp_path / "front" / "data" / "labels.jsonl").exists()
