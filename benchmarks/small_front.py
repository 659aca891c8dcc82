"""Data and a model so small that all methods of a front can be compared on a CPU in an hour.

    python benchmarks/small_front.py runs/small_front       # a few minutes; front_costs.py goes on

The questions and answers are those of the demo (`jaxpref.demo.synthetic`).  A Llama of random
weights learns to answer them by both answers of every training row, so it is brief or wordy, polite
or rude as it comes; every other prompt says objective weights, drawn uniformly, that mean nothing
yet.  Each objective labels the pairs itself: its preference is drawn with the Bradley-Terry
probability of its reward at the temperature that the front's config gives, so the reward that MODPO
is told and the labels that it trains on are of one model.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxpref.conditioning.weights import draw_weights, weighted_prompt  # noqa: E402
from jaxpref.data.rewrite import write_lines  # noqa: E402
from jaxpref.demo.synthetic import generate  # noqa: E402
from jaxpref.demo.tiny_model import write_tiny_model  # noqa: E402
from jaxpref.online.train import train  # noqa: E402
from jaxpref.runs.export import export_run  # noqa: E402
from jaxpref.settings import make_config  # noqa: E402

OBJECTIVES = ("brevity", "politeness")
TEMPERATURE = 0.25
"""As in small_front.yaml."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=600, help="of the model's first training")
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    splits = dict(zip(("train", "test"), generate(options.rows, seed=0), strict=True))
    rng = np.random.default_rng(0)
    for split, rows in splits.items():
        for name in OBJECTIVES:
            write_lines(out / f"{name}-{split}.jsonl", labelled(rows, name, rng))
    first = list(demonstrations(splits["train"], rng))
    write_lines(out / "first.jsonl", first)
    learn(out, [content(row["prompt"] + row["completion"]) for row in first], options.steps)


def labelled(rows: Sequence[dict], name: str, rng: np.random.Generator) -> Iterator[dict]:
    """The pairs, the one that the objective was drawn to prefer first."""
    for row in rows:
        sides = ["chosen", "rejected"]
        margin = row["scores_chosen"][name] - row["scores_rejected"][name]
        if rng.random() > 1 / (1 + math.exp(-margin / TEMPERATURE)):
            sides.reverse()
        yield {"prompt": row["prompt"], "chosen": row[sides[0]], "rejected": row[sides[1]]}


def demonstrations(rows: Sequence[dict], rng: np.random.Generator) -> Iterator[dict]:
    """Both answers of every row; the prompt says weights before one of them."""
    for row in rows:
        weights = dict(zip(OBJECTIVES, draw_weights(rng, 2, 1.0), strict=True))
        told = weighted_prompt(row["prompt"], weights)
        prompts = [row["prompt"], told] if rng.random() < 0.5 else [told, row["prompt"]]
        for prompt, side in zip(prompts, ("chosen", "rejected"), strict=True):
            yield {"prompt": prompt, "completion": row[side]}


def learn(out: Path, texts: Sequence[str], steps: int) -> None:
    """The model, which `out/model` then holds."""
    model = write_tiny_model(out / "random", texts, vocabulary=1024, width=64, layers=3)
    config = make_config(
        {
            "out": str(out / "first"),
            "model": {"path": str(model), "attention_block": 64, "remat": "none"},
            "data": {"train": [str(out / "first.jsonl")], "row_length": 512},
            "objective": [{"name": "sft"}],
            "optim": {"learning_rate": 4e-3, "schedule": "cosine", "warmup_ratio": 0.05},
            "train": {
                "batch_size": 64,
                "max_steps": steps,
                "micro_rows": 4,
                "log_every": 50,
                "resume": "auto",
            },
        }
    )
    train(config)
    export_run(config.out, out / "model", step="latest")


def content(messages: Sequence[dict]) -> str:
    return " ".join(message["content"] for message in messages)


if __name__ == "__main__":
    main()
