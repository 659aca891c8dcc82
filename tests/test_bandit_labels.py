"""Methods that train on labels of several objectives, through the real trainer, against what they must reach."""

import pytest
import tiny
from bandit import (
    BETA,
    DISTANCE,
    PROMPT,
    REWARDS,
    TEXTS,
    distance,
    labelled_rows,
    labels_optimum,
    logps_of,
    named,
    normal,
    train,
)

from jaxpref.conditioning.weights import weighted_prompt
from jaxpref.runs.metrics import read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile", "any_mesh")]

SOME = [0, 2, 4, 6, 8]
"""Of the nine answers, for all nine with every weight would be many rows."""
TEXTS_5, REWARDS_5 = [TEXTS[i] for i in SOME], REWARDS[:2, SOME]


def test_cos_dpo_serves_all_weights(tmp_path):
    """One run on rows of three weights; for each its policy is the optimum of the weighted sum of DPO losses."""
    model, weights = tiny.write_model(tmp_path / "model", scale=0.5), [(0.1, 0.9), (0.5, 0.5), (0.9, 0.1)]
    some = [0, 2, 5, 7, 8]  # here no weight's optimum is near the model's policy
    texts, rewards = [TEXTS[i] for i in some], REWARDS[[0, 2]][:, some]
    lines = [row for w in weights for row in labelled_rows(rewards, texts, w)]
    columns = {"labels": ["label/0", "label/1"], "objective_weights": ["w/0", "w/1"]}
    objective = [{"name": "cos_dpo", "beta": BETA, "columns": columns}]
    config, _, _ = train(tmp_path, lines, objective, model=model, learning_rate=6e-3)
    optima, off = [], []
    for w in weights:
        prompt = weighted_prompt(PROMPT, named(w))
        before, after = (logps_of(source, prompt, texts) for source in (model, config.out))
        optimum = labels_optimum(rewards, w, before)
        assert distance(normal(before), optimum) > 5 * DISTANCE
        optima.append(optimum)
        off.append(distance(normal(after), optimum))
    assert max(off) < DISTANCE, off
    assert min(distance(optima[i], optima[i + 1]) for i in (0, 1)) > 3 * DISTANCE


@pytest.mark.parametrize("how", ["sum", "raco"])
def test_raco_ends_where_the_weighted_sum_does(tmp_path, how):
    """Its direction is zero only where that of the sum is (c < 1); the way there is another one."""
    w = (0.6, 0.4)
    parts = [{"name": "signed_dpo", "beta": BETA, "weight": w[k], "columns": {"sign": f"label/{k}"}} for k in range(2)]
    lines = labelled_rows(REWARDS_5, TEXTS_5)
    config, after, before = train(tmp_path, lines, parts, learning_rate=6e-3, optim={"combine": how})
    optimum = labels_optimum(REWARDS_5, w, before)
    assert distance(normal(before), optimum) > 5 * DISTANCE
    assert distance(normal(after), optimum) < DISTANCE
    last = read_jsonl(config.out + "/metrics.jsonl")[-1]
    assert last.get("gradient_cosine", -1) < -0.9, "at the optimum the gradients are opposite"
    if how == "raco":
        assert abs(last["combined/signed_dpo"] - w[0]) > 0.01 or abs(last["combined/signed_dpo_2"] - w[1]) > 0.01
