"""Encoded groups -> packed, prefix-shared rows of fixed shape.

A group is laid out as `prompt ++ completion_0 ++ ... ++ completion_{K-1}`, and several groups share
a row.  With `share_prefix` off every completion gets its own copy of the prompt, with `pack` off
every group a row of its own; nothing behind the loader knows which.  A completion after other
pictures than the rest of its group always has a copy of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxpref.data.pictures.layout import empty_pictures, first_tiles, place_prompt, place_tiles
from jaxpref.data.pictures.processor import PictureProcessor
from jaxpref.types import Batch, EncodedGroup, Noise, Pictures

UNIFORM = "uniform"
"""Data column that the loader draws itself, anew every step."""


@dataclass(frozen=True)
class RowShape:
    """Sizes of a packed row."""

    length: int
    """L, in tokens."""
    loss_tokens: int
    """S."""
    groups: int
    """G."""
    completions: int
    """K, of a group."""
    tiles: int = 0
    """p, of pictures; 0: there are none."""


@dataclass(frozen=True)
class Layout:
    """How groups become rows."""

    row_length: int
    """L, tokens of a packed row."""
    share_prefix: bool = True
    pack: bool = True
    buckets: int = 1
    """A divisor of `row_length`; see `lengths`."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Row lengths that the step can run, ascending.

        What lies behind the last group of a row need not be computed.
        """
        return tuple(self.row_length * i // self.buckets for i in range(1, self.buckets + 1))


def begins_with_prompt(group: EncodedGroup, k: int, share_prefix: bool) -> bool:
    """Whether a copy of the prompt stands right before completion k."""
    return k == 0 or not share_prefix or group.has_own_prompt(k)


def prompt_copies(group: EncodedGroup, share_prefix: bool) -> int:
    """How often the prompt of a group stands in its row."""
    completions = range(len(group.completion_ids))
    return sum(begins_with_prompt(group, k, share_prefix) for k in completions)


def row_tokens(group: EncodedGroup, share_prefix: bool) -> int:
    """Tokens of a row that a group takes."""
    copies = prompt_copies(group, share_prefix)
    return len(group.prompt_ids) * copies + sum(map(len, group.completion_ids))


def loss_tokens_of(group: EncodedGroup) -> list[int]:
    """Loss tokens of every completion.

    With an empty prompt, nothing predicts the first token.
    """
    not_predicted = 1 if len(group.prompt_ids) == 0 else 0
    return [len(ids) - not_predicted for ids in group.completion_ids]


def prompt_loss_tokens_of(group: EncodedGroup) -> int:
    """Tokens of the prompt that have a predecessor."""
    return max(len(group.prompt_ids) - 1, 0)


def _compared(group: EncodedGroup) -> int:
    """n, the loss tokens of the shorter of completions 0 and 1."""
    return min(loss_tokens_of(group)[:2])


def _first(group: EncodedGroup, k: int, rng: np.random.Generator | None) -> np.ndarray:
    return np.arange(loss_tokens_of(group)[k]) < _compared(group)


def _drawn(group: EncodedGroup, k: int, rng: np.random.Generator | None) -> np.ndarray:
    n = loss_tokens_of(group)[k]
    return rng.permutation(n) < _compared(group) if k < 2 else np.ones(n, bool)


MASKS = {"common": _first, "sampled": _drawn}
"""Name of a field of `Logps` -> (group, k, generator) -> which loss tokens of completion k it sums.

`common`: the first n; `sampled`: n at random, all of a completion beyond the pair."""


def assign_rows(lengths: Sequence[int], layout: Layout) -> list[list[int]]:
    """First-fit decreasing: rows as lists of indices into `lengths`, deterministic.

    The fullest row comes first, so that the rows of a micro-batch are about equally long and none
    is computed to another's length.  Every length must be at most `layout.row_length` (checked when
    the loader plans).
    """
    if not layout.pack:
        return [[i] for i in range(len(lengths))]
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fit = next((r for r, free in enumerate(room) if free >= lengths[i]), None)
        if fit is None:
            rows.append([])
            room.append(layout.row_length)
            fit = len(rows) - 1
        rows[fit].append(i)
        room[fit] -= lengths[i]
    rows = [sorted(row) for row in rows]
    return sorted(rows, key=lambda row: -sum(lengths[i] for i in row))


def empty_batch(
    rows: int,
    shape: RowShape,
    columns: Sequence[tuple[str, tuple[int, ...]]] = (),
    masks: Sequence[str] = (),
    noise: bool = False,
    processor: PictureProcessor | None = None,
) -> Batch:
    """Rows of padding.

    Args:
        columns: names of data columns with their shape after [R, G]: `()` or `(K, ...)`.
        masks: names of `MASKS`.
        noise: whether the embeddings get some.
        processor: of the pictures, where there are any.
    """
    R, L, S, G, K = rows, shape.length, shape.loss_tokens, shape.groups, shape.completions
    ints = lambda *size: np.zeros(size, np.int32)
    return Batch(
        token_RL=ints(R, L),
        position_RL=ints(R, L),
        expiry_RL=ints(R, L),
        segment_RL=ints(R, L),
        loss_src_RS=ints(R, S),
        loss_tok_RS=ints(R, S),
        loss_slot_RS=np.full((R, S), G * (K + 1), np.int32),
        valid_RG=np.zeros((R, G), np.float32),
        row_id_RG=np.full((R, G), -1, np.int32),
        slot_count_RGK=ints(R, G, K),
        prompt_count_RG=ints(R, G),
        last_RGK=ints(R, G, K),
        prompt_last_RG=np.full((R, G), -1, np.int32),
        masks={name: np.zeros((R, S), np.float32) for name in masks},
        columns={name: np.zeros((R, G, *rest), np.float32) for name, rest in columns},
        noise=Noise(np.zeros((R, L, 2), np.uint32), np.zeros((R, L), np.float32))
        if noise
        else None,
        pictures=empty_pictures(R, L, shape.tiles, processor) if shape.tiles else None,
    )


def fill_row(
    batch: Batch,
    r: int,
    groups: Sequence[EncodedGroup],
    share_prefix: bool,
    *,
    loss_on_prompt: bool = False,
    rng_of: Callable[[EncodedGroup], np.random.Generator] | None = None,
    noise_alpha: float | None = None,
    processor: PictureProcessor | None = None,
) -> None:
    """Write `groups` into row r of a batch of padding, all but the pixels of their pictures.

    Args:
        loss_on_prompt: put the prompts' tokens into the loss too, in slots of their own.
        rng_of: the generator of a group's draws, for masks, the column `uniform` and noise.
        noise_alpha: NEFTune's; None: no noise.
        processor: of the pictures, where there are any.
    """
    start = filled = 0  # the next free token of the row, and the next free loss token
    for g, (group, tile) in enumerate(zip(groups, first_tiles(groups), strict=False)):
        rng = rng_of(group) if rng_of else None
        _fill_numbers(batch, r, g, group, rng)
        group_end = start + row_tokens(group, share_prefix)
        batch.segment_RL[r, start:group_end] = g + 1
        if loss_on_prompt:
            filled = _add_prompt_to_loss(batch, r, filled, start, g, group)
        pictures = batch.pictures if isinstance(batch.pictures, Pictures) else None
        behind = 0
        if pictures is not None:
            place_tiles(pictures, r, group, tile, processor)
        prompt_end = start
        for k, ids in enumerate(group.completion_ids):
            if begins_with_prompt(group, k, share_prefix):
                prompt_end = start + len(group.prompt_ids)
                expiry = prompt_end + _tokens_behind_prompt(group, k, share_prefix)
                _write(batch, r, start, group.prompt_ids, position=0, expiry=expiry)
                if pictures is not None:
                    behind = place_prompt(pictures, r, start, group, k, tile, processor)
                start = prompt_end
            if k == 0 and len(group.prompt_ids):
                batch.prompt_last_RG[r, g] = prompt_end - 1
            end = start + len(ids)
            _write(batch, r, start, ids, position=len(group.prompt_ids), expiry=end)
            if pictures is not None and pictures.offset_RL3 is not None:
                pictures.offset_RL3[r, start:end] = behind
            filled = _add_completion_to_loss(
                batch, r, filled, start, prompt_end - 1, g, k, group, rng
            )
            batch.last_RGK[r, g, k] = end - 1
            start = end
        if noise_alpha is not None:
            of_group = slice(start - row_tokens(group, share_prefix), start)
            _fill_noise(batch.noise, r, of_group, group, share_prefix, rng, noise_alpha)


def _tokens_behind_prompt(group: EncodedGroup, k: int, share_prefix: bool) -> int:
    """Tokens of completion k and of those behind it that follow the same copy of the prompt."""
    tokens = len(group.completion_ids[k])
    for other in range(k + 1, len(group.completion_ids)):
        if begins_with_prompt(group, other, share_prefix):
            break
        tokens += len(group.completion_ids[other])
    return tokens


def _fill_noise(
    noise: Noise,
    r: int,
    of_group: slice,
    group: EncodedGroup,
    share_prefix: bool,
    rng: np.random.Generator,
    alpha: float,
) -> None:
    """The noise of a group that lies at `of_group` along row r.

    A token's place is counted as if the prompt were shared, so its copies have the same noise.
    """
    prompt = np.arange(len(group.prompt_ids))
    places, first = [], len(prompt)
    for k, ids in enumerate(group.completion_ids):
        if begins_with_prompt(group, k, share_prefix):
            places.append(prompt)
        places.append(np.arange(first, first + len(ids)))
        first += len(ids)
    longest = len(prompt) + max(map(len, group.completion_ids))
    noise.key_RL2[r, of_group, 0] = rng.integers(2**32, dtype=np.uint32)
    noise.key_RL2[r, of_group, 1] = np.concatenate(places)
    noise.scale_RL[r, of_group] = alpha / np.sqrt(longest)


def _fill_numbers(
    batch: Batch, r: int, g: int, group: EncodedGroup, rng: np.random.Generator | None
) -> None:
    """The numbers of group g of row r.

    A group with fewer completions than K leaves the rest of its slots empty.
    """
    batch.valid_RG[r, g] = 1.0
    batch.row_id_RG[r, g] = group.row_id
    batch.slot_count_RGK[r, g, : len(group.completion_ids)] = loss_tokens_of(group)
    for name, array in batch.columns.items():
        value = np.asarray(rng.random() if name == UNIFORM else group.columns[name])
        if value.ndim:
            array[r, g, : len(value)] = value
        else:
            array[r, g] = value


def _write(
    batch: Batch, r: int, start: int, ids: np.ndarray, *, position: int, expiry: int
) -> None:
    """Tokens from index `start` along row r, the first at this position of its branch."""
    to = slice(start, start + len(ids))
    batch.token_RL[r, to] = ids
    batch.position_RL[r, to] = np.arange(position, position + len(ids))
    batch.expiry_RL[r, to] = expiry


def _add_prompt_to_loss(
    batch: Batch, r: int, filled: int, start: int, g: int, group: EncodedGroup
) -> int:
    """Puts a prompt that starts at `start` into the loss, behind the `filled` loss tokens so far.

    Returns:
        How many loss tokens there are now.
    """
    groups, completions = batch.slot_count_RGK.shape[1:]
    n = prompt_loss_tokens_of(group)
    batch.prompt_count_RG[r, g] = n
    to = slice(filled, filled + n)
    batch.loss_src_RS[r, to] = np.arange(start, start + n)
    batch.loss_tok_RS[r, to] = group.prompt_ids[1:]
    batch.loss_slot_RS[r, to] = groups * completions + g
    return filled + n


def _add_completion_to_loss(
    batch: Batch,
    r: int,
    filled: int,
    start: int,
    last_of_prompt: int,
    g: int,
    k: int,
    group: EncodedGroup,
    rng: np.random.Generator | None,
) -> int:
    """Puts completion k, which starts at `start`, into the loss, as `_add_prompt_to_loss` does."""
    ids = group.completion_ids[k]
    source = np.arange(start - 1, start - 1 + len(ids))
    source[0] = last_of_prompt  # it predicts the first token of *every* completion
    if len(group.prompt_ids) == 0:
        source, ids = source[1:], ids[1:]
    to = slice(filled, filled + len(ids))
    batch.loss_src_RS[r, to] = source
    batch.loss_tok_RS[r, to] = ids
    batch.loss_slot_RS[r, to] = g * batch.slot_count_RGK.shape[2] + k
    for name, mask_RS in batch.masks.items():
        mask_RS[r, to] = MASKS[name](group, k, rng)
    return filled + len(ids)
