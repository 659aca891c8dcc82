"""Scores of the answers of a data set, written beside them: `scores_chosen: {NAME: number}` etc.

One reward after another goes over the data, so that no two models are in memory at once; the last
pass writes the rows.
"""

import hashlib
import inspect
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from jaxpref.data.checks import shown
from jaxpref.data.dimensions import scores_of
from jaxpref.data.pictures.rows import with_whole_paths
from jaxpref.data.report import rows_by_kind
from jaxpref.data.rewrite import Source, as_source, check_out, group_of, rows_of, write_lines
from jaxpref.errors import InputError, RowError
from jaxpref.processes.agreement import check_same
from jaxpref.processes.store import process_count
from jaxpref.processes.together import first_does
from jaxpref.progress import Watch, unwatched
from jaxpref.rewards.cache import CACHE_DIR, cached
from jaxpref.rewards.reward import WHOLE, Limits, Reward, Values
from jaxpref.rewards.scalarise import Scalariser
from jaxpref.storage.paths import as_path
from jaxpref.types import Group

CHUNK = 256
"""Rows that are scored and kept together."""

_KEYS = {
    "pair": ("scores_chosen", "scores_rejected"),
    "single": ("scores",),
    "judged": ("scores",),
    "ranked": ("scores_completions",),
}
"""Kind of a row -> where its scores stand: one key per answer, or one key with a list."""


@dataclass
class ScoreReport:
    """What became of the rows."""

    out: str
    rows: Counter = field(default_factory=Counter)
    """Rows written, by kind."""
    dropped: Counter = field(default_factory=Counter)
    """Rows left out, by reason."""
    agreement: dict[str, Counter] = field(default_factory=dict)
    """Score -> of the pairs, how often chosen has the `higher` one, the `lower` one, or they
    `tie`."""

    def __str__(self) -> str:
        lines = [
            f"{self.out}: {rows_by_kind(self.rows)}",
            *(f"{count} dropped: {why}" for why, count in sorted(self.dropped.items())),
        ]
        for name, counts in self.agreement.items():
            pairs = counts.total()
            lines.append(
                f"{name}: higher for chosen in {counts['higher'] / pairs:.1%} of {pairs} pairs, "
                f"lower in {counts['lower'] / pairs:.1%}, equal in {counts['tie'] / pairs:.1%}"
            )
        return "\n".join(lines)


def score_data(
    data: str | Sequence[str] | Source,
    rewards: Mapping[str, Reward | Callable[[], Reward]],
    out: str | Path,
    *,
    limits: Limits = WHOLE,
    scalarise: Mapping[str, Scalariser] | None = None,
    replace: bool = False,
    cache: str | Path | None = CACHE_DIR,
    chunk: int = CHUNK,
    watch: Watch = unwatched,
) -> ScoreReport:
    """Writes the rows of a data set again, with scores of all their answers.

    Everything else in a row stays.  Of several processes the first writes.  Killed and called again
    it goes on where it was: what a reward has scored is kept under the digest of its identity and
    of the texts, and an unchanged reward is not run again on the same texts.

    Args:
        data: paths as `data.train` may name, or a `Source`.
        rewards: name of the score -> the reward, or what makes it (it is then freed before the next
            one is made).
        out: a new .jsonl or .jsonl.gz file.
        limits: on length, for models; rows of which they leave nothing are dropped and counted.
        scalarise: name of a further score -> how it is made of those in `rewards` and in the data.
        replace: write over scores of the same names that the data has.
        cache: directory of kept scores; None: nothing is kept.
        chunk: rows scored at a time, >= 1.
        watch: told after every chunk.
    Errors: InputError for `out` that exists or has another ending, a score that the data has
        already, rows that cannot be read (RowError unless they are dropped), and what the rewards
        refuse.
    """
    source, scalarise = as_source(data), dict(scalarise or {})
    _check_kinds(rewards, scalarise, chunk)
    out = as_path(first_does(lambda: str(check_out(out, source.paths))))
    names = [*rewards, *scalarise]
    if len(set(names)) < len(names) or not names:
        raise InputError(
            "scores of different names",
            ", ".join(names) or "none",
            "name each with --reward NAME=WHAT",
        )
    total = _check_rows(source, () if replace else names)
    report, scores = ScoreReport(str(out)), {}
    for name, reward in rewards.items():
        opened = reward if isinstance(reward, Reward) else _made(name, reward)
        if cache is not None:
            opened = cached(opened, cache)
        scores[name] = []
        for values in _scores(source, opened, limits, chunk):
            scores[name] += values
            watch(name, len(scores[name]), total)
        del opened
    rows = _scored_rows(source, scores, scalarise, report)
    first_does(lambda: write_lines(out, rows))
    deque(rows, maxlen=0)  # the other processes count them for the report
    return report


def _check_kinds(rewards: Any, scalarise: Mapping[str, Any], chunk: Any) -> None:
    """Errors: InputError for what is no reward, no scalariser, and no number of rows."""
    given = rewards.items() if isinstance(rewards, Mapping) else [("", rewards)]
    for name, reward in given:
        if not name or not (isinstance(reward, Reward) or callable(reward)):
            raise InputError(
                "rewards as {NAME: reward}",
                f"rewards{f'[{name!r}]' if name else ''}: {shown(reward)}",
                "make rewards of texts by jaxpref.rewards.open_reward('rule:words'), of functions "
                "by jaxpref.rewards.function_reward(function)",
            )
    for name, scalariser in scalarise.items():
        if not isinstance(scalariser, Scalariser):
            raise InputError(
                "scalarise as {NAME: jaxpref.rewards.Scalariser}",
                f"scalarise[{name!r}]: {shown(scalariser)}",
                "write it as Scalariser('worst_case', {'helpful': 0.6, 'brief': 0.4})",
            )
    if not isinstance(chunk, int) or chunk < 1:
        raise InputError("a chunk of at least 1 row", f"chunk={chunk!r}", f"{CHUNK} is usual")


def _made(name: str, make: Callable[[], Reward]) -> Reward:
    """Errors: InputError for a function that does not make a reward, as a judge of answers."""
    try:
        inspect.signature(make).bind()
    except (TypeError, ValueError) as error:
        raise _no_maker(name, str(error)) from error
    made = make()
    if not isinstance(made, Reward):
        raise _no_maker(name, f"it gives {shown(made)}")
    return made


def _no_maker(name: str, why: str) -> InputError:
    return InputError(
        "a reward, or a function without arguments that makes one",
        f"rewards[{name!r}]: {why}",
        "of a function (prompt, answer) -> number make a reward by "
        "jaxpref.rewards.function_reward(function)",
    )


def _check_rows(source: Source, names: Sequence[str]) -> int:
    """How many rows there are.

    Errors: InputError for a row that has one of the scores already, and where hosts have other
        rows.
    """
    total, digest = 0, hashlib.sha256()
    for row, where, kind in rows_of(source):
        total += 1
        if process_count() > 1:
            digest.update(json.dumps(row, default=lambda value: type(value).__name__).encode())
        for key in _KEYS.get(kind, ()):
            had = row.get(key)
            taken = [name for name in names if isinstance(had, dict) and had.get(name) is not None]
            if taken:
                raise InputError(
                    "new names of scores",
                    f"{where}: {key} has {', '.join(taken)} already",
                    "choose another name, or write over them (--replace)",
                )
    check_same(
        "rows, in the same order,",
        {"number": total, "digest": digest.hexdigest()[:12]},
        "give every host the same files",
    )
    return total


def _scores(
    source: Source, reward: Reward, limits: Limits, chunk: int
) -> Iterator[list[Values | str]]:
    """Chunk by chunk, for every row in order: its values, or the reason why it is left out."""
    rows, count = rows_of(source), 0
    while part := list(islice(rows, chunk)):
        groups = [group_of(source, *row, count + i, reward.columns) for i, row in enumerate(part)]
        usable = [group for group in groups if isinstance(group, Group)]
        values = iter(_values(reward, usable, limits, source.on_bad_row))
        yield [next(values) if isinstance(group, Group) else group.reason for group in groups]
        count += len(part)


_TOO_LONG = "nothing left by the limits on length"


def _values(
    reward: Reward, groups: Sequence[Group], limits: Limits, on_bad_row: str
) -> list[Values | str]:
    if not groups:
        return []
    try:
        return [_TOO_LONG if values is None else values for values in reward.of(groups, limits)]
    except RowError as error:
        if on_bad_row == "error":
            raise
        if len(groups) == 1:
            return [error.reason]
        halves = groups[: len(groups) // 2], groups[len(groups) // 2 :]
        return [value for half in halves for value in _values(reward, half, limits, on_bad_row)]


def _scored_rows(
    source: Source,
    scores: Mapping[str, list[Values | str]],
    scalarise: Mapping[str, Scalariser],
    report: ScoreReport,
) -> Iterator[dict]:
    for i, (row, where, kind) in enumerate(rows_of(source)):
        values: dict[str, Any] = {name: of_rows[i] for name, of_rows in scores.items()}
        reason = next((value for value in values.values() if isinstance(value, str)), None)
        if reason is not None:
            report.dropped[reason] += 1
            continue
        if scalarise:
            made_of = {f"scores/{key}" for one in scalarise.values() for key in one.weights}
            group = group_of(source, row, where, kind, i, sorted(made_of))
            if isinstance(group, RowError):
                report.dropped[group.reason] += 1
                continue
            further = _scalarised(group, values, scalarise, source.on_bad_row)
            if isinstance(further, RowError):
                report.dropped[further.reason] += 1
                continue
            values |= further
        report.rows[kind] += 1
        if kind == "pair":
            _count_agreement(report, values)
        yield _with_scores(with_whole_paths(row, where, source.columns), kind, values)


def _scalarised(
    group: Group, values: Mapping[str, Values], scalarise: Mapping[str, Scalariser], on_bad_row: str
) -> dict[str, Values] | RowError:
    """The further scores, or why the row is left out: it lacks one that they are made of."""
    made: dict[str, Values] = {}
    for name, scalariser in scalarise.items():
        try:
            scores = {
                key: values[key] if key in values else scores_of(group, key)
                for key in scalariser.weights
            }
        except RowError as error:
            if on_bad_row == "error":
                raise
            return error
        made[name] = tuple(float(x) for x in np.atleast_1d(scalariser(scores)))
    return made


def _count_agreement(report: ScoreReport, values: Mapping[str, Sequence[float]]) -> None:
    for name, (chosen, rejected, *_) in values.items():
        if chosen == rejected:
            outcome = "tie"
        else:
            outcome = "higher" if chosen > rejected else "lower"
        report.agreement.setdefault(name, Counter())[outcome] += 1


def _with_scores(
    row: Mapping[str, Any], kind: str, values: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """The row with these scores beside those that it had."""
    written = dict(row)
    for k, key in enumerate(_KEYS[kind]):
        # Columnar files fill what a row lacks with null.
        scores = {name: had for name, had in (row.get(key) or {}).items() if had is not None}
        for name, of_answers in values.items():
            scores[name] = list(of_answers) if kind == "ranked" else of_answers[k]
        written[key] = scores
    return written
