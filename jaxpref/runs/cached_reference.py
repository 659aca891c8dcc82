"""Log-probs of the reference, cached on disk in place of a model that runs in every step.

They are kept per completion, under digests of (prompt ids, completion ids), in one file per
(weights, compute dtype).  So they are reused whenever the same tokens meet the same weights,
whatever else changed in the run, and never otherwise.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.data.loader import Loader
from jaxpref.errors import InputError
from jaxpref.files import whole_file
from jaxpref.models.source import Checkpoint, open_checkpoint
from jaxpref.runs.adapters import quantisation, reference_adapter
from jaxpref.runs.build import Pieces, make_decoder
from jaxpref.runs.digests import weights_key
from jaxpref.runs.feed import EXTRA_COLUMN, batches, row_layout
from jaxpref.runs.params import load_params, reference_params, reference_source
from jaxpref.sharding import row_ways
from jaxpref.step.batch_loss import REFERENCE_COLUMN, summed_logps
from jaxpref.step.train_step import make_logp_step
from jaxpref.types import Batch, EncodedGroup


def with_reference_logps(
    pieces: Pieces, groups: Sequence[EncodedGroup], params: Any = None
) -> tuple[list, int]:
    """Groups with cached log-probs of the reference and of further references where the config says
    so, and how many log-probs of groups had to be computed.

    Args:
        params: the policy that training starts from, when it is loaded already.
    """
    config, groups, computed = pieces.config, list(groups), 0
    if pieces.needs_reference and config.reference.mode == "cache":
        if config.reference.path is None:
            values, computed = _logps_under_start(pieces, groups, params)
        else:
            values, computed = _logps_under(pieces, reference_source(pieces), groups)
        groups = with_column(groups, REFERENCE_COLUMN, values)
    if config.reference.extra:
        found = [
            _logps_under(pieces, open_checkpoint(path), groups) for path in config.reference.extra
        ]
        groups = with_column(
            groups,
            EXTRA_COLUMN,
            [np.stack(v, axis=-1) for v in zip(*(v for v, _ in found), strict=True)],
        )
        computed += sum(count for _, count in found)
    return groups, computed


def _logps_under_start(pieces: Pieces, groups: Sequence[EncodedGroup], params: Any) -> tuple:
    """Log-probs of all completions under the reference that the start of the training makes,
    through the cache."""

    def load() -> Any:
        start = load_params(pieces) if params is None else params
        return reference_params(pieces, start)

    adapter, how = reference_adapter(pieces.config), quantisation(pieces.config.adapter)
    key = lambda: weights_key(pieces.source.path, pieces.config.model.compute_dtype, adapter, how)
    return _cached(pieces, groups, key, load)


def _logps_under(pieces: Pieces, source: Checkpoint, groups: Sequence[EncodedGroup]) -> tuple:
    """The same under another checkpoint, which may be of another size than the model."""
    config = pieces.config
    if source.spec.vocab != pieces.source.spec.vocab:
        raise InputError(
            f"a reference with the model's vocabulary of {pieces.source.spec.vocab} tokens",
            f"{source.path}: {source.spec.vocab}",
            "choose one with the same tokenizer",
        )
    model = make_decoder(config, source, mesh=pieces.mesh)
    theirs = dataclasses.replace(pieces, source=source, model=model, lora=None)
    load = lambda: jax.tree.map(lambda x: x.astype(pieces.dtype), load_params(theirs))
    return _cached(
        theirs, groups, lambda: weights_key(source.path, config.model.compute_dtype), load
    )


def _cached(
    pieces: Pieces, groups: Sequence[EncodedGroup], key: Callable[[], str], load: Callable[[], Any]
) -> tuple:
    """Log-probs under `load()`, which is called only when some are not in the cache, kept under
    `key()`."""
    cache = Path(pieces.config.reference.cache_dir).expanduser()
    compute = lambda missing: compute_logps(pieces, load(), missing)
    return cached_logps(groups, lambda: cache / f"{key()}.npz", compute)


def compute_logps(
    pieces: Pieces,
    params: Any,
    groups: Sequence[EncodedGroup],
    sums: Callable[[Any, Batch], jax.Array] | None = None,
) -> dict[int, np.ndarray]:
    """{row id: [K] summed log-probs} of all groups under `params`.

    Args:
        sums: (params, micro-batch) -> [B, K], the same function for the same programs; None: those
            of the model.
    """
    config, mesh = pieces.config, pieces.mesh
    loader = Loader(
        groups,
        batch_size=config.train.batch_size,
        micro_rows=config.train.micro_rows or row_ways(mesh),
        layout=row_layout(pieces, groups),
    )
    values: dict[int, np.ndarray] = {}
    step = _compiled_logp_step(
        sums or summed_logps(pieces.model, config.model.logprob_chunk),
        tuple(loader.layout.lengths),
        mesh,
    )
    with jax.set_mesh(mesh):
        # Every process needs every value, so it builds every row.
        for item, batch, micro_batches in batches(loader.iterate(), mesh):
            logps = np.asarray(step(params, batch, micro_batches))
            rows = item.batch.row_id_RG
            values |= {int(rows[at]): logps[at] for at in zip(*np.nonzero(rows >= 0), strict=True)}
    return values


@functools.lru_cache(maxsize=8)  # another policy on the same groups compiles nothing
def _compiled_logp_step(sums: Callable, lengths: tuple[int, ...], mesh: Mesh) -> Callable:
    return jax.jit(make_logp_step(sums, lengths=lengths), out_shardings=NamedSharding(mesh, P()))


def completion_key(group: EncodedGroup, k: int) -> bytes:
    """Digest of one completion after its prompt, as tokens."""
    prompt, completion = group.prompt_ids.astype("<i4"), group.completion_ids[k].astype("<i4")
    return hashlib.sha256(
        len(prompt).to_bytes(4, "little") + prompt.tobytes() + completion.tobytes()
    ).digest()[:16]


def cached_logps(
    groups: Sequence[EncodedGroup],
    cache_file: Callable[[], Path],
    compute: Callable[[Sequence[EncodedGroup]], Mapping[int, Sequence[float]]],
) -> tuple[list[tuple[float, ...]], int]:
    """Log-probs of every group's completions under one model, and how many groups had to be
    computed.

    Only process 0 reads and writes the cache and tells the others: each may have a disk of its own,
    and all must agree on what is left to compute.

    Args:
        cache_file: makes the path `CACHE_DIR/KEY.npz`; the file is made when missing, extended
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
            new = {
                key: value
                for b in missing
                for key, value in zip(keys[b], values_BK[b], strict=False)
            }
            _write(path, known | new)
    return [tuple(map(float, values_BK[b, : len(row)])) for b, row in enumerate(keys)], len(missing)


def with_column(
    groups: Sequence[EncodedGroup], name: str, values: Sequence[Any]
) -> list[EncodedGroup]:
    """Groups with one more column."""
    return [
        dataclasses.replace(group, columns={**group.columns, name: value})
        for group, value in zip(groups, values, strict=True)
    ]


def _read(path: Path) -> dict[bytes, float]:
    if not path.is_file():
        return {}
    with np.load(path) as stored:
        return {
            key.tobytes(): value for key, value in zip(stored["keys"], stored["logps"], strict=True)
        }


def _write(path: Path, known: Mapping[bytes, float]) -> None:
    keys = np.frombuffer(b"".join(known), np.uint8).reshape(-1, 16)
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, keys=keys, logps=np.array(list(known.values()), np.float32))
