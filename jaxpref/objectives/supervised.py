"""Likelihood of the chosen completion."""

import jax
import jax.numpy as jnp

from jaxpref.logprobs import Logps
from jaxpref.objectives._math import pair_weight
from jaxpref.objectives.contract import PAIRS, ObjectiveOutput, needs


@needs(groups=(*PAIRS, "single", "ranked"))
def sft(policy: Logps, weight: jax.Array | None = None) -> ObjectiveOutput:
    """Negative log-likelihood of completion 0 per token, averaged over the tokens of the whole batch.

    Args:
        policy: summed log-probs and token counts, [B, K]; completions after the first are not used.
        weight: [B] weight of every prompt, >= 0; multiplies its tokens.
    Returns: loss_B in nats per token, weight_B = weight * tokens, so that the batch's value is the token mean
        whatever the micro-batches.
    Source: TRL's `loss_type: sft`; the NLL term of iterative RPO, arXiv 2404.19733, up to its normalisation.
    """
    tokens_B = policy.count[:, 0]
    loss_B = -policy.sum[:, 0] / jnp.maximum(tokens_B, 1.0)
    return ObjectiveOutput(loss_B, pair_weight(policy, weight) * tokens_B, {"nll": jax.lax.stop_gradient(loss_B)})
