"""Token ids of prompts -> new token ids: prompts are read in chunks, then a loop on the device
draws token after token.

The R rows of a batch share their columns.  Prompts without their last token end right before one
column (shorter ones have padding in front, which nobody sees); the loop reads the last prompt token
in that column and every new token in the next one.  That column is rounded up, so that few shapes
are compiled.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.generation.sampling import Sampling, choose, row_keys
from jaxpref.models.chunked_head import logits
from jaxpref.models.model import Model
from jaxpref.models.transposed import in_rows
from jaxpref.sharding import constrain, row_ways

CHUNK = 256
"""Columns of a prompt that are read at a time."""
SEGMENT = 32
"""New tokens between two looks at the rows from the host, which knows stop strings and writes what
is finished."""


class DecodingModel(NamedTuple):
    """What is decoded, as functions over a state of its own: a model and its cache, or several that
    decide together."""

    start: Callable[[int, int], Any]
    """(rows, columns) -> empty state."""
    read: Callable[[Any, Any, jax.Array, jax.Array, jax.Array], Any]
    """(params, state, token_RC, position_RC, column) -> state with these tokens at columns [column,
    column + C).  Position -1 is padding."""
    unpacked: Callable[[Any], Any]
    """params -> the same as `next_logits` reads them; called once."""
    unpacked_state: Callable[[Any], Any]
    """State after the last `read` -> as `next_logits` takes and returns it."""
    next_logits: Callable[[Any, Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
    """(params, state, token_R, position_R, column) -> (float32 log-probs of the token after these,
    [R, V], up to a constant of the row; state with these tokens)."""


def decodes_unstacked(mesh: Mesh) -> bool:
    """Whether layers are decoded from arrays of their own: on a CPU, whose products would copy them
    out of a stack."""
    return mesh.size == 1 and jax.default_backend() == "cpu"


@cache  # the same functions for the same model, so that nothing is compiled again
def decoding_model(model: Model, unstacked: bool = False) -> DecodingModel:
    """One model.  Args: unstacked as of `decodes_unstacked`."""
    unstacked = unstacked and model.unstack_layers is not None

    def read(params, cache, token_RC, position_RC, column):
        return model.extend(params, token_RC, position_RC, cache, column)[1]

    def next_logits(params, cache, token_R, position_R, column):
        x_RCD, cache = model.extend(params, token_R[:, None], position_R[:, None], cache, column)
        head_VD = model.head(params)
        return logits(model, x_RCD, in_rows(head_VD) if unstacked else head_VD)[:, 0], cache

    if not unstacked:
        return DecodingModel(
            model.init_cache, read, lambda params: params, lambda cache: cache, next_logits
        )
    return DecodingModel(
        model.init_cache,
        read,
        jax.jit(model.unstack_layers),
        jax.jit(model.unstack_cache),
        next_logits,
    )


class Rows(NamedTuple):
    """A batch on its way, on the device.  S is the number of new tokens a row has room for."""

    state: Any
    """The policy's."""
    token_R: jax.Array
    """The last token, which the policy has not read yet."""
    position_R: jax.Array
    """Its position; -1 once the row is finished."""
    new_RS: jax.Array
    """int32 new tokens; -1 where there is none."""
    logp_RS: jax.Array
    """float32 log-probability of each new token (nats) under the policy itself: temperature 1,
    nothing left out."""
    drawn: jax.Array
    """int32 new tokens of the rows that are not finished."""


class Generator:
    """Draws tokens from a policy.  A program is compiled for every number of rows and length of
    prompts, rounded up.

    Args:
        mesh: rows lie over `data` and `fsdp`; parameters, heads and vocabulary as in training.
        positions: of the model; a prompt and `max_new_tokens` stay within.
        max_new_tokens: a row ends there at the latest.
        stop_ids: a row ends with the first of these, which is its last token.
    """

    def __init__(
        self,
        policy: DecodingModel,
        params: Any,
        mesh: Mesh,
        *,
        sampling: Sampling,
        seed: int,
        positions: int,
        max_new_tokens: int,
        stop_ids: Iterable[int],
    ):
        self.max_new_tokens, self._positions = max_new_tokens, positions
        self._params, self._mesh, self._seed = params, mesh, seed
        with jax.set_mesh(mesh):
            self._unpacked = policy.unpacked(params)
        self._policy, self._choice = policy, (sampling, tuple(sorted(stop_ids)))

    def run(
        self,
        prompts: Sequence[np.ndarray],
        numbers: Sequence[tuple[int, int]],
        ends: Sequence[Callable[[np.ndarray], int | None]],
        *,
        limit: int,
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Continues a batch of prompts.

        Args:
            prompts: token ids, at least one each.
            numbers: of prompt and sample; together with the seed they decide what is drawn for a
                row.
            ends: of each row: new tokens -> after how many of them it ends, for another reason than
                a stop token and `max_new_tokens`; None while it goes on.
            limit: of rows; the prompts are padded with empty ones up to a power of two below it.
        Returns: (row, new token ids, their log-probs in nats) of each prompt, once it is finished.
        """
        rows = _padded_rows(len(prompts), limit, row_ways(self._mesh))
        going_R, drawn = np.arange(rows) < len(prompts), 0
        key_R2 = row_keys(self._seed, [*numbers, *[(0, 0)] * (rows - len(prompts))])
        batch, first = self._read_prompts(prompts, rows)
        while going_R.any():
            drawn = min(drawn + SEGMENT, self.max_new_tokens)
            with jax.set_mesh(self._mesh):  # not around `yield`: the caller's mesh is its own
                inputs = map(self._put, (key_R2, first, going_R, np.int32(drawn)))
                batch = _draw(self._policy, *self._choice, self._unpacked, batch, *inputs)
            new_RS, logp_RS, position_R = map(
                np.asarray, (batch.new_RS, batch.logp_RS, batch.position_R)
            )
            for row in np.flatnonzero(going_R):
                ids = new_RS[row][new_RS[row] >= 0]
                end = ends[row](ids)
                if end is not None or position_R[row] < 0 or drawn == self.max_new_tokens:
                    going_R[row] = False
                    yield row, ids[:end], logp_RS[row, : len(ids)][:end]

    def _read_prompts(self, prompts: Sequence[np.ndarray], rows: int) -> tuple[Rows, np.int32]:
        """The rows before the first new token, and the column of the last prompt token."""
        columns = min(bucket(max(map(len, prompts)) - 1), self._positions - self.max_new_tokens)
        token_RC, position_RC = (
            np.zeros((rows, columns), np.int32),
            np.full((rows, columns), -1, np.int32),
        )
        last_R, position_R = np.zeros(rows, np.int32), np.full(rows, -1, np.int32)
        for row, ids in enumerate(prompts):
            read, last_R[row], position_R[row] = len(ids) - 1, ids[-1], len(ids) - 1
            token_RC[row, columns - read :] = ids[:-1]
            position_RC[row, columns - read :] = np.arange(read)
        with jax.set_mesh(self._mesh):
            state = _start(self._policy.start, rows, columns + self.max_new_tokens)
            for column in range(0, columns, CHUNK):
                part = np.s_[:, column : column + CHUNK]
                chunk = map(self._put, (token_RC[part], position_RC[part], np.int32(column)))
                state = _read(self._policy.read, self._params, state, *chunk)
            state = self._policy.unpacked_state(state)
        room = rows, self.max_new_tokens
        empty = (
            last_R,
            position_R,
            np.full(room, -1, np.int32),
            np.zeros(room, np.float32),
            np.int32(0),
        )
        return Rows(state, *map(self._put, empty)), np.int32(columns)

    def _put(self, x: np.ndarray) -> jax.Array:
        """On every device; the programs take of it what they need."""
        return jax.make_array_from_callback(
            np.shape(x), NamedSharding(self._mesh, P()), lambda index: x[index]
        )


# The policy's functions are static arguments, so that another Generator of the same policy compiles
# nothing.


@partial(jax.jit, static_argnums=(0, 1, 2))
def _start(start, rows: int, columns: int):
    return start(rows, columns)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _read(read, params, state, token_RC, position_RC, column):
    return read(params, state, token_RC, position_RC, column)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _draw(policy, sampling, stop_ids, params, rows: Rows, key_R2, first, going_R, until) -> Rows:
    """Up to `until` new tokens for the rows that are still going."""
    rows = rows._replace(position_R=jnp.where(going_R, rows.position_R, -1))
    going = lambda rows: (rows.drawn < until) & jnp.any(rows.position_R >= 0)
    stop_ids = np.array(stop_ids, np.int32)
    one = lambda rows: _draw_one(
        policy.next_logits, sampling, stop_ids, params, rows, key_R2, first
    )
    rows = lax.while_loop(going, one, rows)
    seen = [constrain(x, *[None] * x.ndim) for x in rows[1:]]  # whole on every process
    return Rows(rows.state, *seen)


def _draw_one(next_logits, sampling: Sampling, stop_ids, params, rows: Rows, key_R2, first) -> Rows:
    """One more token for every row that is not finished."""
    logits_RV, state = next_logits(
        params, rows.state, rows.token_R, rows.position_R, first + rows.drawn
    )
    going_R = rows.position_R >= 0
    token_R = jnp.where(going_R, choose(logits_RV, key_R2, rows.position_R + 1, sampling), 0)
    chosen_RV = (
        jnp.arange(logits_RV.shape[-1])[None, :] == token_R[:, None]
    )  # no gather: V may be sharded
    logp_R = jnp.sum(jnp.where(chosen_RV, logits_RV, 0.0), axis=-1) - jax.nn.logsumexp(
        logits_RV, axis=-1
    )
    write = lambda x_RS, value_R: lax.dynamic_update_slice_in_dim(
        x_RS, value_R[:, None], rows.drawn, 1
    )
    ended_R = jnp.isin(token_R, stop_ids)
    return Rows(
        state=state,
        token_R=token_R,
        position_R=jnp.where(going_R & ~ended_R, rows.position_R + 1, -1),
        new_RS=write(rows.new_RS, jnp.where(going_R, token_R, -1)),
        logp_RS=write(rows.logp_RS, jnp.where(going_R, logp_R, 0.0)),
        drawn=rows.drawn + 1,
    )


def bucket(columns: int) -> int:
    """Room for so many columns of prompts: multiples of 16 up to 64, of 32 up to a chunk, then of
    chunks."""
    step = next((step for step, until in ((16, 64), (32, CHUNK)) if columns <= until), CHUNK)
    return -(-columns // step) * step


def _padded_rows(rows: int, limit: int, ways: int) -> int:
    """A power of two that holds so many rows, or `limit`; in whole shares of the mesh."""
    return -(-min(1 << (rows - 1).bit_length(), limit) // ways) * ways
