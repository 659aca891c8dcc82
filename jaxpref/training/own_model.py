"""Whether a model of the user's own uses what it is given of packed rows: the mask and positions.

One that does not trains without a complaint, on texts that run into each other.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.data.pack import row_tokens
from jaxpref.errors import InputError
from jaxpref.runs.build import Pieces
from jaxpref.runs.sequence_logps import compute_logps
from jaxpref.training.first_step import APART
from jaxpref.types import EncodedGroup

_TOKENS = 24
"""Of the row in which the mask is tried."""
_LOOKED_AT = 256
"""Groups among which short ones are looked for, to try the positions."""


def check_own_model(pieces: Pieces, params: Any, groups: Sequence[EncodedGroup]) -> None:
    """Errors: InputError for a model that does not use the mask, or not the positions.

    The mask is tried on hidden states, which must be equal to the bit where nothing visible has
    changed.  After that only positions can set log-probs in packed rows apart from those of one
    sequence per row.
    """
    if seen := _seen_against_the_mask(pieces, params):
        raise InputError(
            "a model that uses the mask it is given",
            f"hidden states depend on {seen}, which the mask hides from them",
            "let attention leave out the keys for which the mask is False (with mask='expiry': "
            "query q sees key k iff k <= q < expiry[k]), and whatever else mixes tokens too",
        )
    row, apart, allowed = _apart(pieces, params, sorted(groups[:_LOOKED_AT], key=_tokens)[:2])
    if apart > allowed:
        raise InputError(
            "a model that uses the positions it is given: log-probs in packed rows equal to those "
            "of one sequence per row",
            f"{row}: apart by {apart:.3g} nats ({allowed:.3g} are rounding)",
            "take position_RL for rotations or learned positions, not the index along the row: "
            "positions restart with every text, and every completion continues its prompt's",
        )


def _seen_against_the_mask(pieces: Pieces, params: Any) -> str:
    """What hidden states depend on that they must not see; empty: nothing.

    The row holds a prompt, two completions of it, and another text: 4 parts of as many tokens.
    """
    part = _TOKENS // 4
    index_L = np.arange(_TOKENS)
    first, second = index_L // part == 1, index_L // part == 2
    expiry_L = np.select(
        [index_L // part == 0, first, second], [3 * part, 2 * part, 3 * part], 4 * part
    )
    position_L = index_L % part + part * (first | second)
    rng = np.random.default_rng(0)
    token_L, other_L = rng.integers(0, pieces.source.spec.vocab, (2, _TOKENS))
    ways = pieces.mesh.shape["data"] * pieces.mesh.shape["fsdp"]
    forward = jax.jit(pieces.model.hidden)

    def hidden(changed_L: np.ndarray) -> np.ndarray:
        tokens_L = np.where(changed_L, other_L, token_L)
        rows = (
            np.tile(x_L.astype(np.int32), (ways, 1)) for x_L in (tokens_L, position_L, expiry_L)
        )
        with jax.set_mesh(pieces.mesh):
            return np.asarray(forward(params, *map(jnp.asarray, rows))[0])

    unchanged = hidden(index_L < 0)

    def moved(changed_L: np.ndarray, hidden_L: np.ndarray) -> bool:
        return not np.array_equal(hidden(changed_L)[hidden_L], unchanged[hidden_L])

    if moved(first, second):
        return "another completion of the same prompt"
    if moved(index_L < 3 * part, index_L >= 3 * part):
        return "another text in the same row"
    last_L = (index_L % part == part - 1) & (index_L >= part)
    if moved(last_L, ~last_L):
        return "later tokens"
    return ""


def _apart(pieces: Pieces, params: Any, groups: Sequence[EncodedGroup]) -> tuple[str, float, float]:
    """(row, nats by which a log-prob differs between the layouts, nats that rounding explains).

    Of the completion for which the difference is the largest, measured by what rounding explains.
    """
    groups = [replace(group, row_id=i) for i, group in enumerate(groups)]
    unit = pieces.config.row_unit
    together = _laid_out(pieces, row_length=-(-sum(map(_tokens, groups)) // unit) * unit)
    packed = compute_logps(together, params, groups)
    sequences = [
        replace(group, completion_ids=(ids,), row_id=0)
        for group in groups
        for ids in group.completion_ids
    ]
    sequences = [replace(one, row_id=i) for i, one in enumerate(sequences)]
    alone = compute_logps(_laid_out(pieces, pack=False), params, sequences)
    in_packed_rows = np.concatenate(
        [packed[group.row_id][: len(group.completion_ids)] for group in groups]
    )
    per_token = APART[_dtype(pieces, params)]
    compared = [
        (
            one.where,
            abs(float(logp - alone[one.row_id][0])),
            per_token * len(one.completion_ids[0]) ** 0.5,
        )
        for one, logp in zip(sequences, in_packed_rows, strict=True)
    ]
    return max(compared, key=lambda item: item[1] / item[2])


def _tokens(group: EncodedGroup) -> int:
    return row_tokens(group, share_prefix=False)


def _laid_out(pieces: Pieces, **data: Any) -> Pieces:
    """With other settings in section `data`, and prompts shared."""
    settings = replace(pieces.config.data, share_prefix=True, length_buckets=1, **data)
    return replace(pieces, config=replace(pieces.config, data=settings))


def _dtype(pieces: Pieces, params: Any) -> str:
    """The least precise dtype in which the model computes."""
    tokens = [jax.ShapeDtypeStruct((1, 8), jnp.int32)] * 3
    program = str(jax.make_jaxpr(pieces.model.hidden)(params, *tokens))
    return "bfloat16" if "f16[" in program else "float32"
