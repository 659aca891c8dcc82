"""Digests of weights: cached log-probs and scores are kept under them."""

import hashlib
from pathlib import Path

from jaxpref.models.quantize import Quantisation
from jaxpref.runs.adapters import quantisation, reference_adapter
from jaxpref.runs.build import Pieces
from jaxpref.runs.checkpoint import find_step
from jaxpref.runs.directory import checkpoints_of
from jaxpref.runs.params import reference_source


def weights_key(
    path: Path, dtype: str, adapter: str | None = None, quantisation: Quantisation | None = None
) -> str:
    """Digest of a checkpoint's bytes, of the adapter's on it, how its weights are kept, and the
    compute dtype."""
    kept = "" if quantisation is None else f" {quantisation}"
    digest = hashlib.sha256(f"summed log-probs v1 {dtype}{kept}".encode())
    for file in [*_files(path), *(_files(Path(adapter)) if adapter else [])]:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


def _files(path: Path) -> list[Path]:
    return (
        sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json"))
        if path.is_dir()
        else [path]
    )


def model_digest(pieces: Pieces, adapter: str | Path | None = None) -> str:
    """Of the files that model and reference are read from: weights, configs and tokenizers.

    Args:
        adapter: a PEFT directory that the policy is read from besides.
    """
    dtype, how = pieces.config.model.compute_dtype, quantisation(pieces.config.adapter)
    reference = reference_adapter(pieces.config)
    keys = [weights_key(pieces.source.path, dtype, reference, how)]
    if pieces.config.reference.path is not None:
        keys.append(weights_key(reference_source(pieces).path, dtype))
    if adapter is not None:
        keys.append(weights_key(Path(adapter), dtype))
    return " ".join(keys)


def checkpoint_digest(pieces: Pieces, run: str | Path, step: str) -> str:
    """Of a run's checkpoint: the bytes of all its files."""
    with checkpoints_of(run, pieces.config) as checkpoints:
        number, directory = find_step(checkpoints, step), checkpoints.directory
    digest = hashlib.sha256(str(number).encode())
    for file in sorted(path for path in (directory / str(number)).rglob("*") if path.is_file()):
        digest.update(str(file.relative_to(directory)).encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]
