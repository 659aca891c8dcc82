"""`make demo-vision`: a tiny model learns to see, then DPO and mDPO on pairs with a usual answer.

The model, a SmolVLM of random weights, first learns right answers about drawn pictures.  In nearly
all pairs that follow the picture shows what is usual, so the chosen answer can be told from the
question alone, and a policy may forget to look.  Whether it looks is asked by held-out pairs whose
picture shows something else.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from jaxpref.config import Config
from jaxpref.demo import pictures
from jaxpref.demo.tiny_model import write_tiny_vision_model
from jaxpref.errors import InputError
from jaxpref.evaluation.bootstrap import DEFAULT, Estimate, estimates, mean
from jaxpref.generation.completions import Settings
from jaxpref.generation.prompts import read_prompts
from jaxpref.generation.sampling import Sampling
from jaxpref.pareto.front import Front, Point
from jaxpref.pareto.measure import Candidate
from jaxpref.pareto.policies import FrontPolicies
from jaxpref.pareto.report.write import write_front
from jaxpref.pareto.thumbnails import thumbnails
from jaxpref.runs.export import export_run
from jaxpref.runs.feed import read_data, which_of
from jaxpref.runs.metrics import read_jsonl
from jaxpref.settings import make_config
from jaxpref.text_tables import whole
from jaxpref.training.run import train
from jaxpref.types import EncodedGroup

MISLEADING, USUAL = "misleading", "usual"
"""Held-out pairs: the usual answer is rejected, or chosen."""
OBJECTIVES = {"DPO": "dpo", "mDPO": "mdpo"}
"""Method -> objective."""
_FIRST, _SECOND = OBJECTIVES
MEASURES = {
    "likelier": "the higher likelihood",
    "rewarded": "the higher reward (log-ratio)",
}
"""Field of `_Results` -> what it says of the right answer."""
_BASE = "base"
_SHOWN = 40
"""Misleading questions on the page, with everyone's answers."""


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    pictures: int = 6000
    """With right answers, from which the model learns to see."""
    seeing_steps: int = 500
    pairs: int = 2000
    """Of each seed."""
    steps: int = 60
    held_out: int = 400
    """Pairs of each kind."""
    seeds: int = 3
    usual: float = 0.95
    """Share of training pairs whose chosen answer is the usual one."""


def run(out: Path, scale: Scale, console: Console) -> None:
    """Draws the data, trains, measures; prints a table and writes a page.

    What is there already is not done again.
    """
    write_data(out / "data", scale)
    base = _seeing_model(out, scale, console)
    configs = {
        (method, seed): _preference_config(out, scale, base, objective, seed)
        for seed in range(scale.seeds)
        for method, objective in OBJECTIVES.items()
    }
    for config in configs.values():
        _train(config, console)
    measured = _Measured(next(iter(configs.values())))
    results: dict[str, list[_Results]] = {_BASE: [measured.of(measured.policies.reference())]}
    for (method, _), config in configs.items():
        of_seeds = results.setdefault(method, [])
        of_seeds.append(measured.of(measured.policies.run(config.out)))
    console.print(whole(_table(results, scale)))
    write_front(_front(results, measured, configs), out)
    console.print(f"written: {out / 'report.html'}", highlight=False)


# ---- data and runs


def write_data(directory: Path, scale: Scale) -> None:
    """Answers to learn to see from, held-out pairs, and pairs for every seed."""
    writers = {
        "answers": partial(pictures.write_answers, pictures=scale.pictures),
        MISLEADING: partial(pictures.write_pairs, pairs=scale.held_out, usual=0.0),
        USUAL: partial(pictures.write_pairs, pairs=scale.held_out, usual=1.0),
    }
    for seed in range(scale.seeds):
        writers[f"pairs_{seed}"] = partial(
            pictures.write_pairs, pairs=scale.pairs, usual=scale.usual
        )
    for name, write in writers.items():
        file = directory / f"{name}.jsonl"
        if not file.exists():
            write(file, rng=Random(name))


def _seeing_model(out: Path, scale: Scale, console: Console) -> Path:
    """A checkpoint that answers questions about pictures, mostly right."""
    random, base = out / "random", out / _BASE
    if not base.exists():
        if not random.exists():
            write_tiny_vision_model(random, [*pictures.texts(), "user", "assistant"] * 20)
        config = _config(
            out / "seeing",
            random,
            out / "data/answers.jsonl",
            objective=[{"name": "sft"}],
            optim={"learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 50, "b2": 0.98},
            train={"batch_size": 72, "max_steps": scale.seeing_steps},
        )
        _train(config, console)
        export_run(config.out, base, step="latest")
    return base


def _preference_config(out: Path, scale: Scale, base: Path, objective: str, seed: int) -> Config:
    data = out / "data"
    return _config(
        out / f"{objective}_{seed}",
        base,
        data / f"pairs_{seed}.jsonl",
        held_out={name: [str(data / f"{name}.jsonl")] for name in (MISLEADING, USUAL)},
        objective=[{"name": objective, "beta": 0.1}],
        optim={"learning_rate": 1e-4, "warmup_steps": 5},
        train={"batch_size": 32, "max_steps": scale.steps, "seed": seed},
    )


def _config(
    out: Path, model: Path, data: Path, *, held_out: Mapping[str, list[str]] = {}, **more: Any
) -> Config:
    """Short texts: many in a row, and a step in one micro-batch."""
    raw = {
        "out": str(out),
        "model": {
            "path": str(model),
            "pictures": True,
            "compute_dtype": "float32",
            "remat": "none",
        },
        "data": {"train": [str(data)], "eval": dict(held_out), "row_length": 1024},
        **more,
    }
    raw["train"] = {"micro_rows": 2, **raw["train"]}
    return make_config(raw)


def _train(config: Config, console: Console) -> None:
    console.print(config.out, highlight=False)
    train(config)


# ---- what the policies are worth


class _Measured:
    """Policies on the same held-out pairs, against the same reference."""

    def __init__(self, config: Config):
        self.policies = FrontPolicies(config)
        pieces = replace(self.policies.pieces, config=config)
        self.held_out: dict[str, Sequence[EncodedGroup]] = {
            name: read_data(pieces, which_of(name))[0] for name in config.data.eval_sets
        }
        self._reference = self._logps(self.policies.reference())
        [file] = config.data.eval_sets[MISLEADING]
        rows = map(json.loads, Path(file).read_text(encoding="utf-8").splitlines())
        self.shown = list(zip(rows, read_prompts(file), strict=True))[:_SHOWN]
        """Rows and their prompts."""

    def of(self, policy: Candidate) -> "_Results":
        settings = Settings(Sampling(0.0), max_new_tokens=8)
        logps = self._logps(policy)
        answers = [
            done.text.strip()
            for done in policy.generate([prompt for _, prompt in self.shown], settings)
        ]
        likelier, rewarded = {}, {}
        for name, logp_BK in logps.items():
            ratio_BK = logp_BK - self._reference[name]
            likelier[name] = logp_BK[:, 0] > logp_BK[:, 1]
            rewarded[name] = ratio_BK[:, 0] > ratio_BK[:, 1]
        return _Results(likelier, rewarded, answers)

    def _logps(self, policy: Candidate) -> dict[str, np.ndarray]:
        """Set -> [B, 2] log-probs of the right and of the wrong answers, nats."""
        logps = {}
        for name, groups in self.held_out.items():
            of_row = policy.logps(groups)
            logps[name] = np.array([of_row[group.row_id][:2] for group in groups])
        return logps


@dataclass(frozen=True)
class _Results:
    """Of one policy: set -> [B], whether it is right."""

    likelier: Mapping[str, np.ndarray]
    """The right answer is the likelier one."""
    rewarded: Mapping[str, np.ndarray]
    """The right answer has the larger log-ratio to the reference, as training counts accuracy."""
    answers: Sequence[str]
    """To the shown questions, greedily."""


Results = Mapping[str, Sequence[_Results]]
"""Method -> the results of its seeds; of the base there is one."""


def _estimate(right_SB: Sequence[np.ndarray]) -> Estimate:
    """The mean over seeds and pairs, and its interval over pairs."""
    x_B = np.mean(right_SB, 0)
    unit_B = np.arange(len(x_B))
    return estimates(lambda weight_WB: {"mean": mean(weight_WB, x_B)}, unit_B, DEFAULT)["mean"]


def _table(results: Results, scale: Scale) -> Table:
    title = (
        f"held-out accuracy, {scale.held_out} pairs of each kind, {scale.seeds} seeds\n"
        "(mean, 95 % interval over pairs; each seed below)"
    )
    caption = "the base is the reference itself: all its rewards are 0, so that none is higher"
    difference = f"{_SECOND} - {_FIRST}"
    columns = ("pairs", "the right answer has", *results, difference)
    table = Table(*columns, title=title, caption=caption, box=SIMPLE)
    for name in (MISLEADING, USUAL):
        for measure, words in MEASURES.items():
            right = {
                method: [getattr(one, measure)[name].astype(float) for one in of_seeds]
                for method, of_seeds in results.items()
            }
            seeds = zip(right[_SECOND], right[_FIRST], strict=True)
            right[difference] = [second_B - first_B for second_B, first_B in seeds]
            table.add_row(name, words, *map(_cell, right.values()), end_section=True)
    return table


def _cell(right_SB: Sequence[np.ndarray]) -> str:
    found = _estimate(right_SB)
    lines = [f"{found.value:.2f}  {found.low:.2f} to {found.high:.2f}"]
    if len(right_SB) > 1:
        lines.append(", ".join(f"{right_B.mean():.2f}" for right_B in right_SB))
    return "\n".join(lines)


def _front(
    results: Results, measured: _Measured, configs: Mapping[tuple[str, int], Config]
) -> Front:
    """For the page: accuracies of the rewards as two axes, and all answers beside the pictures."""
    points = []
    for method, of_seeds in results.items():
        for seed, one in enumerate(of_seeds):
            config = configs.get((method, seed))
            accuracy = {name: _estimate([right_B]) for name, right_B in one.rewarded.items()}
            points.append(
                Point(
                    f"{method}-{seed}",
                    method,
                    weights=None,
                    base=None,
                    seed=seed,
                    run=None if config is None else config.out,
                    estimates={"accuracy": accuracy},
                    curves=[] if config is None else read_jsonl(f"{config.out}/metrics.jsonl"),
                    answers=one.answers,
                )
            )
    return Front(
        "DPO and mDPO on pairs with a usual answer",
        [MISLEADING, USUAL],
        "accuracy",
        points,
        prompts=[_question(row) for row, _ in measured.shown],
        pictures=[thumbnails(prompt) for _, prompt in measured.shown],
    )


def _question(row: Mapping[str, Any]) -> str:
    """What is asked, and what would be right."""
    right, wrong = row["chosen"][0]["content"], row["rejected"][0]["content"]
    return f"{row['prompt'][0]['content'][1]['text']} ({right}, not {wrong})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="jaxpref.demo.vision", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo_vision"), help="directory")
    options = parser.parse_args(arguments)
    try:
        run(options.out, Scale(), Console())
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
