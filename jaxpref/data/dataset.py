"""Paths -> encoded groups, with an account of every row that was dropped or cut."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxpref.config import DataConfig
from jaxpref.data.encode import EncodeReport, encode_groups
from jaxpref.data.schema import RowError, to_group
from jaxpref.data.sources import read_rows
from jaxpref.errors import InputError
from jaxpref.types import EncodedGroup, Group


@dataclass
class DataReport:
    """What became of the rows of some files."""

    paths: list[str]
    unusable: Counter = field(default_factory=Counter)
    """Rows dropped before tokenisation, by reason (only with data.on_bad_row=drop)."""
    encoding: EncodeReport | None = None

    def __str__(self) -> str:
        drops = [f"{count} dropped: {reason}" for reason, count in sorted(self.unusable.items())]
        return "\n".join([", ".join(self.paths), *drops, str(self.encoding)])


def load_groups(
    config: DataConfig, tokenizer: Any, paths: Sequence[str], split: str
) -> tuple[list[EncodedGroup], DataReport]:
    """Groups of all `paths`, one after another, encoded.

    Args:
        split: which split to take where a path has several; files have none.
    Errors: RowError or InputError as `read_rows`, `to_group` and `encode_groups` raise them.
    """
    report = DataReport(list(paths))
    groups, report.encoding = encode_groups(
        _groups(config, paths, split, report),
        tokenizer,
        max_length=config.max_length,
        truncation=config.truncation,
        on_bad_row=config.on_bad_row,
    )
    return groups, report


def _groups(config: DataConfig, paths: Sequence[str], split: str, report: DataReport) -> Iterator[Group]:
    row_id = 0
    for path in paths:
        for row, where in read_rows(path, None if Path(path).expanduser().is_file() else split):
            try:
                yield to_group(row, where, row_id, config.format)
            except RowError as error:
                if config.on_bad_row == "error":
                    raise
                report.unusable[error.reason] += 1
            row_id += 1


def common_columns(groups: Sequence[EncodedGroup]) -> list[str]:
    """Names of the columns that all groups have.

    Errors: InputError when some rows have a column and others lack it, naming the first of each.
    """
    names = set(groups[0].columns)
    for group in groups:
        if set(group.columns) != names:
            odd = sorted(names ^ set(group.columns))[0]
            having = next(g for g in groups if odd in g.columns)
            lacking = next(g for g in groups if odd not in g.columns)
            raise InputError(
                "columns that stand on every row or on none",
                f"{odd!r} is in {having.where} but not in {lacking.where}",
                f"add {odd!r} to every row, or remove it",
            )
    return sorted(names)
