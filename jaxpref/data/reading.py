"""Rows into encoded groups of one kind, some rows at a time: in this process or in several."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxpref.config import DataConfig
from jaxpref.data.columns import own_columns
from jaxpref.data.dimensions import (
    OTHER_REWARDS,
    Preferred,
    kind_of_pairs,
    preferred_pairs,
    with_other_rewards,
)
from jaxpref.data.encode import encode_groups
from jaxpref.data.foreign import OwnRow, own_row
from jaxpref.data.kept_groups import as_batch
from jaxpref.data.kinds import kind_of_row, read_group, unread_keys
from jaxpref.data.pictures.other import OTHER_PICTURES, with_other_pictures
from jaxpref.data.pictures.processor import PictureProcessor
from jaxpref.data.regroup import regroup
from jaxpref.data.report import DataReport
from jaxpref.errors import RowError
from jaxpref.types import EncodedGroup, Group

PlacedRow = tuple[dict, str]
"""A row, and where it stands."""


class Encoded(NamedTuple):
    """What became of some rows."""

    groups: Any
    """A list of them; of `as_batches` an Arrow batch."""
    report: DataReport
    row_ids: int
    """How many row ids they take: those of the groups count from 0."""


@dataclass(frozen=True)
class RowEncoder:
    """How rows become encoded groups."""

    config: DataConfig
    tokenizer: Any
    kind: str
    """Of the groups."""
    pairs: bool
    """Whether some row of the data set is a pair, or becomes one."""
    gold: bool
    """Whether a gold answer is read."""
    columns: Sequence[str] | None
    """As of `load_groups`."""
    processor: PictureProcessor | None = None
    """As of `load_groups`."""

    def __call__(self, rows: Sequence[PlacedRow]) -> Encoded:
        """Errors: as of `load_groups`."""
        config = self.config
        report = DataReport([], self.kind)
        report.preferred = Preferred(config.prefer) if config.prefer else None
        groups, row_ids = self._groups(rows, report)
        encoded, report.encoding = encode_groups(
            groups,
            self.tokenizer,
            max_length=config.max_length,
            truncation=config.truncation,
            on_bad_row=config.on_bad_row,
            processor=self.processor,
        )
        if how := OTHER_PICTURES.get(self.kind):
            encoded = [with_other_pictures(group, how) for group in encoded]
        return Encoded(encoded, report, row_ids)

    @property
    def row_ids_of_row(self) -> int:
        """Row ids of the groups for each that is counted in `Encoded.row_ids`."""
        return 2 if self.kind in ("judged", "judged_other") and self.pairs else 1

    def _groups(self, rows: Sequence[PlacedRow], report: DataReport) -> tuple[list[Group], int]:
        """The groups as texts, and how many row ids they take."""
        groups, row_id = [], 0
        for row, where in rows:
            made = []
            try:
                own = own_row(row, where, self.config.format, self.config.columns)
                kind = kind_of_row(own.values, where, gold=self.gold)
                made = self._groups_of_row(kind, own, where, row_id, report)
            except RowError as error:
                if self.config.on_bad_row == "error":
                    raise
                report.unusable[error.reason] += 1
                report.first_unusable.setdefault(error.reason, error.got)
                row_id += 1
                continue
            if own.read_as:
                report.read_as[own.read_as] += 1
            report.unread.update((*own.unread, *unread_keys(own.values, kind, self.columns)))
            if report.preferred:
                kind = kind_of_pairs(kind, where)
            if kind == "pair" and self.kind not in ("pair", *OTHER_PICTURES):
                report.converted += len(made)
            for group in made:
                groups += regroup(group, kind, self.kind, pairs=self.pairs)
            row_id += max(1, len(made))
        return groups, row_id

    def _groups_of_row(
        self, kind: str, row: OwnRow, where: str, row_id: int, report: DataReport
    ) -> list[Group]:
        """The group of a row; its pairs, with row ids from `row_id` on, where a score decides."""
        columns, other_rewards = self.columns, self.config.other_rewards
        group = read_group(kind, row.values, where, row_id, row.form, columns)
        made_of_scores = {OTHER_REWARDS} if other_rewards else set()
        own = [name for name in columns or () if name not in {*group.columns, *made_of_scores}]
        numbers = own_columns(row.values, own, where)
        group = dataclasses.replace(group, columns={**group.columns, **numbers})
        group = with_other_rewards(group, other_rewards)
        if not report.preferred:
            if kind == "ranked" and _has_ties(group.columns):
                report.tied += 1
            return [group]
        pairs = preferred_pairs(group, kind, report.preferred)
        return [dataclasses.replace(pair, row_id=row_id + n) for n, pair in enumerate(pairs)]


@dataclass(frozen=True)
class BatchEncoder:
    """As `RowEncoder`, with groups as a piece of a file of `kept_groups.py`."""

    encoder: RowEncoder

    def __call__(self, rows: Sequence[PlacedRow]) -> Encoded:
        encoded = self.encoder(rows)
        return encoded._replace(groups=as_batch(encoded.groups))


def renumbered(groups: Sequence[EncodedGroup], first: int) -> list[EncodedGroup]:
    """Groups whose row ids count from `first`, not from 0."""
    if first == 0:
        return list(groups)
    return [dataclasses.replace(group, row_id=group.row_id + first) for group in groups]


def _has_ties(columns: Mapping[str, Any]) -> bool:
    scores = columns.get("score", ())
    return len(set(scores)) < len(scores)
