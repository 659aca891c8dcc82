"""Closed-form optima through the real trainer: a small Llama whose completions can be enumerated (bandit.py)."""

import numpy as np
import pytest
import tiny
from bandit import BETA, DISTANCE, REWARDS, distance, knowing_model, normal, rows, train

from jaxpref.runs.export import export_run

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

REWARD, OTHER = REWARDS[:2]


def assert_reached(after, before, tilt):
    """The policy among the nine is pi_ref exp(tilt) / Z, and it was not so before."""
    optimum = normal(before + tilt)
    assert distance(normal(before), optimum) > 5 * DISTANCE
    assert distance(normal(after), optimum) < DISTANCE


@pytest.mark.slow
def test_dpo(tmp_path):
    _, after, before = train(tmp_path, rows(REWARD), [{"name": "dpo", "beta": BETA}])
    assert_reached(after, before, REWARD / BETA)


@pytest.mark.slow
@pytest.mark.parametrize("base", [pytest.param(0, id="first"), pytest.param(1, id="second")])
def test_modpo_with_explicit_rewards(tmp_path, base):
    """Weights (0.6, 0.4); which objective is the base does not change the optimum."""
    rewards, weights = ([REWARD, OTHER], [0.6, 0.4]) if base == 0 else ([OTHER, REWARD], [0.4, 0.6])
    lines = rows(rewards[0], other_rewards=[[value] for value in rewards[1]])
    _, after, before = train(tmp_path, lines, [{"name": "modpo", "beta": BETA, "w": weights}])
    assert_reached(after, before, (0.6 * REWARD + 0.4 * OTHER) / BETA)


@pytest.mark.slow
def test_modpo_with_an_implicit_reward(tmp_path):
    """The other reward is the log-ratio of a policy that was trained on that objective before."""
    model = tiny.write_model(tmp_path / "model", scale=0.5)
    (tmp_path / "other").mkdir()
    first, *_ = train(tmp_path / "other", rows(OTHER), [{"name": "dpo", "beta": BETA}], model=model, steps=600)
    export_run(first.out, tmp_path / "policy", step="latest")
    _, after, before = train(
        tmp_path,
        rows(REWARD),
        [{"name": "modpo_implicit", "beta": BETA, "w": [0.6, 0.4]}],
        model=model,
        steps=600,
        reference={"extra": [str(tmp_path / "policy")], "cache_dir": str(tmp_path / "cache")},
    )
    assert_reached(after, before, (0.6 * REWARD + 0.4 * OTHER) / BETA)


@pytest.mark.slow
def test_ipo_with_sums(tmp_path):
    """pi_ref exp(E_y'[p(y > y')] / tau) / Z under uniform opponents."""
    _, after, before = train(tmp_path, rows(REWARD), [{"name": "ipo_sum", "beta": 0.3}], steps=600)
    wins = 1 / (1 + np.exp(REWARD[None, :] - REWARD[:, None]))
    assert_reached(after, before, wins.mean(1) / 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["f_dpo_forward_kl", "f_dpo_js", "f_dpo_alpha"])
def test_f_dpo(tmp_path, name):
    """beta f'(pi / pi_ref) = reward + const among the nine.

    The reference gives them nearly all probability, as it must be for the optimum to be reached: f' levels off where
    log-ratios grow, and a model that hardly knows the nine can raise all of them at once, to where no gradient is left.
    """
    model = knowing_model(tmp_path)
    objective = [{"name": name, "beta": 2.0}]
    _, after, before = train(tmp_path, rows(REWARD), objective, steps=600, model=model)
    rho = after - before
    scores = {
        "f_dpo_forward_kl": 1 - np.exp(-rho),
        "f_dpo_js": -np.logaddexp(0, -rho),
        "f_dpo_alpha": (1 - np.exp(-0.5 * rho)) / 0.5,
    }
    centred = lambda x: x - x.mean()
    np.testing.assert_allclose(2.0 * centred(scores[name]), centred(REWARD), atol=0.05)
    assert np.abs(centred(REWARD)).max() > 0.5


@pytest.mark.slow
def test_rdpo_recovers_from_flipped_labels_and_dpo_does_not(tmp_path):
    """A fifth of the labels are flipped: in expectation, a pair's weight is mixed with its opposite's."""
    lines = rows(REWARD)
    flipped = [line | {"weight": 0.8 * line["weight"] + 0.2 * (1 - line["weight"])} for line in lines]
    found = {}
    for name, objective in (("rdpo", {"beta": BETA, "eps": 0.2}), ("dpo", {"beta": BETA})):
        (tmp_path / name).mkdir()
        _, after, before = train(tmp_path / name, flipped, [{"name": name, **objective}], steps=600)
        found[name] = distance(normal(after), normal(before + REWARD / BETA))
    assert found["rdpo"] < DISTANCE < 3 * DISTANCE < found["dpo"]
