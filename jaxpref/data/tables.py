"""Rows that were found, to be read any number of times, and a digest of what they are."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpref.data.pictures.decode import as_rgb
from jaxpref.data.readers import Rows
from jaxpref.errors import InputError
from jaxpref.storage.local_copies import version_of
from jaxpref.storage.paths import is_bucket


@dataclass(frozen=True)
class Table:
    """The rows of one source."""

    name: str
    """Path or the like, for accounts and messages."""
    rows: Callable[[], Rows]
    """Reads them from the first, each with its place."""
    files: tuple[Path, ...] = ()
    """What they are read from; none: they are in memory."""

    def digest(self) -> str:
        """Changes with the rows and their order."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(str(file).encode() + _digest_of(file))  # places name the file
        if not self.files:
            for row, _ in self.rows():
                digest.update(json.dumps(row, default=_of_value).encode() + b"\n")
        return digest.hexdigest()


def _of_value(value: Any) -> str:
    """Of what JSON does not have: bytes, and pictures and arrays, whose repr leaves out most."""
    if hasattr(value, "getexif"):  # of PIL: palette and rotation are not among its bytes
        try:
            value = as_rgb(value, "")
        except InputError:  # which reading the row tells with its place
            return repr(value)
    if hasattr(value, "tobytes"):
        shape = getattr(value, "shape", getattr(value, "size", None))
        return f"{type(value).__name__} {shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    return repr(value)


def _digest_of(file: Path) -> bytes:
    """Of a file's bytes; of one in a bucket, what that knows of its bytes."""
    if is_bucket(file):
        return version_of(file).encode()
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
