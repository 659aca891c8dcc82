"""Prompts and answers as messages: the conversational form, and the dialogs of the anthropic form.

A message is {"role": ..., "content": ...}, and whatever else the chat template reads.  Its content
is text, or, where there are pictures, a list of parts (`pictures/rows.py`).
"""

import re
from collections.abc import Mapping
from typing import Any

from jaxpref.data.checks import check_json, check_text, empty_completion, quoted, shown
from jaxpref.data.pictures.rows import read_parts
from jaxpref.data.prefix import common_length
from jaxpref.errors import InputError, RowError

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}

PROMPT_ROLES = {"system", "developer", "user"}
"""Whose messages ask; an answer begins with none of them."""

_DIFFERENT_PROMPTS = "different prompts"


def split_conversations(
    prompt: Any, answers: Mapping[str, list], where: str
) -> tuple[list[dict], dict[str, list[dict]]]:
    """The prompt's messages, and those of each completion alone.

    Args:
        prompt: messages; None, or the text of their last message, where the answers hold it.
        answers: {key to name in errors: messages}.

    Raises:
        RowError: answers that do not reply to the same prompt.
        InputError: malformed messages, or a prompt of another kind.
    """
    sides = {key: read_messages(answer, key, where) for key, answer in answers.items()}
    if isinstance(prompt, list):
        prompt = read_messages(prompt, "prompt", where)
        return prompt, _without_repeated_prompt(prompt, sides, where)
    first = next(iter(sides.values()))
    end = split_messages(*sides.values())
    if isinstance(prompt, str):
        _refuse_foreign_prompt(prompt, first[:end], where)
    elif prompt is not None:
        raise InputError(
            "text or a list of messages",
            f'{where}, key "prompt": {shown(prompt)}',
            "store the prompt as a list of role/content objects",
        )
    if end == 0 and len(sides) == 1:
        raise RowError(
            "empty prompt", "a user message", f"{where}, in {quoted(sides)}: none", 'add "prompt"'
        )
    next_roles = {side[end]["role"] for side in sides.values() if len(side) > end}
    if end == 0 or next_roles & PROMPT_ROLES:
        raise RowError(
            _DIFFERENT_PROMPTS,
            "answers that reply to the same messages",
            f"{where}: {quoted(sides)} part at message {end}, {sorted(next_roles)}",
            "bring answers to the same prompt together, or drop the row",
        )
    return first[:end], {key: side[end:] for key, side in sides.items()}


def split_messages(*conversations: list[dict]) -> int:
    """Number of messages in the implicit prompt of conversations.

    The longest common start; where one conversation is itself the start of all others (or the only
    one), only up to the last user message, so that all completions hold the reply to it.
    """
    first, *others = conversations
    common = min((common_length(first, other) for other in others), default=len(first))
    if common < min(map(len, conversations)):
        return common
    return max((i + 1 for i in range(common) if first[i]["role"] == "user"), default=0)


def _without_repeated_prompt(prompt: list, sides: dict[str, list], where: str) -> dict[str, list]:
    repeats = {key: side[: len(prompt)] == prompt for key, side in sides.items()}
    if any(repeats.values()) and not all(repeats.values()):
        those = quoted(key for key, does in repeats.items() if does)
        raise RowError(
            "prompt repeated in one answer",
            "answers that all repeat the prompt, or none of them",
            f'{where}: only {those} starts with the messages of "prompt"',
            f"remove the prompt's messages from {those}",
        )
    if all(repeats.values()):
        sides = {key: side[len(prompt) :] for key, side in sides.items()}
    # What is left of the prompt in an answer would be in the loss.
    roles = {key: side[0]["role"] for key, side in sides.items() if side}
    if asking := [key for key, role in roles.items() if role in PROMPT_ROLES]:
        raise RowError(
            _DIFFERENT_PROMPTS,
            'answers that reply to "prompt", and repeat it as it is or not at all',
            f'{where}: what follows "prompt" in {quoted(asking)} has role "{roles[asking[0]]}"',
            'write the same messages in "prompt" and the answers, or remove them from the answers',
        )
    return sides


def _refuse_foreign_prompt(prompt: str, common: list[dict], where: str) -> None:
    """A text prompt is fine only as a copy of the user message that all message lists hold."""
    user = [m["content"] for m in common if m["role"] == "user"]
    if not user or user[-1] != prompt:
        raise InputError(
            "prompt and answers of one kind",
            f'{where}: "prompt" is text, the answers are messages that do not start with it',
            'write the prompt as [{"role": "user", "content": TEXT}], or set `format: standard` if '
            "the answers are JSON text to train on",
        )


def read_messages(value: list, key: str, where: str) -> list[dict]:
    """The messages of a list, without what is null.

    Raises:
        RowError: there are none.
        InputError: one is malformed.
    """
    if not value:
        if key == "prompt":
            raise RowError(
                "empty prompt",
                "at least one message",
                f'{where}, key "prompt": []',
                "add the question",
            )
        raise empty_completion(key, where)
    return [_message(message, f"{key}[{i}]", where) for i, message in enumerate(value)]


def _message(message: Any, key: str, where: str) -> dict:
    place = f'{where}, key "{key}"'
    if not isinstance(message, dict):
        raise InputError(
            "a message with role and content", f"{place}: {shown(message)}", "write it as an object"
        )
    # Columnar files fill what a message lacks with null.
    message = {k: v for k, v in message.items() if v is not None}
    check_json({k: v for k, v in message.items() if k != "content"}, key, where)
    if isinstance(message.get("content"), list):
        message["content"] = read_parts(message["content"], f"{key}.content", where)
        if isinstance(message["content"], list) and isinstance(message.get("role"), str):
            return message
    if "content" not in message and message.get("tool_calls"):
        message["content"] = ""
    for field in ("role", "content"):
        if not isinstance(message.get(field), str):
            got = f"missing; it has {', '.join(message) or 'no keys'}"
            if field in message:
                got = shown(message[field])
            raise InputError(
                'a message with text for "role" and "content"',
                f'{place}, key "{field}": {got}',
                "give both as strings, or the content as a list of parts",
            )
        check_text(message[field], field, place)
    return message


def read_dialogs(prompt: Any, answers: Mapping[str, str], where: str) -> dict[str, list[dict]]:
    """The messages of dialogs "\\n\\nHuman: ...\\n\\nAssistant: ...".

    Turns of one speaker that follow each other become one message, each part stripped: the second
    marker was written by the model inside its own reply.

    Raises:
        InputError: a prompt that is not the start of every dialog.
    """
    if prompt is not None and not (
        isinstance(prompt, str) and all(dialog.startswith(prompt) for dialog in answers.values())
    ):
        raise InputError(
            "dialogs that hold their prompt themselves",
            f'{where}, key "prompt": {shown(prompt)}, not the start of all of {quoted(answers)}',
            'remove "prompt", or set `format: standard` if the answers are raw text',
        )
    return {key: _dialog(text) for key, text in answers.items()}


def _dialog(text: str) -> list[dict]:
    messages: list[dict] = []
    parts = _TURN.split(text)
    for speaker, said in zip(parts[1::2], parts[2::2], strict=True):
        role, said = _ROLES[speaker], said.strip()
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = "\n\n".join(filter(None, (messages[-1]["content"], said)))
        else:
            messages.append({"role": role, "content": said})
    return messages
