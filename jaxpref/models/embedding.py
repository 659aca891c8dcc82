"""Token ids -> the hidden states before the first layer."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpref.models.blocks import WEIGHT_INIT
from jaxpref.models.spec import ModelSpec
from jaxpref.sharding import constrain
from jaxpref.types import Noise


class Seen(NamedTuple):
    """Embeddings of pictures, and where they stand."""

    embedding_RxD: jax.Array
    """Of a row's tiles, one behind the other."""
    index_RL: jax.Array
    """As of `types.Pictures`."""


class Embed(nn.Module):
    spec: ModelSpec
    rows: int
    """Of the table: the vocabulary and what pads it."""
    token_axis: str | None
    """As of `Decoder`."""

    @nn.compact
    def __call__(self, token_RL, position_RL, dtype, noise=None, seen: Seen | None = None):
        spec, tokens = self.spec, self.token_axis
        table_VD = self.param("table", WEIGHT_INIT, (self.rows, spec.width))
        # The vocabulary lies over fsdp and tensor, so every holder looks up all rows of its data
        # shard; the rows are spread over fsdp again right after.  Where tokens are spread over
        # context, the vocabulary is not: whole rows of hidden states would be longer.
        token_RL = constrain(token_RL, "rows_replicated_fsdp", tokens)
        if tokens is not None:
            table_VD = constrain(table_VD, "vocab_replicated_context", None)
        x_RLD = constrain(table_VD[token_RL], "rows_replicated_fsdp", tokens, None)
        x_RLD = constrain(x_RLD.astype(dtype), "rows", tokens, None)
        if spec.embed_scale is not None:
            # Rounded to the compute dtype first, as in transformers.
            x_RLD = x_RLD * jnp.asarray(spec.embed_scale, dtype)
        if noise is not None:
            drawn_RLD = constrain(noise_on_embeddings(noise, spec.width), "rows", tokens, None)
            x_RLD = (x_RLD + drawn_RLD).astype(dtype)
        if seen is not None:
            x_RLD = constrain(_with_pictures(x_RLD, seen), "rows", tokens, None)
        if spec.learned_positions:
            position_PD = self.param("position", WEIGHT_INIT, (spec.max_positions, spec.width))
            added_RLD = position_PD[jnp.maximum(position_RL, 0)].astype(dtype)
            x_RLD = x_RLD + constrain(added_RLD, "rows", tokens, None)
        return x_RLD


def _with_pictures(x_RLD, seen: Seen):
    """The hidden states, with embeddings of pictures in place of those of their tokens."""
    at_RL1 = jnp.maximum(seen.index_RL, 0)[..., None]
    picture_RLD = jnp.take_along_axis(seen.embedding_RxD, at_RL1, axis=1).astype(x_RLD.dtype)
    return jnp.where(seen.index_RL[..., None] >= 0, picture_RLD, x_RLD)


def noise_on_embeddings(noise: Noise, width: int):
    """[R, L, D] float32 uniform numbers, of every token from its own key (NEFTune)."""

    def of_token(key_2):
        key = jax.random.wrap_key_data(key_2, impl="threefry2x32")
        return jax.random.uniform(key, (width,), minval=-1.0, maxval=1.0)

    return jax.vmap(jax.vmap(of_token))(noise.key_RL2) * (noise.scale_RL / width**0.5)[..., None]
