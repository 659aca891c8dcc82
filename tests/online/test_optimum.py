"""RLOO and MO-ODPO through the real trainer, to pi_ref exp(w . r / beta) / Z, where answers can be enumerated."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from bandit import BETA, PROMPT, REWARDS, TEXTS, distance, knowing_model, logps_of, normal

from jaxpref.conditioning.weights import weighted_prompt
from jaxpref.data.encode import encode_groups
from jaxpref.generation.answer_logps import answer_logps
from jaxpref.generation.opening import open_source
from jaxpref.online.train import train
from jaxpref.runs.export import export_run
from jaxpref.types import Group

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile", "any_mesh")]

NEAR = 0.01
"""Total variation from the optimum, among the nine answers."""
WEIGHTS = [(0.2, 0.8), (0.5, 0.5), (0.75, 0.25)]


def first(prompt, answer):
    return reward(0, answer)


def second(prompt, answer):
    return reward(1, answer)


def reward(objective, answer):
    """That of the nine; of all other answers the least of them."""
    values = REWARDS[objective]
    return float(values[TEXTS.index(answer)]) if answer in TEXTS else float(values.min())


def run(directory: Path, model: Path, objective, online, *, groups, steps, rate=4e-3, **settings):
    """A run that answers the one prompt `groups` times in every step."""
    prompts = tiny.write_rows(directory / "prompts.jsonl", [{"prompt": PROMPT}] * groups)
    rewards = {"a": f"{__file__}:first", "b": f"{__file__}:second"}
    samples = online.get("samples", 8)
    config = tiny.config(
        directory / "run",
        model,
        prompts,
        objective=[objective],
        online={"rewards": rewards, "samples": samples, "max_new_tokens": 4, "decode_rows": samples * groups} | online,
        train={"batch_size": groups, "max_steps": steps, "micro_rows": 8, "log_every": steps},
        optim={"learning_rate": rate, "schedule": "cosine", "warmup_steps": 5, "clip_norm": None},
        **settings,
    )
    return train(config).out


def test_rloo(tmp_path):
    model, w = knowing_model(tmp_path / "known"), (0.6, 0.4)
    online = {"weights": dict(zip("ab", w, strict=True)), "samples": 8}
    objective = {"name": "rloo", "beta": BETA}
    out = run(tmp_path, model, objective, online, groups=16, steps=200, adapter={"rank": 16})
    before, after = logps_of(model), logps_of(out)
    optimum = normal(before + np.array(w) @ REWARDS[:2] / BETA)
    assert distance(normal(before), optimum) > 0.2
    assert distance(normal(after), optimum) < NEAR


def model_that_reads_weights(directory: Path) -> Path:
    """A model that gives the nine nearly all probability, whichever of the weights the prompt says."""
    directory.mkdir()
    lines = [{"prompt": told(w), "completion": text} for w in WEIGHTS for text in TEXTS]
    data = tiny.write_rows(directory / "rows.jsonl", lines)
    config = tiny.config(
        directory / "first",
        tiny.write_model(directory / "random", scale=0.5),
        data,
        objective=[{"name": "sft"}],
        train={"batch_size": len(lines), "epochs": 200, "micro_rows": 8, "log_every": 200},
        data={"train": [str(data)], "eval": [], "row_length": 256},
        optim={"learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 5, "clip_norm": None},
    )
    export_run(train(config).out, directory / "model", step="latest")
    return directory / "model"


def told(w) -> str:
    return weighted_prompt(PROMPT, dict(zip("ab", w, strict=True)))


def told_logps(source: Path, w) -> np.ndarray:
    """[9] log-probs of the nine after the prompt that says these weights."""
    opened = open_source(source)
    groups = [Group(told(w), (text,), i, "") for i, text in enumerate(TEXTS)]
    encoded, _ = encode_groups(groups, opened.pieces.tokenizer, max_length=None)
    values = answer_logps(opened, encoded)
    return np.array([float(values[i][0]) for i in range(len(TEXTS))])


def test_mo_odpo(tmp_path):
    """One policy, whose prompts say one of three weight vectors: of all, so small a model hardly reads the numbers.

    Labels are probabilities (`mmpo`): a pair that is labelled for certain has no optimum to compare with.  At three
    times this learning rate answers that have become rare are never drawn again.
    """
    model = model_that_reads_weights(tmp_path / "known")
    online, objective = {"weight_vectors": [list(w) for w in WEIGHTS], "samples": 2}, {"name": "mmpo", "beta": BETA}
    out = run(tmp_path, model, objective, online, groups=64, steps=700, rate=1e-3, data={"row_length": 256})
    for w in WEIGHTS:
        before, after = told_logps(model, w), told_logps(out, w)
        optimum = normal(before + np.array(w) @ REWARDS[:2] / BETA)
        assert distance(normal(before), optimum) > 0.1
        assert distance(normal(after), optimum) < NEAR, w
