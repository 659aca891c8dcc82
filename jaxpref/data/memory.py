"""Rows in memory as a source: lists, pandas frames, datasets of `datasets`, generator functions.

Their places are `data[12]`, as Python names them.
"""

import base64
import inspect
import json
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    if callable(given):
        return tables_in_memory(_called(given, name), name, part)
    if paths := _paths(given, name):
        return paths
    if isinstance(given, Mapping):  # a DatasetDict
        _check_splits(given, name)
        [split] = choose({split: split for split in given}, part, name)
        return [_table(given[split], f'{name}["{split}"]')]
    if part.split is not None:
        raise InputError(
            "a split only of what may have several: a DatasetDict, or paths",
            f"split={part.split!r} with {name}, rows without splits",
            f"remove data.{'train' if name == 'data' else 'eval'}_split, or give all splits",
        )
    return [_table(given, name)]


def _called(function: Callable[[], Any], name: str) -> Given:
    """What a function without arguments gives.  Errors: InputError for one that asks for some."""
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise InputError(
            "a function without arguments", f"{name}: {error}", f"give {name}=lambda: ROWS"
        ) from error
    except ValueError:  # of C, without a signature
        pass
    return function()


def _paths(given: Given, name: str) -> list[str | Table]:
    """Paths, if it is these.  Errors: InputError for paths and rows in one list."""
    if isinstance(given, str | os.PathLike):
        return [os.fspath(given)]
    if not isinstance(given, list | tuple) or not given:
        return []
    if not isinstance(given[0], str | os.PathLike):
        return []
    for index, one in enumerate(given):
        if not isinstance(one, str | os.PathLike):
            raise InputError(
                "paths alone, or rows alone",
                f"{name}[0]: a path, {name}[{index}]: a {type(one).__name__}",
                "read the files into rows first, or write the rows to a file",
            )
    return [os.fspath(one) for one in given]


def _check_splits(given: Mapping[str, Any], name: str) -> None:
    """Errors: InputError for columns, for paths, or for one row, where splits are expected."""
    for key, part in given.items():
        of_rows = not isinstance(part, list | tuple) or all(isinstance(x, dict) for x in part[:1])
        if isinstance(part, str | os.PathLike) or not of_rows:
            raise InputError(
                "rows, or a dict of splits with rows in each",
                f"{name}[{key!r}]: {type(part).__name__} without rows",
                "of columns make rows with datasets.Dataset.from_dict, put one row into a list, "
                "and give paths without splits",
            )


def _table(given: Given, name: str) -> Table:
    if _is_of("datasets", given):
        return Table(name, partial(_dataset_rows, given, name))
    if _is_of("pandas", given):
        return Table(name, partial(_frame_rows, given, name))
    if isinstance(given, Sequence) and not isinstance(given, bytes):
        _check_no_tables(given, name)
        return Table(name, partial(_placed, given, name))
    if not isinstance(given, Iterable):
        raise InputError(
            f"{name}: paths, a list of rows (dicts), a pandas frame, a Dataset, or a function "
            "that gives rows",
            f"{name}: {type(given).__name__}",
            "give one of these",
        )
    return Table(name, _Spooled(given, name))


def _check_no_tables(given: Sequence[Any], name: str) -> None:
    """Errors: InputError for whole tables in a list."""
    if given and (_is_of("datasets", given[0]) or _is_of("pandas", given[0])):
        raise InputError(
            "rows, or one table of them",
            f"{name}[0]: a {type(given[0]).__name__}",
            "join them with datasets.concatenate_datasets or pandas.concat; several held-out sets "
            "are a dict, eval={name: rows}",
        )


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

    if frame.ndim != 2:
        raise InputError("a frame of rows", f"{name}: a Series", "give the frame that it is of")
    # An index with a name is a column that was moved there, as by `set_index`.
    named = [level for level in frame.index.names if level is not None]
    frame = frame.reset_index([level for level in named if level not in frame.columns])
    try:
        table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    except (pyarrow.ArrowException, ValueError) as error:
        raise InputError(
            "a frame whose columns have names of their own, and values of one type each",
            f"{name}: {' '.join(map(str, error.args))}",
            'mend that column, or give frame.to_dict("records")',
        ) from error
    return _placed(arrow_rows(table.to_batches()), name)


class _Spooled:
    """Rows that come only once, in a file that nobody else sees: they may be more than memory."""

    def __init__(self, rows: Iterable[Any], name: str):
        self._file, self._name = tempfile.TemporaryFile("w+", encoding="utf-8"), name
        weakref.finalize(self, self._file.close)
        for row, where in _placed(_told(rows, name), name):
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


def _told(rows: Iterable[Any], name: str) -> Iterator[Any]:
    """The rows; an error of the user's own code says after how many it came."""
    count = 0
    try:
        for row in rows:
            yield row
            count += 1
    except Exception as error:
        error.add_note(f"raised while {name}[{count}] was asked for")
        raise


_BYTES = "jaxpref: bytes in base 64"
"""Key of what stands for bytes in a line."""


def _with_bytes(value: Any, where: str) -> Any:
    """Bytes and numpy's numbers as JSON can write them; pictures in memory are bytes from here on.

    Errors: TypeError for anything else; as of `as_picture`.
    """
    if hasattr(value, "getexif") or (isinstance(value, np.ndarray) and value.dtype == np.uint8):
        value = as_picture(value, where, where).data
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes | bytearray | memoryview):
        return {_BYTES: base64.b64encode(value).decode()}
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _from_line(line: str) -> Any:
    return json.loads(line, object_hook=_without_base64)


def _without_base64(value: dict[str, Any]) -> Any:
    return base64.b64decode(value[_BYTES]) if value.keys() == {_BYTES} else value
