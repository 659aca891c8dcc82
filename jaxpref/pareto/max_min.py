"""Weights for which the worst of several policies' objectives is best, of policies already trained.

Source: MPO (arXiv 2502.18699), of which this is the choice of weights; the policies then decide
every token together with them (MOD).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxpref.data.encode import encode_prompts
from jaxpref.generation.sampling import Sampling
from jaxpref.pareto.config import FrontConfig
from jaxpref.pareto.inputs import answer_settings, first_prompts
from jaxpref.pareto.policies import FrontPolicies
from jaxpref.pareto.run_configs import single_out
from jaxpref.pareto.stages import Stages
from jaxpref.types import EncodedGroup

_STEPS = 5_000
_ANSWERS = 8
"""Of the reference to every prompt."""


def chosen_weights(front: FrontConfig, policies: FrontPolicies, stages: Stages) -> dict[str, float]:
    """Objective -> its max-min weight, of answers of the reference to prompts of training data."""

    def work() -> dict[str, Any]:
        weights = max_min_weights(_ratios(front, policies))
        return {"weights": dict(zip(front.names, weights.tolist(), strict=True))}

    return stages("max-min", work)["weights"]


def _ratios(front: FrontConfig, policies: FrontPolicies) -> list[np.ndarray]:
    """Per prompt [N, O] log-ratios of the objectives' DPO policies to the reference."""
    prompts, reference = first_prompts(front, policies.pieces, "train"), policies.reference()
    settings = replace(answer_settings(front), sampling=Sampling(1.0), samples=_ANSWERS)
    pieces = policies.pieces
    ids = encode_prompts(prompts, pieces.tokenizer, pieces.processor)
    groups = [
        EncodedGroup(
            ids[answer.prompt_index],
            (answer.token_ids,),
            number,
            f"answer {number}",
            pictures=answer.pictures,
        )
        for number, answer in enumerate(reference.generate(prompts, settings))
    ]
    logps = [reference.logps(groups)]
    logps += [policies.run(single_out(front, name)).logps(groups) for name in front.names]
    of_reference, *of_policies = (
        np.array([float(own[i][0]) for i in range(len(groups))]) for own in logps
    )
    ratio_BO = np.stack([own - of_reference for own in of_policies], axis=-1)
    return np.split(ratio_BO, len(prompts))  # answers come in the order of the prompts


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
    span = max(float(np.ptp(ratio_BO)) for ratio_BO in ratios)
    if span == 0:
        return np.full(objectives, 1 / objectives)
    log_weight_O = np.full(objectives, -np.log(objectives))
    for _ in range(_STEPS):
        weight_O = np.exp(log_weight_O)
        gradient_O = np.mean([_gradient(ratio_BO, weight_O) for ratio_BO in ratios], axis=0)
        log_weight_O = log_weight_O - gradient_O / span**2
        log_weight_O -= np.logaddexp.reduce(log_weight_O)
    return np.exp(log_weight_O)


def _gradient(ratio_BO: np.ndarray, weight_O: np.ndarray) -> np.ndarray:
    """Of one prompt: the mean ratios under the policy of these weights, among the answers."""
    log_B = ratio_BO @ weight_O
    return np.exp(log_B - np.logaddexp.reduce(log_B)) @ ratio_BO
