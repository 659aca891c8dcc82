"""What the decoder's layers and attention are given beside the hidden states."""

import jax
import jax.numpy as jnp

from jaxpref.errors import InputError
from jaxpref.models import layers
from jaxpref.models.attention import Mask
from jaxpref.models.context import spread_attention
from jaxpref.models.lora import LoraSpec
from jaxpref.models.parameters import LORA, SCALAR_HEADS
from jaxpref.models.spec import ModelSpec
from jaxpref.sharding import context_ways
from jaxpref.types import Looked, Pictures

_NO_WINDOW = 2**30  # more than any position


def layer_numbers(spec: ModelSpec, position_RL, offset_RL3=None):
    """Rotations, and {name: [Y]} numbers in which the layers differ.

    What no layer has is not in the program.

    Args:
        offset_RL3: as of `types.Pictures`.
    """
    mixers = spec.mixers
    numbers = {"index": jnp.asarray([mixers[:y].count(mixer) for y, mixer in enumerate(mixers)])}
    if any(kind.window is not None for kind in spec.kinds):
        numbers["window"] = jnp.asarray(
            [kind.window or _NO_WINDOW for kind in spec.kinds], jnp.int32
        )
    if spec.learned_positions:
        return None, numbers
    kinds = [kind.rope for kind in spec.kinds] or ["global"]
    names = list(dict.fromkeys(kinds))
    tables = [layers.rope_tables(position_RL, spec, name, offset_RL3) for name in names]
    if len(names) == 1:
        return tables[0], numbers
    numbers["rope"] = jnp.asarray([names.index(kind) for kind in kinds], jnp.int32)
    return jax.tree.map(lambda *x: jnp.stack(x), *tables), numbers


def starts(spec: ModelSpec, pictures: Pictures | Looked | None) -> jax.Array | None:
    """`Mask.start_RL`: the tokens of a tile lie one behind the other, and all see its first one."""
    if pictures is None or not spec.vision.mutual:
        return None
    index_RL = pictures.index_RL
    place_RL = jnp.broadcast_to(jnp.arange(index_RL.shape[1])[None], index_RL.shape)
    before_RL = jnp.where(index_RL >= 0, index_RL % spec.vision.tile_embeddings, 0)
    return place_RL - before_RL


def attend_rows(attend, q_RLNH, k_RLMH, v_RLMH, sink_N, memory, rows: Mask, layer):
    """Attention over packed rows, as a layer calls it: there is no memory."""
    mask = rows._replace(window=layer.get("window"))
    if context_ways() > 1:
        return spread_attention(attend, q_RLNH, k_RLMH, v_RLMH, mask, sink_N), memory
    sinks = {} if sink_N is None else {"sink_N": sink_N}
    return attend(q_RLNH, k_RLMH, v_RLMH, mask, **sinks), memory


def collections(params, lora: LoraSpec | None):
    """Linen's collections of a parameter tree."""
    if LORA in params and lora is None:
        raise InputError(
            "an adapter's LoraSpec",
            f"params[{LORA!r}] for a model built without",
            "set build_model(lora=)",
        )
    collections = {"params": {k: v for k, v in params.items() if k not in (SCALAR_HEADS, LORA)}}
    if LORA in params:
        collections["lora"] = params[LORA]
    return collections
