"""Raw rows into groups: one prompt and its completions, whatever form the row came in.

The forms, told apart row by row unless the caller names one:

    standard         the prompt and the answers are text
    conversational   they are lists of {"role": ..., "content": ...} messages
    anthropic        the answers are whole dialogs, "\\n\\nHuman: ...\\n\\nAssistant: ..."

`prompt` may be left out: it is then what the answers have in common, cut at a message boundary
(`split_messages`), or, of the two texts of a pair, where neither answer is empty and no word is
split (`split_text`).

Here are pairs and what holds for the answers of any row; `kinds.py` reads rows of other kinds.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxpref.data.columns import nearest_column, shown, template_columns
from jaxpref.errors import InputError
from jaxpref.types import Group

FORMATS = ("auto", "standard", "conversational", "anthropic")

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_GOLD = "reference"


class RowError(InputError):
    """A row without usable answers.  It says something about that row only, so a caller may drop it
    and count.

    `reason` is a short fixed text to count by, such as `empty completion`.
    """

    def __init__(self, reason: str, expected: str, got: str, fix: str):
        super().__init__(expected, got, fix)
        self.reason = reason


def make_group(
    row: Mapping[str, Any],
    answers: Mapping[str, Any],
    where: str,
    row_id: int,
    format: str = "auto",
) -> Group:
    """A group of any number of answers, without numbers.

    In a dialog of the anthropic form, turns of one speaker that follow each other become one
    message, each
    part stripped: the second marker was written by the model inside its own reply.

    Args:
        row: for `prompt` and what the chat template is given.
        answers: {key to name in errors: raw answer}, in the order of the completions.
        where, row_id, format, Raises: as in `to_group`.
    """
    _check_answers(answers, where)
    prompt = present(row["prompt"], "prompt", where) if "prompt" in row else None
    form = _form(answers, prompt, where, format)
    if form == "standard":
        prompt, completions = _standard(prompt, answers, where)
    else:
        if form == "anthropic":
            prompt, answers = _dialogs(prompt, answers, where)
        prompt, completions = _conversational(prompt, answers, where)
    _refuse_unusable(completions, where)
    tools, template_kwargs = template_columns(row, where)
    if isinstance(prompt, str) and (tools or template_kwargs):
        raise InputError(
            "tools and template variables only with messages",
            f'{where}, key "{"tools" if tools else "chat_template_kwargs"}": the row is plain text',
            "write the prompt and the answers as lists of messages, or remove the column",
        )
    return Group(prompt, tuple(completions.values()), row_id, where, tools, template_kwargs)


def _no_column(row: Mapping[str, Any], key: str, where: str) -> InputError:
    near = nearest_column(row, key)
    return InputError(
        "the columns `chosen` and `rejected` (and, if not part of them, `prompt`)"
        if key != _GOLD
        else "the column `reference`, a gold answer, beside `chosen` and `rejected`",
        f'{where}: no key "{key}"; the row has {", ".join(map(str, row)) or "no keys"}',
        f'rename "{near}" to "{key}"'
        if near
        else f'add "{key}", or rename the column that holds it',
    )


def present(value: Any, key: str, where: str) -> Any:
    """The value.  Raises: RowError where it is null."""
    if value is None:
        raise RowError(
            "missing value",
            "a value in every row",
            f'{where}, key "{key}": null',
            "fill it in or drop the row",
        )
    return value


def _check_answers(answers: Mapping[str, Any], where: str) -> None:
    for key, value in answers.items():
        if not isinstance(present(value, key, where), str | list):
            raise InputError(
                "text or a list of messages",
                f'{where}, key "{key}": {shown(value)}',
                "store the answer as a string, or as a list of role/content objects",
            )
    (first, value), *others = answers.items()
    odd = next((key for key, other in others if type(other) is not type(value)), None)
    if odd is not None:
        raise InputError(
            "answers of one kind, all text or all lists of messages",
            f'{where}: "{first}" is a {type(value).__name__}, "{odd}" a {type(answers[odd]).__name__}',
            'write the text as [{"role": "assistant", "content": TEXT}]',
        )
    _refuse_identical(answers, where)


def _form(answers: Mapping[str, Any], prompt: Any, where: str, format: str) -> str:
    if format not in FORMATS:
        raise InputError(f"`format` one of {', '.join(FORMATS)}", repr(format), "correct `format`")
    if any(isinstance(answer, list) for answer in answers.values()):
        found = "conversational"
    else:
        plain = [key for key, text in answers.items() if not text.startswith("\n\nHuman:")]
        found = "standard" if plain else "anthropic"
        if 0 < len(plain) < len(answers) and prompt is None and format != "standard":
            raise RowError(
                "broken dialog",
                'dialogs all starting with "\\n\\nHuman:"',
                f'{where}, key "{plain[0]}" does not',
                "mend or drop the row, or set `format: standard` to train on the raw text",
            )
    if format == "standard" and found == "anthropic":
        found = "standard"  # any text is text
    if format not in ("auto", found):
        raise InputError(
            f"rows of the {format} format",
            f"{where}, in {_quoted(answers)}: the {found} format",
            f"set `format` to {found} or auto",
        )
    return found


def _quoted(keys: Iterable[str]) -> str:
    return " and ".join(f'"{key}"' for key in keys)


# ---- standard


def _standard(prompt: Any, answers: Mapping[str, str], where: str) -> tuple[str, dict[str, str]]:
    if isinstance(prompt, list):
        raise InputError(
            "prompt and answers of one kind",
            f'{where}: "prompt" is a list of messages, {_quoted(answers)} text',
            'write the answers as [{"role": "assistant", "content": TEXT}], or the prompt as text',
        )
    for key, text in answers.items():
        check_text(text, key, where)
    if prompt is not None:
        check_text(prompt, "prompt", where)
        return prompt, dict(answers)
    if tuple(answers) != ("chosen", "rejected"):
        raise InputError(
            "a prompt (the common start of texts is taken for one in pairs only)",
            f'{where}: no key "prompt" beside {_quoted(answers)}',
            'add "prompt"',
        )
    for key, text in answers.items():
        if not text.strip():
            raise _empty(key, where)
    end = split_text(*answers.values())
    return answers["chosen"][:end], {key: text[end:] for key, text in answers.items()}


def split_text(first: str, second: str) -> int:
    """Length of the implicit prompt of two texts, in characters.

    The longest common start after which both texts go on with white space, so that no word is split
    and the white space opens the completion (" hello", as tokenizers like it), and with more than
    white space, so that no completion is empty.  0 where there is no such place: scripts without
    spaces need an explicit prompt.
    """
    common = _common(first, second)
    end = min(common, len(first.rstrip()) - 1, len(second.rstrip()) - 1)
    for at in range(end, 0, -1):
        if first[at].isspace() and second[at].isspace() and not first[at - 1].isspace():
            return at
    return 0


def _common(first: Any, second: Any) -> int:
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)


# ---- conversational and anthropic


def _conversational(
    prompt: Any, answers: Mapping[str, list], where: str
) -> tuple[list[dict], dict[str, list[dict]]]:
    sides = {key: read_messages(answer, key, where) for key, answer in answers.items()}
    if isinstance(prompt, list):
        prompt = read_messages(prompt, "prompt", where)
        return prompt, _without_repeated_prompt(prompt, sides, where)
    end, start = split_messages(*sides.values()), next(iter(sides.values()))
    if isinstance(prompt, str):
        _refuse_foreign_prompt(prompt, start[:end], where)
    elif prompt is not None:
        raise InputError(
            "text or a list of messages",
            f'{where}, key "prompt": {shown(prompt)}',
            "store the prompt as a list of role/content objects",
        )
    opening = {side[end]["role"] for side in sides.values() if len(side) > end}
    if end == 0 and len(sides) == 1:
        raise RowError(
            "empty prompt", "a user message", f"{where}, in {_quoted(sides)}: none", 'add "prompt"'
        )
    if end == 0 or opening & {"user", "system"}:
        raise RowError(
            "different prompts",
            "answers that reply to the same messages",
            f"{where}: {_quoted(sides)} part at message {end}, {sorted(opening)}",
            "bring answers to the same prompt together, or drop the row",
        )
    return start[:end], {key: side[end:] for key, side in sides.items()}


def split_messages(*conversations: list[dict]) -> int:
    """Number of messages in the implicit prompt of conversations.

    The longest common start; where one conversation is itself the start of all others (or the only
    one), only up to the last user message, so that all completions hold the reply to it.
    """
    first, *others = conversations
    common = min((_common(first, other) for other in others), default=len(first))
    if common < min(map(len, conversations)):
        return common
    return max((i + 1 for i in range(common) if first[i]["role"] == "user"), default=0)


def _without_repeated_prompt(prompt: list, sides: dict[str, list], where: str) -> dict[str, list]:
    repeats = {key: side[: len(prompt)] == prompt for key, side in sides.items()}
    if all(repeats.values()):
        return {key: side[len(prompt) :] for key, side in sides.items()}
    if any(repeats.values()):
        those = _quoted(key for key, does in repeats.items() if does)
        raise RowError(
            "prompt repeated in one answer",
            "answers that all repeat the prompt, or none of them",
            f'{where}: only {those} starts with the messages of "prompt"',
            f"remove them from {those}",
        )
    return sides


def _refuse_foreign_prompt(prompt: str, common: list[dict], where: str) -> None:
    """A text prompt beside message lists is fine only as a copy of the user message that all lists
    hold."""
    user = [m["content"] for m in common if m["role"] == "user"]
    if not user or user[-1] != prompt:
        raise InputError(
            "prompt and answers of one kind",
            f'{where}: "prompt" is text, the answers are messages that do not start with it',
            'write the prompt as [{"role": "user", "content": TEXT}]',
        )


def read_messages(value: list, key: str, where: str) -> list[dict]:
    """The messages of a list, without what is null.  RowError for none, InputError for a malformed
    one."""
    if not value:
        if key == "prompt":
            raise RowError(
                "empty prompt",
                "at least one message",
                f'{where}, key "prompt": []',
                "add the question",
            )
        raise _empty(key, where)
    return [_message(message, f'{where}, key "{key}[{i}]"') for i, message in enumerate(value)]


def _message(message: Any, place: str) -> dict:
    if not isinstance(message, dict):
        raise InputError(
            "a message with role and content", f"{place}: {shown(message)}", "write it as an object"
        )
    # Columnar files fill what a message lacks with null.
    message = {k: v for k, v in message.items() if v is not None}
    if "content" not in message and message.get("tool_calls"):
        message["content"] = ""
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            got = (
                shown(message[key])
                if key in message
                else f"missing; it has {', '.join(message) or 'no keys'}"
            )
            raise InputError(
                'a message with text for "role" and "content"',
                f'{place}, key "{key}": {got}',
                "give both as strings; parts such as images are not supported",
            )
        check_text(message[key], key, place)
    return message


def _dialogs(
    prompt: Any, answers: Mapping[str, str], where: str
) -> tuple[None, dict[str, list[dict]]]:
    if prompt is not None and not (
        isinstance(prompt, str) and all(dialog.startswith(prompt) for dialog in answers.values())
    ):
        raise InputError(
            "dialogs that hold their prompt themselves",
            f'{where}, key "prompt": {shown(prompt)}, with which not all of {_quoted(answers)} start',
            'remove "prompt", or set `format: standard` if the answers are raw text',
        )
    return None, {key: _dialog(text) for key, text in answers.items()}


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


# ---- what no row may be


def _refuse_unusable(completions: Mapping[str, Any], where: str) -> None:
    for key, completion in completions.items():
        last = completion[-1] if isinstance(completion, list) and completion else None
        text = completion if isinstance(completion, str) else last["content"] if last else ""
        if not text.strip() and not (last and last.get("tool_calls")):
            raise _empty(key, where)
        if last and last["role"] == "user":
            raise RowError(
                "no reply",
                "an answer that ends with a reply",
                f'{where}, key "{key}": its last message has role "user"',
                "add the reply or drop the row",
            )
    _refuse_identical(completions, where)


def _empty(key: str, where: str) -> RowError:
    return RowError(
        "empty completion",
        "an answer with text in it",
        f'{where}, key "{key}": empty or only white space',
        "fill it in or drop the row (`on_bad_row: drop`)",
    )


def _refuse_identical(answers: Mapping[str, Any], where: str) -> None:
    """The gold answer may be one of the others."""
    for first, second in itertools.combinations([key for key in answers if key != _GOLD], 2):
        if answers[first] == answers[second]:
            raise RowError(
                "identical completions",
                "different answers",
                f'{where}: "{first}" and "{second}" are the same',
                "drop the row (`on_bad_row: drop`): it holds no preference between them",
            )


def check_text(value: Any, key: str, where: str) -> None:
    """Raises: InputError for what is not text; RowError for broken Unicode."""
    if not isinstance(value, str):
        raise InputError("text", f'{where}, key "{key}": {shown(value)}', "store it as a string")
    if not value.isascii():
        try:
            value.encode()
        except (
            UnicodeEncodeError
        ) as error:  # half a surrogate pair, which JSON's \\ud83d lets through
            raise RowError(
                "broken Unicode",
                "Unicode text",
                f'{where}, key "{key}", character {error.start}: {value[error.start]!r}',
                "write the text out again from its source, or drop the row",
            ) from error
