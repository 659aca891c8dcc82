"""Directories of entries, each made once for all processes of a host; the oldest are removed."""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxpref.storage.paths import as_path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)


def entry_of(
    top: Path,
    key: str,
    make: Callable[[Path], None],
    limit: float,
    told: Callable[[Path], str],
) -> Path:
    """The directory `top/key`; of several processes that ask for it one makes it.

    Args:
        top: an existing directory.
        key: 32 hexadecimal digits.
        make: fills the empty directory that it is given; whole or not at all.
        limit: bytes that all entries may take; those not used for longest are removed, but not this
            one.
        told: what to say of an entry that is removed.
    """
    entry = top / key
    with _alone(top / f"{key}.lock"):
        if not entry.is_dir():
            with tempfile.TemporaryDirectory(dir=top, prefix="partial-") as scratch:
                whole = Path(scratch) / key
                whole.mkdir()
                make(whole)
                whole.rename(entry)
        os.utime(entry)
    with _alone(top / "removal.lock"):
        _remove_old(top, entry, limit, told)
    return entry


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process of this host at a time; the others wait."""
    with lock.open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_old(top: Path, kept: Path, limit: float, told: Callable[[Path], str]) -> None:
    """Removes what was not used for longest, while the entries take more than they may.

    Args:
        kept: stays, whatever it takes.
    """
    entries = [path for path in top.iterdir() if re.fullmatch("[0-9a-f]{32}", path.name)]
    entries.sort(key=lambda path: path.stat().st_mtime)
    sizes = {path: _bytes_in(path) for path in entries}
    for path in entries:
        if sum(sizes.values()) <= limit:
            return
        if path != kept:
            said = told(path)
            shutil.rmtree(path, ignore_errors=True)
            del sizes[path]
            _log.info("%s: removed %s", top, said)


def _bytes_in(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def among_users_caches(name: str) -> Path | None:
    """jaxpref/NAME in the user's directory of caches; None: there is none to be used."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches) / "jaxpref" / name if os.path.isabs(caches) else None


def cache_directory(asked: str | Path, name: str) -> Path:
    """The directory that is asked for; of `auto`, jaxpref/NAME among the user's caches.

    These caches used to lie in ~/.cache whatever XDG_CACHE_HOME says, so one that is there is used.
    """
    if asked != "auto":
        return as_path(asked)
    before = Path("~/.cache/jaxpref").expanduser() / name
    return before if before.is_dir() else among_users_caches(name) or before
