"""Scores kept on disk: a reward runs only on what it has not scored before.

One SQLite file per reward, named after the digest of its identity; it holds the scores of every
group, under the digest of its texts and the limits.  A chunk is written in one transaction, so what
was scored before a kill is there after it.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpref.data.pictures.decode import digest_of, stored_bytes
from jaxpref.errors import InputError
from jaxpref.processes.together import first_does
from jaxpref.rewards.reward import Limits, Reward, Values
from jaxpref.storage.entries import cache_directory
from jaxpref.storage.paths import is_bucket
from jaxpref.types import Group

CACHE_DIR = "auto"
"""jaxpref/scores among the user's caches."""


def cached(reward: Reward, directory: str | Path = CACHE_DIR) -> Reward:
    """The same reward, which looks up what it has scored before.

    One without an identity stays as it is.  Groups are looked up and run together as they are
    given: give them in chunks.  Of several processes the first reads and writes the file.
    Errors: InputError for a file that is not such a cache, and for a directory in a bucket.
    """
    if is_bucket(directory):
        raise InputError(
            "a local directory for the cache of scores (SQLite)",
            str(directory),
            "leave out --cache, or name a directory on this host",
        )
    if reward.identity is None:
        return reward

    @functools.cache
    def file() -> Path:
        name = hashlib.sha256(f"scores v1 {reward.identity()}".encode()).hexdigest()[:32]
        return cache_directory(directory, "scores") / f"{name}.sqlite"

    def of_groups(groups: Sequence[Group], limits: Limits) -> list[Values]:
        keys = [group_key(group, limits) for group in groups]
        kept = first_does(lambda: _read(file(), keys))
        known = {
            key: _values(text) for key, text in zip(keys, kept, strict=True) if text is not None
        }
        # By key, so that equal groups are scored once.
        missing = {key: group for key, group in zip(keys, groups, strict=True) if key not in known}
        if missing:
            fresh = dict(zip(missing, reward.raw(list(missing.values()), limits), strict=True))
            first_does(lambda: _write(file(), fresh))
            known |= fresh
        return [known[key] for key in keys]

    return dataclasses.replace(reward, of_groups=of_groups, identity=None)


def group_key(group: Group, limits: Limits) -> bytes:
    """Digest of all that a reward may read of a group.

    Errors: RowError for a picture that cannot be read.
    """
    read: list[Any] = [
        group.prompt,
        group.completions,
        group.tools,
        dict(group.template_kwargs),
        dataclasses.astuple(limits),
    ]
    if group.pictures:
        read.append([digest_of(stored_bytes(picture, group.where)) for picture in group.pictures])
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).digest()


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Two runs may write at once; each waits for the other.
        with contextlib.closing(sqlite3.connect(file, timeout=600)) as connection, connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, value TEXT NOT NULL)"
            )
            yield connection
    except sqlite3.DatabaseError as error:
        raise InputError(
            "a cache of scores", f"{file}: {error}", "delete the file, or name another directory"
        ) from error


def _read(file: Path, keys: Iterable[bytes]) -> list[str | None]:
    """What is kept under each key; None: nothing."""
    kept: list[str | None] = []
    with _opened(file) as connection:
        for key in keys:
            row = connection.execute("SELECT value FROM scores WHERE key = ?", (key,)).fetchone()
            kept.append(None if row is None else row[0])
    return kept


def _values(text: str) -> Values:
    values = json.loads(text)
    return None if values is None else tuple(values)


def _write(file: Path, scores: Mapping[bytes, Values]) -> None:
    rows = [
        (key, json.dumps(None if values is None else [float(x) for x in values]))
        for key, values in scores.items()
    ]
    with _opened(file) as connection:
        connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", rows)
