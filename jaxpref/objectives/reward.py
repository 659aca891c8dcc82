"""Reward models: a scalar head at the last token of every completion, trained on pairs."""

import jax

from jaxpref.models.logprobs import Logps
from jaxpref.objectives._math import NotNegative, RowWeight, difference, pair_output
from jaxpref.objectives.contract import PAIRS, ObjectiveOutput, needs


@needs(groups=PAIRS, logps=("reward",))
def bradley_terry(
    policy: Logps,
    margin: jax.Array | None = None,
    weight: RowWeight = None,
    *,
    centering: NotNegative = 0.0,
) -> ObjectiveOutput:
    """Bradley-Terry reward model: -log sigmoid(r_c - r_r - margin) + centering * (r_c + r_r)^2.

    r_c and r_r are the head's rewards of the chosen and the rejected completion.  The margin is how
    much better the chosen completion is said to be; the last term fixes the constant that the first
    leaves open.

    Args:
        policy: rewards [B, K] of the scalar head; completions after the second are not used.
        margin: [B] smallest difference of the rewards that is asked for; 0 where the data has none.
        weight: [B] weight of every pair, >= 0.
        centering: strength of the pull of the rewards towards mean zero, >= 0; 0.01 is usual, 0
            leaves it out.
    Returns: loss_B in nats, ln 2 where rewards are equal and there is neither margin nor centering.
    Source: Bradley and Terry, 1952; margin: Touvron et al., arXiv 2307.09288; centering: Eisenstein
        et al., arXiv 2312.09244.  As TRL's RewardTrainer computes it.
    Use: to score completions, for data or for evaluation; learning rate 1e-5 for a whole model,
        1e-4 for adapters, one epoch.
    Curves: `rewards/accuracies` rises above 0.5 and levels off, `rewards/margins` grow on; held-out
        accuracy that falls while they grow is over-fitting.
    """
    margin_B = 0.0 if margin is None else margin
    centering_B = centering * (policy.reward[:, 0] + policy.reward[:, 1]) ** 2
    loss_B = -jax.nn.log_sigmoid(difference(policy.reward) - margin_B) + centering_B
    return pair_output(loss_B, policy.reward, policy, weight)
