"""Data sets that are read, and written again with something added to their rows."""

import argparse
import dataclasses
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxpref.config import DataConfig
from jaxpref.data.checks import shown
from jaxpref.data.columns import own_columns
from jaxpref.data.foreign import FORMATS, OwnRow, check_columns_key, own_row
from jaxpref.data.kinds import kind_of_row, read_group
from jaxpref.data.sources import read_all
from jaxpref.data.splits import Part, check_split, part_of_side
from jaxpref.errors import InputError, RowError
from jaxpref.files import check_destination, whole_file
from jaxpref.storage.paths import as_path
from jaxpref.types import Group


@dataclass(frozen=True)
class Source:
    """Rows, and how they are read."""

    paths: Sequence[str]
    part: Part = Part(default="train")
    """What to read of a path that has several splits or configurations; files have neither."""
    format: str = "auto"
    on_bad_row: str = "error"
    """`drop` leaves unusable rows out; they are counted."""
    columns: Mapping[str, str | None] = field(default_factory=dict)
    """Columns that the rows call otherwise, as `data.columns`."""

    def own(self, row: Mapping[str, Any], where: str) -> OwnRow:
        """A row under our names; errors as of `own_row`."""
        return own_row(row, where, self.format, self.columns)


def as_source(data: str | Path | Sequence[str | Path] | Source) -> Source:
    """Paths as a source; a source as it is.  Errors: InputError for anything else."""
    if isinstance(data, Source):
        return data
    paths = [data] if isinstance(data, str | Path) or not isinstance(data, Iterable) else list(data)
    for path in paths:
        if not isinstance(path, str | Path):
            raise InputError(
                "paths of data, or a jaxpref.rewards.Source",
                shown(path),
                "write rows in memory to a .jsonl file first",
            )
    return Source([str(path) for path in paths])


def configured(data: DataConfig, paths: Sequence[str], side: str) -> Source:
    """Paths that are read as a run's training or held-out data are."""
    return Source(paths, part_of_side(data, side), data.format, data.on_bad_row, data.columns)


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say how a command reads a `Source`."""
    add = parser.add_argument
    add("--split", help="of a path that has several (default train)")
    add("--config-name", metavar="NAME", help="configuration of a hub dataset that has several")
    add(
        "--format",
        default="auto",
        choices=FORMATS,
        metavar="FORMAT",
        help=f"of the rows: {', '.join(FORMATS)} (default auto)",
    )
    add(
        "--on-bad-row",
        default="error",
        choices=["error", "drop"],
        help="drop rows without usable answers and count them",
    )
    add(
        "--columns",
        default=[],
        action="append",
        metavar="OURS=THEIRS",
        help="a column that the rows call otherwise (prompt=question); null: read nothing as it",
    )


def source_of(options: argparse.Namespace, paths: Sequence[str]) -> Source:
    """Paths that are read as those flags say.  Errors: InputError for --columns and --split."""
    columns: dict[str, str | None] = {}
    for item in options.columns:
        ours, separator, theirs = item.partition("=")
        if not (ours and separator and theirs):
            raise InputError("--columns OURS=THEIRS", item, "write it as prompt=question")
        columns[ours] = None if theirs == "null" else theirs
    check_columns_key(columns)
    check_split(options.split, paths, "--split")
    part = Part(options.split, "train", options.config_name)
    return Source(paths, part, options.format, options.on_bad_row, columns)


def rows_of(source: Source) -> Iterator[tuple[dict, str, str | None]]:
    """(row, where, kind) of all paths, one after another; no kind where it is to be dropped."""
    for row, where in read_all(source.paths, source.part):
        try:
            kind = kind_of_row(source.own(row, where).values, where)
        except RowError:
            if source.on_bad_row == "error":
                raise
            kind = None
        yield row, where, kind


def group_of(
    source: Source,
    row: Mapping[str, Any],
    where: str,
    kind: str | None,
    row_id: int,
    columns: Sequence[str] | None = None,
) -> Group | RowError:
    """The row's answers in its own order, or why it is left out.

    Args:
        columns: that are wanted, as `own_columns` reads them; None: all of ours that there are.
    """
    try:
        own_row = source.own(row, where)
        values = own_row.values
        kind = kind or kind_of_row(values, where)
        in_own_order = dict(values)
        if kind == "ranked":
            in_own_order.pop("scores", None)  # by which its completions would be sorted
        group = read_group(kind, in_own_order, where, row_id, own_row.form, columns)
        missing = [name for name in columns or () if name not in group.columns]
        own = own_columns(values, missing, where)
    except RowError as error:
        if source.on_bad_row == "error":
            raise
        return error
    return dataclasses.replace(group, columns={**group.columns, **own})


def groups_of(source: Source) -> Iterator[Group]:
    """The usable rows, of any kind, without their numbers."""
    for number, (row, where, kind) in enumerate(rows_of(source)):
        group = group_of(source, row, where, kind, number, ())
        if isinstance(group, Group):
            yield group


def read_pairs(source: Source, columns: Sequence[str] = ()) -> list[Group]:
    """The pairs of a data set as groups, chosen first.

    Args:
        columns: that are wanted.
    Errors: InputError for rows of another kind.
    """
    groups = []
    for row, where, kind in rows_of(source):
        if kind not in ("pair", None):
            raise InputError(
                "rows with `chosen` and `rejected`", f"{where}: a {kind} row", "name data of pairs"
            )
        group = group_of(source, row, where, kind, len(groups), columns)
        if isinstance(group, Group):
            groups.append(group)
    return groups


def check_out(out: str | Path, sources: Iterable[str | Path]) -> Path:
    """Where rows are written.

    Errors: InputError for a file that exists, or is no .jsonl or .jsonl.gz, and for a source.
    """
    out = as_path(out)
    if not out.name.endswith((".jsonl", ".jsonl.gz")):
        raise InputError("a .jsonl or .jsonl.gz file to write", str(out), "choose such a name")
    return check_destination(out, "a new file for the rows", sources=sources)


def write_lines(out: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, whole or not at all.  Errors: InputError for what cannot be written as JSON."""
    opened = gzip.open if out.name.endswith(".gz") else open
    with whole_file(out) as partial, opened(partial, "wt", encoding="utf-8") as file:
        for row in rows:
            file.write(_line(row) + "\n")


def _line(row: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(row, ensure_ascii=False)
        text.encode()
        return text
    except UnicodeEncodeError:  # half a surrogate pair; JSON can write it, UTF-8 cannot
        return json.dumps(row)
    except TypeError as error:
        raise InputError(
            "rows that can be written as JSON",
            f"a row with {', '.join(row)}: {error}",
            "remove that column first",
        ) from error
