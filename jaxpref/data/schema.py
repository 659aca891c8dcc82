"""Raw rows into groups: one prompt and its completions, whatever form the row came in.

The forms, told apart row by row unless the caller names one:

    standard         `prompt`, `chosen`, `rejected` are text
    conversational   they are lists of {"role": ..., "content": ...} messages
    anthropic        `chosen` and `rejected` are whole dialogs, "\\n\\nHuman: ...\\n\\nAssistant: ..."

`prompt` may be left out: it is then what chosen and rejected have in common, cut where neither answer is
empty and no word is split (`split_text`) or at a message boundary (`split_messages`).
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from jaxpref.data.columns import number_columns, shown, template_columns
from jaxpref.errors import InputError
from jaxpref.types import Group

FORMATS = ("auto", "standard", "conversational", "anthropic")

KNOWN_COLUMNS = {
    "prompt": "what both answers reply to; left out, it is their common start",
    "chosen": "the preferred answer",
    "rejected": "the other answer",
    "tools": "tool descriptions for the chat template: a list, or that list as JSON text",
    "chat_template_kwargs": "further variables for the chat template: an object",
    "weight": "number: weight of the pair in the loss",
    "margin": "number: by how much chosen is better",
    "score_chosen": "number, with score_rejected: the column `score` of objectives",
    "score_rejected": "number, with score_chosen",
    "scores_chosen": "object of numbers, with scores_rejected: the columns `scores/NAME` of objectives",
    "scores_rejected": "object of numbers, with scores_chosen",
}
"""The columns that are read, with their meaning; all others are ignored."""

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


class RowError(InputError):
    """A row without a usable pair.  It says something about that row only, so a caller may drop it and count.

    `reason` is a short fixed text to count by, such as `empty completion`.
    """

    def __init__(self, reason: str, expected: str, got: str, fix: str):
        super().__init__(expected, got, fix)
        self.reason = reason


def to_group(row: Mapping[str, Any], where: str, row_id: int, format: str = "auto") -> Group:
    """Turns one raw row into a group of two completions, chosen first.

    In a dialog of the anthropic form, turns of one speaker that follow each other become one message, each
    part stripped: the second marker was written by the model inside its own reply.

    Args:
        row: the columns, see `KNOWN_COLUMNS`.
        where: file and row, for errors.
        row_id: becomes `Group.row_id`.
        format: one of `FORMATS`; anything but `auto` refuses rows of another form.

    Raises:
        RowError: the row has no usable pair (an empty or missing answer, twice the same answer, answers to
            different prompts, text that is not Unicode, ...); `reason` says which.
        InputError: the columns are missing or have the wrong type, which other rows will share.
    """
    chosen, rejected = _pair(row, where)
    prompt = _present(row, "prompt", where) if "prompt" in row else None
    form = _form(chosen, rejected, prompt, where, format)
    if form == "standard":
        prompt, completions = _standard(prompt, chosen, rejected, where)
    else:
        if form == "anthropic":
            prompt, chosen, rejected = _dialogs(prompt, chosen, rejected, where)
        prompt, completions = _conversational(prompt, chosen, rejected, where)
    _refuse_unusable(completions, where)
    tools, template_kwargs = template_columns(row, where)
    if isinstance(prompt, str) and (tools or template_kwargs):
        raise InputError(
            "tools and template variables only with messages",
            f'{where}, key "{"tools" if tools else "chat_template_kwargs"}": the row is plain text',
            "write prompt, chosen and rejected as lists of messages, or remove the column",
        )
    return Group(
        prompt=prompt,
        completions=completions,
        row_id=row_id,
        where=where,
        tools=tools,
        template_kwargs=template_kwargs,
        columns=number_columns(row, where),
    )


def _pair(row: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    for key in ("chosen", "rejected"):
        if key not in row:
            others = [name for name in row if name not in KNOWN_COLUMNS]
            near = [name for name in others if key in name] or difflib.get_close_matches(key, others, n=1)
            raise InputError(
                "the columns `chosen` and `rejected` (and, if not part of them, `prompt`)",
                f'{where}: no key "{key}"; the row has {", ".join(map(str, row)) or "no keys"}',
                f'rename "{near[0]}" to "{key}"' if near else f'add "{key}", or rename the column that holds it',
            )
    chosen, rejected = _present(row, "chosen", where), _present(row, "rejected", where)
    for key, value in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(value, str | list):
            raise InputError(
                "text or a list of messages",
                f'{where}, key "{key}": {shown(value)}',
                "store the answer as a string, or as a list of role/content objects",
            )
    if type(chosen) is not type(rejected):
        raise InputError(
            "chosen and rejected of one kind, both text or both lists of messages",
            f'{where}: "chosen" is a {type(chosen).__name__}, "rejected" a {type(rejected).__name__}',
            'write the text as [{"role": "assistant", "content": TEXT}]',
        )
    if chosen == rejected:
        raise _identical(where)
    return chosen, rejected


def _present(row: Mapping[str, Any], key: str, where: str) -> Any:
    if row[key] is None:
        raise RowError(
            "missing value",
            "a value in every row",
            f'{where}, key "{key}": null',
            "fill it in or drop the row",
        )
    return row[key]


def _form(chosen: Any, rejected: Any, prompt: Any, where: str, format: str) -> str:
    if format not in FORMATS:
        raise InputError(f"`format` one of {', '.join(FORMATS)}", repr(format), "correct `format`")
    if isinstance(chosen, list):
        found = "conversational"
    else:
        dialogs = [text.startswith("\n\nHuman:") for text in (chosen, rejected)]
        found = "anthropic" if all(dialogs) else "standard"
        if any(dialogs) and not all(dialogs) and prompt is None and format != "standard":
            raise RowError(
                "broken dialog",
                'both dialogs starting with "\\n\\nHuman:"',
                f'{where}, key "{("chosen", "rejected")[dialogs.index(False)]}" does not',
                "mend or drop the row, or set `format: standard` to train on the raw text",
            )
    if format == "standard" and found == "anthropic":
        found = "standard"  # any text is text
    if format not in ("auto", found):
        raise InputError(
            f"rows of the {format} format",
            f'{where}, keys "chosen" and "rejected": the {found} format',
            f"set `format` to {found} or auto",
        )
    return found


# ---- standard


def _standard(prompt: Any, chosen: str, rejected: str, where: str) -> tuple[str, tuple[str, str]]:
    if isinstance(prompt, list):
        raise InputError(
            "prompt, chosen and rejected of one kind",
            f'{where}: "prompt" is a list of messages, "chosen" and "rejected" are text',
            'write the answers as [{"role": "assistant", "content": TEXT}], or the prompt as text',
        )
    _check_text(chosen, "chosen", where)
    _check_text(rejected, "rejected", where)
    if prompt is not None:
        _check_text(prompt, "prompt", where)
        return prompt, (chosen, rejected)
    for key, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise _empty(key, where)
    end = split_text(chosen, rejected)
    return chosen[:end], (chosen[end:], rejected[end:])


def split_text(first: str, second: str) -> int:
    """Length of the implicit prompt of two texts, in characters.

    The longest common start after which both texts go on with white space, so that no word is split and the
    white space opens the completion (" hello", as tokenizers like it), and with more than white space, so
    that no completion is empty.  0 where there is no such place: scripts without spaces need an explicit
    prompt.
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


def _conversational(prompt: Any, chosen: list, rejected: list, where: str) -> tuple[list[dict], tuple]:
    chosen, rejected = _messages(chosen, "chosen", where), _messages(rejected, "rejected", where)
    if isinstance(prompt, list):
        prompt = _messages(prompt, "prompt", where)
        return prompt, _without_repeated_prompt(prompt, chosen, rejected, where)
    end = split_messages(chosen, rejected)
    if isinstance(prompt, str):
        _refuse_foreign_prompt(prompt, chosen[:end], where)
    elif prompt is not None:
        raise InputError(
            "text or a list of messages",
            f'{where}, key "prompt": {shown(prompt)}',
            "store the prompt as a list of role/content objects",
        )
    opening = {side[end]["role"] for side in (chosen, rejected) if len(side) > end}
    if end == 0 or opening & {"user", "system"}:
        raise RowError(
            "different prompts",
            "chosen and rejected that reply to the same messages",
            f'{where}, keys "chosen" and "rejected": they part at message {end}, {sorted(opening)}',
            "pair answers to the same prompt, or drop the row",
        )
    return chosen[:end], (chosen[end:], rejected[end:])


def split_messages(first: list[dict], second: list[dict]) -> int:
    """Number of messages in the implicit prompt of two conversations.

    The longest common start; where one conversation is itself the start of the other, only up to the last
    user message, so that both completions hold the reply to it.
    """
    common = _common(first, second)
    if common < min(len(first), len(second)):
        return common
    return max((i + 1 for i in range(common) if first[i]["role"] == "user"), default=0)


def _without_repeated_prompt(prompt: list, chosen: list, rejected: list, where: str) -> tuple:
    repeats = [side[: len(prompt)] == prompt for side in (chosen, rejected)]
    if all(repeats):
        return chosen[len(prompt) :], rejected[len(prompt) :]
    if any(repeats):
        key = ("chosen", "rejected")[repeats.index(True)]
        raise RowError(
            "prompt repeated in one answer",
            "chosen and rejected that both repeat the prompt, or neither",
            f'{where}: only "{key}" starts with the messages of "prompt"',
            f'remove them from "{key}"',
        )
    return chosen, rejected


def _refuse_foreign_prompt(prompt: str, common: list[dict], where: str) -> None:
    """A text prompt beside message lists is fine only as a copy of the user message that both lists hold."""
    user = [m["content"] for m in common if m["role"] == "user"]
    if not user or user[-1] != prompt:
        raise InputError(
            "prompt, chosen and rejected of one kind",
            f'{where}: "prompt" is text, "chosen" and "rejected" are messages that do not start with it',
            'write the prompt as [{"role": "user", "content": TEXT}]',
        )


def _messages(value: list, key: str, where: str) -> list[dict]:
    if not value:
        if key == "prompt":
            raise RowError("empty prompt", "at least one message", f'{where}, key "prompt": []', "add the question")
        raise _empty(key, where)
    return [_message(message, f'{where}, key "{key}[{i}]"') for i, message in enumerate(value)]


def _message(message: Any, place: str) -> dict:
    if not isinstance(message, dict):
        raise InputError("a message with role and content", f"{place}: {shown(message)}", "write it as an object")
    # Columnar files fill what a message lacks with null.
    message = {k: v for k, v in message.items() if v is not None}
    if "content" not in message and message.get("tool_calls"):
        message["content"] = ""
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            got = shown(message[key]) if key in message else f"missing; it has {', '.join(message) or 'no keys'}"
            raise InputError(
                'a message with text for "role" and "content"',
                f'{place}, key "{key}": {got}',
                "give both as strings; parts such as images are not supported",
            )
        _check_text(message[key], key, place)
    return message


def _dialogs(prompt: Any, chosen: str, rejected: str, where: str) -> tuple[None, list[dict], list[dict]]:
    if prompt is not None and not (
        isinstance(prompt, str) and chosen.startswith(prompt) and rejected.startswith(prompt)
    ):
        raise InputError(
            "dialogs that hold their prompt themselves",
            f'{where}, key "prompt": {shown(prompt)}, with which "chosen" and "rejected" do not start',
            'remove "prompt", or set `format: standard` if the answers are raw text',
        )
    return None, _dialog(chosen), _dialog(rejected)


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


# ---- what no pair may be


def _refuse_unusable(completions: tuple, where: str) -> None:
    for key, completion in zip(("chosen", "rejected"), completions, strict=True):
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
    if completions[0] == completions[1]:
        raise _identical(where)


def _empty(key: str, where: str) -> RowError:
    return RowError(
        "empty completion",
        "an answer with text in it",
        f'{where}, key "{key}": empty or only white space',
        "fill it in or drop the row (`on_bad_row: drop`)",
    )


def _identical(where: str) -> RowError:
    return RowError(
        "identical completions",
        "two different answers",
        f'{where}: "chosen" and "rejected" are the same',
        "drop the row (`on_bad_row: drop`): it holds no preference",
    )


def _check_text(value: Any, key: str, where: str) -> None:
    if not isinstance(value, str):
        raise InputError("text", f'{where}, key "{key}": {shown(value)}', "store it as a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, which JSON's \\ud83d lets through
            raise RowError(
                "broken Unicode",
                "Unicode text",
                f'{where}, key "{key}", character {error.start}: {value[error.start]!r}',
                "write the text out again from its source, or drop the row",
            ) from error
