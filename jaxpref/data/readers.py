"""Rows out of one file, each with its place: JSON lines, JSON, Parquet.

`row` counts the lines of a text file from 1, as an editor does; `index` counts records from 0, as
`dataset[12]` does.
"""

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpref.errors import InputError
from jaxpref.storage.local_copies import local_file

if TYPE_CHECKING:
    import pyarrow

Rows = Iterator[tuple[dict, str]]


def file_rows(path: Path) -> Rows:
    """The rows of a file; of one in a bucket, out of its copy on this host.

    Errors: InputError for an unknown kind of file; while rows are read, for an empty file, text
        that is not UTF-8 or not JSON (with line and column; `NaN` and `Infinity` are not JSON), and
        a row that is not an object.
    """
    return _at_least_one(_READERS[check_readable(path)](path), path)


def check_readable(path: Path) -> str:
    """The file's ending.  Errors: InputError for an unknown kind of file."""
    ending = suffix(path)
    if ending is None:
        raise InputError(
            f"a data file ({ENDINGS})",
            f"{path}",
            "convert the file or rename it after its content",
        )
    return ending


def suffix(path: Path) -> str | None:
    """The longest known ending of the file's name, or None."""
    name = path.name.lower()
    return max((s for s in _READERS if name.endswith(s)), key=len, default=None)


def _at_least_one(rows: Rows, path: Path) -> Rows:
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise InputError(
            "a file with at least one row", f"{path}, which holds none", "remove it or fill it"
        )


def _json_lines(path: Path) -> Rows:
    for number, raw in enumerate(_lines(path), 1):
        text = _decoded(raw, path, number)
        if text.strip():
            where = f"{path}, row {number}"
            yield check_row(_parsed(text.rstrip("\r\n"), path, number), where), where


def _json(path: Path) -> Rows:
    """A `.json` file: one list of objects, or JSON lines under another name."""
    raw = b"".join(_lines(path))
    if not raw.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _json_lines(path)
        return
    for index, value in enumerate(_parsed(_decoded(raw, path, 1), path, 1)):
        where = f"{path}, index {index}"
        yield check_row(value, where), where


def _lines(path: Path) -> Iterator[bytes]:
    open_file = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with open_file(local_file(path), "rb") as file:
            yield from file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            "a whole gzip file", f"{path}: {error}", "copy or download the file again"
        ) from error


def _decoded(raw: bytes, path: Path, first_line: int) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise InputError(
            "text in UTF-8",
            f"{path}, row {line}, column {column}: byte 0x{raw[error.start]:02x} ({error.reason})",
            "convert the file, for example with `iconv -f latin1 -t utf-8`",
        ) from error
    # Some editors on Windows put a byte order mark in front of the file; JSON has no such
    # character.
    return text.removeprefix("\ufeff") if first_line == 1 else text


def _parsed(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(
            "one JSON object per line, or one list of objects in a `.json` file",
            f"{path}, row {line}, column {error.colno}: {error.msg}",
            "mend or remove that line",
        ) from error


def check_row(value: Any, where: str) -> dict:
    """The row.  Errors: InputError for no object, and numbers in it that are not finite."""
    if not isinstance(value, dict):
        raise InputError(
            "a JSON object for every row",
            f"{where}: a {type(value).__name__}",
            'write {"chosen": ..., ...}',
        )
    for key, item in value.items():
        # Python's parser takes NaN and Infinity, which JSON does not have, and turns 1e999 into
        # infinity.
        if _has_non_finite(item):
            raise InputError(
                "finite numbers",
                f'{where}, key "{key}": NaN or infinity',
                "write a number, or leave the key out of that row",
            )
    return value


def _has_non_finite(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_has_non_finite, value.values()))
    return isinstance(value, list) and any(map(_has_non_finite, value))


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    index = 0
    try:
        with pyarrow.parquet.ParquetFile(local_file(path)) as file:
            for row in arrow_rows(file.iter_batches()):
                yield row, f"{path}, index {index}"
                index += 1
    except (pyarrow.ArrowException, OSError, KeyError, json.JSONDecodeError) as error:
        raise InputError(
            "a Parquet file",
            f"{path}: {error} (after {index} rows)",
            "copy or download the file again",
        ) from error


def arrow_rows(batches: Iterable["pyarrow.RecordBatch | pyarrow.Table"]) -> Iterator[dict]:
    """The rows of Arrow data, as they would stand in JSON lines.

    All objects of a column have the same keys in Arrow, with null where a row has none: such keys
    are left out.  What is of the type JSON (the `Json` feature of `datasets`) is parsed; pyarrow
    gives it as text.
    """
    for batch in batches:
        columns = [(field.name, _converter(field.type)) for field in batch.schema]
        for row in batch.to_pylist(maps_as_pydicts="strict"):
            yield {name: convert(row[name]) for name, convert in columns}


def _converter(kind: "pyarrow.DataType") -> Callable[[Any], Any]:
    """From values of an Arrow type, as pyarrow gives them, to those of JSON lines."""
    from pyarrow import JsonType, types

    if isinstance(kind, JsonType):
        return _or_null(json.loads)
    if types.is_struct(kind):
        fields = [(field.name, _converter(field.type)) for field in kind]
        return _or_null(lambda value: _object(value, fields))
    if types.is_map(kind):
        convert = _converter(kind.item_type)
        return _or_null(lambda value: {key: convert(item) for key, item in value.items()})
    if types.is_nested(kind):  # a list
        convert = _converter(kind.value_type)
        return _or_null(lambda value: [convert(item) for item in value])
    return lambda value: value


def _or_null(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else convert(value)


def _object(value: dict, fields: list[tuple[str, Callable[[Any], Any]]]) -> dict:
    return {name: convert(value[name]) for name, convert in fields if value[name] is not None}


_READERS = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json,
    ".json.gz": _json,
    ".parquet": _parquet,
}
ENDINGS = ", ".join(_READERS)
"""What data files are called, for messages."""
