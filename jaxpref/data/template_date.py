"""The date that a chat template prints as today's, fixed: equal rows are equal tokens on any day.

Templates ask transformers for it by `strftime_now("%d %b %Y")`, Llama 3.2's and gpt-oss's for
example.  Such calls are replaced by what they give on a fixed day, so that the template that a
tokenizer carries, and everything that is kept under a digest of it, says which day that is.
"""

import ast
import json
import re
from datetime import datetime
from typing import Any

from jaxpref.errors import InputError

_NAME = "strftime_now"
_CALL = re.compile(_NAME + r"""\(\s*(?:format\s*=\s*)?("[^"]*"|'[^']*')\s*\)""")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_OTHER_USE = re.compile(_NAME + r"(?!\w|\s+is\b)")
"""Anything but the question whether there is such a function."""


def prints_date(tokenizer: Any) -> bool:
    """Whether one of the tokenizer's chat templates asks for today's date."""
    return any(_NAME in template for template in _templates(tokenizer).values())


def fix_date(tokenizer: Any, day: str) -> None:
    """Makes the tokenizer's chat templates print this day (YYYY-MM-DD) as today's.

    Errors: InputError for a template that works out the format of the date.
    """
    fixed = {name: _fixed(text, day) for name, text in _templates(tokenizer).items()}
    several = isinstance(tokenizer.chat_template, dict)
    tokenizer.chat_template = fixed if several else fixed[""]


def _templates(tokenizer: Any) -> dict[str, str]:
    template = tokenizer.chat_template
    return template if isinstance(template, dict) else {"": template or ""}


def _fixed(template: str, day: str) -> str:
    midnight = datetime.fromisoformat(day)

    def printed(call: re.Match) -> str:
        text = midnight.strftime(ast.literal_eval(call[1]))
        return json.dumps(text, ensure_ascii=False)

    template = _CALL.sub(printed, _COMMENT.sub("", template))
    if other := _OTHER_USE.search(template):
        near = template[other.start() : other.start() + 60]
        raise InputError(
            f'a chat template that writes the format of its date, as {_NAME}("%d %b %Y")',
            f"{near!r}",
            "write the format into the template, or the date itself",
        )
    return template
