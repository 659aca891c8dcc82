"""Models, tokenizers and checkpoints on the disks of several hosts: the same, or an error.

Every process reads the weights that its own devices hold, from its own disk: parts of two
checkpoints of one shape would make a model that nobody trained.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxpref.processes.agreement import check_same
from jaxpref.processes.store import process_count
from jaxpref.runs.damage import saved_checksums
from jaxpref.storage.local_copies import version_of
from jaxpref.storage.paths import as_path, is_bucket

_SUFFIXES = (".json", ".safetensors", ".gguf", ".jinja", ".model", ".txt")
_WHOLE = 64 * 2**20
"""Bytes up to which a file is read whole."""
_SAMPLES, _SAMPLE = 256, 4096
"""Of a larger one, so many pieces of so many bytes, evenly spread.  Training changes nearly all
numbers of a tensor, so that some piece tells two checkpoints apart."""


def check_same_files(paths: Mapping[str, str | Path | None]) -> None:
    """Errors: InputError on every process where files differ between hosts, by name.

    Args:
        paths: config key -> directory or file on this host; None: there is none.
    """
    digests = {
        f"{key}/{file.name}": _digest(file)
        for key, path in paths.items()
        if path is not None
        for file in _files(as_path(path))
    }
    check_same("model files (digests)", digests, "copy the same model and tokenizer to every host")


def check_same_checkpoint(run: str | Path, checkpoints: Path, step: int) -> None:
    """Errors: InputError on every process where hosts would read other ones of a run."""
    if process_count() == 1:
        return
    sums = json.dumps(saved_checksums(checkpoints, step), sort_keys=True)
    check_same(
        f"checkpoint of {run}",
        {"step": step, "digest": hashlib.sha256(sums.encode()).hexdigest()[:12]},
        "copy the same run to every host, or name the step",
    )


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    yield from sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)


def _digest(file: Path) -> str:
    """Of a file's size and bytes; of a large one's pieces; in a bucket, what that says of it."""
    if is_bucket(file):
        return hashlib.sha256(version_of(file).encode()).hexdigest()[:12]
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        if size <= _WHOLE:
            digest.update(stream.read())
        else:
            for i in range(_SAMPLES):
                stream.seek((size - _SAMPLE) * i // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()[:12]
