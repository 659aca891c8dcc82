"""Writes gdpo.json: TRL 1.16's advantages with `multi_objective_aggregation: normalize_then_sum`, by TRL's own lines.

    python make_gdpo.py DIRECTORY        # that holds the package trl/, 1.16.0; needs torch

The lines are cut out of `GRPOTrainer` and of `trl.trainer.utils` and run as they are.
"""

import ast
import json
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

PROMPTS, SAMPLES, REWARDS = 3, 4, 3


def branch(source: str) -> str:
    """The statements of the branch `normalize_then_sum`."""
    (test,) = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.If)
        and ast.unparse(node.test) == "self.multi_objective_aggregation == 'normalize_then_sum'"
    )
    lines = source.splitlines()[test.body[0].lineno - 1 : test.body[-1].end_lineno]
    return textwrap.dedent("\n".join(lines))


def function(source: str, name: str) -> str:
    (found,) = (n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == name)
    return ast.get_source_segment(source, found)


def main() -> None:
    trainer = Path(sys.argv[1]) / "trl/trainer"
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(PROMPTS, SAMPLES, REWARDS)) * [1.0, 20.0, 0.1] + [0.0, 5.0, -1.0]
    rewards[1, :, 2] = 0.5  # a reward that does not tell the answers to a prompt apart
    weights = [0.5, 0.3, 0.2]
    flat = torch.tensor(rewards, dtype=torch.float64).reshape(-1, REWARDS)
    given = {
        "torch": torch,
        "device": "cpu",
        "num_generations": SAMPLES,
        "rewards_per_func": flat,
        "unscorable_mask": torch.zeros(len(flat), dtype=torch.bool),
        "self": SimpleNamespace(
            reward_funcs=[None] * REWARDS, reward_weights=torch.tensor(weights, dtype=torch.float64)
        ),
    }
    exec(function((trainer / "utils.py").read_text(), "nanstd"), given)
    exec(branch((trainer / "grpo_trainer.py").read_text()), given)
    advantages = given["advantages"].reshape(PROMPTS, SAMPLES).tolist()
    record = {"trl": "1.16.0", "rewards": rewards.tolist(), "weights": weights, "advantages": advantages}
    (Path(__file__).parent / "gdpo.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
