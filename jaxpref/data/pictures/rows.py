"""Pictures out of rows: the columns `images` and `image`, and the parts of messages.

A picture is written as

    "cat.png"                           a file, from the data file's folder or by its whole path
    {"bytes": ..., "path": ...}         as `datasets.Image` stores it; `path` counts without `bytes`
    bytes                               those of a file
    PIL.Image.Image, numpy.ndarray      in memory; arrays are [H, W], [H, W, 3] or [H, W, 4] uint8
    "sha256:..."                        the digest of bytes that are not here: tells pictures apart

and stands where a message has a part {"type": "image"}: beside text in `content`, a list of such
parts and of {"type": "text", "text": ...}.  A part may hold its picture itself, under `image` or
`path`.  Where no message has such a part, the pictures of a row come before its first question, as
in TRL.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from jaxpref.data.checks import check_text, shown
from jaxpref.data.pictures.decode import DIGEST, as_rgb, digest_of, named, pillow
from jaxpref.errors import InputError, RowError
from jaxpref.storage.paths import as_path
from jaxpref.types import Picture

COLUMNS = ("images", "image")
TEXT, IMAGE = "text", "image"
"""Types of parts."""
_URL = re.compile(r"(https?|ftp|data):", re.IGNORECASE)
_HELD = ("image", "path", "url", "base64")
"""Keys of a part under which its picture may stand."""


# ---- one picture


def as_picture(value: Any, place: str, where: str) -> Picture:
    """A picture, as it is written in a row.

    Args:
        place: the row and the key, for errors.
        where: the row, of which files are named from the folder.

    Raises:
        RowError: there is none.
        InputError: anything else, and URLs, which are not fetched.
    """
    if isinstance(value, Picture):
        return value
    if isinstance(value, Mapping) and set(value) <= {"bytes", "path"}:
        stored = value.get("bytes")
        if isinstance(stored, str):
            raise InputError(
                "the bytes of a picture", f"{place}: text {stored[:20]!r}", "store them in Parquet"
            )
        value = value.get("path") if stored is None else stored
    if value is None:
        raise RowError("missing picture", "a picture", f"{place}: null", "add it or drop the row")
    if isinstance(value, str) and value.startswith(DIGEST):
        return Picture(digest=value.removeprefix(DIGEST))
    if isinstance(value, str | Path):
        return Picture(file=_file(str(value), place, where))
    if isinstance(value, bytes | bytearray | memoryview):
        return Picture(data=bytes(value))
    if isinstance(value, np.ndarray):
        value = _of_array(value, place)
    if isinstance(value, pillow().Image):
        file = io.BytesIO()
        as_rgb(value, place).save(file, "png", compress_level=1)
        return Picture(data=file.getvalue())
    raise InputError(
        "a picture: a file's name, its bytes, a PIL image, or an array of uint8",
        f"{place}: {shown(value)}",
        'write its file, or {"bytes": ..., "path": ...} as datasets.Image does',
    )


def _file(name: str, place: str, where: str) -> str:
    if _URL.match(name):
        raise InputError(
            "files of pictures; nothing is fetched from the network while data are read",
            f"{place}: {name[:60]}",
            "download the pictures, and write the names of their files",
        )
    path = as_path(name)
    # By its whole path, so that rows may be written elsewhere and read from another directory.
    return str(path if path.is_absolute() else (_folder(where) / name).absolute())


def _folder(where: str) -> Path:
    """Of the data file that a place (`data/train.jsonl, row 12`) names; of rows in memory `.`."""
    file = where.rpartition(", ")[0]
    return as_path(file).parent if file else Path()


def _of_array(array: np.ndarray, place: str) -> Any:
    if array.dtype != np.uint8 or array.shape[2:] not in ((), (3,), (4,)) or array.ndim < 2:
        raise InputError(
            "an array [H, W], [H, W, 3] or [H, W, 4] of uint8",
            f"{place}: {list(array.shape)} of {array.dtype}",
            "convert it: colours last, from 0 to 255",
        )
    return pillow().fromarray(array)


# ---- those of a row


def column_pictures(row: Mapping[str, Any], where: str) -> tuple[Picture, ...]:
    """The pictures of the columns of a row; errors as of `as_picture`."""
    named = {key: row[key] for key in COLUMNS if row.get(key) is not None}
    if len(named) > 1:
        raise InputError(
            "the pictures of a row in one column",
            f'{where}: "images" and "image"',
            "remove one of them, or set data.columns: {images: ...}, the column that is meant",
        )
    pictures: list[Picture] = []
    for key, value in named.items():
        values = value if isinstance(value, Sequence) and not _is_one(value) else [value]
        pictures += [
            as_picture(one, f'{where}, key "{key}[{i}]"', where) for i, one in enumerate(values)
        ]
    return tuple(pictures)


def as_column(pictures: Sequence[Picture]) -> dict[str, list]:
    """What a row has of its pictures, wherever it is written: whole paths; {} where it has none."""
    stored = [named(p) if p.data is None else {"bytes": bytes(p.data)} for p in pictures]
    return {COLUMNS[0]: stored} if stored else {}


def _is_one(value: Any) -> bool:
    return isinstance(value, str | bytes | bytearray | memoryview)


def read_parts(content: list, key: str, where: str) -> str | list[dict]:
    """The parts of a message; its text, where they are text alone.

    Args:
        key: of the message's content in its row, for errors.

    Raises:
        InputError: a part that is neither text nor a picture.
    """
    parts = [_part(part, f'{where}, key "{key}[{i}]"', where) for i, part in enumerate(content)]
    if all(part["type"] == TEXT for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any, place: str, where: str) -> dict:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == TEXT:
        check_text(part.get("text"), "text", place)
        return {"type": TEXT, "text": part["text"]}
    if kind != IMAGE:
        raise InputError(
            'parts {"type": "text", "text": ...} and {"type": "image"}',
            f"{place}: {shown(part)}",
            "write the message of such parts, or as one text",
        )
    held = [part[name] for name in _HELD if part.get(name) is not None]
    return {"type": IMAGE, **({"image": as_picture(held[0], place, where)} if held else {})}


def without_pictures(messages: Any) -> Any:
    """Messages without the parts that are pictures; anything else as it is."""
    if not isinstance(messages, list):
        return messages
    return [_text_parts(message) for message in messages]


def _text_parts(message: Any) -> Any:
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), list):
        return message
    parts = [p for p in message["content"] if not (isinstance(p, Mapping) and p["type"] == IMAGE)]
    return {**message, "content": parts}


def digest_of_files(
    rows: Iterable[tuple[Mapping[str, Any], str]], columns: Mapping[str, str | None]
) -> str:
    """Of the bytes of all files that rows name as pictures; what cannot be read is left out.

    Args:
        columns: as `data.columns`.
    """
    digest = hashlib.sha256()
    for row, where in rows:
        for name in _named_files(row, columns):
            with suppress(InputError):
                file = as_path(_file(name, where, where))
                if file.is_file():
                    digest.update(str(file).encode() + digest_of(file.read_bytes()).encode())
    return digest.hexdigest()


def with_whole_paths(
    row: Mapping[str, Any], where: str, columns: Mapping[str, str | None]
) -> dict[str, Any]:
    """A row with whole paths of its pictures, to be written into any folder.

    Args:
        columns: as `data.columns`.
    """
    column = columns.get(COLUMNS[0], COLUMNS[0])
    if column is None:
        return dict(row)

    def whole(value: Any) -> Any:
        if isinstance(value, str):
            return named(as_picture(value, where, where))
        if isinstance(value, list):
            return [whole(one) for one in value]
        if isinstance(value, Mapping) and value.get("bytes") is None and value.get("path"):
            return {**value, "path": whole(value["path"])}
        return value

    def of_part(part: Any) -> Any:
        if not isinstance(part, Mapping) or part.get("type") != IMAGE:
            return part
        return {key: whole(value) if key in _HELD else value for key, value in part.items()}

    def of_message(message: Any) -> Any:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), list):
            return message
        return {**message, "content": [*map(of_part, message["content"])]}

    def of_column(key: str, value: Any) -> Any:
        if key in (column, COLUMNS[1]):
            return whole(value)
        return [*map(of_message, value)] if isinstance(value, list) else value

    return {key: of_column(key, value) for key, value in row.items()}


def _named_files(row: Mapping[str, Any], columns: Mapping[str, str | None]) -> Iterator[str]:
    """Files that a row names as pictures, whatever else is wrong with it."""
    held = [row.get(columns.get("images", "images")), row.get("image")]
    for message in _messages(row.values()):
        for part in message["content"]:
            held += [part.get(key) for key in _HELD] if isinstance(part, Mapping) else []
    for value in held:
        for one in value if isinstance(value, list | tuple) else [value]:
            name = one
            if isinstance(one, Mapping):
                name = one.get("path") if one.get("bytes") is None else None
            if isinstance(name, str):
                yield name


def _messages(values: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    """Messages whose content is a list, wherever they stand in a row."""
    for value in values:
        for one in value if isinstance(value, list) else []:
            if isinstance(one, Mapping) and isinstance(one.get("content"), list):
                yield one


# ---- their places in a prompt


def place_pictures(
    prompt: str | list[dict], pictures: Sequence[Picture], where: str
) -> tuple[str | list[dict], tuple[Picture, ...]]:
    """A prompt with a part for every picture, and all of its pictures in the order of these parts.

    The pictures of a text stand where it says so itself, in the model's own way.

    Args:
        pictures: of the row's column, for the parts that hold none.

    Raises:
        RowError: there are not as many as parts for them.
    """
    if isinstance(prompt, str):
        return prompt, tuple(pictures)
    if pictures and not any(_images(message) for message in prompt):
        prompt = _before_question(prompt, len(pictures))
    parts = [part for message in prompt for part in _images(message)]
    empty = sum("image" not in part for part in parts)
    if empty != len(pictures):
        raise RowError(
            "not as many pictures as places",
            "a picture for every part of the type image",
            f"{where}: {empty} parts without a picture, {len(pictures)} pictures beside them",
            "mend or drop the row",
        )
    rest = iter(pictures)
    in_order = tuple(part["image"] if "image" in part else next(rest) for part in parts)
    return [_with_bare_parts(message) for message in prompt], in_order


def _images(message: Mapping[str, Any]) -> list[dict]:
    content = message["content"]
    return [part for part in content if part["type"] == IMAGE] if isinstance(content, list) else []


def _before_question(prompt: list[dict], count: int) -> list[dict]:
    asked = next((i for i, message in enumerate(prompt) if message["role"] == "user"), None)
    if asked is None:
        return prompt
    content = as_parts(prompt[asked]["content"])
    question = {**prompt[asked], "content": [{"type": IMAGE}] * count + content}
    return [*prompt[:asked], question, *prompt[asked + 1 :]]


def _with_bare_parts(message: dict) -> dict:
    """As chat templates read it."""
    if not isinstance(message["content"], list):
        return message
    bare = [{"type": IMAGE} if part["type"] == IMAGE else part for part in message["content"]]
    return {**message, "content": bare}


def refuse_pictures(completion: Any, key: str, where: str) -> None:
    """Raises: InputError for pictures in an answer, which models do not give."""
    if isinstance(completion, list) and any(_images(message) for message in completion):
        raise InputError(
            "pictures in prompts only",
            f'{where}, key "{key}": a part of the type image',
            "move it to the prompt, or drop the row",
        )


def as_parts(content: str | list[dict]) -> list[dict]:
    """The content of a message as parts."""
    return content if isinstance(content, list) else [{"type": TEXT, "text": content}]
