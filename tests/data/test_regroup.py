"""Groups made into another kind: what is taken over, what is unique, and that lent answers are to other prompts."""

import random

import numpy as np
import pytest

from jaxpref.data.pictures.other import OTHER_PICTURES
from jaxpref.data.regroup import choose_kind, draw_others, regroup, with_other_answers
from jaxpref.errors import InputError
from jaxpref.objectives import KINDS
from jaxpref.types import EncodedGroup, Group

ALL = tuple(KINDS)


# ---- which kind


@pytest.mark.parametrize(
    "found, wanted, kind",
    [
        (["pair"], ["pair", "triple"], "pair"),
        (["pair"], ["judged"], "judged"),
        (["pair"], ["judged_other"], "judged_other"),
        (["pair"], ["single"], "single"),
        (["triple"], ["triple"], "triple"),
        (["judged"], ["judged_other"], "judged_other"),
        (["judged"], ["judged", "judged_other"], "judged"),
        (["pair", "judged"], ["pair", "judged_other"], "judged_other"),
        # As they are, rather than converted; then the first of those wanted.
        *(([kind], ALL, kind) for kind in ("pair", "single", "judged", "ranked")),
        (["judged"], ["judged_other", "judged"], "judged"),
        (["pair", "single"], ALL, "single"),
        (["pair", "judged"], ALL, "judged"),
        (["pair"], ["single", "judged"], "single"),
    ],
)
def test_the_kind_to_train_on(found, wanted, kind):
    assert choose_kind(dict.fromkeys(found, "a.jsonl, row 1"), wanted) == kind


@pytest.mark.parametrize(
    "found, wanted, said",
    [
        (["single"], ["pair", "triple"], ["pair or triple", "`completion` (single.jsonl", "`chosen` and `rejected`"]),
        (["single"], ["judged_other"], ["judged_other", "`completion` and `label`", "`chosen` and `rejected`"]),
        (["ranked"], ["pair"], ["`completions` (ranked.jsonl", "give rows with"]),
        (["judged"], ["single"], ["`label` (judged.jsonl"]),
        (["pair"], ["triple"], ["`reference`"]),
        (["pair", "ranked"], ALL, ["pair.jsonl", "ranked.jsonl", "separate runs"]),
        (["pair", "triple"], ["triple"], ["pair.jsonl", "`reference`"]),
    ],
)
def test_rows_that_cannot_become_what_is_wanted(found, wanted, said):
    with pytest.raises(InputError) as caught:
        choose_kind({kind: f"{kind}.jsonl, row 1" for kind in found}, wanted)
    for part in said:
        assert part in str(caught.value), f"{part!r} not in:\n{caught.value}"


def test_every_kind_of_the_objectives_is_known():
    for kind in KINDS:
        source = {"judged_other": "judged", **dict.fromkeys(OTHER_PICTURES, "pair")}.get(kind, kind)
        assert choose_kind({source: "a.jsonl, row 1"}, [kind]) == kind


# ---- texts

PAIR = Group(
    "q",
    ("a", "b"),
    4,
    "t.jsonl, row 5",
    template_kwargs={"x": 1},
    columns={"weight": 2.0, "score": (9.0, 7.0), "other_rewards": ((1.0, 2.0), (3.0, 4.0))},
)


@pytest.mark.parametrize("wanted", ["judged", "judged_other"])
def test_a_pair_becomes_two_judged_answers(wanted):
    chosen, rejected = regroup(PAIR, "pair", wanted, pairs=True)
    assert (chosen.completions, rejected.completions) == (("a",), ("b",))
    assert (chosen.row_id, rejected.row_id) == (8, 9)
    assert (chosen.where, rejected.where) == ("t.jsonl, row 5, chosen", "t.jsonl, row 5, rejected")
    assert chosen.columns == {"weight": 2.0, "score": (9.0,), "other_rewards": ((1.0, 2.0),), "label": 1.0}
    assert rejected.columns == {"weight": 2.0, "score": (7.0,), "other_rewards": ((3.0, 4.0),), "label": 0.0}
    assert chosen.prompt == rejected.prompt == "q" and chosen.template_kwargs == {"x": 1}


def test_chosen_alone():
    [group] = regroup(PAIR, "pair", "single", pairs=True)
    assert (group.completions, group.row_id, group.where) == (("a",), 4, "t.jsonl, row 5")
    assert group.columns == {"weight": 2.0, "score": (9.0,), "other_rewards": ((1.0, 2.0),)}


def test_row_ids_stay_unique_where_pairs_and_judged_answers_meet():
    judged = [Group("q", ("a",), i, "w", columns={"label": 1.0}) for i in range(0, 10, 2)]
    pairs = [Group("q", ("a", "b"), i, "w") for i in range(1, 10, 2)]
    made = [g for group in judged for g in regroup(group, "judged", "judged", pairs=True)]
    made += [g for group in pairs for g in regroup(group, "pair", "judged", pairs=True)]
    assert len(made) == 15 == len({group.row_id for group in made})
    assert list(regroup(judged[1], "judged", "judged", pairs=False)) == [judged[1]]


def test_what_is_of_the_kind_stays():
    assert list(regroup(PAIR, "pair", "pair", pairs=True)) == [PAIR]


# ---- answers to other prompts


@pytest.mark.parametrize("seed", range(30))
def test_others_have_another_prompt_and_each_lends_once(seed):
    rng = random.Random(seed)
    prompts = [rng.randrange(rng.choice([2, 5, 40])) for _ in range(rng.randrange(20, 60))]
    most = max(map(prompts.count, prompts))
    lenders = draw_others(prompts, seed)
    assert all(prompts[i] != prompts[j] for i, j in enumerate(lenders))
    if 2 * most <= len(prompts):
        assert sorted(lenders) == list(range(len(prompts)))
    else:  # those of other prompts lend to all that share one
        assert {j for i, j in enumerate(lenders) if prompts.count(prompts[i]) == most} == {
            j for j, prompt in enumerate(prompts) if prompts.count(prompt) < most
        }


@pytest.mark.parametrize("prompts", ["ab", "aabb", "aab", "abbb", "aabbcc", "abc", "aaabbc"])
def test_others_in_small_sets(prompts):
    for seed in range(50):
        assert all(prompts[i] != prompts[j] for i, j in enumerate(draw_others(prompts, seed)))


def test_the_draw_is_the_seeds():
    prompts = list(range(50))
    assert draw_others(prompts, 3) == draw_others(prompts, 3)
    assert draw_others(prompts, 3) != draw_others(prompts, 4)
    drawn = {draw_others(prompts, seed)[0] for seed in range(300)}
    assert len(drawn) > 40, "any other prompt may be drawn"


def test_one_prompt_has_no_other():
    with pytest.raises(InputError, match="one prompt in all 3 groups"):
        draw_others("aaa", 0)


def encoded(prompt, completion, row_id=0, **columns):
    ids = lambda text: np.array([ord(c) for c in text], np.int32)
    return EncodedGroup(ids(prompt), (ids(completion),), row_id, f"row {row_id}", columns)


def text(ids):
    return "".join(map(chr, ids))


def test_lent_answers_are_cut_to_the_limit_and_change_nothing_else():
    groups = [encoded("pq", "abc", 0, label=1.0, score=(2.0,)), encoded("r", "defgh", 1, label=0.0, score=(3.0,))]
    results, cut = with_other_answers(groups, seed=0, max_length=6)
    assert [[text(c) for c in g.completion_ids] for g in results] == [["abc", "defg"], ["defgh", "abc"]]
    assert cut == 1
    for before, after in zip(groups, results, strict=True):
        assert after.prompt_ids is before.prompt_ids and after.completion_ids[0] is before.completion_ids[0]
        assert (after.row_id, after.where) == (before.row_id, before.where)
    assert [g.columns for g in results] == [{"label": 1.0, "score": (2.0, 0.0)}, {"label": 0.0, "score": (3.0, 0.0)}]
    assert groups[0].columns == {"label": 1.0, "score": (2.0,)}
    whole, cut = with_other_answers(groups, seed=0, max_length=None)
    assert (text(whole[0].completion_ids[1]), cut) == ("defgh", 0)
