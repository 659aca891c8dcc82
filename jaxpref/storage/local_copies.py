"""Copies of files in buckets on this host's disk, each downloaded once for all processes.

They are kept under what the bucket says of the version, so a file that is replaced is downloaded
again.  The directory has a size limit: what was not used for longest is removed.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from jaxpref.errors import InputError
from jaxpref.storage.entries import cache_directory, entry_of
from jaxpref.storage.paths import file_system, is_bucket, key_of

DIRECTORY, LIMIT = "JAXPREF_CACHE_DIR", "JAXPREF_CACHE_GB"
"""Environment variables: where the copies are, and how many GB (10^9 bytes) they may take."""
_DEFAULTS = {DIRECTORY: "auto", LIMIT: "50"}


def local_file(path: Path) -> Path:
    """The file itself, or its copy where it is in a bucket."""
    if not is_bucket(path):
        return path
    return _copied({path.name: path}, path) / path.name


def local_directory(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> Path:
    """The directory itself, or a copy of it where it is in a bucket.

    Args:
        wanted: of which files, by their names; for those of a bucket.
    """
    if not is_bucket(path):
        return path
    above = key_of(path.parent).rstrip("/")
    names = [key.removeprefix(f"{above}/") for key in file_system(path).find(key_of(path))]
    # Some tools make objects whose names end with a slash, in place of directories.
    names = [name for name in names if name[-1] != "/" and wanted(name.rpartition("/")[2])]
    return _copied({name: path.parent / name for name in names}, path) / path.name


def version_of(path: Path) -> str:
    """What the bucket says of a file's content, in one text: another content, another version."""
    about = file_system(path).info(key_of(path))
    known = {name: about.get(name) for name in ("size", "ETag", "md5Hash", "crc32c")}
    return json.dumps(known, default=str)


def _copied(files: dict[str, Path], source: Path) -> Path:
    """The directory with the copies.

    Args:
        files: name below that directory -> file in the bucket.
    """
    versions = {name: version_of(file) for name, file in sorted(files.items())}
    key = hashlib.sha256(json.dumps([str(source), versions]).encode()).hexdigest()[:32]

    def download(into: Path) -> None:
        for name, file in files.items():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            file_system(file).get_file(key_of(file), str(into / name))

    return entry_of(_top(), key, download, _limit(), _told)


def _told(entry: Path) -> str:
    names = ", ".join(sorted(item.name for item in entry.iterdir()))
    return f"the copy of {names}, not used for longest: {LIMIT}={_limit() / 1e9:g}"


def _setting(name: str) -> str:
    return os.environ.get(name) or _DEFAULTS[name]


def _top() -> Path:
    top = cache_directory(_setting(DIRECTORY), "files")
    top.mkdir(parents=True, exist_ok=True)
    return top


def _limit() -> float:
    """Bytes.  Errors: InputError for a limit that is no number."""
    try:
        return float(_setting(LIMIT)) * 1e9
    except ValueError as error:
        raise InputError(f"{LIMIT}: a number of GB", _setting(LIMIT), f"correct {LIMIT}") from error
