"""Rows of other projects: what is read, what they become, and what might mean two things and is refused."""

import json

import pytest

from jaxpref.config import DataConfig
from jaxpref.data.column_names import LIKELY
from jaxpref.data.columns import KNOWN_COLUMNS
from jaxpref.data.foreign import FOREIGN_COLUMNS, FORMATS, check_columns_key, own_row
from jaxpref.data.kinds import kind_of_row, read_group
from jaxpref.errors import InputError, RowError
from jaxpref.settings import make_config

WHERE = "train.jsonl, row 12"
TEXTS = {"chosen": "a", "rejected": "b"}


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


REPLIES = {"chosen": [bot("a")], "rejected": [bot("b")]}


def group_of(row, format="auto", **columns):
    own = own_row(row, WHERE, format, columns)
    return read_group(kind_of_row(own.values, WHERE), own.values, WHERE, 0, own.form)


def read(row, format="auto", **columns):
    """(prompt, completions) of a row."""
    group = group_of(row, format, **columns)
    return group.prompt, group.completions


def refused(row, *parts, format="auto", reason=None, **columns):
    with pytest.raises(InputError) as caught:
        group_of(row, format, **columns)
    for part in (WHERE, *parts):
        assert part in str(caught.value), f"{part!r} not in:\n{caught.value}"
    assert getattr(caught.value, "reason", None) == reason


ANSWERED = ([bot("a")], [bot("b")])


def test_every_format_can_be_named_in_the_config():
    for name in FORMATS:
        assert make_config({"data": {"format": name}}).data.format == name
    with pytest.raises(InputError, match="data.format"):
        make_config({"data": {"format": "chatml"}})
    assert make_config({"data": {"columns": {"prompt": "question", "system": None}}}).data == DataConfig(
        columns={"prompt": "question", "system": None}
    )


# ---- formats


@pytest.mark.parametrize("format", ["auto", "orca"])
def test_orca(format):
    row = {"system": "One word.", "question": "Sky?", **TEXTS}
    assert read(row, format) == ([system("One word."), user("Sky?")], ANSWERED)
    assert read(row | {"system": ""}, format) == ([user("Sky?")], ANSWERED)
    assert read(row | {"system": None}, format) == ([user("Sky?")], ANSWERED)
    other_name = {"system_prompt": "One word.", "question": "Sky?", "completion": "a", "label": True}
    assert read(other_name, format) == ([system("One word."), user("Sky?")], ([bot("a")],))
    ranked = {"system": "", "question": "Sky?", "completions": ["a", "b"]}
    assert read(ranked, format) == ([user("Sky?")], ANSWERED)


@pytest.mark.parametrize("format", ["auto", "alpaca"])
def test_alpaca(format):
    row = {"instruction": "Add.", "input": "1 2", **TEXTS}
    assert read(row, format) == ([user("Add.\n1 2")], ANSWERED)
    assert read(row | {"input": ""}, format) == ([user("Add.")], ANSWERED)
    assert read(row | {"input": None}, format) == ([user("Add.")], ANSWERED)
    more = row | {"system": "Be brief.", "history": [["Hi", "Hello"]]}
    assert read(more, format)[0] == [system("Be brief."), user("Hi"), bot("Hello"), user("Add.\n1 2")]
    refused(row | {"history": [["Hi"]]}, 'key "history[0]"', format=format, reason="unknown history")


@pytest.mark.parametrize("format", ["auto", "sharegpt"])
@pytest.mark.parametrize("name", ["conversations", "messages"])
def test_sharegpt(format, name):
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}, {"from": "human", "value": "Sky?"}]
    answers = {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}
    prompt = [user("Hi"), bot("Hello"), user("Sky?")]
    assert read({name: talk, **answers}, format) == (prompt, ANSWERED)
    assert read({name: prompt, **REPLIES}, format) == (prompt, ANSWERED)
    assert read({name: prompt, **answers, "system": "Be brief."}, format)[0] == [system("Be brief."), *prompt]
    assert read({name: json.dumps(talk), **{k: json.dumps(v) for k, v in answers.items()}}, format)[0] == prompt
    longer = {"chosen": [bot("call"), {"role": "tool", "content": "7"}, bot("a")], "rejected": [bot("b")]}
    assert read({name: prompt, **longer}, format) == (prompt, (longer["chosen"], longer["rejected"]))
    refused({name: [*prompt, bot("a")], **REPLIES}, "waits for a reply", f'key "{name}"', format=format)
    unknown = {"from": "observation", "value": "7"}
    refused({name: [unknown], **REPLIES}, "'observation'", format=format, reason="unknown speaker")


def test_formats_by_name_read_what_auto_leaves_open():
    assert read({"question": "Sky?", **TEXTS}, "orca") == ([user("Sky?")], ANSWERED)
    assert read({"instruction": "Sky?", **TEXTS}, "alpaca") == ([user("Sky?")], ANSWERED)
    assert read({"messages": [user("Sky?")], **TEXTS}, "sharegpt") == ([user("Sky?")], ANSWERED)
    chat = {"prompt": "Sky?", "system": "Be brief.", **TEXTS}
    assert read(chat, "orca", question="prompt") == ([system("Be brief."), user("Sky?")], ANSWERED)
    assert read({"question": "Sky?", **REPLIES}, "orca") == ([user("Sky?")], ANSWERED)
    for format, name in (("orca", "question"), ("alpaca", "instruction"), ("sharegpt", "conversations")):
        refused({"prompt": "q", **TEXTS}, f'no key "{name}"', "data.columns", format=format, reason="missing value")
    two = {"messages": [user("x")], "conversations": [user("y")], **REPLIES}
    refused(two, '"conversations" and "messages"', "{messages: null}", format="sharegpt")
    assert read(two, "sharegpt", messages=None)[0] == [user("y")]


# ---- a prompt that would not be read


@pytest.mark.parametrize(
    "row, parts",
    [
        ({"question": "q", **TEXTS}, ['"question" may be it', "{prompt: question}", "data.format: orca for"]),
        ({"instruction": "q", **TEXTS}, ["{prompt: instruction}", "data.format: alpaca for"]),
        ({"input": "q", **TEXTS}, ["{prompt: input}", "data.format: orca with data.columns: {question: input}"]),
        ({"query": "q", "completion": "a"}, ["{prompt: query}"]),
        ({"Prompt": "q", **TEXTS}, ["{prompt: Prompt}", "data.columns: {question: Prompt}"]),
        ({"promt": "q", **TEXTS}, ["{prompt: promt}"]),
        ({"user_prompt": "q", "system_prompt": "s", **TEXTS}, ['"user_prompt" may be it']),
        ({"messages": [user("q")], **TEXTS}, ["data.format: sharegpt for a conversation"]),
        ({"dialog": [user("q")], **REPLIES}, ["sharegpt with data.columns: {conversations: dialog}"]),
        ({"question": "q", **REPLIES}, ["data.format: orca"]),
        # Two that may be it.
        ({"question": "q", "system": "", "context": "c", **TEXTS}, ['"question" and "context" may be it']),
        ({"instruction": "q", "input": "", "question": "p", **TEXTS}, ["{prompt: question}", "{prompt: instruction}"]),
        ({"conversations": [user("q")], "messages": [user("p")], **REPLIES}, ['"conversations" and "messages"']),
    ],
)
def test_what_looks_like_a_prompt_is_never_dropped(row, parts):
    refused(row, "a column `prompt`", *parts, "{prompt: null}")


def test_answers_that_hold_their_prompt_need_no_other():
    whole = {"chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]}
    for row in (whole | {"question": "q"}, whole | {"messages": [user("q"), bot("a")]}):
        assert read(row) == ([user("q")], ANSWERED)
    dialogs = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
    assert read(dialogs | {"question": "q"}) == ([user("q")], ANSWERED)
    assert read({"prompt": "q", "messages": [user("q"), bot("a")], **whole}) == ([user("q")], ANSWERED)


def test_other_columns_are_no_prompt():
    for name, value in (("prompt_id", "7"), ("num_prompt_tokens", 3), ("input", 5), ("source", "x")):
        assert read({"chosen": "x a", "rejected": "x b", name: value}) == ("x", (" a", " b"))


def test_empty_columns_are_no_prompt():
    for value in ("", " ", None, []):
        assert read({"chosen": "x a", "rejected": "x b", "question": value}) == ("x", (" a", " b"))


# ---- parts of a prompt beside it


def test_a_system_column_begins_the_conversation():
    row = {"prompt": [user("q")], "system": "Be kind", **REPLIES}
    assert read(row) == ([system("Be kind"), user("q")], ANSWERED)
    assert read(row | {"system": " "}) == ([user("q")], ANSWERED)
    assert read(row | {"prompt": [system("Be kind"), user("q")]})[0] == [system("Be kind"), user("q")]
    other = row | {"prompt": [system("Be brief"), user("q")]}
    refused(other, 'another system message in "prompt"', reason="two system messages")
    whole = {"chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")], "system": "Be kind"}
    assert read(whole) == ([system("Be kind"), user("q")], ANSWERED)


@pytest.mark.parametrize(
    "column, parts",
    [
        ({"system": "Be kind"}, ["plain text", "{question: prompt}", "{system: null}"]),
        ({"system_prompt": "Be kind"}, ["plain text", "{system: null}"]),
        ({"system": ["Be kind"]}, ["one system message, as text"]),
        ({"system": "x", "system_prompt": "y"}, ["one system message"]),
        ({"history": [["Hi", "Hello"]]}, ['"history" beside "prompt"', "{instruction: prompt}", "{history: null}"]),
        ({"videos": ["cat.mp4"]}, ['key "videos"', "{images: null}"]),
        ({"audio": {"bytes": "x"}}, ['key "audio"', "{images: null}"]),
    ],
)
def test_parts_of_a_prompt_are_never_dropped(column, parts):
    row = {"prompt": "q", **TEXTS, **column}
    refused(row, *parts)
    name = "system" if "system" in next(iter(column)) else "history" if "history" in column else "images"
    own = own_row(row, WHERE, columns={name: None})
    assert (own.values, own.unread) == ({"prompt": "q", **TEXTS}, list(column))
    empty = dict.fromkeys(column, "")
    assert read(row | empty) == ("q", ("a", "b"))


# ---- names


def test_columns_under_other_names():
    row = {"question": "q", "accepted": "a", "rejected": "b", "w": 2, "prompt": "old", "id": 7}
    own = own_row(row, WHERE, columns={"prompt": "question", "chosen": "accepted", "weight": "w"})
    assert own.values == {"prompt": "q", "chosen": "a", "rejected": "b", "weight": 2, "id": 7}
    assert own.unread == ["prompt"]
    exchanged = own_row({"prompt": "q", **TEXTS}, WHERE, columns={"chosen": "rejected", "rejected": "chosen"})
    assert exchanged.values == {"prompt": "q", "chosen": "b", "rejected": "a"} and not exchanged.unread
    # A file in which the column has our name already.
    assert read({"prompt": "q", **TEXTS}, prompt="question") == ("q", ("a", "b"))
    refused(
        {"id": 1, **TEXTS}, "{prompt: question}", "the row has id, chosen", prompt="question", reason="missing value"
    )
    assert read({"prompt": "q", **TEXTS}, weight="w") == ("q", ("a", "b"))


def test_no_prompt_by_name():
    row = {"chosen": "x a", "rejected": "x b", "question": "q"}
    assert read(row, prompt=None) == ("x", (" a", " b"))
    assert own_row(row | {"prompt": "p"}, WHERE, columns={"prompt": None}).unread == ["prompt"]


def test_names_that_may_be_given_others():
    check_columns_key({"prompt": "q", "system": None, "margin": "m", "mine": "x"}, ["mine"])
    with pytest.raises(InputError, match="promt") as caught:
        check_columns_key({"promt": "question", "weight": "w"})
    assert "weight" not in caught.value.got
    assert not FOREIGN_COLUMNS & KNOWN_COLUMNS.keys()
    assert not any(set(names) & KNOWN_COLUMNS.keys() for names in LIKELY.values())


# ---- messages in other notations


def test_json_text_of_messages():
    row = {"prompt": json.dumps([user("q")]), **{key: json.dumps(value) for key, value in REPLIES.items()}}
    assert read(row) == ([user("q")], ANSWERED)
    whole = {"chosen": json.dumps([user("q"), bot("a")], indent=1), "rejected": json.dumps([user("q"), bot("b")])}
    assert read(whole) == ([user("q")], ANSWERED)
    assert read(whole | {"prompt": "q"}) == ([user("q")], ANSWERED)
    ranked = {"prompt": [user("q")], "completions": [json.dumps(bot("a")), json.dumps([bot("b")])]}
    assert read(ranked) == ([user("q")], ANSWERED)
    # Asked for text, it is text; and so is any other JSON.
    assert read(row, "standard")[0] == row["prompt"]
    answer = {"prompt": "q", "chosen": '{"role": "admin"}', "rejected": '[{"name": "x"}]'}
    assert read(answer) == ("q", (answer["chosen"], answer["rejected"]))
    broken = {"prompt": "q", "chosen": '[{"role": "user", "content": ', "rejected": "b"}
    assert read(broken)[1][0] == broken["chosen"]
    refused({"prompt": "q", "chosen": json.dumps([bot("a")]), "rejected": "b"}, '"chosen" is a list')


def test_messages_as_python_prints_them():
    row = {"prompt": str([user("q")]), **{key: str(value) for key, value in REPLIES.items()}}
    refused(row, 'key "prompt"', "as Python prints them", "format: standard")
    assert read(row, "standard")[0] == row["prompt"]


def test_speakers_of_sharegpt_are_roles_everywhere():
    human, gpt = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
    row = {"prompt": [human], "chosen": [gpt], "rejected": [bot("b")]}
    assert read(row) == ([user("q")], ANSWERED)
    assert read({"chosen": [human, gpt], "rejected": [human, gpt | {"value": "b"}]}) == ([user("q")], ANSWERED)


def test_rows_are_not_changed_where_they_are_read():
    row = {"messages": [user("q")], "completions": [bot("a"), {"from": "gpt", "value": "b"}], "system": "s"}
    before = json.dumps(row)
    assert read(row) == ([system("s"), user("q")], ANSWERED)
    assert json.dumps(row) == before


def test_errors_about_one_row_have_a_reason():
    with pytest.raises(RowError):
        own_row({"prompt": [{"from": "bing", "value": "q"}], **REPLIES}, WHERE)
