"""Where a preference stands in a prompt: before or behind it, or as an instruction.

In messages, tags are put into the last message of the user, and an instruction becomes the system's
message (before one that is there).  Of a message with pictures the first text is begun, and the
last one ended.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jaxpref.data.pictures.rows import TEXT
from jaxpref.errors import InputError

Prompt = str | list[dict]
"""A text, or messages."""


def before(prompt: Prompt, text: str) -> Prompt:
    """The prompt, or the last message of its user, with a text in front."""
    if isinstance(prompt, str):
        return text + prompt
    return _with_last_user(prompt, lambda content: text + content, first=True)


def behind(prompt: Prompt, text: str, ending: str = "") -> Prompt:
    """The prompt, or the last message of its user, with a text behind it, after one space.

    Args:
        ending: where a text prompt ends with it (as "\\n\\nAssistant:"), the text goes before it.
    """
    if not isinstance(prompt, str):
        return _with_last_user(
            prompt, lambda content: f"{content.rstrip()} {text.rstrip()}", first=False
        )
    if not prompt.endswith(ending):
        ending = ""
    return f"{prompt.removesuffix(ending).rstrip()} {text}{ending}"


def instructed(prompt: Prompt, words: str) -> Prompt:
    """The prompt after an instruction: a paragraph of a text, or the system's message."""
    if isinstance(prompt, str):
        return f"{words}\n\n{prompt}"
    if prompt[0]["role"] == "system":
        content = _changed(
            prompt[0]["content"], lambda content: f"{words}\n\n{content}", first=True
        )
        return [{**prompt[0], "content": content}, *prompt[1:]]
    return [{"role": "system", "content": words}, *prompt]


def _with_last_user(
    messages: Sequence[dict], change: Callable[[str], str], *, first: bool
) -> list[dict]:
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        raise InputError(
            "a message of the user, to put tags into", f"{messages!r:.80}", "add such a message"
        )
    at = users[-1]
    changed = {**messages[at], "content": _changed(messages[at]["content"], change, first=first)}
    return [*messages[:at], changed, *messages[at + 1 :]]


def _changed(content: str | list[dict], change: Callable[[str], str], *, first: bool) -> Any:
    """The content of a message with its text changed.

    Args:
        first: of several texts between pictures, whether the first or the last is meant.
    """
    if isinstance(content, str):
        return change(content)
    parts = list(content)
    texts = [i for i, part in enumerate(parts) if part["type"] == TEXT]
    if not texts:
        parts.insert(0 if first else len(parts), {"type": TEXT, "text": ""})
        texts = [0 if first else len(parts) - 1]
    at = texts[0 if first else -1]
    parts[at] = {**parts[at], "text": change(parts[at]["text"])}
    return parts


def rounded(value: float, digits: int) -> float:
    """A score as it is asked for."""
    return round(float(value), digits) + 0.0  # no -0.0
