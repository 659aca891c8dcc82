"""Prompts: texts and conversations, from files or Python, as token ids."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpref.data.checks import check_text, shown
from jaxpref.data.encode import check_known_tokens, encode_prompts
from jaxpref.data.foreign import own_row
from jaxpref.data.kinds import kind_of_row, read_group
from jaxpref.data.memory import tables_in_memory
from jaxpref.data.messages import read_messages
from jaxpref.data.pictures.processor import PictureProcessor
from jaxpref.data.pictures.rows import column_pictures, place_pictures
from jaxpref.data.sources import read_all
from jaxpref.data.splits import Part
from jaxpref.data.template import template_columns
from jaxpref.errors import InputError
from jaxpref.storage.paths import as_path
from jaxpref.types import Group

_ANSWERS = ("chosen", "rejected", "completion", "completions")


def read_prompts(path: str | Path, part: Part | None = None) -> list[Group]:
    """The prompts of a file, as groups without completions.

    Args:
        path: a `.txt` with one prompt per line, as it stands there; or what `data.train` may name
            (.jsonl, .parquet, a folder, a hub id), each row with `prompt` (text or messages) or
            `messages`, or a row of training data, the prompt of which is taken as training takes
            it.
        part: what to read of a path that has several splits or configurations; None: as held-out
            data is read.
    Errors: InputError with file and row.
    """
    if str(path).endswith(".txt"):
        rows = _lines(as_path(path))
    else:
        rows = read_all([str(path)], part or Part(default="test"))
    return [to_prompt(row, where, number) for number, (row, where) in enumerate(rows)]


def given_prompts(prompts: Iterable[Any]) -> list[Group]:
    """The same for prompts in Python: texts, lists of messages, or rows as in a file.

    They may also be the rows of a pandas frame, or of a dataset of `datasets`.
    Errors: InputError for one prompt where several are expected, naming what to write.
    """
    given = enumerate(_given_rows(prompts))
    return [to_prompt(row, f"prompts[{number}]", number) for number, row in given]


def _given_rows(prompts: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
        raise InputError(
            "a list of prompts: texts, lists of messages, or rows",
            f"prompts={shown(prompts)}",
            "write prompts=[...], also for a single one",
        )
    if getattr(prompts, "ndim", 1) == 2:  # a frame, which would give the names of its columns
        tables: Any = tables_in_memory(prompts, "prompts", Part(default="test"))
        prompts = (row for row, _ in tables[0].rows())
    for number, value in enumerate(prompts):
        if isinstance(value, Mapping) and "role" in value and "prompt" not in value:
            raise InputError(
                "prompts: texts, lists of messages, or rows",
                f"prompts[{number}], a message by itself: {shown(value)}",
                "put the messages of a conversation into a list of their own: "
                "prompts=[[{...}, {...}]]",
            )
        yield value if isinstance(value, Mapping) else {"prompt": value}


def to_prompt(
    row: Mapping[str, Any],
    where: str,
    number: int,
    format: str = "auto",
    columns: Mapping[str, str | None] = {},
) -> Group:
    """A row as a group without completions.

    Args:
        format, columns: as of `own_row`.
    Errors: InputError for a row without a prompt.
    """
    own = own_row(row, where, format, columns)
    row = own.values
    if any(key in row for key in _ANSWERS):
        answered = read_group(kind_of_row(row, where), row, where, number, own.form, ())
        return dataclasses.replace(answered, completions=(), columns={})
    value = row.get("prompt")
    if value is None:
        raise InputError(
            'rows with "prompt" (text or messages) or "messages"',
            f"{where}: {', '.join(map(str, row)) or 'no keys'}",
            'rename the key that holds the prompt to "prompt"',
        )
    if isinstance(value, str):
        check_text(value, "prompt", where)
        return Group(value, (), number, where, pictures=column_pictures(row, where))
    if not isinstance(value, list):
        raise InputError(
            "text or a list of messages",
            f'{where}, key "prompt": {shown(value)}',
            'write "prompt" as text or as [{"role": ..., "content": ...}]',
        )
    messages = read_messages(value, "prompt", where)
    if messages[-1]["role"] == "assistant":
        raise InputError(
            "a conversation that waits for a reply",
            f'{where}, key "prompt": its last message has role "assistant"',
            "remove that message from the end of the row",
        )
    prompt, pictures = place_pictures(messages, column_pictures(row, where), where)
    given = template_columns(row, where)
    return Group(prompt, (), number, where, *given, pictures=pictures)


def prompt_ids(
    prompts: Sequence[Group],
    tokenizer: Any,
    *,
    vocabulary: int,
    positions: int,
    max_new_tokens: int,
    processor: PictureProcessor | None = None,
) -> list[np.ndarray]:
    """Token ids of every prompt.

    Text is taken as it is, with the tokenizer's special tokens; messages by the chat template.

    Args:
        vocabulary: of the model.
        positions: of the model, for prompt and new tokens together.
        processor: of a model that sees pictures, which the prompts' are read by.
    Errors: InputError for no prompts, one without tokens, one that ends with a picture, and one
        that leaves too little room; RowError for one that the chat template refuses.
    """
    if not prompts:
        raise InputError("at least one prompt", "none", "add prompts to the file or the list")
    encoded = encode_prompts(prompts, tokenizer, processor)
    check_known_tokens(
        ((prompt.where, (ids,)) for prompt, ids in zip(prompts, encoded, strict=True)), vocabulary
    )
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not len(ids):
            raise InputError(
                "a prompt of at least one token",
                f"{prompt.where}: no token",
                "write a text, or remove the row",
            )
        if processor is not None and ids[-1] == processor.token_id:
            raise InputError(
                "a prompt that ends with text",
                f"{prompt.where}: it ends with a picture",
                "put a question, or a line break, after the picture",
            )
        if len(ids) + max_new_tokens > positions:
            raise InputError(
                f"prompt and new tokens within the model's {positions} positions",
                f"{prompt.where}: {len(ids)} tokens + max_new_tokens={max_new_tokens}",
                "shorten the prompt or lower max_new_tokens",
            )
    return encoded


def _lines(path: Path):
    if not path.is_file():
        raise InputError(
            "a file of prompts", f"{path}: no such file", "give the path of a file that exists"
        )
    for number, raw in enumerate(path.read_bytes().splitlines(), 1):
        where = f"{path}, row {number}"
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(
                "text in UTF-8", f"{where}: {error}", "convert the file to UTF-8"
            ) from error
        if not text.strip():
            raise InputError("a prompt in every line", f"{where}: blank", "remove the line")
        yield {"prompt": text}, where
