"""Digests of the weights that a reward is made of; scores are kept under them."""

import hashlib
from pathlib import Path

from jaxpref.build import Pieces, reference_source
from jaxpref.checkpoint import BestRule, Checkpoints, find_step
from jaxpref.policy import quantisation, reference_adapter
from jaxpref.reference import weights_key


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
    directory = Path(run) / "checkpoints"
    best = BestRule(pieces.config.train.best_metric, pieces.config.train.best_mode)
    checkpoints = Checkpoints(directory, best=best, read_only=True)
    try:
        number = find_step(checkpoints, step)
    finally:
        checkpoints.close()
    digest = hashlib.sha256(str(number).encode())
    for file in sorted(path for path in (directory / str(number)).rglob("*") if path.is_file()):
        digest.update(str(file.relative_to(directory)).encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]
