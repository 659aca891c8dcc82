"""Weights for which the worst of several policies' objectives is best, of policies already trained.

Source: MPO (arXiv 2502.18699), of which this is the choice of weights; the policies then decide
every token together with them (MOD).
"""

from collections.abc import Sequence

import numpy as np

_STEPS = 5_000


def max_min_weights(ratios: Sequence[np.ndarray]) -> np.ndarray:
    """[O] weights l on the simplex that make F(l) least.

    F(l) is the mean over prompts of log mean_y prod_k (pi_k(y) / pi_ref(y))^l_k, over answers y of
    the reference.  beta F(l) is the dual of the largest that the smallest of the objectives'
    normalised rewards, r_k - beta log E_ref exp(r_k / beta) = beta log(pi_k / pi_ref), can be, less
    beta KL.  It is convex, and mirror descent (l <- l exp(-eta gradient) / Z) finds the minimum.

    Args:
        ratios: per prompt [N, O], log pi_k(y) - log pi_ref(y) of the reference's answers, nats.
    """
    objectives = ratios[0].shape[1]
    span = max(float(np.ptp(ratio_NO)) for ratio_NO in ratios)
    if span == 0:
        return np.full(objectives, 1 / objectives)
    log_weight_O = np.full(objectives, -np.log(objectives))
    for _ in range(_STEPS):
        weight_O = np.exp(log_weight_O)
        gradient_O = np.mean([_gradient(ratio_NO, weight_O) for ratio_NO in ratios], axis=0)
        log_weight_O = log_weight_O - gradient_O / span**2
        log_weight_O -= np.logaddexp.reduce(log_weight_O)
    return np.exp(log_weight_O)


def _gradient(ratio_NO: np.ndarray, weight_O: np.ndarray) -> np.ndarray:
    """Of one prompt: the mean ratios under the policy of these weights, among the answers."""
    log_N = ratio_NO @ weight_O
    return np.exp(log_N - np.logaddexp.reduce(log_N)) @ ratio_NO
