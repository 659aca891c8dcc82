"""Every accepted form of a row, the implicit prompt, and errors that name file, row and key."""

import random

import pytest

from jaxpref.data.columns import KNOWN_COLUMNS
from jaxpref.data.forms import split_text
from jaxpref.data.kinds import to_group
from jaxpref.data.messages import split_messages
from jaxpref.errors import InputError, RowError

WHERE = "train.jsonl, row 12"


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


def group_of(row, format="auto"):
    return to_group(row, WHERE, 11, format)


def refused(row, *parts, reason=None, format="auto"):
    """The row must be refused with file, row and `parts`, and with `reason` if it is about this row alone."""
    with pytest.raises(InputError) as caught:
        group_of(row, format)
    for part in (WHERE, *parts):
        assert part in str(caught.value), f"{part!r} not in:\n{caught.value}"
    assert getattr(caught.value, "reason", None) == reason


# ---- forms


def test_standard():
    group = group_of({"prompt": "Q: hi A:", "chosen": " hello", "rejected": " no", "id": 7})
    assert (group.prompt, group.completions) == ("Q: hi A:", (" hello", " no"))
    assert (group.row_id, group.where, group.columns, group.conversational) == (11, WHERE, {}, False)


def test_conversational():
    row = {"prompt": [user("hi")], "chosen": [bot("hello")], "rejected": [bot("no")]}
    group = group_of(row)
    assert (group.prompt, group.completions) == ([user("hi")], ([bot("hello")], [bot("no")]))
    assert group.conversational


def test_nulls_that_columnar_files_add_are_no_content():
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    row = {
        "prompt": [user("hi") | {"tool_calls": None}],
        "chosen": [call],
        "rejected": [bot("no") | {"tool_calls": None}],
    }
    group = group_of(row)
    assert group.prompt == [user("hi")]
    assert group.completions == ([call | {"content": ""}], [bot("no")])


def test_unknown_roles_are_left_to_the_template():
    row = {"prompt": [user("hi")], "chosen": [{"role": "gpt", "content": "a"}], "rejected": [bot("b")]}
    assert group_of(row).completions[0] == [{"role": "gpt", "content": "a"}]


@pytest.mark.parametrize(
    "chosen, rejected, prompt, completions",
    [
        ("Q: hi A: hello there", "Q: hi A: hello", "Q: hi A:", (" hello there", " hello")),
        ("Paris ", "London", "", ("Paris ", "London")),
        ("The cat", "The cats", "The", (" cat", " cats")),
        ("Answer:\n\nyes", "Answer:\n\nno", "Answer:", ("\n\nyes", "\n\nno")),
        ("one two\nx", "one two y", "one two", ("\nx", " y")),
        ("a b  ", "a b c", "a", (" b  ", " b c")),
        ("  same a", "  same b", "  same", (" a", " b")),
        ("word a", "word  a", "word", (" a", "  a")),
        ("  x", " y", "", ("  x", " y")),
        ("one", "one two", "", ("one", "one two")),
    ],
)
def test_implicit_text_prompt(chosen, rejected, prompt, completions):
    group = group_of({"chosen": chosen, "rejected": rejected})
    assert (group.prompt, group.completions) == (prompt, completions)


def test_implicit_text_prompt_on_random_texts():
    rng = random.Random(0)
    prompts = 0
    for _ in range(5000):
        start = "".join(rng.choice("ab \n") for _ in range(rng.randrange(12)))
        first, second = (start + "".join(rng.choice("ab \n") for _ in range(rng.randrange(6))) for _ in "12")
        if not first.strip() or not second.strip():
            continue
        end = split_text(first, second)
        prompts += end > 0
        assert end == split_text(second, first)
        assert first[:end] == second[:end]
        for text in (first, second):
            assert text[end:].strip()
            # White space opens the completion and none ends the prompt: no word is cut.
            assert end == 0 or (text[end].isspace() and not text[end - 1].isspace())
        # It is the longest such start.
        for longer in range(end + 1, min(len(first), len(second))):
            same = first[:longer] == second[:longer]
            boundary = all(t[longer].isspace() and not t[longer - 1].isspace() for t in (first, second))
            assert not (same and boundary and first[longer:].strip() and second[longer:].strip())
    assert prompts > 1000


@pytest.mark.parametrize(
    "chosen, rejected, length",
    [
        ([user("q"), bot("a")], [user("q"), bot("b")], 1),
        ([user("q"), bot("a"), user("r"), bot("a")], [user("q"), bot("a"), user("r"), bot("b")], 3),
        ([user("q"), bot("a"), user("r"), bot("c")], [user("q"), bot("b")], 1),
        # One is the start of the other: back to the last user message, so that both hold a reply.
        ([user("q"), bot("a"), bot("more")], [user("q"), bot("a")], 1),
        ([user("q"), bot("a"), user("r"), bot("c")], [user("q"), bot("a")], 1),
        # A tool's result belongs to the prompt.
        (
            [user("q"), bot("call"), {"role": "tool", "content": "7"}, bot("a")],
            [user("q"), bot("call"), {"role": "tool", "content": "7"}, bot("b")],
            3,
        ),
    ],
)
def test_implicit_conversational_prompt(chosen, rejected, length):
    assert split_messages(chosen, rejected) == split_messages(rejected, chosen) == length
    group = group_of({"chosen": chosen, "rejected": rejected})
    assert group.prompt == chosen[:length]
    assert group.completions == (chosen[length:], rejected[length:])


def test_prompt_repeated_in_both_answers_is_stripped():
    prompt = [user("q")]
    row = {"prompt": prompt, "chosen": prompt + [bot("a")], "rejected": prompt + [bot("b")]}
    assert group_of(row).completions == ([bot("a")], [bot("b")])
    refused(row | {"rejected": [bot("b")]}, 'only "chosen"', reason="prompt repeated in one answer")
    refused(row | {"rejected": prompt}, 'key "rejected"', reason="empty completion")


def test_text_prompt_beside_conversations_that_hold_it():
    row = {"prompt": "q", "chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]}
    assert group_of(row).prompt == [user("q")]
    refused(row | {"prompt": "other"}, '"prompt" is text')
    refused({"prompt": "q", "chosen": [bot("a")], "rejected": [bot("b")]}, '"prompt" is text')


@pytest.mark.parametrize(
    "prompt, repeated, role",
    [
        ([user("q")], [{"role": "system", "content": "Be kind"}, user("q")], "system"),
        ([{"role": "system", "content": "Be kind"}, user("q")], [user("q")], "user"),
        ([user("p"), bot("o"), user("q")], [user("q")], "user"),
        ([user("q")], [user("q "), bot("o"), user("q")], "user"),
        ([user("q")], [user("q"), user("r")], "user"),
        ([user("q")], [{"role": "developer", "content": "Be kind"}, user("q")], "developer"),
    ],
)
def test_a_prompt_that_the_answers_repeat_with_a_difference_is_not_in_the_loss(prompt, repeated, role):
    row = {"prompt": prompt, "chosen": [*repeated, bot("a")], "rejected": [*repeated, bot("b")]}
    refused(row, f'"prompt" in "chosen" and "rejected" has role "{role}"', reason="different prompts")
    one = {"prompt": prompt, "chosen": [bot("a")], "rejected": [user("r"), bot("b")]}
    refused(one, '"prompt" in "rejected" has role "user"', reason="different prompts")


def test_an_answer_may_begin_with_the_result_of_a_tool():
    prompt, result = [user("q"), bot("call")], {"role": "tool", "content": "7"}
    row = {"prompt": prompt, "chosen": [result, bot("a")], "rejected": [result, bot("b")]}
    assert group_of(row).completions == ([result, bot("a")], [result, bot("b")])


# ---- anthropic dialogs


def dialog(*turns):
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))


def test_dialogs_become_messages():
    row = {"chosen": dialog("q", "a ", "r", "yes"), "rejected": dialog("q", "a ", "r", "no\n\nline")}
    for format in ("auto", "anthropic"):
        group = group_of(row, format)
        assert group.prompt == [user("q"), bot("a"), user("r")]
        assert group.completions == ([bot("yes")], [bot("no\n\nline")])


def test_dialogs_that_part_early_keep_all_later_turns():
    row = {"chosen": dialog("q", "a", "r", "yes"), "rejected": dialog("q", "b", "s", "no")}
    group = group_of(row)
    assert group.prompt == [user("q")]
    assert group.completions == ([bot("a"), user("r"), bot("yes")], [bot("b"), user("s"), bot("no")])


def test_dialog_of_which_the_other_is_the_start():
    row = {"chosen": dialog("q", "a", "r", "yes"), "rejected": dialog("q", "a")}
    assert group_of(row).completions == ([bot("a"), user("r"), bot("yes")], [bot("a")])


def test_turns_of_one_speaker_are_one_message():
    row = {
        "chosen": dialog("q", "first:\n\n\n\nAssistant:  second"),
        "rejected": dialog("q", "first:") + "\n\nAssistant:",
    }
    assert group_of(row).completions == ([bot("first:\n\nsecond")], [bot("first:")])


def test_a_bare_speaker_name_is_text():
    text = "Soap and water.\n\nHuman"
    row = {
        "chosen": dialog("q", text, "r", "yes"),
        "rejected": dialog("q", text, "r", "Humans:\n\nHumans: no"),
    }
    group = group_of(row)
    assert group.prompt == [user("q"), bot(text), user("r")]
    assert group.completions[1] == [bot("Humans:\n\nHumans: no")]


def test_empty_turns_of_dialogs():
    row = {"chosen": dialog("q", "", "r", "yes"), "rejected": dialog("q", "", "r", "no")}
    assert group_of(row).prompt == [user("q"), bot(""), user("r")]
    row = {"chosen": dialog("q", "yes"), "rejected": dialog("q", " ")}
    refused(row, 'key "rejected"', reason="empty completion")


def test_broken_dialogs():
    whole = dialog("q", "a")
    refused({"chosen": whole, "rejected": "b"}, 'key "rejected"', reason="broken dialog")
    refused({"chosen": dialog("q"), "rejected": whole}, 'key "chosen"', reason="empty completion")
    refused({"chosen": dialog("q", "b", "r"), "rejected": whole}, 'key "chosen"', reason="no reply")
    refused({"chosen": whole, "rejected": dialog("p", "a")}, "message 0", reason="different prompts")
    later = {"chosen": dialog("q", "a", "r", "b"), "rejected": dialog("q", "a", "s", "b")}
    refused(later, "message 2", "user", reason="different prompts")


def test_dialogs_beside_a_prompt():
    row = {"prompt": "\n\nHuman: q", "chosen": dialog("q", "a"), "rejected": dialog("q", "b")}
    assert group_of(row).prompt == [user("q")]
    refused(row | {"prompt": "q"}, 'key "prompt"')
    # With a prompt, the answers need not be dialogs; one that looks like a dialog is then text.
    row = {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " b"}
    assert group_of(row).prompt == row["prompt"]
    assert group_of(row | {"chosen": "\n\nHuman: a"}).completions[0] == "\n\nHuman: a"


def test_format_option():
    row = {"chosen": dialog("q r", "a"), "rejected": dialog("q r", "b")}
    assert group_of(row, "standard").prompt == "\n\nHuman: q r\n\nAssistant:"
    refused(row, '"chosen"', "anthropic format", format="conversational")
    refused({"prompt": "q", "chosen": "a", "rejected": "b"}, "standard format", format="anthropic")
    refused({"chosen": [bot("a")], "rejected": [bot("b")]}, "conversational format", format="standard")
    with pytest.raises(InputError, match="auto, standard, conversational, anthropic"):
        group_of(row, "chat")


# ---- refusals

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
CHAT = {"prompt": [user("q")], "chosen": [bot("a")], "rejected": [bot("b")]}


@pytest.mark.parametrize(
    "row, parts",
    [
        (PAIR | {"chosen": 3}, ['key "chosen": int 3']),
        (PAIR | {"prompt": 3}, ['key "prompt": int 3']),
        (CHAT | {"prompt": 3}, ['key "prompt": int 3']),
        (PAIR | {"chosen": {"role": "assistant"}}, ['key "chosen": dict']),
        (PAIR | {"rejected": [bot("b")]}, ['"chosen" is a str, "rejected" a list', '{"role": "assistant"']),
        (PAIR | {"prompt": [user("q")]}, ['"prompt" is a list of messages', '{"role": "assistant"']),
        (CHAT | {"chosen": ["a"]}, ['key "chosen[0]": str']),
        (CHAT | {"chosen": [{"content": "a"}]}, ['key "chosen[0]", key "role": missing; it has content']),
        (CHAT | {"prompt": [user("q"), {"role": "user"}]}, ['key "prompt[1]", key "content": missing']),
        (
            CHAT | {"rejected": [bot([{"type": "text"}])]},
            ['key "rejected[0].content[0]", key "text": NoneType'],
        ),
        (CHAT | {"rejected": [bot("b") | {"role": 1}]}, ['key "rejected[0]", key "role": int 1']),
        (PAIR | {"weight": True}, ['key "weight": bool True']),
        (PAIR | {"margin": "1.5"}, ["key \"margin\": str '1.5'"]),
        (PAIR | {"margin": float("nan")}, ['key "margin": float nan']),
        (PAIR | {"score_chosen": 1.0}, ['"score_chosen" has a number, "score_rejected" has none']),
        (PAIR | {"score_chosen": None, "score_rejected": 2}, ['"score_rejected" has a number']),
        (PAIR | {"scores_chosen": {"x": 1}, "scores_rejected": {"y": 1}}, ['"scores_chosen.x" has a number']),
        (PAIR | {"scores_chosen": 1.0, "scores_rejected": 2.0}, ['key "scores_chosen": float 1.0']),
        (PAIR | {"scores_chosen": {"x": "1"}, "scores_rejected": {"x": 1}}, ['key "scores_chosen.x"']),
        (PAIR | {"probability": 75}, ['key "probability": 75', "not a percentage"]),
        (PAIR | {"probability": -0.1}, ['key "probability": -0.1']),
        (PAIR | {"probability": True}, ['key "probability": bool True']),
        (PAIR | {"baseline": "1"}, ["key \"baseline\": str '1'"]),
        (
            PAIR | {"other_rewards_chosen": [1.0]},
            ['"other_rewards_chosen" has a number, "other_rewards_rejected" has none'],
        ),
        (PAIR | {"other_rewards_rejected": [1.0]}, ['"other_rewards_rejected" has a number']),
        (
            PAIR | {"other_rewards_chosen": [1, 2], "other_rewards_rejected": [1]},
            ['2 in "other_rewards_chosen", 1 in "other_rewards_rejected"'],
        ),
        (
            PAIR | {"other_rewards_chosen": [], "other_rewards_rejected": []},
            ["at least one", '0 in "other_rewards_chosen"'],
        ),
        (
            PAIR | {"other_rewards_chosen": [1, None], "other_rewards_rejected": [1, 2]},
            ['key "other_rewards_chosen[1]": null'],
        ),
        (
            PAIR | {"other_rewards_chosen": [True], "other_rewards_rejected": [1]},
            ['key "other_rewards_chosen[0]": bool True'],
        ),
        (PAIR | {"other_rewards_chosen": 1, "other_rewards_rejected": 2}, ['key "other_rewards_chosen": int 1']),
        (CHAT | {"tools": "[{"}, ['key "tools", column']),
        (CHAT | {"tools": [1]}, ['key "tools": list [1]']),
        (CHAT | {"tools": '{"name": "f"}'}, ['key "tools": dict']),
        (CHAT | {"chat_template_kwargs": "x"}, ['key "chat_template_kwargs": str']),
        (CHAT | {"chat_template_kwargs": {"tokenize": True}}, ['key "chat_template_kwargs": tokenize']),
        (PAIR | {"tools": [{"name": "f"}]}, ['key "tools": the row is plain text']),
        (PAIR | {"chat_template_kwargs": {"x": 1}}, ['key "chat_template_kwargs": the row is plain text']),
    ],
)
def test_columns_of_the_wrong_kind_concern_every_row(row, parts):
    refused(row, *parts, reason=None)


@pytest.mark.parametrize(
    "row, parts, reason",
    [
        (PAIR | {"chosen": None}, ['key "chosen": null'], "missing value"),
        (PAIR | {"prompt": None}, ['key "prompt": null'], "missing value"),
        ({"prompt": "q", "chosen": "a"}, ['no key "rejected"', "prompt, chosen"], "missing value"),
        (
            {"prompt": "q", "choosen": "a", "rejected": "b"},
            ['no key "chosen"', "data.columns: {chosen: choosen}"],
            "missing value",
        ),
        (
            {"chosen_response": "a", "rejected": "b", "score_chosen": 1},
            ["data.columns: {chosen: chosen_response}"],
            "missing value",
        ),
        ({"accepted": "a", "rejected": "b"}, ["data.columns: {chosen: accepted}"], "missing value"),
        ({"question": "q", "label": 1}, ["question, label", 'add "chosen"'], "missing value"),
        ({}, ["no keys"], "missing value"),
        (PAIR | {"rejected": ""}, ['key "rejected"'], "empty completion"),
        (PAIR | {"rejected": " \n\t"}, ['key "rejected"'], "empty completion"),
        ({"chosen": " ", "rejected": "b"}, ['key "chosen"'], "empty completion"),
        (CHAT | {"chosen": []}, ['key "chosen"'], "empty completion"),
        (CHAT | {"chosen": [bot("\n")]}, ['key "chosen"'], "empty completion"),
        (CHAT | {"chosen": [bot("a"), user("r")]}, ['key "chosen"', "user"], "no reply"),
        (CHAT | {"prompt": []}, ['key "prompt"'], "empty prompt"),
        (PAIR | {"rejected": "a"}, ['"chosen" and "rejected" are the same'], "identical completions"),
        (CHAT | {"rejected": [bot("a")]}, ['"chosen" and "rejected"'], "identical completions"),
        ({"chosen": [bot("a")], "rejected": [bot("b")]}, ["message 0"], "different prompts"),
        (PAIR | {"chosen": "a \ud83d"}, ['key "chosen", character 2'], "broken Unicode"),
        (CHAT | {"prompt": [user("\udc00")]}, ['key "prompt[0]", key "content"'], "broken Unicode"),
    ],
)
def test_rows_without_a_usable_pair_have_a_reason(row, parts, reason):
    refused(row, *parts, reason=reason)


def test_row_error_is_an_input_error_in_three_parts():
    with pytest.raises(RowError) as caught:
        group_of(PAIR | {"rejected": ""})
    error = caught.value
    assert isinstance(error, InputError)
    assert all((error.reason, error.expected, error.got, error.fix))


# ---- further columns


def test_numbers():
    row = PAIR | {
        "weight": 2,
        "margin": 0.5,
        "score_chosen": 9,
        "score_rejected": 7.5,
        "scores_chosen": {"correct": 1.0, "kind": None},
        "scores_rejected": {"correct": 0.0, "kind": None},
        "other": "ignored",
    }
    assert group_of(row).columns == {
        "weight": 2.0,
        "margin": 0.5,
        "score": (9.0, 7.5),
        "scores/correct": (1.0, 0.0),
    }
    assert set(row) - {"other"} <= set(KNOWN_COLUMNS)


def test_margins_probability_and_baseline():
    row = PAIR | {
        "other_rewards_chosen": [1, -2.5],
        "other_rewards_rejected": [0, 3],
        "probability": 0.75,
        "baseline": -1,
    }
    expected = {"other_rewards": ((1.0, -2.5), (0.0, 3.0)), "probability": 0.75, "baseline": -1.0}
    assert group_of(row).columns == expected
    assert set(row) <= set(KNOWN_COLUMNS)
    assert [group_of(PAIR | {"probability": p}).columns["probability"] for p in (0, 1)] == [0.0, 1.0]


def test_null_numbers_are_absent():
    keys = (
        "weight",
        "margin",
        "score_chosen",
        "score_rejected",
        "scores_chosen",
        "other_rewards_chosen",
        "other_rewards_rejected",
    )
    assert group_of(PAIR | dict.fromkeys((*keys, "probability", "baseline"))).columns == {}


@pytest.mark.parametrize("tools", [[{"name": "f"}], '[{"name": "f"}]'])
def test_tools_and_template_variables(tools):
    group = group_of(CHAT | {"tools": tools, "chat_template_kwargs": {"think": False, "date": None}})
    assert group.tools == [{"name": "f"}]
    assert group.template_kwargs == {"think": False}
    empty = group_of(CHAT | {"tools": [], "chat_template_kwargs": None})
    assert (empty.tools, empty.template_kwargs) == (None, {})
