"""Keys and values of earlier tokens, kept for decoding: the decoder's blocks with another way to attend.

A row's tokens lie in columns 0 to I of the cache in the order in which they came; what a query sees is decided by
positions alone, so rows may be padded on either side and differ in length.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.models.spec import ModelSpec
from jaxpref.sharding import constrain

_MASKED = -1e30  # finite, so that a query that sees nothing (padding) gives numbers


class View(NamedTuple):
    """What every layer's attention reads."""

    position_RC: jax.Array
    """int32, of the queries."""
    position_RI: jax.Array
    """int32, of the keys, those just written among them; -1 where there is none."""
    column: jax.Array
    """int32 scalar, the first column that is written."""


def init_cache(spec: ModelSpec, rows: int, length: int, dtype: Any) -> dict[str, jax.Array]:
    """An empty cache: k, v [Y, R, M, I, H] in the compute dtype and position [R, I] int32, -1 where unused."""
    shape = (spec.layers, rows, spec.kv_heads, length, spec.head_dim)
    zeros = lambda: _placed(jnp.zeros(shape, dtype))  # two arrays: a caller may donate the cache
    return {"k": zeros(), "v": zeros(), "position": constrain(jnp.full((rows, length), -1, jnp.int32), "rows", None)}


def _placed(x_YRMIH):
    return constrain(x_YRMIH, None, "rows", "kv_heads", None, None)


def attend(q_RCNH, k_RCMH, v_RCMH, memory, view: View, layer, *, scale: float, softcap: float | None):
    """Writes the keys and values of one layer into its cache; softmax attention over all that it holds.

    Args:
        memory: keys and values of all layers, [Y, R, M, I, H] each: carried from layer to layer, so that XLA writes in
            place.
        layer: `index` of the layer; `window` where there is one.
    Returns: [R, C, N, H] and the memory.
    """
    y = layer["index"]
    memory = tuple(_written(kept, new, y, view.column) for kept, new in zip(memory, (k_RCMH, v_RCMH), strict=True))
    k_RMIH, v_RMIH = (lax.dynamic_index_in_dim(kept, y, 0, keepdims=False) for kept in memory)
    R, C, N, H = q_RCNH.shape
    M = k_RMIH.shape[1]
    q_RMJCH = q_RCNH.reshape(R, C, M, N // M, H).transpose(0, 2, 3, 1, 4) * jnp.asarray(scale, q_RCNH.dtype)
    s_RMJCI = jnp.einsum("RMJCH,RMIH->RMJCI", q_RMJCH, k_RMIH, preferred_element_type=jnp.float32)
    if softcap is not None:
        s_RMJCI = softcap * jnp.tanh(s_RMJCI / softcap)
    visible_RCI = _visible(view, layer.get("window"))
    p_RMJCI = jax.nn.softmax(jnp.where(visible_RCI[:, None, None], s_RMJCI, _MASKED), axis=-1).astype(v_RMIH.dtype)
    out_RMJCH = jnp.einsum("RMJCI,RMIH->RMJCH", p_RMJCI, v_RMIH, preferred_element_type=jnp.float32)
    return out_RMJCH.transpose(0, 3, 1, 2, 4).reshape(R, C, N, H).astype(q_RCNH.dtype), memory


def _written(kept_YRMIH, new_RCMH, y, column):
    new_1RMCH = new_RCMH.transpose(0, 2, 1, 3)[None].astype(kept_YRMIH.dtype)
    zero = jnp.zeros((), jnp.int32)
    return _placed(lax.dynamic_update_slice(kept_YRMIH, new_1RMCH, (y, zero, zero, column, zero)))


def _visible(view: View, window):
    query, key = view.position_RC[:, :, None], view.position_RI[:, None, :]
    visible_RCI = (key >= 0) & (key <= query)
    return visible_RCI if window is None else visible_RCI & (query - key < window)
