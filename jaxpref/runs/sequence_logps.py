"""Summed log-probs of completions in one pass over given groups: for caches, fronts, mixtures."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpref.data.loader import Loader
from jaxpref.runs.build import Pieces
from jaxpref.runs.feed import batches, row_layout
from jaxpref.sharding import micro_rows, replicated
from jaxpref.step.batch_loss import summed_logps
from jaxpref.step.train_step import make_logp_step
from jaxpref.types import Batch, EncodedGroup


def compute_logps(
    pieces: Pieces,
    params: Any,
    groups: Sequence[EncodedGroup],
    sums: Callable[[Any, Batch], jax.Array] | None = None,
) -> dict[int, np.ndarray]:
    """{row id: [K] summed log-probs in nats} of all groups under `params`, on every process.

    Args:
        sums: (params, micro-batch) -> [R*G, K], the same function for the same programs; None:
            those of the model.
    Errors: InputError for a sequence that the model has no positions for.
    """
    config, mesh = pieces.config, pieces.mesh
    # A conditioned adapter reads the weights of rows, where they have some.
    has = groups[0].columns if groups else ()
    columns = [name for name in pieces.model.weight_columns if name in has]
    loader = Loader(
        groups,
        batch_size=config.train.batch_size,
        micro_rows=micro_rows(config.train.micro_rows, mesh),
        layout=row_layout(pieces, groups),
        columns=columns,
        processor=pieces.processor,
    )
    if sums is None:
        sums = summed_logps(pieces.model, config.model.logprob_chunk)
    step = _compiled(sums, tuple(loader.layout.lengths), mesh)
    logps: dict[int, np.ndarray] = {}
    with jax.set_mesh(mesh):
        # Every process needs every value, so each builds all rows.
        for item, batch, micro_batches in batches(loader.iterate(), mesh):
            logps_TRGK = np.asarray(step(params, batch, micro_batches))
            rows_TRG = item.batch.row_id_RG
            for t, r, g in np.argwhere(rows_TRG >= 0):
                logps[int(rows_TRG[t, r, g])] = logps_TRGK[t, r, g]
    return logps


@functools.lru_cache(maxsize=8)  # another policy on the same groups compiles nothing
def _compiled(sums: Callable, lengths: tuple[int, ...], mesh: Mesh) -> Callable:
    return jax.jit(make_logp_step(sums, lengths=lengths), out_shardings=replicated(mesh))
