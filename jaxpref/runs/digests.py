"""Digests of weights: cached log-probs and scores are kept under them, and runs know their own."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax

from jaxpref.models.parameters import leaf_path
from jaxpref.models.quantize import Quantisation
from jaxpref.runs.adapters import quantisation, reference_adapter
from jaxpref.runs.build import Pieces
from jaxpref.runs.checkpoint import find_step
from jaxpref.runs.checksums import checksums
from jaxpref.runs.directory import checkpoints_of
from jaxpref.runs.params import reference_source
from jaxpref.storage.local_copies import version_of
from jaxpref.storage.paths import as_path, is_bucket


def weights_key(
    path: Path, dtype: str, adapter: str | None = None, quantisation: Quantisation | None = None
) -> str:
    """Digest of a checkpoint's files and of what else decides the log-probs under it.

    Args:
        path: a model directory or a single file.
        dtype: the compute dtype.
        adapter: a PEFT directory on these weights.
        quantisation: how the weights are kept; None: as `dtype` says.
    """
    kept = "" if quantisation is None else f" {quantisation}"
    digest = hashlib.sha256(f"summed log-probs v2 {dtype}{kept}".encode())
    files = _files(path)
    if adapter:
        files += _files(as_path(adapter))
    for file in files:
        _add(digest, file.name, file)
    return digest.hexdigest()[:32]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".json"))


def _add(digest: Any, name: str, file: Path) -> None:
    """Adds a file's name and bytes; of one in a bucket, what that knows of its bytes."""
    digest.update(name.encode())
    if is_bucket(file):
        digest.update(version_of(file).encode())
        return
    with file.open("rb") as stream:
        digest.update(hashlib.file_digest(stream, "sha256").digest())


def model_digest(pieces: Pieces, adapter: str | Path | None = None) -> str:
    """Of the files that model and reference are read from: weights, configs and tokenizers.

    Args:
        adapter: a PEFT directory from which the policy is read besides.
    """
    config = pieces.config
    dtype, kept = config.model.compute_dtype, quantisation(config.adapter)
    keys = [weights_key(pieces.source.path, dtype, reference_adapter(config), kept)]
    if config.reference.path is not None:
        keys.append(weights_key(reference_source(pieces).path, dtype))
    if adapter is not None:
        keys.append(weights_key(as_path(adapter), dtype))
    return " ".join(keys)


def checkpoint_digest(pieces: Pieces, run: str | Path, step: str | int) -> str:
    """Of all files of a run's checkpoint.

    Args:
        step: `best`, `latest` or a number.
    """
    with checkpoints_of(run, pieces.config) as checkpoints:
        number, directory = find_step(checkpoints, step), checkpoints.directory
    digest = hashlib.sha256(str(number).encode())
    for file in sorted(path for path in (directory / str(number)).rglob("*") if path.is_file()):
        _add(digest, str(file.relative_to(directory)), file)
    return digest.hexdigest()[:32]


def placed_digest(params: Any) -> str:
    """Of weights as they lie on the mesh, the same on every mesh: nothing is read or gathered."""
    dtypes = {
        leaf_path(path): leaf.dtype.name
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    named = sorted([path, dtypes[path], x] for path, x in checksums(params).items())
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]
