"""Leaves of a checkpoint onto the mesh, a piece at a time: the host never holds a whole leaf.

A leaf that is stacked over layers is a large part of the model (a ninth and more of a Llama), far
more than any tensor of the file.  It is therefore allocated on the devices and filled a few layers
at a time.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpref.models.stored import Index, ReadSlice

PIECE_BYTES = 2**25
"""Leaves larger than this are filled in pieces of about this size, and of one layer at least."""


def place_leaf(
    shape: tuple[int, ...], dtype: np.dtype, sharding: jax.sharding.Sharding, read_slice: ReadSlice
) -> jax.Array:
    """The leaf as an array that lies as `sharding` says; each process reads what its devices hold.

    Peak host memory beside the array: one device's part of a piece, or of the whole leaf where its
    first axis is split over devices (the vocabulary).

    Args:
        shape, dtype: of the leaf.
        read_slice: `read_slice(index)` reads one contiguous slice per axis, in that dtype
            (`loading.load_tree`).
    """
    rows = max(1, PIECE_BYTES // (int(np.prod(shape[1:])) * np.dtype(dtype).itemsize))
    if rows >= shape[0] or sharding.shard_shape(shape)[0] < shape[0]:
        return _read_array(shape, sharding, read_slice)
    leaf = jax.jit(partial(jnp.zeros, shape, dtype), out_shardings=sharding)()
    write = jax.jit(_write_rows, donate_argnums=0, out_shardings=sharding)
    for first in range(0, shape[0], rows):
        last = min(first + rows, shape[0])
        read_piece = lambda index, part=slice(first, last): read_slice((part, *index[1:]))
        piece = _read_array((last - first, *shape[1:]), sharding, read_piece)
        leaf = write(leaf, piece, np.int32(first))
        jax.block_until_ready(leaf)  # pieces in flight would pile up
    return leaf


def _write_rows(leaf: jax.Array, piece: jax.Array, first: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(leaf, piece, first, axis=0)


def _read_array(
    shape: tuple[int, ...], sharding: jax.sharding.Sharding, read_slice: ReadSlice
) -> jax.Array:
    """As `jax.make_array_from_callback`, but the host reads every part once, one at a time."""
    holders: dict[tuple, list[jax.Device]] = {}  # bounds of the part -> devices
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    arrays = []
    for bounds, devices in holders.items():
        part = read_slice(tuple(slice(*ends) for ends in bounds))
        arrays += jax.block_until_ready([jax.device_put(part, device) for device in devices])
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def with_zero_rows(read_slice: ReadSlice, stored: int, rows: int) -> ReadSlice:
    """Reads a leaf of `stored` rows as one of `rows`, zeros behind.

    So the vocabulary is padded for the mesh.
    """

    def read(index: Index) -> np.ndarray:
        start, stop, _ = index[0].indices(rows)
        real = read_slice((slice(min(start, stored), min(stop, stored)), *index[1:]))
        if len(real) == stop - start:
            return real
        out = np.zeros((stop - start, *real.shape[1:]), real.dtype)
        out[: len(real)] = real
        return out

    return read
