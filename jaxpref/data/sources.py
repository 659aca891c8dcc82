"""Raw rows out of files, folders and the Hugging Face hub, each with the place it came from.

The place (`train.jsonl, row 12`) travels with a row through every later stage, so that any error
can name it.  `row` counts the lines of a text file from 1, as an editor does; `index` counts
records from 0, as `dataset[12]` does.
"""

import difflib
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxpref.errors import InputError

Rows = Iterator[tuple[dict, str]]

_SPLIT_WORDS = {"train", "test", "validation", "valid", "val", "dev", "eval"}


def read_rows(path: str, split: str | None = None, *, name: str | None = None) -> Rows:
    """The rows of one source, in its own order, each with its place.

    Args:
        path: a file (`.jsonl`, `.json` holding JSON lines or one list, either with `.gz`;
            `.parquet`), a folder written by `datasets` (`save_to_disk`), a folder of such files, or
            a hub id (`owner/name`).  What exists on disk wins over a hub id of the same spelling.
        split: which split of a folder or a hub dataset; needed wherever there is more than one.  In
            a folder of files it is a word of the file name (`train-00000.parquet`,
            `base.train.jsonl.gz`).
        name: which configuration of a hub dataset.

    Returns:
        An iterator of (row, where).  This call checks path and split; rows are checked as they are
        read.

    Raises:
        InputError: no such path or split, an unknown kind of file, an empty file, text that is not
            UTF-8 or not JSON (with line and column; `NaN` and `Infinity` are not JSON), a row that
            is not an object.
    """
    local = Path(path).expanduser()
    if local.exists() and name is not None:
        raise InputError(
            "`name` only with a hub dataset",
            f"name={name!r} with the local path {path}",
            "remove `name`",
        )
    if local.is_dir():
        return _folder_rows(local, split)
    if local.is_file():
        if split is not None:
            raise InputError(
                "`split` only with a folder or a hub dataset",
                f"split={split!r} with the file {path}",
                "remove `split`, or name the folder instead of the file",
            )
        return _file_rows(local)
    if _is_hub_id(path):
        return _hub_rows(path, split, name)
    if "://" in path:
        raise InputError("a local path or a hub id", path, "copy it to a local disk first")
    raise _missing(local)


def split_of(path: str, split: str) -> str | None:
    """The split to read of a path that may have several; a file has none."""
    return None if Path(path).expanduser().is_file() else split


def _is_hub_id(path: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", path)) and _suffix(Path(path)) is None


def _missing(path: Path) -> InputError:
    if not path.parent.is_dir():
        fix = f"check the folder: {path.parent} does not exist"
    else:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=3)
        fix = "check the path; a hub id is written `owner/name`"
        if near:
            fix = f"did you mean {', '.join(near)}?"
    return InputError(
        "an existing file or folder, or a hub id", f"{path}, which does not exist", fix
    )


# ---- files


def _file_rows(path: Path) -> Rows:
    suffix = _suffix(path)
    if suffix is None:
        raise InputError(
            f"a data file ({', '.join(_READERS)})",
            f"{path}",
            "convert the file or rename it after its content",
        )
    return _at_least_one(_READERS[suffix](path), path)


def _suffix(path: Path) -> str | None:
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
            yield _row(_parsed(text.rstrip("\r\n"), path, number), where), where


def _json(path: Path) -> Rows:
    """A `.json` file: one list of objects, or JSON lines under another name."""
    raw = b"".join(_lines(path))
    if not raw.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _json_lines(path)
        return
    for index, value in enumerate(_parsed(_decoded(raw, path, 1), path, 1)):
        where = f"{path}, index {index}"
        yield _row(value, where), where


def _lines(path: Path) -> Iterator[bytes]:
    open_file = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with open_file(path, "rb") as file:
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


def _row(value: Any, where: str) -> dict:
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
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield row, f"{path}, index {index}"
                    index += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            "a Parquet file",
            f"{path}: {error} (after {index} rows)",
            "copy or download the file again",
        ) from error


_READERS = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json,
    ".json.gz": _json,
    ".parquet": _parquet,
}


# ---- folders and the hub


def _folder_rows(folder: Path, split: str | None) -> Rows:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return _saved_rows(folder, split)
    files = sorted(p for p in folder.iterdir() if p.is_file() and _suffix(p) and p.name[0] != ".")
    if not files:
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
        raise InputError(
            f"a folder of data files ({', '.join(_READERS)}) or one written by `datasets`",
            f"{folder}, which holds {inside}",
            "name the folder that holds the files themselves",
        )
    return _rows_of(_files_of_split(files, folder, split))


def _rows_of(files: list[Path]) -> Rows:
    for path in files:
        yield from _file_rows(path)


def _files_of_split(files: list[Path], folder: Path, split: str | None) -> list[Path]:
    words = {p: set(re.split(r"[^a-z0-9]+", p.name.lower())) for p in files}
    if split is not None:
        chosen = [p for p in files if split.lower() in words[p]]
        if chosen:
            return chosen
    splits = sorted(set().union(*words.values()) & _SPLIT_WORDS)
    # Reading train and test files as one would go unnoticed until the figures look too good.
    if split is None and len(splits) < 2:
        return files
    fix = "remove `split`: no file name holds one"
    if splits:
        fix = f"set `split` to one of: {', '.join(splits)}"
    raise InputError(
        "a split that names files of the folder",
        f"split={split!r} with {folder}, which holds {', '.join(p.name for p in files[:10])}",
        fix,
    )


def _saved_rows(folder: Path, split: str | None) -> Rows:
    import datasets  # takes seconds to import, so only where it is needed

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises many types for a damaged folder
        raise InputError(
            "a folder written by `Dataset.save_to_disk`",
            f"{folder}: {error!r}",
            "save the dataset again",
        ) from error
    return _dataset_rows(loaded, str(folder), split)


def _hub_rows(path: str, split: str | None, name: str | None) -> Rows:
    import datasets

    try:
        loaded = datasets.load_dataset(path, name=name, split=split)
    except Exception as error:  # network, permissions, names of splits: each its own type
        raise InputError(
            "a local path, or a hub dataset that can be read",
            f"{path} (name={name!r}, split={split!r}): {type(error).__name__}: {error}",
            "check the spelling, the network and `name`/`split`; "
            "or download it and give the local path",
        ) from error
    # `load_dataset` has already taken the split out.
    return _dataset_rows(loaded, path if split is None else f"{path} ({split})", None)


def _dataset_rows(loaded: Any, label: str, split: str | None) -> Rows:
    if isinstance(loaded, dict):  # a DatasetDict
        if split is None and len(loaded) == 1:
            split = next(iter(loaded))
        if split not in loaded:
            raise InputError(
                "one of its splits",
                f"split={split!r} with {label}",
                f"set `split` to one of: {', '.join(loaded)}",
            )
        loaded, label = loaded[split], f"{label} ({split})"
    elif split is not None:
        raise InputError(
            "`split` only where there are splits",
            f"split={split!r} with {label}, which has none",
            "remove `split`",
        )
    return _indexed(loaded, label)


def _indexed(rows: Any, label: str) -> Rows:
    empty = True
    for index, row in enumerate(rows):
        empty = False
        yield row, f"{label}, index {index}"
    if empty:
        raise InputError(
            "a dataset with at least one row", f"{label}, which holds none", "check the split"
        )
