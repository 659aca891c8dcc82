"""Token ids of data sets, kept on disk for the next start: where, how much, and under which key.

An entry is a directory: the groups (`kept_groups.py`), and an account of the rows.  Its key holds
all that the two depend on: the bytes of the data, the tokenizer and its chat template, the settings
that are read on the way, the code and the versions of the packages that do it.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from jaxpref.config import DataConfig
from jaxpref.data.kept_groups import KeptGroups
from jaxpref.data.report import DataReport
from jaxpref.data.tables import Table
from jaxpref.errors import InputError
from jaxpref.storage.entries import among_users_caches, entry_of

GROUPS, REPORT = "groups.arrow", "report.json"

_NOT_READ = {
    "train",
    "eval",
    "cache",
    "cache_gb",
    "row_length",
    "length_buckets",
    "share_prefix",
    "pack",
    "shuffle",
}
"""Keys of the data's settings on which tokens do not depend; paths come in by what is there."""
_PACKAGES = ("transformers", "tokenizers", "jinja2", "datasets", "pyarrow", "pillow")

_log = logging.getLogger(__name__)

Kept = tuple[KeptGroups, DataReport]


def key_of(tables: Sequence[Table], config: DataConfig, tokenizer: Any, **asked: Any) -> str:
    """The key of an entry.

    Args:
        asked: what else decides how rows are read, as JSON.
    """
    settings = {key: value for key, value in asdict(config).items() if key not in _NOT_READ}
    parts = {
        "data": [table.digest() for table in tables],
        "tokenizer": _tokenizer_digest(tokenizer),
        "settings": settings,
        "asked": asked,
        "code": _code_digest(),
        "packages": {package: _version(package) for package in _PACKAGES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # without pictures, pillow may be missing
        return None


def _tokenizer_digest(tokenizer: Any) -> str:
    about = {
        "class": type(tokenizer).__name__,
        "tokens": tokenizer.backend_tokenizer.to_str(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "split": getattr(tokenizer, "split_special_tokens", None),
        "template": tokenizer.chat_template,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _code_digest() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def find(config: DataConfig, key: str) -> Kept | None:
    """What is kept under a key; None: nothing is."""
    top = _directory(config.cache)
    entry = top / key if top is not None else None
    if entry is None or not entry.is_dir():
        return None
    os.utime(entry)
    return _read(entry)


def keep(config: DataConfig, key: str, make: Callable[[Path], None]) -> Kept:
    """What `make` writes, under its key, unless another process has just done it.

    Args:
        make: fills a directory with the two files.
    """
    top = _directory(config.cache)
    if top is not None:
        try:
            top.mkdir(mode=0o700, parents=True, exist_ok=True)
            # What cannot be written fails here, not after the work.
            tempfile.TemporaryFile(dir=top).close()
        except OSError:
            level = logging.INFO if config.cache == "auto" else logging.WARNING
            _log.log(level, "token ids are not kept: %s cannot be written", top)
            top = None
    if top is not None:
        return _read(entry_of(top, key, make, config.cache_gb * 1e9, _told))
    scratch = Path(tempfile.mkdtemp(prefix="jaxpref-tokens-"))
    try:
        make(scratch)
        return _read(scratch)
    finally:  # a file that is mapped stays until the mapping ends
        shutil.rmtree(scratch, ignore_errors=True)


def _told(entry: Path) -> str:
    report = entry / REPORT
    paths = _reports.validate_json(report.read_bytes()).paths if report.is_file() else []
    return f"the token ids of {', '.join(paths)}, not used for longest (data.cache_gb)"


def _directory(asked: str) -> Path | None:
    """The directory of the entries; None: there is none to be used.

    Errors: InputError for a bucket, whose files cannot be mapped into memory.
    """
    if asked == "none":
        return None
    if "://" in asked:
        raise InputError(
            "data.cache on this host's disk, from which token ids are mapped into memory",
            asked,
            "name a local directory, auto or none",
        )
    return among_users_caches("tokens") if asked == "auto" else Path(asked)


_reports = TypeAdapter(DataReport)


def _read(entry: Path) -> Kept:
    report = _reports.validate_json((entry / REPORT).read_bytes())
    return KeptGroups(entry / GROUPS), report


def write_report(directory: Path, report: DataReport) -> None:
    """Beside the groups."""
    (directory / REPORT).write_bytes(_reports.dump_json(report))
