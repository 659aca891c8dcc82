"""The prompts of a run that draws its answers itself."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from jaxpref.config import Config, DataConfig
from jaxpref.data.encode import check_known_tokens, encode_prompts
from jaxpref.data.report import dropped_with_reasons
from jaxpref.data.sources import read_all
from jaxpref.data.splits import part_of_side
from jaxpref.data.tables import Table
from jaxpref.errors import InputError, RowError
from jaxpref.generation.prompts import to_prompt
from jaxpref.runs.agreement import check_same_rows
from jaxpref.runs.build import Pieces, build
from jaxpref.runs.feed import paths_of
from jaxpref.runs.resume import with_stored
from jaxpref.types import EncodedGroup, Group

TOO_LONG = "longer than data.max_length less online.max_new_tokens"


@dataclass(frozen=True)
class Prompts:
    """Prompts as groups without completions, their token ids, and what became of the rows."""

    groups: Sequence[Group]
    ids: Sequence[np.ndarray]
    rows: int
    dropped: Counter

    def summary(self) -> str:
        """One line."""
        dropped = dropped_with_reasons(self.dropped)
        return f"{self.rows:,} rows, {len(self.groups):,} prompts; {dropped}"

    def encoded(self) -> list[EncodedGroup]:
        """Without completions."""
        return [
            EncodedGroup(ids, (), group.row_id, group.where)
            for group, ids in zip(self.groups, self.ids, strict=True)
        ]


def read_prompts(pieces: Pieces, side: str) -> Prompts:
    """The prompts of data.train or data.eval; answers that the rows have are not looked at.

    Args:
        side: `train` or `eval`.
    Errors: InputError for data that cannot be read, where nothing is left of them, and where hosts
        have other prompts.
    """
    data, spec = pieces.config.data, pieces.source.spec
    groups, dropped = _read(data, paths_of(pieces, side), side)
    _refuse_pictures(groups)
    rows = len(groups) + dropped.total()
    ids = encode_prompts(groups, pieces.tokenizer)
    check_known_tokens(
        ((group.where, (own,)) for group, own in zip(groups, ids, strict=True)), spec.vocab
    )
    room = min(data.max_length or spec.longest_sequence, spec.longest_sequence)
    room -= pieces.config.online.max_new_tokens
    kept = []
    for i, own in enumerate(ids):
        if 0 < len(own) <= room:
            kept.append(i)
        elif data.truncation == "error":
            raise InputError(
                f"prompts of 1 to {room} tokens",
                f"{groups[i].where}: {len(own)} tokens",
                "shorten it, raise data.max_length, lower online.max_new_tokens, or set "
                "data.truncation=drop",
            )
        else:
            dropped["without a token" if len(own) == 0 else TOO_LONG] += 1
    prompts = Prompts([groups[i] for i in kept], [ids[i] for i in kept], rows, dropped)
    if not kept:
        raise InputError(
            f"a prompt in data.{side}", prompts.summary(), "raise data.max_length, or mend the rows"
        )
    check_same_rows("prompts" if side == "train" else "held-out prompts", prompts.encoded())
    return prompts


def _refuse_pictures(groups: Sequence[Group]) -> None:
    if seen := next((group for group in groups if group.pictures), None):
        raise InputError(
            "prompts of text: with online.rewards no answers are drawn to pictures",
            f"{seen.where}: {len(seen.pictures)} pictures",
            "draw answers to them first (jaxpref generate), score these, and train on the pairs "
            "without online.rewards; or leave the rows with pictures out",
        )


def show_prompts(config: Config, console: Console) -> None:
    """What a run on these prompts would read, a line for each side."""
    pieces = build(with_stored(config))
    for side in ("train", "eval") if config.data.eval else ("train",):
        console.print(f"{side}: {read_prompts(pieces, side).summary()}", highlight=False)


def _read(data: DataConfig, paths: Sequence[str | Table], side: str) -> tuple[list[Group], Counter]:
    groups: list[Group] = []
    dropped: Counter = Counter()
    for number, (row, where) in enumerate(read_all(paths, part_of_side(data, side))):
        try:
            groups.append(to_prompt(row, where, number, data.format, data.columns))
        except RowError as error:
            if data.on_bad_row == "error":
                raise
            dropped[error.reason] += 1
    return groups, dropped
