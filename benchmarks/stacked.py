"""What a point of a front costs when the adapters of all points are trained in one step.

    python benchmarks/stacked.py                # 1, 3 and 5 points in one step

SmolLM2-135M-Instruct with LoRA on the demo's generated pairs, MODPO with explicit rewards, on the
CPU.  Every entry is a process of its own; a step is timed from the end of one to the end of the
next, without the first.  Prints seconds and memory in one table in markdown.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from record import add_argument, append, record

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = [[0.1, 0.9], [0.3, 0.7], [0.5, 0.5], [0.7, 0.3], [0.9, 0.1]]


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "run":
        print(json.dumps(run(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--points", type=int, nargs="+", default=[1, 3, 5])
    add_argument(parser)
    options = parser.parse_args()
    processors, load = os.cpu_count(), os.getloadavg()[0]
    print(f"{options.steps} steps of 8 pairs, {processors} processors, load before {load:.1f}\n")
    print(
        "| points in one step | seconds per step | seconds per step and point "
        "| first step and loading, s | peak, GiB |"
    )
    print("|---|---|---|---|---|")
    for points in options.points:
        with tempfile.TemporaryDirectory() as work:
            job = json.dumps({"points": points, "steps": options.steps, "work": work})
            done = subprocess.run(
                [sys.executable, __file__, "run", job], capture_output=True, text=True, check=True
            )
        result = json.loads(done.stdout.splitlines()[-1])
        step = median(result["steps"])
        print(
            f"| {points} | {step:.2f} | {step / points:.2f} | {result['first']:.1f} "
            f"| {result['peak']:.1f} |",
            flush=True,
        )
        measured = {
            "s/step": result["steps"],
            "s/step and point": [s / points for s in result["steps"]],
            "loading and first step, s": result["first"],
            "peak, GiB": result["peak"],
        }
        versions = {"jax": result["jax"]}
        append(options.record, [record("stacked", f"{points} points", measured, versions=versions)])


def run(job: dict) -> dict:
    """One entry: trains and takes the time of every step."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    from jaxpref.demo import synthetic
    from jaxpref.settings import load_config
    from jaxpref.training.run import train
    from jaxpref.training.stacked import train_stacked

    work = Path(job["work"])
    synthetic.write(work / "data", 1000, 0, 0.1)
    settings = [
        f"data.train=[{work}/data/train.jsonl]",
        "data.eval=[]",
        "data.prefer=brevity",
        "data.other_rewards=[politeness]",
        "data.row_length=768",
        "adapter.rank=8",
        "adapter.alpha=16",
        "train.batch_size=8",
        "train.micro_rows=1",
        "train.log_every=1",
        f"train.max_steps={job['steps']}",
        "optim.learning_rate=1e-3",
        "compilation_cache=none",  # compiling is measured too
        "log.progress=false",
    ]
    configs = []
    for i, w in enumerate(WEIGHTS[: job["points"]]):
        objective = f"objective=[{{name: modpo, w: [{w[0]}, {w[1]}]}}]"
        own = [f"out={work}/point_{i}", objective]
        configs.append(load_config(ROOT / "configs" / "demo.yaml", [*settings, *own]))
    began, ends = time.perf_counter(), []
    on_log = lambda *_: ends.append(time.perf_counter())
    if len(configs) == 1:
        train(configs[0], on_log=on_log)
    else:
        train_stacked(configs, work / "stack", on_log=on_log)
    steps = [later - earlier for earlier, later in zip(ends, ends[1:], strict=False)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"steps": steps, "first": ends[0] - began, "peak": peak, "jax": jax.__version__}


if __name__ == "__main__":
    main()
