"""Raw rows out of files, folders and the Hugging Face hub, each with the place it came from.

The place (`train.jsonl, row 12`) travels with a row through every later stage, so that any error
can name it.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from jaxpref.data import hub, tfds
from jaxpref.data.readers import (
    ENDINGS,
    Rows,
    arrow_rows,
    check_readable,
    file_rows,
    suffix,
)
from jaxpref.data.splits import Part, choose, split_in_name
from jaxpref.data.tables import Table
from jaxpref.errors import InputError
from jaxpref.storage.local_copies import local_directory
from jaxpref.storage.paths import as_path, is_bucket

# Files of a dataset that hold no rows, as `datasets` has them.
_NO_DATA = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}


def read_rows(path: str, split: str | None = None, *, name: str | None = None) -> Rows:
    """The rows of one source, in its own order, each with its place.

    Args:
        path: a file (`.jsonl`, `.json` holding JSON lines or one list, either with `.gz`;
            `.parquet`), a folder written by `datasets` (`save_to_disk`), a folder of such files, a
            copy of a hub dataset (its files in folders, or named in its README.md), or a hub id
            (`owner/name`), or data of tensorflow-datasets: a builder's directory or `tfds:NAME`.
            What exists on disk wins over a hub id of the same spelling.  Files and
            folders may lie in a bucket.
        split: which split of a folder or a hub dataset; needed wherever there is more than one.  In
            a folder of files their names say it, see `splits.split_in_name`.
        name: which configuration of a hub dataset or its copy.

    Returns:
        An iterator of (row, where).  This call checks path and split; rows are checked as they are
        read.

    Raises:
        InputError: no such path or split, and those of `readers.file_rows`.
    """
    wanted = Part(split, config_name=name)
    if path.startswith(tfds.NAME):
        return tfds.table_of(path, wanted).rows()
    return _part_of(path, wanted).rows()


def read_all(paths: Iterable[str | Table], wanted: Part) -> Rows:
    """The rows of all `paths`, one after another.  A file has no parts: it is read whole."""
    for table in tables_of(paths, wanted):
        yield from table.rows()


def tables_of(paths: Iterable[str | Table], wanted: Part) -> list[Table]:
    """What there is at `paths`, found but not yet read; errors as of `read_rows`."""
    return [_found(path, wanted) for path in paths]


def _found(path: str | Table, wanted: Part) -> Table:
    if isinstance(path, Table):
        return path
    if path.startswith(tfds.NAME):
        return tfds.table_of(path, wanted)
    table = _part_of(path, Part() if as_path(path).is_file() else wanted)
    return replace(table, name=path)


def _part_of(path: str, wanted: Part) -> Table:
    local = as_path(path)
    if local.is_dir():
        return _folder_table(local, wanted)
    if local.is_file():
        _refuse(wanted.config_name, "config_name", f"the file {path}")
        _refuse(wanted.split, "split", f"the file {path}")
        return _table_of(path, [local])
    if _is_hub_id(path):
        return _hub_table(path, wanted)
    raise _missing(local)


def _refuse(value: str | None, key: str, got: str) -> None:
    if value is not None:
        raise InputError(
            f"`{key}` only with a dataset that may have several",
            f"{key}={value!r} with {got}",
            f"remove `{key}`, or name the folder or the hub id",
        )


def _is_hub_id(path: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", path)) and suffix(as_path(path)) is None


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


# ---- folders


def _folder_table(folder: Path, wanted: Part) -> Table:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        _refuse(wanted.config_name, "config_name", f"{folder}, which has no configurations")
        return _saved_table(folder, wanted)
    if not is_bucket(folder) and tfds.is_builder(folder):
        _refuse(wanted.config_name, "config_name", f"{folder}, which is of one configuration")
        return tfds.table_of(str(folder), wanted)
    files = sorted(p for p in folder.iterdir() if p.is_file() and _holds_rows(p))
    if not files and not is_bucket(folder):
        if chosen := _configuration(folder, wanted.config_name):
            return tfds.table_of(str(chosen), wanted)
    if not files or _declares_configs(folder / "README.md"):
        return _copied_table(folder, wanted)
    _refuse(wanted.config_name, "config_name", f"{folder}, which has no configurations")
    splits = {path: split_in_name(path.name[: -len(suffix(path) or "")]) for path in files}
    in_order = dict(sorted(splits.items(), key=lambda item: item[1] or ""))
    return _table_of(folder, choose(in_order, wanted, _contents(folder)))


def _configuration(folder: Path, wanted: str | None) -> Path | None:
    """Of the directories of a builder's configurations in a folder, that of the wanted one.

    Returns: None where there are none.
    Errors: InputError where there are several, or others.
    """
    found = [path for path in sorted(folder.iterdir()) if path.is_dir() and tfds.is_builder(path)]
    chosen = [path for path in found if wanted in (None, path.name)]
    if found and len(chosen) != 1:
        names = ", ".join(path.name for path in found)
        raise InputError(
            "one configuration of the data set",
            f"{folder} (config_name={wanted!r}), which has {names}",
            "set `config_name` (data.config_name or --config-name) to one of them",
        )
    return chosen[0] if chosen else None


def _holds_rows(path: Path) -> bool:
    return suffix(path) is not None and path.name not in _NO_DATA and path.name[0] != "."


def _declares_configs(card: Path) -> bool:
    """Whether a README.md says in its front matter which files belong to which split."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    return bool(front and re.search(r"^configs:", front[1], re.MULTILINE))


def _contents(folder: Path) -> str:
    inside = sorted(path.name for path in folder.iterdir())
    more = f" and {len(inside) - 10} more" if len(inside) > 10 else ""
    return f"{folder}, which holds {', '.join(inside[:10]) or 'nothing'}{more}"


def _table_of(path: str | Path, files: Sequence[Path]) -> Table:
    for file in files:
        check_readable(file)
    return Table(str(path), lambda: chain.from_iterable(map(file_rows, files)), tuple(files))


def _saved_table(folder: Path, wanted: Part) -> Table:
    import datasets  # takes seconds to import, so only where it is needed

    try:
        loaded = datasets.load_from_disk(str(local_directory(folder)))
    except Exception as error:  # the library raises many types for a damaged folder
        raise InputError(
            "a folder written by `Dataset.save_to_disk`",
            f"{folder}: {error!r}",
            "save the dataset again",
        ) from error
    return _dataset_table(loaded, str(folder), wanted)


def _copied_table(folder: Path, wanted: Part) -> Table:
    """The rows of a local copy of a hub dataset, with the splits that `datasets` finds in it.

    The files are read here, so that their rows are what they are elsewhere: `datasets` makes times
    of texts such as "2024-01-31", and one type of all numbers under a key.
    """
    import datasets

    # Absolute, for a relative path may be taken for something else (`json` for a file format).
    absolute = str(local_directory(folder).absolute())
    try:
        found = datasets.load_dataset_builder(absolute, name=wanted.config_name).config
    except FileNotFoundError as error:
        raise InputError(
            f"a folder of data files ({ENDINGS}) or one written by `datasets`",
            f"{_contents(folder)}: {error}",
            "name the folder that holds the files, or mend README.md",
        ) from error
    except Exception as error:  # an unknown configuration, several, a README.md that is no YAML
        raise InputError(
            "a dataset that `datasets` can read",
            f"{folder} (config_name={wanted.config_name!r}): {' '.join(str(error).split())}",
            "set `config_name` (data.config_name or --config-name) to one that it has",
        ) from error
    files = {
        str(split): [Path(file) for file in paths] for split, paths in found.data_files.items()
    }
    readable = all(suffix(f) and f.is_file() for paths in files.values() for f in paths)
    if not readable or _has_options(found):
        return _loaded_table(absolute, str(folder), wanted)
    [split] = choose({split: split for split in files}, wanted, str(folder))
    return _table_of(folder, files[split])


def _has_options(config: Any) -> bool:
    """Whether a configuration says how its files are read, beside which ones they are."""
    names = ("name", "version", "data_dir", "data_files", "description")
    return config != type(config)(**{name: getattr(config, name) for name in names})


# ---- the hub


def _hub_table(name: str, wanted: Part) -> Table:
    """The rows of a hub dataset out of its files, if they are of kinds that are read here."""
    import datasets

    try:
        config = datasets.load_dataset_builder(name, name=wanted.config_name).config
    except Exception:  # no network, no permission, no such dataset: `load_dataset` tells which
        before = hub.snapshot(name)
        if before is None or wanted.config_name is not None:
            return _loaded_table(name, name, wanted)
        return _folder_table(before, wanted)
    files = hub.files_by_split(config)
    readable = files and all(suffix(Path(file)) for paths in files.values() for file in paths)
    if not readable or _has_options(config):
        return _loaded_table(name, name, wanted)
    [split] = choose({split: split for split in files}, wanted, name)
    try:
        copies = hub.downloaded(files[split])
    except Exception as error:  # network, disk, permissions: each its own type
        raise _unreadable(name, wanted, error) from error

    def rows() -> Rows:
        for copy, called in copies.items():
            for row, where in file_rows(copy):
                yield row, where.replace(str(copy), called, 1)

    return Table(name, rows, tuple(copies))


def _loaded_table(path: str, label: str, wanted: Part) -> Table:
    import datasets

    try:
        loaded = datasets.load_dataset(path, name=wanted.config_name, split=wanted.split)
    except Exception as error:  # network, permissions, names of splits: each its own type
        raise _unreadable(label, wanted, error) from error
    if wanted.split is None:
        return _dataset_table(loaded, label, wanted)
    # `load_dataset` has already taken the split out.
    return _indexed(loaded, f"{label} ({wanted.split})")


def _unreadable(label: str, wanted: Part, error: Exception) -> InputError:
    return InputError(
        "a local path, or a hub dataset that can be read",
        f"{label} (config_name={wanted.config_name!r}, split={wanted.split!r}): "
        f"{type(error).__name__}: {error}",
        "check the spelling, the network, `config_name` and `split`; "
        "or download it and give the local path",
    )


def _dataset_table(loaded: Any, label: str, wanted: Part) -> Table:
    parts = dict(loaded) if isinstance(loaded, dict) else {None: loaded}
    if not parts:
        raise _no_rows(label)
    [split] = choose({split: split for split in parts}, wanted, label)
    return _indexed(parts[split], label if split is None else f"{label} ({split})")


def _indexed(dataset: Any, label: str) -> Table:
    files = tuple(Path(file["filename"]) for file in dataset.cache_files)
    return Table(label, lambda: _indexed_rows(dataset, label), files)


def _indexed_rows(dataset: Any, label: str) -> Rows:
    empty = True
    # Without the format (tensors, some of the columns) that may have been set for other uses.
    batches = dataset.with_format("arrow").iter(batch_size=1000)
    for index, row in enumerate(arrow_rows(batches)):
        empty = False
        yield row, f"{label}, index {index}"
    if empty:
        raise _no_rows(label)


def _no_rows(label: str) -> InputError:
    return InputError(
        "a dataset with at least one row", f"{label}, which holds none", "check the split"
    )
