"""Several rewards of an answer as one."""

import numpy as np

_EPSILON = 1e-4
"""Added to deviations, as TRL does."""


def weighed(reward_BKO: np.ndarray, weight_BO: np.ndarray, aggregation: str) -> np.ndarray:
    """[B, K] the one reward of every answer.

    Args:
        reward_BKO: of K answers to each of B prompts.
        weight_BO: of the rewards, for every prompt.
        aggregation: `sum`, the weighted sum; `normalize_then_sum`, as `normalised_sum`.
    """
    if aggregation == "normalize_then_sum":
        return normalised_sum(reward_BKO, weight_BO)
    return np.einsum("BKO,BO->BK", reward_BKO, weight_BO)


def normalised_sum(reward_BKO: np.ndarray, weight_BO: np.ndarray) -> np.ndarray:
    """[B, K] GDPO's advantage: rewards are brought to one scale before they are added.

    A_o = (r_o - mean of a prompt's answers) / (their deviation + 1e-4), A = sum_o w_o A_o, and
    (A - mean of the batch) / (its deviation + 1e-4).  Deviations are of samples (n - 1).

    Source: GDPO (arXiv 2601.05242), as TRL's `multi_objective_aggregation: normalize_then_sum`.
    """
    centred_BKO = reward_BKO - reward_BKO.mean(1, keepdims=True)
    scaled_BKO = centred_BKO / (reward_BKO.std(1, ddof=1, keepdims=True) + _EPSILON)
    sum_BK = np.einsum("BKO,BO->BK", scaled_BKO, weight_BO)
    return (sum_BK - sum_BK.mean()) / (sum_BK.std(ddof=1) + _EPSILON)
