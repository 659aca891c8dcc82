"""Objectives on pairs that compare one answer after several pictures.

rho is a completion's log-ratio, log pi(y|m, x) - log pi_ref(y|m, x), after the picture m and the
question x, summed over its tokens; R = beta * rho is its reward.  An index c means the chosen
completion, r the rejected one, o the chosen one after another picture (`data/pictures/other.py`);
D = rho_c - rho_r.
"""

import jax
import jax.numpy as jnp

from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import (
    Finite,
    NotNegative,
    Positive,
    RowWeight,
    difference,
    log_ratios,
    pair_output,
    plus_metrics,
)
from jaxpref.objectives.contract import ObjectiveOutput, Term, needs


@needs(groups=("pair_cropped",))
def mdpo(
    policy: Logps,
    ref: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
    conditional: NotNegative = 1.0,
    anchor: NotNegative = 1.0,
    delta: Finite = 0.0,
) -> ObjectiveOutput:
    """Multimodal DPO: -ls(beta D) - ls(R_c - R_o) - ls(R_c - delta), ls = log sigmoid.

    The second term prefers the picture to a part of it, under the same answer, and the third keeps
    the chosen answer likely.  A row without pictures has the first and the third.

    Args:
        policy, ref: summed log-probs [B, 3] in nats: chosen, rejected, chosen after a random part
            of 1 to 20 % of each picture; the reference gets no gradient.
        weight: [B] weight of every pair, >= 0.
        beta: scale of the rewards, > 0; 0.1 in the paper and its code.
        conditional: weight of the second term, >= 0; 1 in the paper and its code.
        anchor: weight of the third term, >= 0; 1 in the paper and its code.
        delta: reward that chosen completions should have; 0 in the authors' code.
    Returns: loss_B in nats, 3 ln 2 where policy equals reference and delta is 0; 2 ln 2 without
        pictures.
    Source: Wang et al., arXiv 2406.11839, and its code, whose flag `mask_visual_tokens` crops.
    Use: models that answer without looking; beta 0.1, LoRA of rank 64 at a learning rate of 1e-5.
    Curves: loss falls from 2.079; pictures/accuracies, which start at 0, rise above 0.5, and
        rewards/chosen stays above delta.
    """
    reward_BK = beta * log_ratios(policy, ref)
    seen_B = (policy.count[:, 2] > 0).astype(jnp.float32)
    margin_B = reward_BK[:, 0] - reward_BK[:, 2]
    loss_B = -jax.nn.log_sigmoid(difference(reward_BK))
    loss_B += conditional * seen_B * -jax.nn.log_sigmoid(margin_B)
    loss_B += anchor * -jax.nn.log_sigmoid(reward_BK[:, 0] - delta)
    out = pair_output(loss_B, reward_BK, policy, weight)
    logged = {
        "pictures/margins": Term(margin_B, seen_B),
        "pictures/accuracies": Term((margin_B > 0).astype(jnp.float32), seen_B),
    }
    return plus_metrics(out, logged)


@needs(groups=("pair_masked",))
def mdpo_masked(
    policy: Logps,
    ref: Logps,
    weight: RowWeight = None,
    *,
    beta: Positive = 0.1,
    conditional: NotNegative = 1.0,
    anchor: NotNegative = 1.0,
    delta: Finite = 0.0,
) -> ObjectiveOutput:
    """Multimodal DPO, masked: mdpo with no picture at all for R_o in place of a part of it.

    The tokens of the picture stay, with embeddings of their own.

    Args:
        policy, ref: summed log-probs [B, 3] in nats: chosen, rejected, chosen after no pictures;
            the reference gets no gradient.
        weight, beta, conditional, anchor, delta: as of mdpo.
    Returns: loss_B in nats, 3 ln 2 where policy equals reference and delta is 0; 2 ln 2 without
        pictures.
    Source: Wang et al., arXiv 2406.11839, with another way to take the picture away.
    Use: as mdpo, where a part of a picture shows as much as all of it.
    Curves: as mdpo.
    """
    return mdpo(policy, ref, weight, beta=beta, conditional=conditional, anchor=anchor, delta=delta)
