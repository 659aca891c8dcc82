"""Paths -> encoded groups of one kind, with an account of what became of every row."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxpref.config import DataConfig
from jaxpref.data.columns import own_columns
from jaxpref.data.dimensions import (
    OTHER_REWARDS,
    Preferred,
    kind_of_pairs,
    preferred_pairs,
    with_other_rewards,
)
from jaxpref.data.encode import EncodeReport, encode_groups
from jaxpref.data.foreign import OwnRow, check_columns_key, own_row
from jaxpref.data.kinds import kind_of_row, read_group, unread_keys
from jaxpref.data.regroup import choose_kind, regroup, with_other_answers
from jaxpref.data.sources import read_all
from jaxpref.data.splits import Part, part_of_side
from jaxpref.errors import InputError, RowError
from jaxpref.types import EncodedGroup, Group

UNUSABLE = "unusable"


@dataclass
class DataReport:
    """What became of the rows of some files."""

    paths: list[str]
    kind: str = "pair"
    """Of all the groups."""
    rows: Counter = field(default_factory=Counter)
    """Rows in the files, by their own kind; `UNUSABLE` ones have none."""
    unusable: Counter = field(default_factory=Counter)
    """Rows dropped before tokenisation, by reason (only with data.on_bad_row=drop)."""
    first_unusable: dict[str, str] = field(default_factory=dict)
    """Reason -> the first such row."""
    unread: Counter = field(default_factory=Counter)
    """Columns from which nothing is read -> in how many of the usable rows they hold something."""
    read_as: Counter = field(default_factory=Counter)
    """Formats of other projects -> how many of the usable rows were read in them."""
    preferred: Preferred | None = None
    """What `data.prefer` did to the pairs."""
    converted: int = 0
    """Pairs made into groups of another kind."""
    tied: int = 0
    """Ranked rows in which scores are equal; such completions stay in the order of the row."""
    lent: int = 0
    """Groups that were lent an answer to another prompt."""
    lent_cut: int = 0
    """Such answers that were cut to fit `max_length`."""
    encoding: EncodeReport | None = None

    def dropped(self) -> Counter:
        """Rows and groups that are not trained on, by reason."""
        dropped = self.unusable + self.encoding.dropped
        if self.preferred and self.preferred.tied:
            dropped[f"equal in {self.preferred.name}"] = self.preferred.tied
        return dropped

    def summary(self) -> str:
        """One line: what is trained on, and what is not."""
        encoding, dropped = self.encoding, self.dropped()
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(dropped.items()))
        parts = [
            f"{sum(self.rows.values()):,} rows, {encoding.groups_kept:,} groups ({self.kind})",
            f"{dropped.total():,} dropped" + (f" ({reasons})" if reasons else ""),
            f"{encoding.completions_truncated:,} completions and {encoding.prompts_truncated:,} "
            "prompts cut",
        ]
        return "; ".join([*parts, *self._reading()])

    def _reading(self) -> list[str]:
        """How rows were read, where that is not plain."""
        return [
            f"{what}: " + ", ".join(f"{name} ({count:,} rows)" for name, count in counts)
            for what, counts in (
                ("read as", sorted(self.read_as.items())),
                ("columns not read", sorted(self.unread.items())),
            )
            if counts
        ]

    def __repr__(self) -> str:
        return f"<DataReport {self.summary()}>"

    def __str__(self) -> str:
        rows = ", ".join(f"{count} {kind}" for kind, count in sorted(self.rows.items()))
        lines = [", ".join(self.paths), f"kind of groups: {self.kind}; rows: {rows}"]
        lines += self._reading()
        for reason, count in sorted(self.unusable.items()):
            lines.append(f"{count} dropped: {reason}")
        if self.preferred:
            lines.append(str(self.preferred))
        if self.converted:
            into = "their chosen answers" if self.kind == "single" else "two judged answers each"
            lines.append(f"{self.converted} pairs made into {into}")
        if self.tied:
            lines.append(f"{self.tied} ranked rows with equal scores, which stay in their order")
        lines.append(str(self.encoding))
        if self.lent:
            cut = f"({self.lent_cut} of these cut)"
            lines.append(f"{self.lent} groups lent an answer to another prompt {cut}")
        return "\n".join(lines)


def load_groups(
    config: DataConfig,
    tokenizer: Any,
    paths: Sequence[str],
    side: str,
    kinds: Sequence[str] = ("pair",),
    seed: int = 0,
    columns: Sequence[str] | None = None,
) -> tuple[list[EncodedGroup], DataReport]:
    """Groups of all `paths`, one after another, encoded, all of one kind.

    The files are read twice, so that texts need not be kept: which kind all rows can become is
    known only after the last row.

    Args:
        side: `train` or `eval`, which says the split to take where a path has several.
        kinds: of groups, as the objectives accept them (keys of `objectives.KINDS`), the preferred
            first.  A gold answer is read only where a triple is asked for and a pair is not.
        seed: of the draw that lends each group an answer to another prompt (kind `judged_other`).
        columns: names that objectives ask for; others are neither read nor checked.  Those that
            jaxpref does not know are read as they stand in the row.  None: all that it knows.
    Errors: RowError or InputError as `read_rows`, `own_row`, `kind_of_row`, `choose_kind`,
        `read_group`, `encode_groups`, `with_other_answers` and those of `dimensions.py` raise them;
        InputError where no row is left, with the reasons and their counts.
    """
    report, gold = DataReport(list(paths)), "triple" in kinds and "pair" not in kinds
    report.preferred = Preferred(config.prefer) if config.prefer else None
    if columns is not None:
        columns = _with_dimensions(columns, config)
    check_columns_key(config.columns, columns or ())
    part = part_of_side(config, side)
    first_of_kind = _first_of_kind(config, paths, part, gold, report)
    report.kind = choose_kind(first_of_kind, kinds) if first_of_kind else kinds[0]
    groups, report.encoding = encode_groups(
        _groups(
            config, read_all(paths, part), gold, report, columns, pairs="pair" in first_of_kind
        ),
        tokenizer,
        max_length=config.max_length,
        truncation=config.truncation,
        on_bad_row=config.on_bad_row,
    )
    if not groups:
        raise _nothing_left(report)
    if report.kind == "judged_other":
        groups, report.lent_cut = with_other_answers(
            groups, seed=seed, max_length=config.max_length
        )
        report.lent = len(groups)
    return groups, report


def _with_dimensions(columns: Sequence[str], config: DataConfig) -> list[str]:
    """Also what `data.prefer` and `data.other_rewards` read, or would replace."""
    scores = [*([config.prefer] if config.prefer else []), *config.other_rewards]
    made = [OTHER_REWARDS] if config.other_rewards else []
    return list(dict.fromkeys([*columns, *made, *(f"scores/{name}" for name in scores)]))


def _first_of_kind(
    config: DataConfig, paths: Sequence[str], part: Part, gold: bool, report: DataReport
) -> dict[str, str]:
    """Kind of rows -> place of the first one; `report` counts the rows.

    Errors: InputError for a column of `data.columns` that no row has.
    """
    first_of_kind: dict[str, str] = {}
    unseen = set(config.columns.values()) - {None}
    for row, where in read_all(paths, part):
        unseen -= row.keys()
        try:
            own = own_row(row, where, config.format, config.columns)
            kind = kind_of_row(own.values, where, gold=gold)
        except RowError:
            if config.on_bad_row == "error":
                raise
            report.rows[UNUSABLE] += 1  # why, is counted when it is read again
            continue
        report.rows[kind] += 1
        if config.prefer:
            kind = kind_of_pairs(kind, where)
        first_of_kind.setdefault(kind, where)
    if unseen:
        raise InputError(
            "columns of the data in data.columns",
            f"{', '.join(sorted(unseen))}: in no row of {', '.join(paths)}",
            "correct the name, or remove it",
        )
    return first_of_kind


def _nothing_left(report: DataReport) -> InputError:
    examples = report.first_unusable | report.encoding.first_dropped
    reasons = [
        f"{reason}: {count:,}" + (f" (first: {examples[reason]})" if reason in examples else "")
        for reason, count in sorted(report.dropped().items())
    ]
    return InputError(
        "at least one row to train on",
        f"all {sum(report.rows.values()):,} rows of {', '.join(report.paths)} dropped; "
        + "; ".join(reasons),
        "mend the rows that the reasons name; raise data.max_length where they are too long",
    )


def _groups(
    config: DataConfig,
    rows: Iterator[tuple[dict, str]],
    gold: bool,
    report: DataReport,
    columns: Sequence[str] | None,
    pairs: bool,
) -> Iterator[Group]:
    """Args: `pairs` says whether some row is a pair, or becomes one."""
    row_id = 0
    for row, where in rows:
        made = []
        try:
            own = own_row(row, where, config.format, config.columns)
            kind = kind_of_row(own.values, where, gold=gold)
            made = _groups_of_row(config, kind, own, where, row_id, columns, report)
        except RowError as error:
            if config.on_bad_row == "error":
                raise
            report.unusable[error.reason] += 1
            report.first_unusable.setdefault(error.reason, error.got)
            row_id += 1
            continue
        if own.read_as:
            report.read_as[own.read_as] += 1
        report.unread.update((*own.unread, *unread_keys(own.values, kind, columns)))
        if report.preferred:
            kind = kind_of_pairs(kind, where)
        if kind == "pair" and report.kind != "pair":
            report.converted += len(made)
        for group in made:
            yield from regroup(group, kind, report.kind, pairs=pairs)
        row_id += max(1, len(made))
    if report.preferred and report.preferred.only_ties:
        raise _only_ties(report)


def _groups_of_row(
    config: DataConfig,
    kind: str,
    row: OwnRow,
    where: str,
    row_id: int,
    columns: Sequence[str] | None,
    report: DataReport,
) -> list[Group]:
    """The group of a row; or its pairs, with row ids from `row_id` on, where a score decides."""
    group = read_group(kind, row.values, where, row_id, row.form, columns)
    made_of_scores = {OTHER_REWARDS} if config.other_rewards else set()
    own = [name for name in columns or () if name not in {*group.columns, *made_of_scores}]
    numbers = own_columns(row.values, own, where)
    group = dataclasses.replace(group, columns={**group.columns, **numbers})
    group = with_other_rewards(group, config.other_rewards)
    if not report.preferred:
        if kind == "ranked" and _has_ties(group.columns):
            report.tied += 1
        return [group]
    pairs = preferred_pairs(group, kind, report.preferred)
    return [dataclasses.replace(pair, row_id=row_id + n) for n, pair in enumerate(pairs)]


def _only_ties(report: DataReport) -> InputError:
    name, tied = report.preferred.name, report.preferred.tied
    return InputError(
        f"pairs whose answers differ in the score {name!r} (data.prefer)",
        f"{', '.join(report.paths)}: {tied} ties and nothing else",
        "name another score, or other data",
    )


def _has_ties(columns: Mapping[str, Any]) -> bool:
    scores = columns.get("score", ())
    return len(set(scores)) < len(scores)


def common_columns(groups: Sequence[EncodedGroup]) -> list[str]:
    """Names of the columns that all groups have.

    Errors: InputError when some rows have a column and others lack it, or hold lists of another
    length in it, naming the first of each.
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
    for name in names:
        _check_widths(groups, name)
    return sorted(names)


def _check_widths(groups: Sequence[EncodedGroup], name: str) -> None:
    """Numbers per completion are equally many in all groups."""
    width = _width(groups[0].columns[name])
    odd = next((group for group in groups if _width(group.columns[name]) != width), None)
    if odd is not None:
        raise InputError(
            f"as many numbers in {name!r} on every row",
            f"{width} in {groups[0].where}, {_width(odd.columns[name])} in {odd.where}",
            "make the lists equally long",
        )


def _width(value: Any) -> int:
    """How many numbers every completion has, 0 for a plain one."""
    return len(value[0]) if isinstance(value, tuple) and isinstance(value[0], tuple) else 0
