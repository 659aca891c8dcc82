"""Attention of a tower that reads pictures of any shape (Qwen2.5-VL).

The patches of a row are one sequence, tile by tile, and the tiles of a window lie one behind the
other.  So windows and pictures are both spans of it, whose patches see each other: the mask of
`attention.py`, with another first and last query per key.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.models import layers
from jaxpref.models.attention import Mask, attention
from jaxpref.models.spec import VisionSpec, Windows
from jaxpref.types import TilePlaces

_BLOCK = 128
"""Patches of an attention block, at most."""
_BLOCK_MULTIPLE = 16


class Walk(NamedTuple):
    """Of the patches of a row's tiles, Q: what all layers have in common.

    Behind the last tile is padding, up to whole blocks.
    """

    window: Mask
    picture: Mask
    cos_RQ1r: jax.Array
    sin_RQ1r: jax.Array
    """Half of a head's numbers each."""
    block: int


def is_whole(vision: VisionSpec) -> jax.Array | None:
    """[l] whether the patches of a layer see all of their picture; None: there are no windows."""
    if vision.windows is None:
        return None
    layers_with = vision.windows.whole_layers
    return jnp.asarray([layer in layers_with for layer in range(vision.layers)])


def walk(vision: VisionSpec, places: TilePlaces) -> Walk:
    """What the layers' attention needs of the places of a row's tiles."""
    rows, tiles, _ = places.at_Rp2.shape
    patches = tiles * vision.patches
    block = min(_BLOCK, -(-patches // _BLOCK_MULTIPLE) * _BLOCK_MULTIPLE)
    padding = -patches % block

    def mask(span_Rp2):
        span_RQ2 = jnp.repeat(span_Rp2 * vision.patches, vision.patches, axis=1)
        first_RQ, end_RQ = jnp.moveaxis(jnp.pad(span_RQ2, ((0, 0), (0, padding), (0, 0))), 2, 0)
        # Padding is seen by nobody, and begins where no block of queries looks for keys.
        return Mask(end_RQ, start_RL=jnp.where(end_RQ > 0, first_RQ, patches + padding))

    side = vision.square
    within_a2 = np.stack(np.divmod(np.arange(vision.patches), side), -1)
    at_Rpa2 = places.at_Rp2[:, :, None] * side + within_a2[None, None]
    at_RQ2 = jnp.pad(at_Rpa2.reshape(rows, patches, 2), ((0, 0), (0, padding), (0, 0)))
    angle_RQ1r = _angles(vision, at_RQ2)[:, :, None]
    masks = mask(places.window_Rp2), mask(places.picture_Rp2)
    return Walk(*masks, jnp.cos(angle_RQ1r), jnp.sin(angle_RQ1r), block)


def _angles(vision: VisionSpec, at_RQ2: jax.Array) -> jax.Array:
    """[R, Q, r/2] the first half of them by the patch's row, the others by its column."""
    windows, quarter = vision.windows, vision.head_dim // 4
    assert isinstance(windows, Windows)
    frequency = windows.rope_theta ** (-np.arange(quarter, dtype=np.float64) / quarter)
    angle_RQ2r = (
        at_RQ2[..., None].astype(jnp.float32) * frequency.astype(np.float32)[None, None, None]
    )
    return angle_RQ2r.reshape(*at_RQ2.shape[:2], 2 * quarter)


def attend(walk: Walk, whole, q_Rpaqr, k_Rpaqr, v_Rpaqr) -> jax.Array:
    """Softmax attention of one layer.

    Args:
        whole: bool scalar, as of `is_whole`.
    """
    rows, tiles, patches, heads, size = q_Rpaqr.shape
    padding = walk.cos_RQ1r.shape[1] - tiles * patches

    def sequence(x_Rpaqr):
        x_RQqr = x_Rpaqr.reshape(rows, tiles * patches, heads, size)
        return jnp.pad(x_RQqr, ((0, 0), (0, padding), (0, 0), (0, 0)))

    rotated = lambda x: layers.rotate(sequence(x), walk.cos_RQ1r, walk.sin_RQ1r)
    mask = jax.tree.map(partial(jnp.where, whole), walk.picture, walk.window)
    out_RQqr = attention(
        rotated(q_Rpaqr),
        rotated(k_Rpaqr),
        sequence(v_Rpaqr),
        mask,
        block=walk.block,
        scale=size**-0.5,
    )
    return out_RQqr[:, : tiles * patches].reshape(q_Rpaqr.shape)
