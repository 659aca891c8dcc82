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

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from jaxpref.data.checks import GOLD, MISSING, present, quoted, shown
from jaxpref.data.columns import KNOWN_COLUMNS, looks_like_prompt
from jaxpref.data.forms import DIALOG, FORMS
from jaxpref.data.messages import PROMPT_ROLES, read_messages
from jaxpref.errors import InputError, RowError

_ANSWERS = ("chosen", "rejected", GOLD, "completion")
_CONVERSATIONS = ("conversations", "messages")
_SYSTEM = ("system", "system_prompt", "system_message")
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_SAME = {"system": _SYSTEM, "images": _MEDIA}
"""Names of one column; the first is the one in `data.columns`."""
_TEXTS = {"prompt", "question", "instruction", "completions", *_ANSWERS, *_CONVERSATIONS}

FOREIGN_COLUMNS = {"question", "instruction", "input", "history", *_CONVERSATIONS, *_SAME}
"""The columns that are read beside those of `KNOWN_COLUMNS`."""

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
"""`from` -> role."""

_JSON_MESSAGES = re.compile(r'\s*\[?\s*\{.*"(role|from)"', re.DOTALL)
_PYTHON_MESSAGES = re.compile(r"\s*\[?\s*\{\s*'(role|content|from|value)'\s*:")


class OwnRow(NamedTuple):
    """A row under our names."""

    values: dict[str, Any]
    form: str
    """One of `FORMS`."""
    unread: list[str]
    """Filled columns that `data.columns` sets aside."""


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
        _read_messages(values, where)
    named = format if format in _READERS else _recognised(values, where, columns)
    if named is None:
        _add_system(values, where)
        _refuse_parts(values, where)
        return OwnRow(values, format, unread)
    if values.get("prompt") is not None:
        unread.append("prompt")
    values["prompt"] = _READERS[named](values, where)
    _refuse_parts(values, where)
    for holder, key, _ in _answers(values):
        if isinstance(holder[key], str):
            holder[key] = [_message("assistant", holder[key])]
    return OwnRow(values, "conversational", unread)


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


# ---- messages in other notations


def _read_messages(values: dict[str, Any], where: str) -> None:
    """Puts lists of messages, as we write them, in the place of messages in other notations."""
    for key in ("prompt", *_CONVERSATIONS):
        if key in values:
            values[key] = _as_messages(values[key], key, where)
    for holder, key, name in _answers(values):
        holder[key] = _as_messages(holder[key], name, where)


def _answers(values: dict[str, Any]) -> Iterator[tuple[Any, Any, str]]:
    """Every answer as (what holds it, its key there, its name in errors)."""
    for key in _ANSWERS:
        if key in values:
            yield values, key, key
    if isinstance(values.get("completions"), list):
        values["completions"] = list(values["completions"])
        for i in range(len(values["completions"])):
            yield values["completions"], i, f"completions[{i}]"


def _as_messages(value: Any, key: str, where: str) -> Any:
    """The messages that a value is; any other value as it is."""
    if isinstance(value, str):
        value = _parsed(value, key, where)
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        return value
    return [_with_role(m, f'{where}, key "{key}[{i}]"') for i, m in enumerate(messages)]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and any(
        value.get(role) is not None and content in value
        for role, content in (("role", "content"), ("role", "tool_calls"), ("from", "value"))
    )


def _parsed(text: str, key: str, where: str) -> Any:
    if _JSON_MESSAGES.match(text):
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            return text
        messages = value if isinstance(value, list) else [value]
        return value if messages and all(map(_is_message, messages)) else text
    if _PYTHON_MESSAGES.match(text):
        raise InputError(
            "messages as a list, or as JSON text",
            f'{where}, key "{key}": {shown(text)}, as Python prints them',
            "write them with a JSON library, or set data.format: standard to train on this text",
        )
    return text


def _with_role(message: dict, place: str) -> dict:
    """A message with `role` and `content`, whoever wrote it."""
    if message.get("role") is not None:
        return message
    if message["from"] not in _SPEAKERS:
        raise RowError(
            "unknown speaker",
            f"messages from {', '.join(_SPEAKERS)}",
            f"{place}: from {message['from']!r}",
            "write the message with role and content, as the chat template reads it, or drop the "
            "row",
        )
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    return _message(_SPEAKERS[message["from"]], message["value"]) | rest


def _message(role: str, content: str) -> dict:
    return {"role": role, "content": content}


# ---- formats


def _recognised(
    values: Mapping[str, Any], where: str, columns: Mapping[str, str | None]
) -> str | None:
    """The format of a row that has no prompt of its own; None for a row of ours.

    Raises: InputError where a column looks like a prompt and the row may mean two things.
    """
    answers = [holder[key] for holder, key, _ in _answers(dict(values))]
    if values.get("prompt") is not None or "prompt" in columns or any(map(_holds_prompt, answers)):
        return None
    likely = [
        name
        for name, value in values.items()
        if isinstance(value, str | list | dict)
        and _filled(value)
        and looks_like_prompt(str(name))
        and name not in _SYSTEM
    ]
    texts = all(isinstance(answer, str) for answer in answers)
    replies = all(isinstance(answer, list) for answer in answers)
    found = {}
    if texts and "question" in likely and any(name in values for name in _SYSTEM):
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


def _holds_prompt(answer: Any) -> bool:
    """Whether an answer begins with what it replies to."""
    if isinstance(answer, str):
        return answer.startswith(DIALOG)
    first = answer[0] if isinstance(answer, list) and answer else None
    return isinstance(first, dict) and first.get("role") in PROMPT_ROLES


def _filled(value: Any) -> bool:
    return bool(value.strip() if isinstance(value, str) else value)


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
    return [*_system(values, where), _message("user", question)]


def _alpaca(values: dict[str, Any], where: str) -> list[dict]:
    """The user says the instruction and, on the next line, the input."""
    asked = _text(values, "instruction", "alpaca", where)
    if _filled(values.get("input")):
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
        earlier += [_message("user", turn[0]), _message("assistant", turn[1])]
    return [*_system(values, where), *earlier, _message("user", asked)]


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
    _add_system(values, where)
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


# ---- parts of a prompt beside it


def _system(values: dict[str, Any], where: str) -> list[dict]:
    """The message of the column `system`, which is taken out of the row; none where it is empty."""
    texts = {key: values.pop(key) for key in _SYSTEM if key in values}
    texts = {key: text for key, text in texts.items() if _filled(text)}
    if len(set(map(repr, texts.values()))) > 1 or not all(
        isinstance(text, str) for text in texts.values()
    ):
        raise InputError(
            "one system message, as text",
            f"{where}: " + ", ".join(f'"{key}": {shown(text)}' for key, text in texts.items()),
            "remove the others, or set data.columns: {system: ...}",
        )
    return [_message("system", text) for text in [*texts.values()][:1]]


def _add_system(values: dict[str, Any], where: str) -> None:
    """Puts the column `system` where the conversation begins: into the prompt or every answer."""
    system = _system(values, where)
    if not system:
        return
    if isinstance(values.get("prompt"), list):
        values["prompt"] = _begun(system, values["prompt"], "prompt", where)
        return
    answers = list(_answers(values))
    if not answers or not all(
        isinstance(holder[key], list) and _holds_prompt(holder[key]) for holder, key, _ in answers
    ):
        raise InputError(
            "`system` beside messages; a text has no place for it",
            f'{where}: "system" beside plain text',
            "to read the row as a conversation, set data.format: orca and data.columns: {question: "
            "prompt}, the name of the prompt in the rows; to train without it, {system: null}",
        )
    for holder, key, name in answers:
        holder[key] = _begun(system, holder[key], name, where)


def _begun(system: list[dict], messages: list, key: str, where: str) -> list:
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    if first.get("role") not in ("system", "developer"):
        return [*system, *messages]
    if first.get("content") != system[0]["content"]:
        raise RowError(
            "two system messages",
            "one system message",
            f'{where}: "system" beside another system message in "{key}"',
            "remove one of them, or set data.columns: {system: null}",
        )
    return messages


def _refuse_parts(values: Mapping[str, Any], where: str) -> None:
    """Raises: InputError for parts of the prompt that cannot be read."""
    if key := next((key for key in _MEDIA if _filled(values.get(key))), None):
        raise InputError(
            "rows of text",
            f'{where}, key "{key}": {shown(values[key])}',
            "models of text do not see it; data.columns: {images: null} trains without it",
        )
    if _filled(values.get("history")) and values.get("prompt") is not None:
        raise InputError(
            "the whole prompt in `prompt`",
            f'{where}: "history" beside "prompt"',
            "to read both as a conversation, set data.format: alpaca and data.columns: "
            "{instruction: prompt}, the name of the prompt in the rows; to train without it, "
            "{history: null}",
        )
