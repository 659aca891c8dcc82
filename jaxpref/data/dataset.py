"""Paths -> encoded groups of one kind, with an account of what became of every row."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpref.config import DataConfig
from jaxpref.data.dimensions import OTHER_REWARDS, Preferred, kind_of_pairs
from jaxpref.data.foreign import check_columns_key, own_row
from jaxpref.data.kept_groups import KeptGroups, with_row_ids_from, write_batches
from jaxpref.data.kinds import kind_of_row
from jaxpref.data.pictures.other import OTHER_PICTURES
from jaxpref.data.pictures.processor import PictureProcessor
from jaxpref.data.pictures.rows import digest_of_files
from jaxpref.data.reading import BatchEncoder, Encoded, PlacedRow, RowEncoder, renumbered
from jaxpref.data.regroup import choose_kind, with_other_answers
from jaxpref.data.report import UNUSABLE, DataReport
from jaxpref.data.sources import tables_of
from jaxpref.data.splits import part_of_side
from jaxpref.data.tables import Table
from jaxpref.data.token_cache import GROUPS, find, keep, key_of, write_report
from jaxpref.data.workers import in_workers, processors
from jaxpref.errors import InputError, RowError
from jaxpref.progress import Watch, unwatched
from jaxpref.types import EncodedGroup

if TYPE_CHECKING:
    import pyarrow

ALONE = 1_000
"""Fewer rows are tokenised in this process, every time: that takes less than starting others."""
_ROWS = 256
"""Rows that are encoded together: enough for a worker, and their texts and ids stay small."""


def load_groups(
    config: DataConfig,
    tokenizer: Any,
    paths: Sequence[str | Table],
    side: str,
    kinds: Sequence[str] = ("pair",),
    seed: int = 0,
    columns: Sequence[str] | None = None,
    watch: Watch = unwatched,
    processor: PictureProcessor | None = None,
) -> tuple[Sequence[EncodedGroup], DataReport]:
    """Groups of all `paths`, one after another, encoded, all of one kind.

    The rows are read twice, so that texts need not be kept: which kind all rows can become is
    known only after the last row.  Many are tokenised in several processes, and what comes out is
    kept on disk (`token_cache.py`), so that neither is done again.

    Args:
        paths: of data, or rows in memory.
        side: `train` or `eval`, which says the split to take where a path has several.
        kinds: of groups, as the objectives accept them (keys of `objectives.KINDS`), the preferred
            first.  A gold answer is read only where a triple is asked for and a pair is not.
        seed: of the draw that lends each group an answer to another prompt (kind `judged_other`).
        columns: names that objectives ask for; others are neither read nor checked.  Those that
            jaxpref does not know are read as they stand in the row.  None: all that it knows.
        watch: is told how many rows are tokenised, where there are many.
        processor: of a model that sees pictures; None: rows with pictures are refused.
    Errors: RowError or InputError as `read_rows`, `own_row`, `kind_of_row`, `choose_kind`,
        `read_group`, `encode_groups`, `with_other_answers` and those of `dimensions.py` raise them;
        InputError where no row is left, with the reasons and their counts.
    """
    if columns is not None:
        columns = _with_dimensions(columns, config)
    check_columns_key(config.columns, columns or ())
    part, gold = part_of_side(config, side), "triple" in kinds and "pair" not in kinds
    tables = tables_of(paths, part)
    asked = {"part": part, "kinds": list(kinds), "columns": columns}
    if processor is not None:
        asked["pictures"] = [repr(processor), digest_of_files(_rows(tables), config.columns)]
    key = key_of(tables, config, tokenizer, **asked)
    groups: Sequence[EncodedGroup]
    groups, report = find(config, key) or _encoded(
        config, tokenizer, tables, key, list(kinds), gold, columns, watch, processor
    )
    if report.preferred and report.preferred.only_ties:
        raise _only_ties(report)
    if not groups:
        raise _nothing_left(report)
    if report.kind in OTHER_PICTURES and not report.encoding.pictures:
        raise InputError(
            "pictures, which the objectives compare answers after",
            f"{', '.join(report.paths)}: no row has any",
            "give rows with `images`; choose dpo for rows of text",
        )
    if report.kind == "judged_other":
        groups, report.lent_cut = with_other_answers(
            groups, seed=seed, max_length=config.max_length
        )
        report.lent = len(groups)
    return groups, report


def _encoded(
    config: DataConfig,
    tokenizer: Any,
    tables: Sequence[Table],
    key: str,
    kinds: Sequence[str],
    gold: bool,
    columns: Sequence[str] | None,
    watch: Watch,
    processor: PictureProcessor | None,
) -> tuple[Sequence[EncodedGroup], DataReport]:
    """As `load_groups`, but for what depends on the seed.

    Args:
        key: under which they are kept, if there are many.
    """
    report = DataReport([table.name for table in tables])
    report.preferred = Preferred(config.prefer) if config.prefer else None
    first_of_kind = _first_of_kind(config, tables, gold, report)
    report.kind = choose_kind(first_of_kind, kinds) if first_of_kind else kinds[0]
    pairs = "pair" in first_of_kind
    encoder = RowEncoder(config, tokenizer, report.kind, pairs, gold, columns, processor)
    rows = _rows(tables)
    jobs = iter(lambda: list(islice(rows, _ROWS)), [])
    count = report.rows.total()
    groups: Sequence[EncodedGroup]
    if count < ALONE:
        groups = []
        for done, first in _counted(map(encoder, jobs), encoder, report):
            groups += renumbered(done, first)
    else:
        groups, report = keep(config, key, partial(_write, encoder, jobs, count, report, watch))
    return groups, report


def _rows(tables: Sequence[Table]) -> Iterator[PlacedRow]:
    return chain.from_iterable(table.rows() for table in tables)


def _write(
    encoder: RowEncoder,
    jobs: Iterable[list[PlacedRow]],
    count: int,
    report: DataReport,
    watch: Watch,
    directory: Path,
) -> None:
    """Tokenises in worker processes, into the files of an entry.

    Args:
        count: of the rows.
        report: to which is added.
    """
    workers = min(processors(), -(-count // _ROWS))

    def batches() -> Iterator["pyarrow.RecordBatch"]:
        watch("tokenising rows", 0, count)
        results = in_workers(BatchEncoder(encoder), jobs, workers)
        for number, (batch, first) in enumerate(_counted(results, encoder, report), 1):
            watch("tokenising rows", min(number * _ROWS, count), count)
            yield with_row_ids_from(batch, first)

    write_batches(directory / GROUPS, batches())
    write_report(directory, report)


def _counted(
    results: Iterable[Encoded], encoder: RowEncoder, report: DataReport
) -> Iterator[tuple[Any, int]]:
    """(groups, row id from which theirs count); `report` is added to."""
    row_ids = 0
    for result in results:
        report.add(result.report)
        yield result.groups, row_ids * encoder.row_ids_of_row
        row_ids += result.row_ids


def _with_dimensions(columns: Sequence[str], config: DataConfig) -> list[str]:
    """Also what `data.prefer` and `data.other_rewards` read, or would replace."""
    scores = [*([config.prefer] if config.prefer else []), *config.other_rewards]
    made = [OTHER_REWARDS] if config.other_rewards else []
    return list(dict.fromkeys([*columns, *made, *(f"scores/{name}" for name in scores)]))


def _first_of_kind(
    config: DataConfig, tables: Sequence[Table], gold: bool, report: DataReport
) -> dict[str, str]:
    """Kind of rows -> place of the first one; `report` counts the rows.

    Errors: InputError for a column of `data.columns` that no row has.
    """
    first_of_kind: dict[str, str] = {}
    unseen = set(config.columns.values()) - {None}
    for row, where in _rows(tables):
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
            f"{', '.join(sorted(unseen))}: in no row of {', '.join(report.paths)}",
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


def _only_ties(report: DataReport) -> InputError:
    name, tied = report.preferred.name, report.preferred.tied
    return InputError(
        f"pairs whose answers differ in the score {name!r} (data.prefer)",
        f"{', '.join(report.paths)}: {tied} ties and nothing else",
        "name another score, or other data",
    )


def common_columns(groups: Sequence[EncodedGroup]) -> list[str]:
    """Names of the columns that all groups have.

    Errors: InputError when some rows have a column and others lack it, or hold lists of another
    length in it, naming the first of each.
    """
    if isinstance(groups, KeptGroups) and not groups.have_columns:
        return []
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
