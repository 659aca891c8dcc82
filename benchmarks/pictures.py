"""DPO on pairs about a picture: beside pairs of text with as many tokens, and beside TRL 1.16.

    python benchmarks/pictures.py
    python benchmarks/pictures.py --model small --entries pictures text
    python benchmarks/pictures.py --model smolvlm-256m-sixth --batch 1 --entries pictures trl

The model is random and of SmolVLM-256M's shape; a picture of 4 tiles takes 256 tokens and what
frames them.  The text pairs have as many tokens, in the same places.  What the tower adds in model
FLOPs is printed beside the times, for it decides what is possible: SigLIP on a tile of 512 pixels
costs as much as the decoder on 800 tokens.  Times are of steps 2 to the last.  With a kept
reference its log-probs were computed before them, once for all epochs; TRL refuses that on
pictures.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

from peers import HERE, TOLERANCE, difference_of, python_of, run_side
from pictures_side import SIZES
from record import add_argument, append, record

FASTEST = ["model.remat=none", "data.length_buckets=4"]
VISION = "model.pictures=true"
ADAPTER = ["adapter.rank=16"]
KEPT = ["reference.mode=cache"]
ENTRIES = {
    "text": ("texts", [VISION]),
    "pictures": ("pictures", [VISION]),
    "pictures, kept reference": ("pictures", [VISION, *KEPT]),
    "pictures, kept reference, remat": ("pictures", [VISION, *KEPT, "model.remat=full"]),
    "text, adapter": ("texts", [VISION, *ADAPTER]),
    "pictures, adapter": ("pictures", [VISION, *ADAPTER]),
    "trl": ("pictures", []),
}


def main() -> None:
    args = _arguments()
    cpus = sorted(os.sched_getaffinity(0))[: args.threads]
    with tempfile.TemporaryDirectory(prefix="pictures-", dir=args.work) as work:
        about = {name: getattr(args, name) for name in ("model", "tiles", "question", "answer")}
        made = run_side(
            sys.executable,
            ["pictures_side.py"],
            about | {"work": work, "pairs": args.steps * args.batch},
        )
        job = {
            "model": made["model"],
            "cpus": cpus,
            "device": "cpu",
            "steps": args.steps,
            "batch": args.batch,
            "learning_rate": 1e-6,
            "beta": 0.1,
            "max_length": 4096,
            "bf16": False,
            "checkpointing": False,
            "overrides": args.jaxpref,
        }
        runs: dict[str, list[dict]] = {name: [] for name in args.entries}
        for repeat in range(args.repeats):
            for name in args.entries:
                rows, settings = ENTRIES[name]
                own = {"rows": made[rows], "out": f"{work}/{name}-{repeat}"}
                kept = f"reference.cache_dir={work}/{name}-{repeat}-reference"
                own["settings"] = [*FASTEST, kept, *settings]
                if name == "trl":
                    python = args.trl_python or python_of("trl-pictures", args.environments)
                    runs[name].append(run_side(python, ["trl_side.py"], job | own))
                else:
                    run = run_side(sys.executable, ["jaxpref_side.py", "train"], job | own)
                    runs[name].append(run)
    for kind, ratio in made["flops"].items():
        print(f"- model FLOPs of a pair about a picture{kind}, for one of text: {ratio:.2f}")
    print("\n| | s per step | tokens/s | peak GiB | first loss |\n|---|---|---|---|---|")
    for name, of_entry in runs.items():
        print(_row(name, of_entry))
    for name in runs:
        if "trl" in runs and name.startswith("pictures") and "adapter" not in name:
            _compare(name, runs[name][0], runs["trl"][0])
    append(args.record, (_record(name, of_entry, args) for name, of_entry in runs.items()))


def _compare(name: str, ours: dict, theirs: dict) -> None:
    """Stops before anything is recorded, if the two sides do not train the same thing."""
    print(f"\nLargest relative difference of TRL from jaxpref ({name}) at any step:")
    apart = {key: difference_of(ours, theirs, key) for key in (*TOLERANCE, "num_tokens")}
    print(", ".join(f"{key} {value:.1e}" for key, value in apart.items()))
    if any(value > TOLERANCE.get(key, 0) for key, value in apart.items()):
        sys.exit("stopped, because this is more than float32's rounding")


def _row(name: str, runs: list[dict]) -> str:
    measured = _measured(runs)
    seconds, tokens = median(measured["s per step"]), median(measured["tokens/s"])
    peak, loss = max(measured["peak GiB"]), runs[0]["steps"][0]["loss"]
    return f"| {name} | {seconds:.2f} | {tokens:,.0f} | {peak:.2f} | {loss:.6f} |"


def _measured(runs: list[dict]) -> dict[str, list[float]]:
    """Tokens are counted as TRL does, the prompt once for each answer."""
    seconds = [median(run["seconds"]) for run in runs]
    per_step = [run["steps"][-1]["num_tokens"] / len(run["steps"]) for run in runs]
    return {
        "s per step": seconds,
        "tokens/s": [tokens / s for tokens, s in zip(per_step, seconds, strict=True)],
        "peak GiB": [run["peak_bytes"] / 2**30 for run in runs],
    }


def _record(name: str, runs: list[dict], args: argparse.Namespace):
    settings = {key: getattr(args, key) for key in ("model", "tiles", "batch", "steps", "threads")}
    versions = runs[0]["versions"]
    return record("pictures", name, _measured(runs), settings=settings, versions=versions)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=SIZES, default="smolvlm-256m", help="whose shape (default %(default)s)")
    add("--tiles", type=int, default=4, help="of every picture, 64 tokens each (default 4)")
    add("--question", type=int, default=32, help="tokens (default 32)")
    add("--answer", type=int, default=64, help="tokens of each answer (default 64)")
    add("--batch", type=int, default=2, help="pairs per step (default 2)")
    add("--steps", type=int, default=4, help="the first is not timed (default 4)")
    add("--repeats", type=int, default=1)
    add("--threads", type=int, default=2, help="processors (default 2)")
    add("--entries", nargs="+", choices=ENTRIES, default=list(ENTRIES), metavar="NAME")
    add("--trl-python", help="python of an environment with TRL, torchvision and Pillow")
    add("--environments", type=Path, default=HERE.parent / "runs" / "peers")
    add("--jaxpref", nargs="+", default=[], metavar="KEY=VALUE", help="settings to try")
    add("--work", help="where to put the model and the runs, 2 GB")
    add_argument(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
