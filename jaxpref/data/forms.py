"""Raw rows into groups: one prompt and its completions, whatever form the row came in.

The forms, told apart row by row unless the caller names one:

    standard         the prompt and the answers are text
    conversational   they are lists of {"role": ..., "content": ...} messages
    anthropic        the answers are whole dialogs, "\\n\\nHuman: ...\\n\\nAssistant: ..."

`prompt` may be left out: it is then what the answers have in common, cut at a message boundary
(`messages.split_messages`), or, of the two texts of a pair, where neither answer is empty and no
word is split (`split_text`).  Which answers a row has is told in `kinds.py`.
"""

from collections.abc import Mapping
from typing import Any

from jaxpref.data.checks import (
    MISSING,
    check_text,
    empty_completion,
    present,
    quoted,
    refuse_identical,
    refuse_unusable,
    shown,
)
from jaxpref.data.messages import read_dialogs, split_conversations
from jaxpref.data.pictures.rows import column_pictures, place_pictures, refuse_pictures
from jaxpref.data.prefix import common_length
from jaxpref.data.template import template_columns
from jaxpref.errors import InputError, RowError
from jaxpref.types import Group

FORMS = ("auto", "standard", "conversational", "anthropic")

DIALOG = "\n\nHuman:"
"""How a dialog of the anthropic form begins."""


def make_group(
    row: Mapping[str, Any],
    answers: Mapping[str, Any],
    where: str,
    row_id: int,
    format: str = "auto",
) -> Group:
    """A group of any number of answers, without numbers.

    Args:
        row: for `prompt`, its pictures and what the chat template is given.
        answers: {key to name in errors: raw answer}, in the order of the completions.
        where: file and row, for errors.
        row_id: becomes `Group.row_id`.
        format: one of `FORMS`; anything but `auto` refuses rows of another form.

    Raises:
        RowError: the row has no usable answers (an empty or missing one, twice the same one,
            answers to different prompts, text that is not Unicode, ...); `reason` says which.
        InputError: values of the wrong type, which other rows will share.
    """
    _check_answers(answers, where)
    prompt = present(row["prompt"], "prompt", where) if "prompt" in row else None
    form = _form(answers, prompt, where, format)
    completions: dict[str, Any]
    if form == "standard":
        prompt, completions = _split_texts(prompt, answers, where)
    else:
        if form == "anthropic":
            prompt, answers = None, read_dialogs(prompt, answers, where)
        prompt, completions = split_conversations(prompt, answers, where)
    for key, completion in completions.items():
        refuse_pictures(completion, key, where)
    refuse_unusable(completions, where)
    prompt, pictures = place_pictures(prompt, column_pictures(row, where), where)
    tools, template_kwargs = template_columns(row, where)
    if isinstance(prompt, str) and (tools or template_kwargs):
        raise InputError(
            "tools and template variables only with messages",
            f'{where}, key "{"tools" if tools else "chat_template_kwargs"}": the row is plain text',
            "write the prompt and the answers as lists of messages, or remove the column",
        )
    return Group(
        prompt,
        tuple(completions.values()),
        row_id,
        where,
        tools,
        template_kwargs,
        pictures=pictures,
    )


def _check_answers(answers: Mapping[str, Any], where: str) -> None:
    for key, value in answers.items():
        if not isinstance(present(value, key, where), str | list):
            raise InputError(
                "text or a list of messages",
                f'{where}, key "{key}": {shown(value)}',
                "store the answer as a string, or as a list of role/content objects",
            )
    (first, value), *others = answers.items()
    for key, other in others:
        if type(other) is not type(value):
            kinds = f'"{first}" is a {type(value).__name__}, "{key}" a {type(other).__name__}'
            raise InputError(
                "answers of one kind, all text or all lists of messages",
                f"{where}: {kinds}",
                'write the text as [{"role": "assistant", "content": TEXT}], or set `format: '
                "standard` if all are texts, one of them JSON",
            )
    refuse_identical(answers, where)


def _form(answers: Mapping[str, Any], prompt: Any, where: str, format: str) -> str:
    """The form of a row's answers, which `format` may name or leave open."""
    if format not in FORMS:
        raise InputError(
            f"`format` one of {', '.join(FORMS)}", repr(format), "set `format` to one of them"
        )
    if any(isinstance(answer, list) for answer in answers.values()):
        form = "conversational"
    else:
        form = _form_of_texts(answers, prompt, where, format)
    if format not in ("auto", form):
        raise InputError(
            f"rows of the {format} format",
            f"{where}, in {quoted(answers)}: the {form} format",
            f"set `format` to {form} or auto",
        )
    return form


def _form_of_texts(answers: Mapping[str, str], prompt: Any, where: str, format: str) -> str:
    if format == "standard":
        return "standard"  # any text is text
    plain = [key for key, text in answers.items() if not text.startswith(DIALOG)]
    if 0 < len(plain) < len(answers) and prompt is None:
        raise RowError(
            "broken dialog",
            'dialogs all starting with "\\n\\nHuman:"',
            f'{where}, key "{plain[0]}" does not',
            "mend or drop the row, or set `format: standard` to train on the raw text",
        )
    return "standard" if plain else "anthropic"


def _split_texts(prompt: Any, answers: Mapping[str, str], where: str) -> tuple[str, dict[str, str]]:
    """The prompt and the completions of a row of texts."""
    if isinstance(prompt, list):
        raise InputError(
            "prompt and answers of one kind",
            f'{where}: "prompt" is a list of messages, {quoted(answers)} text',
            'write the answers as [{"role": "assistant", "content": TEXT}], or the prompt as text',
        )
    for key, text in answers.items():
        check_text(text, key, where)
    if prompt is not None:
        check_text(prompt, "prompt", where)
        return prompt, dict(answers)
    if tuple(answers) != ("chosen", "rejected"):
        raise RowError(
            MISSING,
            "a prompt (the common start of texts is taken for one in pairs only)",
            f'{where}: no key "prompt" beside {quoted(answers)}',
            'add "prompt"',
        )
    for key, text in answers.items():
        if not text.strip():
            raise empty_completion(key, where)
    end = split_text(*answers.values())
    return answers["chosen"][:end], {key: text[end:] for key, text in answers.items()}


def split_text(first: str, second: str) -> int:
    """Length of the implicit prompt of two texts, in characters.

    The longest common start after which both texts go on with white space, so that no word is split
    and the white space opens the completion (" hello", as tokenizers like it), and with more than
    white space, so that no completion is empty.  0 where there is no such place: scripts without
    spaces need an explicit prompt.
    """
    common = common_length(first, second)
    end = min(common, len(first.rstrip()) - 1, len(second.rstrip()) - 1)
    for at in range(end, 0, -1):
        if first[at].isspace() and second[at].isspace() and not first[at - 1].isspace():
            return at
    return 0
