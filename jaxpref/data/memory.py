"""Rows in memory as a source: lists, pandas frames, datasets of `datasets`, generator functions.

Their places are `data[12]`, as Python names them.
"""

import base64
import json
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from jaxpref.data.pictures.rows import as_picture
from jaxpref.data.readers import Rows, arrow_rows, check_row
from jaxpref.data.splits import Part, choose
from jaxpref.data.tables import Table
from jaxpref.errors import InputError

Given = Any
"""Rows in memory (see `tables_in_memory`), or paths."""


def tables_in_memory(given: Given, name: str, part: Part) -> list[str | Table]:
    """What `load_groups` reads.

    Args:
        given: a list of rows (dicts), a pandas frame, a `Dataset` of `datasets`, a `DatasetDict`
            (of which `part` says the split), a function without arguments that gives rows, or an
            iterable of them, which is read once; a path, or a list of paths.
        name: of the argument, for places and messages.
    Errors: InputError for anything else, for no rows, and for a split of what has none.
    """
    if isinstance(given, str) or _has_paths(given):
        return [given] if isinstance(given, str) else list(given)
    if isinstance(given, Mapping):  # a DatasetDict
        [split] = choose({split: split for split in given}, part, name)
        return [_table(given[split], f'{name}["{split}"]')]
    if part.split is not None:
        raise InputError(
            "a split only of what may have several: a DatasetDict, or paths",
            f"split={part.split!r} with {name}, rows without splits",
            f"remove data.{'train' if name == 'data' else 'eval'}_split, or give all splits",
        )
    return [_table(given, name)]


def _has_paths(given: Given) -> bool:
    return isinstance(given, list | tuple) and bool(given) and isinstance(given[0], str)


def _table(given: Given, name: str) -> Table:
    if _is_of("datasets", given):
        return Table(name, partial(_dataset_rows, given, name))
    if _is_of("pandas", given):
        return Table(name, partial(_frame_rows, given, name))
    if isinstance(given, Sequence) and not isinstance(given, bytes):
        return Table(name, partial(_placed, given, name))
    rows = given() if callable(given) else given
    if not isinstance(rows, Iterable):
        raise InputError(
            f"{name}: paths, a list of rows (dicts), a pandas frame, a Dataset, or a function "
            "that gives rows",
            f"{name}: {type(given).__name__}",
            "give one of these",
        )
    return Table(name, _Spooled(rows, name))


def _is_of(package: str, given: Given) -> bool:
    """Whether the value is of this package, which need not be installed."""
    return type(given).__module__.partition(".")[0] == package


def _placed(rows: Iterable[Any], name: str) -> Rows:
    empty = True
    for index, row in enumerate(rows):
        empty = False
        where = f"{name}[{index}]"
        yield check_row(row, where), where
    if empty:
        raise InputError("at least one row", f"{name}, which holds none", f"give rows as {name}")


def _dataset_rows(dataset: Any, name: str) -> Rows:
    # Without the format (tensors, some of the columns) that may have been set for other uses.
    batches = dataset.with_format("arrow").iter(batch_size=1000)
    return _placed(arrow_rows(batches), name)


def _frame_rows(frame: Any, name: str) -> Rows:
    """What pandas counts as missing is null."""
    import pyarrow

    try:
        table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    except pyarrow.ArrowException as error:
        raise InputError(
            "a frame whose columns hold values of one type each",
            f"{name}: {' '.join(map(str, error.args))}",
            'mend that column, or give frame.to_dict("records")',
        ) from error
    return _placed(arrow_rows(table.to_batches()), name)


class _Spooled:
    """Rows that come only once, in a file that nobody else sees: they may be more than memory."""

    def __init__(self, rows: Iterable[Any], name: str):
        self._file, self._name = tempfile.TemporaryFile("w+", encoding="utf-8"), name
        weakref.finalize(self, self._file.close)
        for row, where in _placed(rows, name):
            try:
                self._file.write(json.dumps(row, default=partial(_with_bytes, where=where)) + "\n")
            except TypeError as error:
                raise InputError(
                    "rows of what JSON can write, and of pictures",
                    f"{where}: {error}",
                    "convert the value",
                ) from error

    def __call__(self) -> Rows:
        self._file.seek(0)
        return _placed(map(_from_line, self._file), self._name)


_BYTES = "jaxpref: bytes in base 64"
"""Key of what stands for bytes in a line."""


def _with_bytes(value: Any, where: str) -> dict[str, str]:
    """Bytes as JSON can write them; pictures in memory are bytes from here on.

    Errors: TypeError for anything else; as of `as_picture`.
    """
    if hasattr(value, "getexif") or (isinstance(value, np.ndarray) and value.dtype == np.uint8):
        value = as_picture(value, where, where).data
    if isinstance(value, bytes | bytearray | memoryview):
        return {_BYTES: base64.b64encode(value).decode()}
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _from_line(line: str) -> Any:
    return json.loads(line, object_hook=_without_base64)


def _without_base64(value: dict[str, Any]) -> Any:
    return base64.b64decode(value[_BYTES]) if value.keys() == {_BYTES} else value
