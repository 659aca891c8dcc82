"""Rows of other kinds than pairs: told by their keys, read in every form, refused with a place."""

import pytest

from jaxpref.data.columns import KNOWN_COLUMNS
from jaxpref.data.kinds import NAMES, WRITTEN, completion_name, kind_of_row, read_group
from jaxpref.data.pictures.other import OTHER_PICTURES
from jaxpref.errors import InputError

WHERE = "train.jsonl, row 12"


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


def group_of(row, format="auto", *, gold=False):
    return read_group(kind_of_row(row, WHERE, gold=gold), row, WHERE, 11, format)


def refused(row, *parts, reason=None, gold=False):
    """The row must be refused with file, row and `parts`, and with `reason` if it is about this row alone."""
    with pytest.raises(InputError) as caught:
        group_of(row, gold=gold)
    for part in (WHERE, *parts):
        assert part in str(caught.value), f"{part!r} not in:\n{caught.value}"
    assert getattr(caught.value, "reason", None) == reason


ONE = {"prompt": "q", "completion": "a"}
JUDGED = ONE | {"label": True}
LIST = {"prompt": "q", "completions": ["a", "b", "c"]}
TRIPLE = {"prompt": "q", "chosen": "a", "rejected": "b", "reference": "g"}


# ---- which kind


@pytest.mark.parametrize(
    "row, kind",
    [
        ({"chosen": "a", "rejected": "b"}, "pair"),
        ({"rejected": "b"}, "pair"),
        (ONE, "single"),
        (JUDGED, "judged"),
        (ONE | {"label": None}, "judged"),
        (LIST, "ranked"),
        (TRIPLE, "pair"),
        # Where files of several kinds were joined, each row has the keys of all, null where it has none.
        (ONE | {"chosen": None, "rejected": None, "completions": None}, "single"),
        ({"chosen": None, "rejected": "b", "completion": None}, "pair"),
        ({"completion": None, "completions": None}, "ranked"),
        # A pair's further columns do not make it another kind.
        (TRIPLE | {"label": 1, "completion": "x", "completions": ["x", "y"]}, "pair"),
    ],
)
def test_kind_is_told_by_the_keys(row, kind):
    assert kind_of_row(row, WHERE) == kind


def test_a_gold_answer_counts_where_it_is_asked_for():
    assert kind_of_row(TRIPLE, WHERE, gold=True) == "triple"
    assert kind_of_row({"chosen": "a", "rejected": "b"}, WHERE, gold=True) == "pair"
    assert len(group_of(TRIPLE).completions) == 2


@pytest.mark.parametrize(
    "row, parts",
    [
        ({}, ["no keys"]),
        ({"question": "q", "label": 1}, ["question, label", 'no key "chosen"']),
        ({"prompt": "q", "complation": "a"}, ["data.columns: {completion: complation}"]),
        ({"prompt": "q", "response": "a"}, ["data.columns: {completion: response}"]),
        ({"chosen_text": "a", "rejected_text": "b"}, ["{chosen: chosen_text, rejected: rejected_text}"]),
    ],
)
def test_rows_of_no_kind(row, parts):
    refused(row, *parts, reason="missing value")


def test_every_kind_has_keys_and_names():
    assert set(WRITTEN) == set(NAMES) - {"judged_other", *OTHER_PICTURES}
    names = [completion_name("ranked", k) for k in range(3)]
    assert names == ["best", "completion 2", "completion 3"]
    assert [completion_name("triple", k) for k in range(3)] == ["chosen", "rejected", "gold"]


# ---- one completion


def test_standard_completion():
    group = group_of(ONE | {"id": 3})
    assert (group.prompt, group.completions) == ("q", ("a",))
    assert (group.row_id, group.where, group.columns) == (11, WHERE, {})


def test_conversational_completion():
    row = {"prompt": [user("q")], "completion": [bot("a")], "label": False, "tools": [{"name": "f"}]}
    group = group_of(row)
    assert (group.prompt, group.completions) == ([user("q")], ([bot("a")],))
    assert (group.columns, group.tools) == ({"label": 0.0}, [{"name": "f"}])
    repeated = row | {"completion": [user("q"), bot("a")]}
    assert group_of(repeated).completions == ([bot("a")],)


def test_messages_may_hold_their_prompt():
    """What goes before the last user message, and that message."""
    talk = [user("q"), bot("a"), user("r"), bot("call"), {"role": "tool", "content": "7"}, bot("b")]
    group = group_of({"completion": talk})
    assert (group.prompt, group.completions) == (talk[:3], (talk[3:],))
    assert group_of({"prompt": "r", "completion": talk}).prompt == talk[:3]
    dialog = group_of({"completion": "\n\nHuman: q\n\nAssistant: a"})
    assert (dialog.prompt, dialog.completions) == ([user("q")], ([bot("a")],))


@pytest.mark.parametrize("label, value", [(True, 1.0), (False, 0.0), (1, 1.0), (0, 0.0), (1.0, 1.0)])
def test_labels(label, value):
    columns = group_of(ONE | {"label": label}).columns
    assert columns == {"label": value} and isinstance(columns["label"], float)


def test_numbers_of_one_completion():
    row = JUDGED | {"score": 3, "scores": {"polite": 1, "kind": None}, "weight": 2, "baseline": 0.5}
    expected = {"label": 1.0, "score": (3.0,), "scores/polite": (1.0,), "weight": 2.0, "baseline": 0.5}
    assert group_of(row).columns == expected
    assert group_of(ONE | {"reward": -2}).columns == {"score": (-2.0,)}
    assert group_of(JUDGED | {"score": 0, "reward": None}).columns == {"label": 1.0, "score": (0.0,)}
    assert set(row) <= set(KNOWN_COLUMNS) and "reward" in KNOWN_COLUMNS


@pytest.mark.parametrize(
    "row, parts, reason",
    [
        (ONE | {"label": None}, ['key "label": null'], "missing value"),
        (ONE | {"label": "yes"}, ["key \"label\": str 'yes'"], None),
        (ONE | {"label": 2}, ['key "label": int 2'], None),
        (ONE | {"label": -1}, ['key "label": int -1'], None),
        (ONE | {"label": 0.5}, ['key "label": float 0.5'], None),
        (ONE | {"label": [1]}, ['key "label": list [1]'], None),
        (ONE | {"completion": None}, ['key "completion": null'], "missing value"),
        (ONE | {"completion": " \n"}, ['key "completion"'], "empty completion"),
        (ONE | {"completion": 3}, ['key "completion": int 3'], None),
        (ONE | {"completion": "a \ud83d"}, ['key "completion", character 2'], "broken Unicode"),
        (ONE | {"prompt": None}, ['key "prompt": null'], "missing value"),
        (ONE | {"prompt": [user("q")]}, ['"prompt" is a list of messages', '"completion" text'], None),
        ({"completion": "q a"}, ['no key "prompt" beside "completion"'], "missing value"),
        ({"completion": [bot("a")]}, ['"completion"', 'add "prompt"'], "empty prompt"),
        ({"completion": [user("q")]}, ['key "completion"'], "empty completion"),
        ({"prompt": [user("q")], "completion": [bot("a"), user("r")]}, ['has role "user"'], "no reply"),
        ({"prompt": "q", "completion": [bot("a")]}, ['"prompt" is text'], None),
        (ONE | {"score": "high"}, ["key \"score\": str 'high'"], None),
        (ONE | {"score": 1, "reward": 1}, ['keys "score" and "reward"'], None),
        (ONE | {"scores": [1]}, ['key "scores": list [1]'], None),
        (ONE | {"scores": {"x": "1"}}, ['key "scores.x"'], None),
        (ONE | {"baseline": True}, ['key "baseline": bool True'], None),
        (ONE | {"tools": [{"name": "f"}]}, ['key "tools": the row is plain text'], None),
    ],
)
def test_refused_completions(row, parts, reason):
    refused(row, *parts, reason=reason)


# ---- ranked


def test_ranked_in_the_order_of_the_row():
    group = group_of(LIST | {"weight": 2, "baseline": 1})
    assert (group.prompt, group.completions) == ("q", ("a", "b", "c"))
    assert group.columns == {"weight": 2.0, "baseline": 1.0}


def test_ranked_by_scores_with_ties_in_the_order_of_the_row():
    row = {"prompt": "q", "completions": list("abcde"), "scores": [1, 3, -2.5, 3, 1]}
    group = group_of(row)
    assert group.completions == ("b", "d", "a", "e", "c")
    assert group.columns == {"score": (3.0, 3.0, 1.0, 1.0, -2.5)}


def test_ranked_conversations():
    row = {"prompt": [user("q")], "completions": [[bot("a")], [bot("b")]], "scores": [0, 1]}
    assert group_of(row).completions == ([bot("b")], [bot("a")])
    # Without a prompt, it is what all have in common.
    talks = [[user("q"), bot("a"), user("r"), bot(text)] for text in "xyz"]
    group = group_of({"completions": talks})
    assert (group.prompt, group.completions) == (talks[0][:3], ([bot("x")], [bot("y")], [bot("z")]))
    talks[2] = [user("q"), bot("b")]
    group = group_of({"completions": talks})
    assert (group.prompt, [len(c) for c in group.completions]) == ([user("q")], [3, 3, 1])


@pytest.mark.parametrize(
    "row, parts, reason",
    [
        (LIST | {"completions": ["a"]}, ['key "completions": 1'], "fewer than two completions"),
        (LIST | {"completions": []}, ['key "completions": 0'], "fewer than two completions"),
        (LIST | {"completions": None}, ['key "completions": null'], "missing value"),
        (LIST | {"completions": "ab"}, ["key \"completions\": str 'ab'"], None),
        (LIST | {"completions": ["a", None]}, ['key "completions[1]": null'], "missing value"),
        (LIST | {"completions": ["a", 3]}, ['key "completions[1]": int 3'], None),
        (LIST | {"completions": [bot("a"), bot("b")]}, ['key "completions[0]": dict'], None),
        (LIST | {"completions": ["a", [bot("b")]]}, ['"completions[0]" is a str, "completions[1]" a list'], None),
        (LIST | {"completions": ["a", "b", ""]}, ['key "completions[2]"'], "empty completion"),
        (LIST | {"completions": ["a", "b", "a"]}, ['"completions[0]" and "completions[2]"'], "identical completions"),
        (LIST | {"scores": [1, 2]}, ['3 in "completions", 2 in "scores"'], "not as many scores as completions"),
        (LIST | {"scores": [1, None, 2]}, ['key "scores[1]": null'], None),
        (LIST | {"scores": [1, "2", 3]}, ["key \"scores[1]\": str '2'"], None),
        (LIST | {"scores": {"x": [1, 2, 3]}}, ['key "scores": dict'], None),
        ({"completions": ["q a", "q b"]}, ['no key "prompt"'], "missing value"),
        ({"completions": ["\n\nHuman: q\n\nAssistant: a", "b"]}, ['key "completions[1]"'], "broken dialog"),
        ({"completions": [[user("q"), bot("a")], [user("p"), bot("b")]]}, ["message 0"], "different prompts"),
    ],
)
def test_refused_lists(row, parts, reason):
    refused(row, *parts, reason=reason)


def test_keys_in_errors_are_those_of_the_row_before_sorting():
    row = LIST | {"scores": [1, 2, 3], "completions": ["", "b", "c"]}
    refused(row, 'key "completions[0]"', reason="empty completion")


# ---- triples


def test_triples():
    group = group_of(TRIPLE, gold=True)
    assert (group.prompt, group.completions) == ("q", ("a", "b", "g"))
    chat = {key: [bot(text)] for key, text in TRIPLE.items() if key != "prompt"} | {"prompt": [user("q")]}
    assert group_of(chat, gold=True).completions == ([bot("a")], [bot("b")], [bot("g")])
    whole = {key: [user("q"), bot(TRIPLE[key])] for key in ("chosen", "rejected", "reference")}
    assert group_of(whole, gold=True).prompt == [user("q")]
    assert group_of(whole, gold=True).completions == group_of(chat, gold=True).completions


def test_the_gold_answer_may_be_one_of_the_pair():
    assert group_of(TRIPLE | {"reference": "a"}, gold=True).completions == ("a", "b", "a")
    refused(TRIPLE | {"rejected": "a"}, '"chosen" and "rejected"', reason="identical completions", gold=True)


def test_a_gold_answer_has_no_numbers():
    numbers = {"score_chosen": 2, "score_rejected": 1, "other_rewards_chosen": [1, 2], "other_rewards_rejected": [3, 4]}
    columns = group_of(TRIPLE | numbers | {"margin": 1}, gold=True).columns
    assert columns == {"score": (2.0, 1.0, 0.0), "other_rewards": ((1.0, 2.0), (3.0, 4.0), (0.0, 0.0)), "margin": 1.0}


@pytest.mark.parametrize(
    "row, parts, reason",
    [
        (TRIPLE | {"reference": None}, ['key "reference": null'], "missing value"),
        (TRIPLE | {"reference": " "}, ['key "reference"'], "empty completion"),
        (TRIPLE | {"reference": 7}, ['key "reference": int 7'], None),
        (TRIPLE | {"reference": [bot("g")]}, ['"chosen" is a str, "reference" a list'], None),
        (
            {key: TRIPLE[key] for key in ("chosen", "rejected", "reference")},
            ['no key "prompt"'],
            "missing value",
        ),
        ({key: TRIPLE[key] for key in ("prompt", "chosen", "reference")}, ['no key "rejected"'], "missing value"),
    ],
)
def test_refused_gold_answers(row, parts, reason):
    refused(row, *parts, reason=reason, gold=True)
