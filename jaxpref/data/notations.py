"""Messages in other notations: as JSON text, and as ShareGPT's {"from": "human", "value": ...}."""

import json
import re
from typing import Any

from jaxpref.data.checks import shown
from jaxpref.errors import InputError, RowError

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


def as_messages(value: Any, key: str, where: str) -> Any:
    """The messages that a value is; any other value as it is."""
    if isinstance(value, str):
        value = _parsed(value, key, where)
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages or not all(map(is_message, messages)):
        return value
    return [_with_role(m, f'{where}, key "{key}[{i}]"') for i, m in enumerate(messages)]


def is_message(value: Any) -> bool:
    """Whether a value is one message, in our notation or that of ShareGPT."""
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
        return value if messages and all(map(is_message, messages)) else text
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
    return message_of(_SPEAKERS[message["from"]], message["value"]) | rest


def message_of(role: str, content: str) -> dict:
    """A message with nothing else."""
    return {"role": role, "content": content}
