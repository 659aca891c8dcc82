"""What layers keep of earlier tokens for decoding: the KV cache, attention over it, and states.

A row's tokens lie at the indices of the cache in the order in which they came; what a query sees is
decided by positions alone, so rows may be padded on either side and differ in length.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.models.attention import MASKED, capped, scaled
from jaxpref.models.parameters import one_layer
from jaxpref.models.spec import DeltaNet, ModelSpec
from jaxpref.sharding import constrain


class CachePositions(NamedTuple):
    """Where the queries and the keys of the cache stand, for every layer's attention."""

    position_RC: jax.Array
    """int32, of the queries."""
    position_RI: jax.Array
    """int32, of the keys, those just written among them; -1 where there is none."""
    start: jax.Array
    """int32 scalar, the first index of the cache that is written."""
    first_RI: jax.Array
    """int32, position of the first query that sees the key: its own, or that of the first token of
    a picture whose tokens see each other."""


class States(NamedTuple):
    """What a layer of Gated DeltaNet keeps, in place of keys and values."""

    windows: dict[str, jax.Array]
    """Of q, k and v: the last t - 1 tokens before the convolution, in the compute dtype."""
    state: jax.Array
    """[R, n, h, v] float32."""


def init_cache(spec: ModelSpec, rows: int, length: int, dtype: Any) -> dict[str, Any]:
    """An empty cache.

    It holds `layers`, by the kind of layer, `position` [R, I] int32, -1 where unused, and with
    M-RoPE `offset` [R], as `Pictures.behind_R`.  Layers
    of attention have keys [Y, R, M, H, I] and values [Y, R, M, I, H] in the compute dtype; those of
    Gated DeltaNet have `States` with a leading axis Y.  Keys lie as the product with a query reads
    them fastest on a CPU.
    """
    layers: dict[str, Any] = {}
    if "attention" in spec.mixers:
        shape = spec.mixers.count("attention"), rows, spec.kv_heads
        keys = _placed(jnp.zeros((*shape, spec.head_dim, length), dtype))
        values = _placed(jnp.zeros((*shape, length, spec.head_dim), dtype))
        layers["attention"] = keys, values
    if spec.delta is not None:
        layers["delta"] = _empty_states(spec.delta, spec.mixers.count("delta"), rows, dtype)
    position_RI = constrain(jnp.full((rows, length), -1, jnp.int32), "rows", None)
    cache = {"layers": layers, "position": position_RI}
    if spec.rope_sections is not None:
        cache["offset"] = constrain(jnp.zeros((rows,), jnp.int32), "rows")
    return cache


def offsets(cache: Mapping[str, Any], token_RC, pictures) -> tuple[dict[str, Any], dict[str, Any]]:
    """`Pictures.offset_RL3` of tokens, and what the cache keeps of it; empty without M-RoPE.

    Tokens that come without pictures stand behind them all.
    """
    if "offset" not in cache:
        return {}, {}
    if pictures is not None:
        return {"offset_RL3": pictures.offset_RL3}, {"offset": pictures.behind_R}
    offset_RC3 = jnp.broadcast_to(cache["offset"][:, None, None], (*token_RC.shape, 3))
    return {"offset_RL3": offset_RC3}, {"offset": cache["offset"]}


def _empty_states(delta: DeltaNet, layers: int, rows: int, dtype: Any) -> States:
    tokens = layers, rows, delta.taps - 1
    queries = jnp.zeros((*tokens, delta.key_heads, delta.key_size), dtype)
    values = jnp.zeros((*tokens, delta.value_heads, delta.value_size), dtype)
    state = jnp.zeros((layers, rows, delta.value_heads, delta.key_size, delta.value_size))
    return _placed_states(States({"q": queries, "k": queries, "v": values}, state))


def unstack_layers(spec: ModelSpec, cache: Mapping[str, Any]) -> dict[str, Any]:
    """The same with a tuple of layers in place of the leading axis, keys and values in float32.

    From a stack XLA would copy a layer before it multiplies it.  On a CPU it does not write into a
    bfloat16 array in place: at every token it goes over the whole cache, and rotates the new keys
    for each token that there is room for.  The values stay those of the compute dtype.
    """
    layers = dict(cache["layers"])
    if "attention" in layers:
        layers["attention"] = tuple(x.astype(jnp.float32) for x in layers["attention"])
    unstacked = tuple(one_layer(layers, y, spec.mixers) for y in range(spec.layers))
    return {**cache, "layers": unstacked}


def kept_states(memory: States, layer) -> States:
    """The states of one layer; arguments as of `attend`."""
    if memory.state.ndim == 4:
        return memory
    at = lambda x: lax.dynamic_index_in_dim(x, layer["index"], 0, keepdims=False)
    return jax.tree.map(at, memory)


def with_states(memory: States, layer, new: States) -> States:
    """The memory with new states of one layer."""
    if memory.state.ndim == 4:
        return new
    put = lambda x, part: lax.dynamic_update_index_in_dim(x, part, layer["index"], 0)
    return _placed_states(jax.tree.map(put, memory, new))


def _placed_states(states: States) -> States:
    heads = {"q": "kv_heads", "k": "kv_heads", "v": "heads"}
    windows = {
        name: constrain(x, None, "rows", None, heads[name], None)
        for name, x in states.windows.items()
    }
    return States(windows, constrain(states.state, None, "rows", "heads", None, None))


def _placed(kept):
    return constrain(kept, None, "rows", "kv_heads", None, None)


def attend(
    q_RCNH,
    k_RCMH,
    v_RCMH,
    sink_N,
    memory,
    positions: CachePositions,
    layer,
    *,
    scale: float,
    softcap: float | None,
):
    """Writes the keys and values of one layer into its cache; softmax attention over all it holds.

    Args:
        memory: keys and values as in the cache, of all layers: carried from layer to layer, so that
            XLA writes in place; or of this layer alone, without the leading axis and in float32.
        sink_N: as of `attention.attention`.
        layer: `index` of the layer among those of its kind; `window` where there is one.
    Returns: [R, C, N, H] and the memory.
    """
    y, start = layer["index"], positions.start
    keys, k_RMHI = _written(memory[0], k_RCMH.transpose(0, 2, 3, 1), y, (0, 0, 0, start))
    values, v_RMIH = _written(memory[1], v_RCMH.transpose(0, 2, 1, 3), y, (0, 0, start, 0))
    R, C, N, H = q_RCNH.shape
    M = v_RMIH.shape[1]
    q_RMJCH = scaled(q_RCNH.reshape(R, C, M, N // M, H).transpose(0, 2, 3, 1, 4), scale)
    logits_RMJCI = jnp.einsum(
        "RMJCH,RMHI->RMJCI", q_RMJCH, k_RMHI, preferred_element_type=jnp.float32
    )
    logits_RMJCI = capped(logits_RMJCI, softcap)
    visible_RCI = _visible(positions, layer.get("window"))
    logits_RMJCI = jnp.where(visible_RCI[:, None, None], logits_RMJCI, MASKED)
    p_RMJCI = _softmax(logits_RMJCI, sink_N).astype(q_RCNH.dtype)
    out_RMJCH = jnp.einsum("RMJCI,RMIH->RMJCH", p_RMJCI, v_RMIH, preferred_element_type=jnp.float32)
    out_RCNH = out_RMJCH.transpose(0, 3, 1, 2, 4).reshape(R, C, N, H).astype(q_RCNH.dtype)
    return out_RCNH, (keys, values)


def _softmax(logits_RMJCI, sink_N):
    if sink_N is None:
        return jax.nn.softmax(logits_RMJCI, axis=-1)
    R, M, J, C, _ = logits_RMJCI.shape
    sink_1MJ11 = sink_N.astype(jnp.float32).reshape(1, M, J, 1, 1)
    sink_RMJC1 = jnp.broadcast_to(sink_1MJ11, (R, M, J, C, 1))
    return jax.nn.softmax(jnp.concatenate([logits_RMJCI, sink_RMJC1], -1), axis=-1)[..., :-1]


def _written(kept, new, y, start):
    """Kept keys or values with new ones written at `start`, and those of this layer."""
    new, start = new.astype(kept.dtype), [jnp.int32(at) for at in start]
    if kept.ndim == new.ndim:
        kept = lax.dynamic_update_slice(kept, new, start)
        return kept, kept
    kept = _placed(lax.dynamic_update_slice(kept, new[None], [y, *start]))
    return kept, lax.dynamic_index_in_dim(kept, y, 0, keepdims=False)


def _visible(positions: CachePositions, window):
    query, key = positions.position_RC[:, :, None], positions.position_RI[:, None, :]
    visible_RCI = (key >= 0) & (positions.first_RI[:, None, :] <= query)
    return visible_RCI if window is None else visible_RCI & (query - key < window)
