"""MPO's weights: the least of F, and the best worst objective of a toy whose policies are known."""

import numpy as np
import pytest

from jaxpref.pareto.max_min import max_min_weights


def value(ratios, weights):
    logs = [ratio @ weights for ratio in ratios]
    return np.mean([np.logaddexp.reduce(x) - np.log(len(x)) for x in logs])


@pytest.mark.parametrize("objectives", [2, 3])
def test_no_other_weights_are_better(objectives):
    rng = np.random.default_rng(objectives)
    ratios = [rng.normal(0, 2, (8, objectives)) for _ in range(5)]
    found = max_min_weights(ratios)
    assert found.sum() == pytest.approx(1) and found.min() >= 0
    others = rng.dirichlet(np.ones(objectives), 3000)
    assert value(ratios, found) <= min(value(ratios, w) for w in others) + 1e-6


def test_the_worst_objective_less_its_kl_is_best():
    """All answers of a uniform reference: normalised rewards log(pi_k / pi_ref), beta 1."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(0, 1.5, (12, 2))
    ratio = rewards - np.log(np.mean(np.exp(rewards), 0))

    def worst(weights):
        policy = np.exp(ratio @ weights)
        policy /= policy.sum()
        return (policy @ ratio).min() - policy @ np.log(12 * policy)

    found = max_min_weights([ratio])
    assert 0.05 < found.min(), "neither objective alone"
    assert worst(found) >= max(worst([w, 1 - w]) for w in np.linspace(0, 1, 201)) - 1e-4
    assert worst(found) == pytest.approx(value([ratio], found), abs=1e-4), "the dual has the same value"


def test_policies_that_agree_leave_the_weights_equal():
    assert max_min_weights([np.ones((4, 2))]).tolist() == [0.5, 0.5]
