"""The reference policy: a frozen copy of the weights, or log-probs cached on disk.

Cached values are kept per completion, under digests of (prompt ids, completion ids), in one file per (weights,
compute dtype).  So they are reused whenever the same tokens meet the same weights, whatever else changed in the run,
and never otherwise.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxpref.models.quantize import Quantisation
from jaxpref.types import EncodedGroup


def frozen_copy(params: Any, dtype: Any) -> Any:
    """A copy in the compute dtype that shares no buffer with `params` (training donates those)."""
    return jax.jit(lambda tree: jax.tree.map(lambda x: jnp.copy(x.astype(dtype)), tree))(params)


def weights_key(path: Path, dtype: str, adapter: str | None = None, quantisation: Quantisation | None = None) -> str:
    """Digest of a checkpoint's bytes, of the adapter's on it, how its weights are kept, and the compute dtype."""
    kept = "" if quantisation is None else f" {quantisation}"
    digest = hashlib.sha256(f"summed log-probs v1 {dtype}{kept}".encode())
    for file in [*_files(path), *(_files(Path(adapter)) if adapter else [])]:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json")) if path.is_dir() else [path]


def completion_key(group: EncodedGroup, k: int) -> bytes:
    """Digest of one completion after its prompt, as tokens."""
    prompt, completion = group.prompt_ids.astype("<i4"), group.completion_ids[k].astype("<i4")
    return hashlib.sha256(len(prompt).to_bytes(4, "little") + prompt.tobytes() + completion.tobytes()).digest()[:16]


def cached_logps(
    groups: Sequence[EncodedGroup],
    cache_file: Callable[[], Path],
    compute: Callable[[Sequence[EncodedGroup]], Mapping[int, Sequence[float]]],
) -> tuple[list[tuple[float, ...]], int]:
    """Log-probs of every group's completions under one model, and how many groups had to be computed.

    Only process 0 reads and writes the cache and tells the others: each may have a disk of its own, and all must agree
    on what is left to compute.

    Args:
        cache_file: makes the path `CACHE_DIR/KEY.npz`; the file is made when missing, extended otherwise.
        compute: groups -> {row id: log-prob of every completion, summed over tokens, nats}, on every process.
    """
    first = jax.process_index() == 0
    path = cache_file() if first else None
    known = _read(path) if first else {}
    keys = [[completion_key(group, k) for k in range(len(group.completion_ids))] for group in groups]
    values_BK = np.full((len(groups), max(map(len, keys))), np.nan, np.float32)
    for b, row in enumerate(keys):
        values_BK[b, : len(row)] = [known.get(key, np.nan) for key in row]
    if jax.process_count() > 1:
        values_BK = np.array(multihost_utils.broadcast_one_to_all(values_BK))
    missing = [b for b, row in enumerate(keys) if np.isnan(values_BK[b, : len(row)]).any()]
    if missing:
        computed = compute([groups[b] for b in missing])
        for b in missing:
            values_BK[b, : len(keys[b])] = np.asarray(computed[groups[b].row_id])[: len(keys[b])]
        if first:
            new = {key: value for b in missing for key, value in zip(keys[b], values_BK[b], strict=False)}
            _write(path, known | new)
    return [tuple(map(float, values_BK[b, : len(row)])) for b, row in enumerate(keys)], len(missing)


def with_column(groups: Sequence[EncodedGroup], name: str, values: Sequence[Any]) -> list[EncodedGroup]:
    """Groups with one more column."""
    return [
        dataclasses.replace(group, columns={**group.columns, name: value})
        for group, value in zip(groups, values, strict=True)
    ]


def _read(path: Path) -> dict[bytes, float]:
    if not path.is_file():
        return {}
    with np.load(path) as stored:
        return {key.tobytes(): value for key, value in zip(stored["keys"], stored["logps"], strict=True)}


def _write(path: Path, known: Mapping[bytes, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = np.frombuffer(b"".join(known), np.uint8).reshape(-1, 16)
    partial = path.with_name(f".{path.name}.partial.npz")
    np.savez(partial, keys=keys, logps=np.array(list(known.values()), np.float32))
    partial.replace(path)  # whole or not at all, also when two runs share the cache
