"""The loops of a train step whose trips the data decide, counted on the rows of a plan."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.models.attention import Mask, visible_blocks
from jaxpref.models.chunked_head import LM_HEAD
from jaxpref.models.experts import block_size
from jaxpref.models.spec import LayerKind
from jaxpref.models.tpu_attention import seen_share
from jaxpref.plan.planned_step import PlannedStep
from jaxpref.sharding import row_ways
from jaxpref.step.micro_batches import MICRO_BATCHES
from jaxpref.types import Batch

_SCOPES = (MICRO_BATCHES, "attention", "experts", LM_HEAD)


@dataclass(frozen=True)
class Loops:
    """How often the body of each kind of loop runs, on average."""

    trips: dict[str, float]
    kernels: float
    """What attention's kernels work through, as a share of what they state: of the pairs of queries
    and keys of rows that are one causal sequence."""

    def at(self, scope: str) -> float:
        """Of the loop at this place of the traced program: its innermost scope tells.

        Args:
            scope: a name stack, or the `op_name` of an instruction.
        """
        names = re.findall("|".join(_SCOPES), scope)
        return self.trips[names[-1]] if names else 1.0


def count_loops(planned: PlannedStep) -> Loops:
    """The loops of the step, on the batch that is planned for."""
    config = planned.pieces.config
    used = planned.item.micro_batches
    batch: Batch = jax.tree.map(lambda x: np.asarray(x[:used]), planned.item.batch)
    chunk = config.model.logprob_chunk
    slots = batch.valid_RG.shape[-1] * batch.slot_count_RGK.shape[-1]
    real = (batch.loss_slot_RS < slots + batch.valid_RG.shape[-1]).sum(-1).max(-1)
    return Loops(
        {
            MICRO_BATCHES: used,
            "attention": _visible_blocks(planned, batch),
            "experts": _expert_blocks(planned, batch),
            LM_HEAD: float(np.mean(-(-real // chunk))),
        },
        kernels=_over_windows(planned, batch, seen_share),
    )


def _expert_blocks(planned: PlannedStep, batch: Batch) -> float:
    """Blocks of (token, choice) pairs on a device, each of which has one expert.

    Half of an expert's last block is empty on average.
    """
    spec = planned.pieces.source.spec
    if not spec.experts:
        return 1.0
    mesh = planned.pieces.mesh
    tokens = batch.token_RL[0].size // (row_ways(mesh) * mesh.shape["context"])
    pairs = tokens * (spec.experts_per_token or 1)
    return pairs / block_size(pairs, spec.experts) + spec.experts / 2


def _visible_blocks(planned: PlannedStep, batch: Batch) -> float:
    """Blocks of keys that a block of queries reads, averaged over blocks, rows and layers."""
    block = planned.pieces.config.model.attention_block
    return _over_windows(planned, batch, lambda mask: _mean_blocks(mask, block))


def _over_windows(
    planned: PlannedStep, batch: Batch, of_mask: Callable[[Mask], float | jax.Array]
) -> float:
    """The mean of a number of masks over micro-batches and layers of attention."""
    kinds = planned.pieces.source.spec.kinds or (LayerKind(),)
    windows = Counter(kind.window for kind in kinds if kind.mixer == "attention")
    means = [
        float(np.mean([of_mask(mask) for mask in _masks(batch, window)])) for window in windows
    ]
    return float(np.average(means, weights=list(windows.values())))


def _masks(batch: Batch, window: int | None) -> Iterator[Mask]:
    """Of every micro-batch."""
    for expiry_RL, position_RL in zip(batch.expiry_RL, batch.position_RL, strict=True):
        yield Mask(
            jnp.asarray(expiry_RL),
            jnp.asarray(position_RL),
            None if window is None else jnp.int32(window),
        )


def _mean_blocks(mask: Mask, block: int) -> float:
    block_i = jnp.arange(mask.expiry_RL.shape[1] // block)
    return float(np.mean(visible_blocks(mask, block, block_i)[0]))
