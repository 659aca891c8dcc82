"""Checksums of arrays, the same however an array lies on a mesh.

A checksum is the sum, modulo 2^32, of what `_mixed` makes of every element's bits and position.
Sums may be taken in any order, so devices add up what they hold, and the checkpoint may be read on
another mesh, or on the host by numpy.  `_mixed` maps the bits of one position one to one, so a
checksum shows every change of one element, and any other with a probability of 1 - 2^-32.

Bits of zero add nothing: rows of zeros, by which a mesh may pad the vocabulary, do not count.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpref.models.parameters import leaf_path
from jaxpref.sharding import on_devices

_PIECE = 2**15
"""Elements that the host mixes at a time: they stay in its cache."""


@jax.jit
def device_checksums(tree: Any) -> dict[str, jax.Array]:
    """Path of every leaf -> its checksum, a scalar, of arrays on any mesh."""
    return {
        leaf_path(path): _device_sum(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def checksums(tree: Any) -> dict[str, int]:
    """Path of every leaf -> its checksum; leaves are jax arrays or numpy."""
    leaves = {leaf_path(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    on_devices = {path: x for path, x in leaves.items() if isinstance(x, jax.Array)}
    found = {path: int(x) for path, x in jax.device_get(device_checksums(on_devices)).items()}
    return found | {path: host_checksum(x) for path, x in leaves.items() if path not in on_devices}


def host_checksum(array: np.ndarray) -> int:
    """The checksum of an array on this host."""
    array = _in_bytes(array)
    words = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    positions, total = np.arange(_PIECE, dtype=np.uint32), 0
    for first in range(0, len(words), _PIECE):
        piece = words[first : first + _PIECE].astype(np.uint32, copy=False)
        here = positions[: len(piece)] + np.uint32(first % 2**32)
        total += int(_mixed(piece, here).sum(dtype=np.uint32))
    return total % 2**32


def _device_sum(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    x = _in_bytes(on_devices(x))
    words = lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    positions = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        stride = np.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
        positions += stride * lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(_mixed(words, positions), dtype=jnp.uint32)


def _in_bytes(x: Any) -> Any:
    """Bools and integers of 4 bits take a byte each; all else is as it is."""
    small = jnp.issubdtype(x.dtype, jnp.integer) and jnp.iinfo(x.dtype).bits < 8
    return x.astype(np.int8) if small or x.dtype == bool else x


def _mixed(words: Any, positions: Any) -> Any:
    """Words times odd numbers, then MurmurHash3's last steps: all one to one; zero stays zero."""
    x = words * (positions * np.uint32(2) + np.uint32(1))
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
