"""Token ids of prompts -> new token ids: chunks of the prompts, then a loop on the device.

All R rows of a batch use the same positions of the KV cache.  Prompts without their last token end
right before one cache position (shorter ones have padding in front, which nothing attends to); the
loop reads the last prompt token at that position and each new token at the next one.  It is rounded
up, so that few shapes are compiled.
In `BatchInProgress`, L counts the new tokens of a row.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from jaxpref.generation.pictures import PromptPictures, stacked_tiles, stacked_tokens
from jaxpref.generation.sampling import Sampling, choose, row_keys
from jaxpref.models.chunked_head import logits
from jaxpref.models.model import Model
from jaxpref.models.transposed import in_rows
from jaxpref.sharding import constrain, place, replicated, row_ways
from jaxpref.types import Pictures

CHUNK = 256
"""Prompt tokens of a row that are read at a time."""
SEGMENT = 32
"""New tokens per call of the loop.

In between, the host looks for stop strings and writes what is finished.
"""


class DecodingModel(NamedTuple):
    """What is decoded, as functions over a state: a model and its KV cache, or several models."""

    start: Callable[[int, int], Any]
    """(rows, length) -> empty state with room for `length` tokens of every row."""
    read: Callable[..., Any]
    """(params, state, token_RC, position_RC, index, looked=None, at=None) -> state with these
    tokens at cache positions [index, index + C).  Position -1 is padding.

    Where prompts have pictures, `looked` is what `look` makes of them, and `at` the fields of
    `types.Pictures` about these tokens."""
    params_for_decoding: Callable[[Any], Any]
    """params -> the same as `next_logits` reads them; called once."""
    state_for_decoding: Callable[[Any], Any]
    """State after the last `read` -> the same as `next_logits` takes and returns it."""
    next_logits: Callable[[Any, Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
    """(params, state, token_R, position_R, index) -> (float32 log-probs of the token after these,
    [R, V], up to a constant of the row; state with these tokens)."""
    look: Callable[[Any, Pictures], Any] | None = None
    """(params, pictures) -> what `read` takes of them; None: not all models see pictures."""
    pictures_whole: bool = False
    """As of `Model`."""


def decodes_unstacked(mesh: Mesh) -> bool:
    """Whether every layer is decoded from arrays of its own.

    So it is on a CPU, whose products would copy a layer out of the stack.
    """
    return mesh.size == 1 and jax.default_backend() == "cpu"


@cache  # the same functions for the same model, so that nothing is compiled again
def decoding_model(model: Model, unstacked: bool = False) -> DecodingModel:
    """One model as a DecodingModel.  Args: unstacked as of `decodes_unstacked`."""
    unstacked = unstacked and model.unstack_layers is not None

    def read(params, cache, token_RC, position_RC, index, looked=None, at=None):
        chunk = token_RC, position_RC, cache, index
        if looked is None:
            return model.extend(params, *chunk)[1]
        return model.extend(params, *chunk, pictures=looked._replace(**at))[1]

    def next_logits(params, cache, token_R, position_R, index):
        x_R1D, cache = model.extend(params, token_R[:, None], position_R[:, None], cache, index)
        head_VD = model.head(params)
        if unstacked:
            head_VD = in_rows(head_VD)
        return logits(model, x_R1D, head_VD)[:, 0], cache

    if unstacked:
        params_for_decoding: Callable[[Any], Any] = jax.jit(model.unstack_layers)
        state_for_decoding: Callable[[Any], Any] = jax.jit(model.unstack_cache)
    else:
        params_for_decoding = state_for_decoding = lambda tree: tree
    return DecodingModel(
        model.init_cache,
        read,
        params_for_decoding,
        state_for_decoding,
        next_logits,
        model.look,
        model.pictures_whole,
    )


class BatchInProgress(NamedTuple):
    """The rows of a batch between two new tokens, on the device."""

    state: Any
    """The DecodingModel's."""
    token_R: jax.Array
    """The last token, which the model has not read yet."""
    position_R: jax.Array
    """Its position; -1 once the row is finished."""
    new_RL: jax.Array
    """int32 new tokens; -1 where there is none."""
    logp_RL: jax.Array
    """float32 log-probability of each new token (nats) under the model itself: temperature 1,
    nothing left out."""
    drawn: jax.Array
    """int32 new tokens of the rows that are not finished."""


class Generator:
    """Draws tokens from a model.

    A program is compiled for every number of rows and length of prompts, rounded up.

    Args:
        mesh: rows lie over `data` and `fsdp`; parameters, heads and vocabulary as in training.
        positions: of the model; a prompt and `max_new_tokens` stay within.
        max_new_tokens: a row ends there at the latest.
        stop_ids: a row ends with the first of these, which is its last token.
    """

    def __init__(
        self,
        model: DecodingModel,
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
        self._model, self._params, self._mesh = model, params, mesh
        self._sampling, self._seed = sampling, seed
        self._stop_ids = tuple(sorted(stop_ids))
        with jax.set_mesh(mesh):
            self._params_for_decoding = model.params_for_decoding(params)

    def run(
        self,
        prompts: Sequence[np.ndarray],
        numbers: Sequence[tuple[int, int]],
        ends: Sequence[Callable[[np.ndarray], int | None]],
        *,
        limit: int,
        pictures: Sequence[PromptPictures | None] | None = None,
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Continues a batch of prompts.

        Args:
            prompts: token ids, at least one each.
            numbers: of prompt and sample; together with the seed they decide what is drawn for a
                row.
            ends: of each row: new tokens -> after how many of them it ends, for another reason than
                a stop token and `max_new_tokens`; None while it goes on.
            limit: of rows; the prompts are padded with empty ones up to a power of two below it.
            pictures: of every prompt; None: none has any.
        Returns: (row, new token ids, their log-probs in nats) of each prompt, once it is finished.
        """
        rows = _padded_rows(len(prompts), limit, row_ways(self._mesh))
        key_R2 = row_keys(self._seed, [*numbers, *[(0, 0)] * (rows - len(prompts))])
        batch, first = self._read_prompts(prompts, rows, pictures or [None] * len(prompts))
        going_R, until = np.arange(rows) < len(prompts), 0
        while going_R.any():
            until = min(until + SEGMENT, self.max_new_tokens)
            inputs = [self._put(x) for x in (key_R2, first, going_R, np.int32(until))]
            with jax.set_mesh(self._mesh):  # not around `yield`: the caller's mesh is its own
                batch = _draw(
                    self._model,
                    self._sampling,
                    self._stop_ids,
                    self._params_for_decoding,
                    batch,
                    *inputs,
                )
            new_RL, logp_RL = np.asarray(batch.new_RL), np.asarray(batch.logp_RL)
            position_R = np.asarray(batch.position_R)
            for row in np.flatnonzero(going_R).tolist():
                ids = new_RL[row][new_RL[row] >= 0]
                end = ends[row](ids)
                if end is not None or position_R[row] < 0 or until == self.max_new_tokens:
                    going_R[row] = False
                    yield row, ids[:end], logp_RL[row, : len(ids)][:end]

    def _read_prompts(
        self,
        prompts: Sequence[np.ndarray],
        rows: int,
        pictures: Sequence[PromptPictures | None],
    ) -> tuple[BatchInProgress, np.int32]:
        """The batch before its first new token, and the cache position of the last prompt token."""
        length = min(
            padded_length(max(map(len, prompts)) - 1), self._positions - self.max_new_tokens
        )
        token_RL = np.zeros((rows, length), np.int32)
        position_RL = np.full((rows, length), -1, np.int32)
        last_R, last_position_R = np.zeros(rows, np.int32), np.full(rows, -1, np.int32)
        for row, ids in enumerate(prompts):
            before_last = len(ids) - 1
            token_RL[row, length - before_last :] = ids[:-1]
            position_RL[row, length - before_last :] = np.arange(before_last)
            last_R[row], last_position_R[row] = ids[-1], before_last
        at = stacked_tokens(pictures, rows, length)
        with jax.set_mesh(self._mesh):
            state = _start(self._model.start, rows, length + self.max_new_tokens)
            looked = self._look(pictures, rows)
            whole = looked is not None and self._model.pictures_whole
            size = length if whole else CHUNK
            for index in range(0, length, size):
                part = np.s_[:, index : index + size]
                numbers = (token_RL[part], position_RL[part], np.int32(index))
                chunk: list[Any] = [self._put(x) for x in numbers]
                if looked is not None:
                    of_chunk = {
                        name: self._put(x if name == "behind_R" else x[part])
                        for name, x in at.items()
                    }
                    chunk += [looked, of_chunk]
                state = _read(self._model.read, self._params, state, *chunk)
            state = self._model.state_for_decoding(state)
        batch = BatchInProgress(
            state,
            token_R=self._put(last_R),
            position_R=self._put(last_position_R),
            new_RL=self._put(np.full((rows, self.max_new_tokens), -1, np.int32)),
            logp_RL=self._put(np.zeros((rows, self.max_new_tokens), np.float32)),
            drawn=self._put(np.int32(0)),
        )
        return batch, np.int32(length)

    def _look(self, pictures: Sequence[PromptPictures | None], rows: int) -> Any:
        """What the tower makes of the prompts' pictures; None: there are none."""
        tiles = stacked_tiles(pictures, rows)
        if tiles is None:
            return None
        return _look(self._model.look, self._params, jax.tree.map(self._put, tiles))

    def _put(self, x: Any) -> jax.Array:
        return place(x, replicated(self._mesh))


# The model's functions are static arguments, so that another Generator of the same model compiles
# nothing.


@partial(jax.jit, static_argnums=(0, 1, 2))
def _start(start, rows: int, length: int):
    return start(rows, length)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _read(read, params, state, *chunk):
    return read(params, state, *chunk)


@partial(jax.jit, static_argnums=0)
def _look(look, params, pictures: Pictures):
    return look(params, pictures)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _draw(
    model: DecodingModel,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    params,
    batch: BatchInProgress,
    key_R2,
    first,
    going_R,
    until,
) -> BatchInProgress:
    """Up to `until` new tokens for the rows that are still going."""
    batch = batch._replace(position_R=jnp.where(going_R, batch.position_R, -1))
    stop_id_array = np.array(stop_ids, np.int32)

    def unfinished(batch: BatchInProgress):
        return (batch.drawn < until) & jnp.any(batch.position_R >= 0)

    def draw_one(batch: BatchInProgress):
        index = first + batch.drawn
        return _draw_one(model.next_logits, sampling, stop_id_array, params, batch, key_R2, index)

    batch = lax.while_loop(unfinished, draw_one, batch)
    # All but the state is read by the host: whole on every process.
    host_arrays = [constrain(x, *[None] * x.ndim) for x in batch[1:]]
    return BatchInProgress(batch.state, *host_arrays)


def _draw_one(
    next_logits, sampling: Sampling, stop_ids, params, batch: BatchInProgress, key_R2, index
) -> BatchInProgress:
    """One more token for every row that is not finished; its last token is read at `index`."""
    logits_RV, state = next_logits(params, batch.state, batch.token_R, batch.position_R, index)
    going_R = batch.position_R >= 0
    token_R = jnp.where(going_R, choose(logits_RV, key_R2, batch.position_R + 1, sampling), 0)
    # A masked sum, no gather: V may be sharded.
    chosen_RV = jnp.arange(logits_RV.shape[-1])[None, :] == token_R[:, None]
    chosen_logit_R = jnp.sum(jnp.where(chosen_RV, logits_RV, 0.0), axis=-1)
    logp_R = chosen_logit_R - jax.nn.logsumexp(logits_RV, axis=-1)
    ended_R = jnp.isin(token_R, stop_ids)

    def written(x_RL, value_R):
        return lax.dynamic_update_slice_in_dim(x_RL, value_R[:, None], batch.drawn, 1)

    return BatchInProgress(
        state=state,
        token_R=token_R,
        position_R=jnp.where(going_R & ~ended_R, batch.position_R + 1, -1),
        new_RL=written(batch.new_RL, jnp.where(going_R, token_R, -1)),
        logp_RL=written(batch.logp_RL, jnp.where(going_R, logp_R, 0.0)),
        drawn=batch.drawn + 1,
    )


def padded_length(tokens: int) -> int:
    """Prompt tokens rounded up: to 16 until 64, to 32 until a chunk, then to whole chunks."""
    if tokens <= 64:
        multiple = 16
    elif tokens <= CHUNK:
        multiple = 32
    else:
        multiple = CHUNK
    return -(-tokens // multiple) * multiple


def _padded_rows(rows: int, limit: int, ways: int) -> int:
    """A power of two that holds so many rows, or `limit`; in whole shares of the mesh."""
    power_of_two = 1 << (rows - 1).bit_length()
    return -(-min(power_of_two, limit) // ways) * ways
