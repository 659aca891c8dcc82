"""Bytes of arrays whose shapes, dtypes and places alone are known."""

import math
from typing import Any

import jax


def bytes_of(dtype: Any, elements: int) -> int:
    """Of so many numbers; two of 4 bits share a byte, and a random key counts as one of 32 bits."""
    is_key = jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    return elements * (32 if is_key else jax.dtypes.itemsize_bits(dtype)) // 8


def shard_bytes(leaf: Any) -> int:
    """What one device holds of an array with a sharding."""
    return bytes_of(leaf.dtype, math.prod(leaf.sharding.shard_shape(leaf.shape)))
