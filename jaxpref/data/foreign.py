"""Rows as other projects write them, read as rows of ours: other names, other formats.

    orca       `question`, with `system`; the answers are texts
    alpaca     `instruction` and `input`, with `system` and `history`; the answers are texts
    sharegpt   `conversations` or `messages`; every answer is a reply to them: a message, or several

All become conversations.  They are recognised where a row can mean nothing else: by the two columns
of orca or alpaca, or by a conversation whose answers are messages.  Otherwise a column that looks
like a prompt, and would not be read, is an error that says how to choose: `data.format` names the
format, `data.columns` the column ({prompt: question}), or that there is none ({system: null}).

Two ways to write messages are read everywhere: as JSON text, and as ShareGPT's
{"from": "human", "value": ...}.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from jaxpref.data.checks import MISSING, present, quoted, shown
from jaxpref.data.column_names import looks_like_prompt
from jaxpref.data.columns import KNOWN_COLUMNS
from jaxpref.data.forms import FORMS
from jaxpref.data.messages import read_messages
from jaxpref.data.notations import as_messages, message_of
from jaxpref.data.pictures.rows import without_pictures
from jaxpref.data.prompt_parts import (
    ANSWERS,
    MEDIA,
    SYSTEM,
    add_system,
    answers_of,
    filled,
    holds_prompt,
    refuse_parts,
    system_of,
)
from jaxpref.errors import InputError, RowError

_CONVERSATIONS = ("conversations", "messages")
_SAME = {"system": SYSTEM, "images": MEDIA}
"""Names of one column; the first is the one in `data.columns`."""
_TEXTS = {"prompt", "question", "instruction", "completions", *ANSWERS, *_CONVERSATIONS}

FOREIGN_COLUMNS = {"question", "instruction", "input", "history", *_CONVERSATIONS, *_SAME}
"""The columns that are read beside those of `KNOWN_COLUMNS`."""


class OwnRow(NamedTuple):
    """A row under our names."""

    values: dict[str, Any]
    form: str
    """One of `FORMS`."""
    unread: list[str]
    """Filled columns that `data.columns` sets aside."""
    read_as: str | None = None
    """The format of another project in which it was read."""


def own_row(
    row: Mapping[str, Any], where: str, format: str = "auto", columns: Mapping[str, str | None] = {}
) -> OwnRow:
    """A row as one of ours; what is none of anybody's columns stays as it is.

    Args:
        format: one of `FORMATS`; only `auto` recognises other projects' formats.
        columns: our name -> the row's, or None: nothing is read as that column.

    Raises:
        RowError: a column that the format or `columns` need is missing, or a message cannot be
            read.
        InputError: a column that might be the prompt, or a part of it, and would not be read.
    """
    values, unread = _renamed(row, where, columns)
    if format != "standard":
        _read_messages(values, where, pictures=columns.get("images", "images") is not None)
    named = format if format in _READERS else _recognised(values, where, columns)
    if named is None:
        add_system(values, where)
        refuse_parts(values, where)
        return OwnRow(values, format, unread)
    if values.get("prompt") is not None:
        unread.append("prompt")
    values["prompt"] = _READERS[named](values, where)
    refuse_parts(values, where)
    for holder, key, _ in answers_of(values):
        if isinstance(holder[key], str):
            holder[key] = [message_of("assistant", holder[key])]
    return OwnRow(values, "conversational", unread, named)


def check_columns_key(columns: Mapping[str, str | None], others: Collection[str] = ()) -> None:
    """Errors: InputError for a name in `data.columns` that is no column.

    Args:
        others: that objectives ask for besides.
    """
    known = [*KNOWN_COLUMNS, *sorted(FOREIGN_COLUMNS), *others]
    if unknown := [name for name in columns if name not in known]:
        raise InputError(
            f"names of columns in data.columns: {', '.join(dict.fromkeys(known))}",
            ", ".join(unknown),
            "write {prompt: question} where the rows call the prompt `question`",
        )


# ---- names


def _renamed(
    row: Mapping[str, Any], where: str, columns: Mapping[str, str | None]
) -> tuple[dict[str, Any], list[str]]:
    """The row under our names, and its filled columns that are set aside."""
    taken = {theirs for theirs in columns.values() if theirs is not None}
    aside = {same for name, theirs in columns.items() for same in _SAME.get(name, (name,))}
    values = {key: value for key, value in row.items() if key not in taken | aside}
    unread = []
    for ours, theirs in columns.items():
        source = None if theirs is None else theirs if theirs in row else ours
        if source in row:
            values[ours] = row[source]
        elif source is not None and ours in _TEXTS:
            raise RowError(
                MISSING,
                f"the column {theirs!r} (data.columns: {{{ours}: {theirs}}})",
                f"{where}: the row has {', '.join(map(str, row)) or 'no keys'}",
                "correct data.columns, or drop the row",
            )
        set_aside = set(_SAME.get(ours, (ours,))) - taken - {source}
        unread += [key for key in row if key in set_aside and row[key] is not None]
    return values, unread


def _read_messages(values: dict[str, Any], where: str, *, pictures: bool) -> None:
    """Puts lists of messages, as we write them, in the place of messages in other notations.

    Args:
        pictures: whether parts that are pictures stay.
    """

    def read(value: Any, name: str) -> Any:
        messages = as_messages(value, name, where)
        return messages if pictures else without_pictures(messages)

    for key in ("prompt", *_CONVERSATIONS):
        if key in values:
            values[key] = read(values[key], key)
    for holder, key, name in answers_of(values):
        holder[key] = read(holder[key], name)


# ---- formats


def _recognised(
    values: Mapping[str, Any], where: str, columns: Mapping[str, str | None]
) -> str | None:
    """The format of a row that has no prompt of its own; None for a row of ours.

    Raises: InputError where a column looks like a prompt and the row may mean two things.
    """
    answers = [holder[key] for holder, key, _ in answers_of(dict(values))]
    if values.get("prompt") is not None or "prompt" in columns or any(map(holds_prompt, answers)):
        return None
    likely = [
        name
        for name, value in values.items()
        if isinstance(value, str | list | dict)
        and filled(value)
        and looks_like_prompt(str(name))
        and name not in SYSTEM
    ]
    texts = all(isinstance(answer, str) for answer in answers)
    replies = all(isinstance(answer, list) for answer in answers)
    found = {}
    if texts and "question" in likely and any(name in values for name in SYSTEM):
        found["orca"] = ["question"]
    if texts and "instruction" in likely and "input" in values:
        found["alpaca"] = ["instruction", "input", "history"]
    conversations = [name for name in _CONVERSATIONS if isinstance(values.get(name), list)]
    if replies and conversations:
        found["sharegpt"] = conversations[:1]
    for name, read in found.items():
        if set(likely) <= set(read):
            return name
    if likely:
        raise _might_be_prompt(likely, values, where)
    return None


def _might_be_prompt(likely: list[str], values: Mapping[str, Any], where: str) -> InputError:
    choices = []
    for name in likely:
        if isinstance(values[name], str):
            format = "alpaca" if name == "instruction" else "orca"
            choices.append(f"data.columns: {{prompt: {name}}} for that text alone")
            read = {"alpaca": "instruction", "orca": "question"}[format]
        else:
            format, read = "sharegpt", name if name in _CONVERSATIONS else "conversations"
        also = "" if read == name else f" with data.columns: {{{read}: {name}}}"
        choices.append(f"data.format: {format}{also} for a conversation")
    return InputError(
        "a column `prompt`, or rows that can be read in one way only",
        f'{where}: no key "prompt", and {quoted(likely)} may be it',
        f"choose with {'; '.join(dict.fromkeys(choices))}; or data.columns: {{prompt: null}} if "
        "the answers hold their prompt",
    )


def _orca(values: dict[str, Any], where: str) -> list[dict]:
    question = _text(values, "question", "orca", where)
    return [*system_of(values, where), message_of("user", question)]


def _alpaca(values: dict[str, Any], where: str) -> list[dict]:
    """The user says the instruction and, on the next line, the input."""
    asked = _text(values, "instruction", "alpaca", where)
    if filled(values.get("input")):
        asked += "\n" + _text(values, "input", "alpaca", where)
    values.pop("input", None)
    earlier = []
    for i, turn in enumerate(values.pop("history", None) or []):
        if not (
            isinstance(turn, list) and len(turn) == 2 and all(isinstance(t, str) for t in turn)
        ):
            raise RowError(
                "unknown history",
                "a history of [question, answer] pairs of texts",
                f'{where}, key "history[{i}]": {shown(turn)}',
                "mend or drop the row",
            )
        earlier += [message_of("user", turn[0]), message_of("assistant", turn[1])]
    return [*system_of(values, where), *earlier, message_of("user", asked)]


def _sharegpt(values: dict[str, Any], where: str) -> list[dict]:
    names = [name for name in _CONVERSATIONS if values.get(name) is not None]
    if len(names) == 2:
        raise InputError(
            "one conversation, for data.format: sharegpt",
            f"{where}: {quoted(names)}",
            "set data.columns: {messages: null} or {conversations: null}",
        )
    name = names[0] if names else "conversations"
    messages = values.pop(name, None)
    if not messages:
        raise _no_column(values, name, "sharegpt", where)
    if not isinstance(messages, list):
        raise InputError(
            "a list of messages", f'{where}, key "{name}": {shown(messages)}', "write it as one"
        )
    messages = read_messages(messages, name, where)
    if messages[-1]["role"] == "assistant":
        raise InputError(
            "a conversation that waits for a reply",
            f'{where}, key "{name}": its last message has role "assistant"',
            "remove that message from the row, or name the column of the prompt: data.columns: "
            "{prompt: ...}, or null for none",
        )
    values["prompt"] = messages
    add_system(values, where)
    return values["prompt"]


_READERS: dict[str, Callable[[dict[str, Any], str], list[dict]]] = {
    "orca": _orca,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
}
"""Format -> what takes its columns out of a row and makes the prompt of them."""

FORMATS = (*FORMS, *_READERS)


def _text(values: dict[str, Any], key: str, format: str, where: str) -> str:
    """A text of the row, taken out of it."""
    if key not in values:
        raise _no_column(values, key, format, where)
    text = present(values.pop(key), key, where)
    if not isinstance(text, str):
        raise InputError(
            f"text, in the {format} format",
            f'{where}, key "{key}": {shown(text)}',
            "store it as a string, or choose another data.format",
        )
    return text


def _no_column(values: Mapping[str, Any], key: str, format: str, where: str) -> RowError:
    return RowError(
        MISSING,
        f"the column `{key}` (data.format: {format})",
        f'{where}: no key "{key}"; the row has {", ".join(map(str, values)) or "no keys"}',
        f"set data.format: auto, or name the column: data.columns: {{{key}: ...}}",
    )
