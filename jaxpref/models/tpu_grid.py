"""What the programs of tpu_kernels.py read and write, and which part of it each has in VMEM."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl


class Blocks(NamedTuple):
    """Sizes in tokens: of what is computed at a time, and of what is brought into VMEM for it."""

    queries: int
    """Divides their number in a row; so does `keys`."""
    keys: int
    fetched_queries: int
    """A multiple of `queries` that divides their number in a row; `fetched_keys` likewise."""
    fetched_keys: int


class Options(NamedTuple):
    """What is known when the kernels are compiled."""

    blocks: Blocks
    out_tokens_last: bool
    """Attention's output, too, ends on [H, L]; else on [L, H]."""
    softcap: float | None
    interpret: bool


class Ranges(NamedTuple):
    """Which blocks a program goes over; in scalar memory, so that they decide what is fetched."""

    first: Any
    """Of keys, per block of queries [R, i]; or of queries, per block of keys [R, j]."""
    end: Any
    """One past the last; 0 where there are none."""
    expiry_Rj: Any
    """The last expiry in a block of keys: of those from `first` to `end` some may be unseen."""
    start_1: Any
    """Index of the first query in its row."""


class Inputs(NamedTuple):
    """What all kernels read."""

    q_RnJHL: Any
    """Scaled."""
    k_RMHL: Any
    v_RMHL: Any
    limits_R2L: Any
    """Of keys: expiry and, with a window, the position from which on queries are too far away."""
    position_R1L: Any
    """Of queries; None without a window."""


class Cotangents(NamedTuple):
    """What the backward kernels read beside it."""

    dout_RnJHL: Any
    lse_RnJL: Any
    delta_RnJL: Any
    """sum(out * dout) over a head."""


class Sizes(NamedTuple):
    R: int
    n: int
    J: int
    M: int
    H: int
    L: int
    """Queries."""
    keys: int


def sizes(x: Inputs) -> Sizes:
    (R, n, J, H, L), (_, M, _, keys) = x.q_RnJHL.shape, x.k_RMHL.shape
    return Sizes(R, n, J, M, H, L, keys)


def in_order(numbers, tokens, options: Options):
    """What is [numbers, tokens], in the order of attention's output."""
    return (numbers, tokens) if options.out_tokens_last else (tokens, numbers)


class _Place(NamedTuple):
    """What a program works on, each counted in blocks."""

    row: Any
    heads: Any
    key_head: Any
    queries: Any
    keys: Any


class Specs(NamedTuple):
    inputs: Inputs
    per_query: pl.BlockSpec
    """Of one number per query and head."""
    cotangents: Cotangents
    sink: pl.BlockSpec
    out: pl.BlockSpec


def over_keys(x: Inputs, options: Options) -> tuple[Specs, tuple[int, ...]]:
    """Specs and grid of (row, query heads, block of queries, fetched part of the keys)."""
    size, blocks = sizes(x), options.blocks
    per_part = blocks.fetched_keys // blocks.keys

    def place(row, heads, i, part, *ranges):
        part = _needed(part, row, i, Ranges(*ranges), per_part)
        return _Place(row, heads, lax.div(heads, size.n // size.M), i, part)

    grid = (size.R, size.n, size.L // blocks.queries, size.keys // blocks.fetched_keys)
    return _specs(x, blocks.queries, blocks.fetched_keys, place, options), grid


def over_queries(x: Inputs, options: Options) -> tuple[Specs, tuple[int, ...]]:
    """Specs and grid of (row, key head, block of keys, its query heads, fetched part of them)."""
    size, blocks = sizes(x), options.blocks
    per_part, shared = blocks.fetched_queries // blocks.queries, size.n // size.M

    def place(row, key_head, j, some, part, *ranges):
        part = _needed(part, row, j, Ranges(*ranges), per_part)
        return _Place(row, key_head * shared + some, key_head, part, j)

    parts = size.L // blocks.fetched_queries
    grid = (size.R, size.M, size.keys // blocks.keys, shared, parts)
    return _specs(x, blocks.fetched_queries, blocks.keys, place, options), grid


def _needed(part, row, block, ranges: Ranges, per_part: int):
    """The part if any of it is seen, else one that is in VMEM already, which costs nothing."""
    lowest = lax.div(ranges.first[row, block], per_part)
    highest = lax.div(ranges.end[row, block] - 1, per_part)
    return jnp.clip(part, lowest, jnp.maximum(highest, lowest))


def _specs(
    x: Inputs, queries: int, keys: int, place: Callable[..., _Place], options: Options
) -> Specs:
    """Args: queries, keys: tokens in VMEM."""

    def spec(shape, index):
        return pl.BlockSpec(shape, lambda *ids: index(place(*ids)))

    J, H = x.q_RnJHL.shape[2:4]
    q = spec((1, 1, J, H, queries), lambda at: (at.row, at.heads, 0, 0, at.queries))
    per_query = spec((1, 1, J, queries), lambda at: (at.row, at.heads, 0, at.queries))
    k = spec((1, 1, H, keys), lambda at: (at.row, at.key_head, 0, at.keys))
    limits = spec((1, x.limits_R2L.shape[1], keys), lambda at: (at.row, 0, at.keys))
    position = spec((1, 1, queries), lambda at: (at.row, 0, at.queries))
    inputs = Inputs(q, k, k, limits, None if x.position_R1L is None else position)
    sink = spec((1, J, 1), lambda at: (at.heads, 0, 0))
    out = spec(
        (1, 1, J, *in_order(H, queries, options)),
        lambda at: (at.row, at.heads, 0, *in_order(0, at.queries, options)),
    )
    return Specs(inputs, per_query, Cotangents(q, per_query, per_query), sink, out)
