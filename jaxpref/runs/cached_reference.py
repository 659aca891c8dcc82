"""Log-probs of the reference, cached on disk in place of a model that runs in every step.

They are kept per completion, under digests of (prompt ids, completion ids), in one file per
(weights, compute dtype).  So they are reused whenever the same tokens meet the same weights,
whatever else has changed in the run, and never otherwise.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxpref.errors import InputError
from jaxpref.files import whole_file
from jaxpref.models.parameters import cast_for_products
from jaxpref.models.source import Checkpoint, open_checkpoint
from jaxpref.runs.adapters import quantisation, reference_adapter
from jaxpref.runs.build import Pieces, attention_of, make_decoder
from jaxpref.runs.digests import placed_digest, weights_key
from jaxpref.runs.feed import EXTRA_COLUMN
from jaxpref.runs.made_from import of_own_model
from jaxpref.runs.params import load_params, reference_params, reference_source
from jaxpref.runs.sequence_logps import compute_logps
from jaxpref.step.batch_loss import REFERENCE_COLUMN
from jaxpref.storage.entries import cache_directory
from jaxpref.types import EncodedGroup


def with_reference_logps(
    pieces: Pieces, groups: Sequence[EncodedGroup], params: Any = None
) -> tuple[Sequence[EncodedGroup], int]:
    """Groups with the columns of cached log-probs that the config asks for.

    Args:
        params: the policy from which training starts, when it is loaded already.
    Returns: the groups, and of how many the log-probs had to be computed, counted once per model.
    """
    config, computed = pieces.config, 0
    if pieces.needs_reference and config.reference.mode == "cache":
        if config.reference.path is None:
            logps, computed = _under_start(pieces, groups, params)
        else:
            logps, computed = _under_checkpoint(pieces, reference_source(pieces), groups)
        groups = with_column(groups, REFERENCE_COLUMN, logps)
    if config.reference.extra:
        under_each = []
        for path in config.reference.extra:
            source = open_checkpoint(path, pictures=config.model.pictures)
            logps, count = _under_checkpoint(pieces, source, groups)
            under_each.append(logps)
            computed += count
        together = [np.stack(of_group, axis=-1) for of_group in zip(*under_each, strict=True)]
        groups = with_column(groups, EXTRA_COLUMN, together)
    return groups, computed


Cached = tuple[list[tuple[float, ...]], int]
"""(log-probs of every group's completions, how many groups had to be run for them)."""


def _under_start(pieces: Pieces, groups: Sequence[EncodedGroup], params: Any) -> Cached:
    """Under the reference that is made of the weights from which training starts."""

    def load() -> Any:
        start = load_params(pieces) if params is None else params
        return reference_params(pieces, start)

    if pieces.source.in_memory:
        # All processes together, for each may hold a part of the weights only.
        given = load() if params is None else params
        own = of_own_model(pieces)
        digest = f"{placed_digest(given)} {own} {pieces.config.model.compute_dtype}"
        name = hashlib.sha256(digest.encode()).hexdigest()[:32]

    def key() -> str:
        if pieces.source.in_memory:
            return name
        config = pieces.config
        adapter, quantised = reference_adapter(config), quantisation(config.adapter)
        return weights_key(pieces.source.path, config.model.compute_dtype, adapter, quantised)

    return _through_cache(pieces, groups, key, load)


def _under_checkpoint(pieces: Pieces, source: Checkpoint, groups: Sequence[EncodedGroup]) -> Cached:
    """Under another checkpoint, which may be of another size than the model."""
    config = pieces.config
    if source.spec.vocab != pieces.source.spec.vocab:
        raise InputError(
            f"a reference with the model's vocabulary of {pieces.source.spec.vocab} tokens",
            f"{source.path}: {source.spec.vocab}",
            "name models with the same tokenizer in reference.extra",
        )
    attend = attention_of(config, source).attend
    model = make_decoder(config, source, mesh=pieces.mesh, attend=attend)
    theirs = dataclasses.replace(pieces, source=source, model=model, lora=None)

    def load() -> Any:
        return cast_for_products(load_params(theirs), pieces.dtype)

    def key() -> str:
        return weights_key(source.path, config.model.compute_dtype)

    return _through_cache(theirs, groups, key, load)


def _through_cache(
    pieces: Pieces, groups: Sequence[EncodedGroup], key: Callable[[], str], load: Callable[[], Any]
) -> Cached:
    """Under the model of `pieces`.

    Args:
        key: -> digest of the weights, which names the file.
        load: -> parameters; called only where some log-probs are not in the cache.
    """
    directory = cache_directory(pieces.config.reference.cache_dir, "reference")

    def compute(missing: Sequence[EncodedGroup]) -> Mapping[int, np.ndarray]:
        return compute_logps(pieces, load(), missing)

    return cached_logps(groups, lambda: directory / f"{key()}.npz", compute)


def cached_logps(
    groups: Sequence[EncodedGroup],
    cache_file: Callable[[], Path],
    compute: Callable[[Sequence[EncodedGroup]], Mapping[int, Any]],
) -> Cached:
    """Log-probs of every group's completions under one model, from a file as far as it has them.

    Only process 0 reads and writes the cache and tells the others: each may have a disk of its own,
    and all must agree on what is left to compute.

    Args:
        cache_file: -> the path `CACHE_DIR/KEY.npz`; the file is made when missing, extended
            otherwise.
        compute: groups -> {row id: log-prob of every completion, summed over tokens, nats}, on
            every process.
    """
    first = jax.process_index() == 0
    path = cache_file() if first else None
    known = _read(path) if first else {}
    keys = [
        [completion_key(group, k) for k in range(len(group.completion_ids))] for group in groups
    ]
    logps_BK = np.full((len(groups), max(map(len, keys))), np.nan, np.float32)
    for b, group_keys in enumerate(keys):
        logps_BK[b, : len(group_keys)] = [known.get(key, np.nan) for key in group_keys]
    if jax.process_count() > 1:
        logps_BK = np.array(multihost_utils.broadcast_one_to_all(logps_BK))
    missing = [b for b, row in enumerate(keys) if np.isnan(logps_BK[b, : len(row)]).any()]
    if missing:
        computed = compute([groups[b] for b in missing])
        for b in missing:
            completions = len(keys[b])
            logps_BK[b, :completions] = np.asarray(computed[groups[b].row_id])[:completions]
            known |= dict(zip(keys[b], logps_BK[b], strict=False))
        if first:
            _write(path, _read(path) | known)  # another run may have added some meanwhile
    return [tuple(map(float, logps_BK[b, : len(row)])) for b, row in enumerate(keys)], len(missing)


def completion_key(group: EncodedGroup, k: int) -> bytes:
    """Digest of one completion after its prompt, as tokens and pictures."""
    prompt, completion = group.prompt_ids.astype("<i4"), group.completion_ids[k].astype("<i4")
    whole = len(prompt).to_bytes(4, "little") + prompt.tobytes() + completion.tobytes()
    if group.pictures:
        digests = [picture.digest for picture in group.pictures]
        # A crop is the row's own.
        other = (group.other_pictures, group.row_id) if group.has_own_prompt(k) else None
        whole += f"{digests} {other}".encode()
    return hashlib.sha256(whole).digest()[:16]


def with_column(
    groups: Sequence[EncodedGroup], name: str, values: Sequence[Any]
) -> list[EncodedGroup]:
    """Groups with one more data column."""
    return [
        dataclasses.replace(group, columns={**group.columns, name: value})
        for group, value in zip(groups, values, strict=True)
    ]


def _read(path: Path) -> dict[bytes, float]:
    if not path.is_file():
        return {}
    with path.open("rb") as file, np.load(file) as stored:
        keys = [key.tobytes() for key in stored["keys"]]
        return dict(zip(keys, stored["logps"], strict=True))


def _write(path: Path, known: Mapping[bytes, float]) -> None:
    keys = np.frombuffer(b"".join(known), np.uint8).reshape(-1, 16)
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, keys=keys, logps=np.array(list(known.values()), np.float32))
