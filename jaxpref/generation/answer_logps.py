"""Log-probs of given answers under a policy or a mix: what the answers would be drawn with."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpref.generation.mixed_distribution import mixed_logits
from jaxpref.generation.mixing import Mix, whole_params
from jaxpref.generation.opening import MixedModels, OpenPolicy, open_source
from jaxpref.models.chunked_head import States, logits
from jaxpref.models.logprobs import hidden_states, sums_of_completions
from jaxpref.models.model import Model
from jaxpref.runs.feed import check_positions
from jaxpref.runs.sequence_logps import compute_logps
from jaxpref.sharding import constrain
from jaxpref.types import Batch, EncodedGroup


def answer_logps(
    source: str | Path | Mix | OpenPolicy,
    groups: Sequence[EncodedGroup],
    *,
    step: str | int = "best",
    overrides: Sequence[str] = (),
) -> dict[int, np.ndarray]:
    """{row id: [K] summed log-probs, nats} of the groups' completions.

    At temperature 1, no token left out.  Under a mix every token has the log-prob that it would be
    drawn with after the tokens before it, and these are summed.  That is not the mix of the
    policies' log-probs of the whole answer: each token is normalised by itself.

    Args:
        source, step, overrides: as of `generation.opening.open_source`; or what it opened.
        groups: as `runs.feed.read_data` gives them, tokenised by the (first) policy's tokenizer.
    Errors: InputError for a sequence that one of the policies has no positions for.
    """
    if isinstance(source, OpenPolicy):
        opened = source
    else:
        opened = open_source(source, step=step, overrides=overrides)
    config = opened.pieces.config
    # Rows as long as these answers need, whatever the run was trained on.
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, row_length=None))
    pieces = dataclasses.replace(opened.pieces, config=config)
    if opened.mixed is None:
        return compute_logps(pieces, opened.params, groups)
    for spec in opened.mixed.specs:
        check_positions(groups, spec)
    sums = _mixed_sums(opened.mixed, config.model.logprob_chunk)
    return compute_logps(pieces, opened.params, groups, sums)


@functools.cache  # the same function for the same models, so that other weights compile nothing
def _mixed_sums(mixed: MixedModels, chunk: int) -> Callable[[Any, Batch], jax.Array]:
    return lambda params, micro: mixed_logps(mixed, params, micro, chunk=chunk)


def mixed_logps(mixed: MixedModels, params: Any, batch: Batch, *, chunk: int) -> jax.Array:
    """[R*G, K] summed log-probs of a micro-batch's completions under a mix.

    Args:
        params: as of `mixing.mixture_of`.
        chunk: loss tokens that are multiplied with the vocabulary at a time.
    """
    trees = whole_params(params, mixed.models)
    models = [model for model, _ in mixed.models]
    states = [hidden_states(model, tree, batch) for model, tree in zip(models, trees, strict=True)]
    chunk = min(chunk, batch.loss_src_RS.shape[1])
    src_ARC, tok_ARC = _chunks(batch.loss_src_RS, chunk), _chunks(batch.loss_tok_RS, chunk)

    def mixed_at(logits_ORV: jax.Array) -> jax.Array:
        return mixed_logits(logits_ORV, params["weight_O"], mixed.rule)

    def logp_of_chunk(src_and_tok: tuple[jax.Array, jax.Array]) -> jax.Array:
        src_RC, tok_RC = src_and_tok
        logits_ORCV = jnp.stack(
            [_logits_at(model, state, src_RC) for model, state in zip(models, states, strict=True)]
        )
        logits_RCV = jax.vmap(mixed_at, in_axes=2, out_axes=1)(logits_ORCV)
        # A masked maximum, no gather: V may be sharded.
        chosen_RCV = jnp.arange(logits_RCV.shape[-1])[None, None, :] == tok_RC[:, :, None]
        of_token_RC = jnp.max(jnp.where(chosen_RCV, logits_RCV, -jnp.inf), axis=-1)
        return of_token_RC - jax.nn.logsumexp(logits_RCV, axis=-1)

    logp_ARC = lax.map(logp_of_chunk, (src_ARC, tok_ARC))
    R, S = batch.loss_src_RS.shape
    logp_RS = jnp.moveaxis(logp_ARC, 0, 1).reshape(R, -1)[:, :S]
    return sums_of_completions(logp_RS, batch)


def _logits_at(model: Model, states: States, src_RC: jax.Array) -> jax.Array:
    """[R, C, V] logits of the tokens after those at these indices along the row."""
    x_RCD = jnp.take_along_axis(states.hidden_RLD, src_RC[:, :, None], axis=1)
    return logits(model, constrain(x_RCD, "rows_replicated_fsdp", None, None), states.head_VD)


def _chunks(x_RS: jax.Array, chunk: int) -> jax.Array:
    """[A, R, C]; the padding at the end belongs to no completion."""
    x_RS = jnp.pad(x_RS, ((0, 0), (0, -x_RS.shape[1] % chunk)))
    return jnp.moveaxis(x_RS.reshape(x_RS.shape[0], -1, chunk), 1, 0)
