"""Greedy continuation of prompts, to look at what a policy says.

Every new token runs the whole row again (no key/value cache): meant for a few samples, not for serving.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.errors import InputError
from jaxpref.models.decoder import Model


def greedy(
    model: Model,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    row_length: int,
) -> list[list[int]]:
    """New token ids of every prompt, most likely token each time, up to and without the first stop token.

    Args:
        prompts: token ids, each at least one.
        row_length: columns of the row that prompt and continuation share; a multiple of the attention block.
    Errors: InputError when a prompt and its continuation do not fit into the row.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    if lengths.max() + max_new_tokens > row_length or lengths.min() == 0:
        raise InputError(
            f"prompts of 1 to {row_length - max_new_tokens} tokens",
            f"lengths {lengths.min()} to {lengths.max()}",
            "shorten them, or raise row_length",
        )
    tokens = np.zeros((len(prompts), row_length), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    position = np.broadcast_to(np.arange(row_length, dtype=np.int32), tokens.shape)
    expiry = np.full_like(tokens, row_length)  # plain causal rows: what lies behind a query is never seen

    @jax.jit
    def next_ids(params, tokens, last):
        x_RLD = model.hidden(params, tokens, position, expiry)
        x_RD = jnp.take_along_axis(x_RLD, last[:, None, None], axis=1)[:, 0]
        w_VD = model.head(params).astype(x_RD.dtype)
        return jnp.einsum("RD,VD->RV", x_RD, w_VD, preferred_element_type=jnp.float32).argmax(-1)

    new: list[list[int]] = [[] for _ in prompts]
    going = np.ones(len(prompts), bool)
    for offset in range(max_new_tokens):
        ids = np.asarray(next_ids(params, tokens, lengths + offset - 1))
        for row in np.flatnonzero(going):
            if ids[row] in stop_ids:
                going[row] = False
            else:
                new[row].append(int(ids[row]))
        if not going.any():
            break
        tokens[np.arange(len(prompts)), lengths + offset] = ids
    return new
