"""Parts of a prompt that stand elsewhere in a row: in answers, `system`, `images`, `history`."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxpref.data.checks import GOLD, shown
from jaxpref.data.forms import DIALOG
from jaxpref.data.messages import PROMPT_ROLES
from jaxpref.data.notations import message_of
from jaxpref.data.pictures.rows import COLUMNS as PICTURES
from jaxpref.errors import InputError, RowError

ANSWERS = ("chosen", "rejected", GOLD, "completion")
SYSTEM = ("system", "system_prompt", "system_message")
NOT_READ = ("videos", "video", "audios", "audio")
MEDIA = (*PICTURES, *NOT_READ)


def answers_of(values: dict[str, Any]) -> Iterator[tuple[Any, Any, str]]:
    """Every answer as (what holds it, its key there, its name in errors)."""
    for key in ANSWERS:
        if key in values:
            yield values, key, key
    if isinstance(values.get("completions"), list):
        values["completions"] = list(values["completions"])
        for i in range(len(values["completions"])):
            yield values["completions"], i, f"completions[{i}]"


def holds_prompt(answer: Any) -> bool:
    """Whether an answer begins with what it replies to."""
    if isinstance(answer, str):
        return answer.startswith(DIALOG)
    first = answer[0] if isinstance(answer, list) and answer else None
    return isinstance(first, dict) and first.get("role") in PROMPT_ROLES


def filled(value: Any) -> bool:
    """Whether a value holds something, a text more than white space."""
    return bool(value.strip() if isinstance(value, str) else value)


def system_of(values: dict[str, Any], where: str) -> list[dict]:
    """The message of the column `system`, which is taken out of the row; none where it is empty."""
    texts = {key: values.pop(key) for key in SYSTEM if key in values}
    texts = {key: text for key, text in texts.items() if filled(text)}
    if len(set(map(repr, texts.values()))) > 1 or not all(
        isinstance(text, str) for text in texts.values()
    ):
        raise InputError(
            "one system message, as text",
            f"{where}: " + ", ".join(f'"{key}": {shown(text)}' for key, text in texts.items()),
            "remove the others, or set data.columns: {system: ...}",
        )
    return [message_of("system", text) for text in [*texts.values()][:1]]


def add_system(values: dict[str, Any], where: str) -> None:
    """Puts the column `system` where the conversation begins: into the prompt or every answer."""
    system = system_of(values, where)
    if not system:
        return
    if isinstance(values.get("prompt"), list):
        values["prompt"] = _begun(system, values["prompt"], "prompt", where)
        return
    answers = list(answers_of(values))
    if not answers or not all(
        isinstance(holder[key], list) and holds_prompt(holder[key]) for holder, key, _ in answers
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


def refuse_parts(values: Mapping[str, Any], where: str) -> None:
    """Raises: InputError for parts of the prompt that cannot be read."""
    if key := next((key for key in NOT_READ if filled(values.get(key))), None):
        raise InputError(
            "rows of text and pictures",
            f'{where}, key "{key}": {shown(values[key])}',
            "models do not see it; data.columns: {images: null} trains without it",
        )
    if filled(values.get("history")) and values.get("prompt") is not None:
        raise InputError(
            "the whole prompt in `prompt`",
            f'{where}: "history" beside "prompt"',
            "to read both as a conversation, set data.format: alpaca and data.columns: "
            "{instruction: prompt}, the name of the prompt in the rows; to train without it, "
            "{history: null}",
        )
