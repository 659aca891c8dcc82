"""Training steps on one GPU: speed, MFU and memory by model, row length, attention; beside TRL.

    python benchmarks/gpu.py --rows helpful-base.train.jsonl.gz --tokenizer DIRECTORY \\
        --out gpu.jsonl

    python benchmarks/gpu.py table gpu.jsonl

Every job is a process of its own with a time limit, the most telling first; its records (record.py)
are written when the job ends.  A table follows at the end; the second command prints it again.
See benchmarks/README.md.
"""

import argparse
import fcntl
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from record import Record, append, read, record

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

# name: (vocabulary, width, ffn, layers, heads, key/value heads, head size, tied).  All are Llamas
# with random weights.
SIZES = {
    "135m": (49152, 576, 1536, 30, 9, 3, 64, True),
    "1b": (128256, 2048, 8192, 16, 32, 8, 64, True),
    "3b": (128256, 3072, 8192, 28, 24, 8, 128, True),
    "8b": (128256, 4096, 14336, 32, 32, 8, 128, False),
    "tiny": (1024, 64, 128, 2, 4, 2, 16, True),
}

# What a step takes unless its job says otherwise: one micro-batch of 16,384 tokens, filled with
# pairs.
STEP = {
    "kind": "step",
    "limit": 150,
    "run_tokens": 16384,
    "data": "rows",  # lengths of the pairs: those of the rows, or "long prompts"
    "share": True,
    "lora": None,
    "remat": "full",
    "block": 128,
    "chunk": 2048,  # loss tokens of all rows together that meet the vocabulary at a time
    "attention": "auto",
    "kernels": None,  # those of tokamax, in place of the choice of model.attention
    "flags": "",  # of XLA
}


def _jobs(args: argparse.Namespace) -> dict[str, dict]:
    """name -> what to do, in order of worth."""

    def step(model: str, length: int, **other: Any) -> dict:
        return {**STEP, "model": model, "length": length, **other}

    return {
        "attention": {
            "kind": "attention",
            "limit": 150,
            "run_tokens": 16384,
            "length": 8192,
            "heads": 32,
            "kv_heads": 8,
            # blocks of XLA's, or kernels of tokamax
            "variants": ["512", "128", "triton", "mosaic_gpu"],
        },
        "ceilings": {"kind": "ceilings", "limit": 60},
        "1b-2048-xla": step("1b", 2048, remat="dots", attention="xla", block=256),
        "head": {"kind": "head", "limit": 120, "tokens": 8192, "width": 4096, "vocab": 151936},
        "1b-2048": step("1b", 2048, remat="dots"),
        "trl": {
            "kind": "trl",
            "limit": 200,
            "attention": "auto",
            "rows": args.rows,
            "tokenizer": args.tokenizer,
        },
        "1b-8192": step("1b", 8192, remat="dots"),
        "8b-lora-2048": step("8b", 2048, lora=16),
        "3b-2048": step("3b", 2048, run_tokens=8192),
        "1b-2048-unshared": step("1b", 2048, remat="dots", share=False),
        "1b-2048-long-prompts": step("1b", 2048, remat="dots", data="long prompts"),
        "1b-2048-long-prompts-unshared": step(
            "1b", 2048, remat="dots", data="long prompts", share=False
        ),
        "1b-8192-xla": step("1b", 8192, remat="dots", attention="xla", block=512),
        "135m-2048": step("135m", 2048, remat="dots"),
        "1b-2048-cublas": step(
            "1b", 2048, remat="dots", flags="--xla_gpu_enable_triton_gemm=false"
        ),
        "8b-lora-8192": step("8b", 8192, lora=16),
        "1b-2048-remat-full": step("1b", 2048),
        "1b-2048-remat-none": step("1b", 2048, remat="none"),
        "1b-2048-32k": step("1b", 2048, remat="dots", run_tokens=32768),
        "135m-8192": step("135m", 8192, remat="dots"),
        "3b-8192": step("3b", 8192, run_tokens=8192),
    }


def _tiny(job: dict) -> dict:
    """The same job, small enough for a CPU."""
    small = {
        "model": "tiny",
        "run_tokens": 2048,
        "length": min(job.get("length", 0), 1024),
        "chunk": 128,
        "tokens": 256,
        "width": 32,
        "vocab": 512,
        "heads": 4,
        "kv_heads": 2,
        "variants": ["128", "xla"],
        "kernels": "xla" if job.get("kernels") else None,
        "flags": "",
    }
    return job | {name: value for name, value in small.items() if name in job} | {"tiny": True}


# ---- the parent


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "run":
        print(json.dumps(run(json.loads(sys.argv[2]))))
        return
    if len(sys.argv) == 3 and sys.argv[1] == "table":
        print(_tables(_read(sys.argv[2])))
        return
    args = _arguments()
    jobs = _jobs(args)
    if args.jobs:
        jobs = {name: jobs[name] for name in args.jobs}
    with tempfile.TemporaryDirectory(prefix="gpu-") as work:
        common = {
            "lock": f"{work}/lock",
            "lengths": f"{work}/lengths.json",
            "repeats": args.repeats,
            "at_once": args.at_once,
            "tiny": False,
        }
        Path(common["lengths"]).write_text(json.dumps(_lengths(args)))
        results = _run_jobs({name: job | common for name, job in jobs.items()}, args)
    print(_tables({name: results[name] for name in jobs}))


def _read(path: str) -> dict[str, dict]:
    """name -> result, of a file that --out wrote; of several runs of a job the last."""
    kept = [item.details for item in read(Path(path)) if item.details]
    return {details["job"]: details["result"] for details in kept}


def records(name: str, job: dict, result: dict) -> list[Record]:
    """What a job measured: one record, or one for each variant or side that it compares.

    The first one keeps the whole result too.
    """
    spread = lambda x, factor: [factor * x[key] for key in ("lowest", "seconds", "highest")]
    cases: dict[str, dict] = {}
    if "seconds" in result:
        cases[name] = {
            "s/step": spread(result, 1),
            "tokens/s": result["tokens_unshared_s"],
            "MFU, %": None if result["mfu"] is None else 100 * result["mfu"],
            "peak, GiB": result["peak_gib"],
            "compile, s": result["compile_s"],
        }
    elif "matmul_tflops" in result:
        cases[name] = {
            "product, TFLOP/s": result["matmul_tflops"],
            "copy, GB/s": result["copy_gb_s"],
        }
    for variant, x in result.get("variants", {}).items():
        if "seconds" in x:
            ms, planned = spread(x, 1e3), x["planned_gib"]
            cases[f"{name}: {variant}"] = {"ms": ms, "planned, GiB": planned}
    for side, runs in result.get("runs", {}).items():
        seconds = [median(run["seconds"]) for run in runs]
        peak = [run["peak_bytes"] / 2**30 for run in runs]
        cases[f"{name}: {side}"] = {"s/step": seconds, "peak, GiB": peak}
    versions = {"jax": result["jax"]} if "jax" in result else {}
    for runs in result.get("runs", {}).values():
        versions |= runs[0]["versions"]
    common = {
        "settings": {key: value for key, value in job.items() if key not in ("lock", "lengths")},
        "versions": versions,
        "machine": {"accelerator": result.get("device", "a GPU")},
    }
    made = [record("gpu", case, measured, **common) for case, measured in cases.items()]
    if not made:
        made = [record("gpu", name, {}, **common, note=f"{name}: {result.get('failed', '')}")]
    return [replace(made[0], details={"job": name, "result": result}), *made[1:]]


def _run_jobs(jobs: dict[str, dict], args: argparse.Namespace) -> dict[str, dict]:
    """name -> result; each is also written to args.out as soon as it is there."""
    ends_at = time.monotonic() + args.budget
    results: dict[str, dict] = {}
    compared = threading.Event()

    def do(name: str) -> None:
        job = jobs[name]
        if job.get("attention") == "auto" and "attention" in jobs:
            compared.wait()
            job = job | _best_attention(results["attention"])
        try:
            results[name] = _in_process(_tiny(job) if args.tiny else job, ends_at)
        finally:
            if name == "attention":
                compared.set()
        append(Path(args.out), records(name, job, results[name]))
        print(f"- {name}: {_summary(results[name])}", file=sys.stderr, flush=True)

    # A job that waits for the comparison must not take the place in which that would run.
    order = sorted(jobs, key=lambda name: name != "attention")
    with ThreadPoolExecutor(args.at_once) as threads:
        list(threads.map(do, order))
    return results


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
    add("--tokenizer", required=True, help="directory of SmolLM2's tokenizer (any export of it)")
    add("--out", required=True, help="file to which records are appended")
    add("--jobs", nargs="+", metavar="JOB", help="only these, in this order (default: all)")
    add(
        "--budget",
        type=float,
        default=3600,
        help="seconds after which no job starts or goes on (default 3600)",
    )
    add(
        "--at-once",
        type=int,
        default=1,
        help="jobs at a time; they compile together and take turns to be timed (default 1)",
    )
    add("--repeats", type=int, default=7, help="timed steps (default 7)")
    add("--tiny", action="store_true", help="small sizes, to try the script on a CPU")
    args = parser.parse_args()
    args.rows, args.tokenizer = str(Path(args.rows).resolve()), str(Path(args.tokenizer).resolve())
    if unknown := set(args.jobs or ()) - set(_jobs(args)):
        parser.error(f"--jobs {' '.join(sorted(unknown))}: choose from {' '.join(_jobs(args))}")
    return args


def _lengths(args: argparse.Namespace) -> list[list[int]]:
    """[prompt, chosen, rejected] in tokens, of every usable row."""
    from transformers import AutoTokenizer

    from jaxpref.config import DataConfig
    from jaxpref.data.dataset import load_groups

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    groups, _ = load_groups(DataConfig(on_bad_row="drop"), tokenizer, [args.rows], "train")
    return [[len(group.prompt_ids), *map(len, group.completion_ids)] for group in groups]


def _best_attention(compared: dict) -> dict:
    """Settings of a step: the fastest kernels that agree with the attention in XLA, or XLA."""
    seconds: dict[str, float] = {}
    for name, variant in compared.get("variants", {}).items():
        kernels = name.split(", ")[1]
        if kernels.isdigit():  # a block of XLA's
            continue
        agrees = "apart" in variant and all(far < 0.02 for far in variant["apart"].values())
        taken = variant["seconds"] if agrees else math.inf
        seconds[kernels] = seconds.get(kernels, 0.0) + taken
    best = min(seconds, key=lambda kernels: seconds[kernels], default=None)
    if best is None or seconds[best] == math.inf:
        return {"attention": "xla"}
    return {"kernels": best}


def _in_process(job: dict, ends_at: float) -> dict:
    """The job's result, or {"failed": why}."""
    left = ends_at - time.monotonic()
    if left < 20:
        return {"failed": "not started: the time is up"}
    # Two jobs may be on the GPU at a time, so that neither takes all of its memory at the start.
    environment = os.environ | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {job.get('flags', '')}".strip(),
    }
    command, began = [sys.executable, __file__, "run", json.dumps(job)], time.monotonic()
    limit = min(left, job["limit"] * job["at_once"])  # waiting for the others counts
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return {"failed": f"ended after {limit:.0f} s"}
    if process.returncode or not out.strip():
        tail = "\n".join((out + err).strip().splitlines()[-8:])[-2000:]
        return {"failed": tail or f"code {process.returncode}"}
    return json.loads(out.splitlines()[-1]) | {"wall_s": round(time.monotonic() - began, 1)}


# ---- a job


def run(job: dict) -> dict:
    """One job, in a process of its own."""
    if job["kind"] == "trl":
        return _trl(job)
    import jax

    kinds = {"ceilings": _ceilings, "step": _step, "head": _head, "attention": _attention}
    result = kinds[job["kind"]](job)
    return result | {"device": jax.devices()[0].device_kind, "jax": jax.__version__}


@contextmanager
def _alone(job: dict) -> Iterator[None]:
    """Waits until no other job compiles or times.

    Compilers try kernels out, which would disturb the times.
    """
    with open(job["lock"], "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compiled(job: dict, function: Callable, *arguments: Any, **options: Any) -> tuple[Any, dict]:
    """The compiled function, its compile time and the memory it plans to take."""
    import jax

    began = time.perf_counter()
    lowered = jax.jit(function, **options).lower(*arguments)
    traced = time.perf_counter()
    with open(job["lock"], "w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        start = time.perf_counter()
        compiled = lowered.compile()
    end = time.perf_counter()
    memory = compiled.memory_analysis()
    planned = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    )
    return compiled, {
        "trace_s": round(traced - began, 1),
        "compile_s": round(end - start, 1),
        "planned_gib": round((planned - memory.alias_size_in_bytes) / 2**30, 2),
    }


def _mesh() -> Any:
    """The one GPU, as a run has it."""
    import jax

    from jaxpref.config import MeshConfig
    from jaxpref.sharding import make_mesh

    return make_mesh(MeshConfig(), devices=jax.devices()[:1])


def _shape(*size: int, dtype: str = "bfloat16") -> Any:
    """An array without its numbers."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    return jax.ShapeDtypeStruct(size, dtype, sharding=NamedSharding(_mesh(), PartitionSpec()))


def _times(function: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of every call after the first two."""
    import jax

    seconds = []
    for _ in range(2 + repeats):
        began = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - began)
    return seconds[2:]


def _spread(seconds: Sequence[float]) -> dict:
    return {"seconds": median(seconds), "lowest": min(seconds), "highest": max(seconds)}


def _peak_gib() -> float | None:
    """The most device memory that this process had in use; None where it is not counted (CPU)."""
    import jax

    stats = jax.devices()[0].memory_stats()
    return None if stats is None else round(stats["peak_bytes_in_use"] / 2**30, 2)


def _ceilings(job: dict) -> dict:
    """What the card reaches: a large bfloat16 product and a large copy, both on random numbers."""
    import jax
    import jax.numpy as jnp

    n, size = (256, 2**16) if job["tiny"] else (8192, 2**31)
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in range(2))
    x = jax.random.normal(jax.random.key(2), (size // 2,), jnp.bfloat16)
    product, negated = jax.jit(jnp.matmul), jax.jit(jnp.negative)
    with _alone(job):
        products, copies = _times(lambda: product(a, b), 20), _times(lambda: negated(x), 20)
    return {
        "matmul_tflops": 2 * n**3 / median(products) / 1e12,
        "copy_gb_s": 2 * size / median(copies) / 1e9,  # read and written
    }


# ---- a training step


def _spec(name: str) -> Any:
    from jaxpref.models.spec import Llama3Rope, ModelSpec

    vocab, width, ffn, layers, heads, kv_heads, head_dim, tied = SIZES[name]
    sizes = (vocab, width, ffn, layers, heads, kv_heads, head_dim)
    if name == "135m":
        return ModelSpec("llama", *sizes, 8192, 1e5, 1e-5, tied)
    return ModelSpec("llama", *sizes, 131072, 5e5, 1e-5, tied, Llama3Rope(8.0, 1.0, 4.0, 8192))


def _groups(job: dict, vocab: int) -> list[Any]:
    """Pairs of random tokens, as long as those of the rows.

    `long prompts`: with prompts of 0.2 to 0.45 of a packed row.
    """
    import numpy as np

    from jaxpref.types import EncodedGroup

    rng = np.random.default_rng(0)
    ids = lambda n: rng.integers(3, vocab, n).astype(np.int32)
    groups = []
    for i, (prompt, *completions) in enumerate(json.loads(Path(job["lengths"]).read_text())):
        if job["data"] == "long prompts":
            prompt = int(job["length"] * rng.uniform(0.2, 0.45))
            completions = [min(n, job["length"] // 2 - prompt) for n in completions]
        pair = EncodedGroup(ids(prompt), tuple(map(ids, completions)), i, f"pair {i}")
        if 2 * prompt + sum(completions) <= job["length"]:
            groups.append(pair)
    return groups


def _one_step(job: dict, vocab: int) -> Any:
    """As many pairs as fill the rows.

    Without sharing, the same pairs in as many rows as they then need.
    """
    from jaxpref.data.loader import Loader
    from jaxpref.data.pack import Layout, assign_rows, row_tokens

    groups, rows = _groups(job, vocab), job["run_tokens"] // job["length"]
    layout = Layout(job["length"], job["share"])
    shared = [row_tokens(group, True) for group in groups]

    def fit(count: int) -> bool:
        return len(assign_rows(shared[:count], Layout(job["length"]))) <= rows

    count = max(n for n in range(1, len(groups)) if fit(n))
    needed = len(assign_rows([row_tokens(g, job["share"]) for g in groups[:count]], layout))
    loader = Loader(groups[:count], batch_size=count, micro_rows=needed, layout=layout)
    return next(iter(loader.iterate()))


def _step(job: dict) -> dict:
    """One optimizer step of DPO in bfloat16, the reference run in every step.

    Parameters and moments are float32.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from jaxpref.config import AdapterConfig, OptimConfig
    from jaxpref.models import lora
    from jaxpref.models.decoder import build_model
    from jaxpref.models.fused_attention import choose_attention, fused_attention
    from jaxpref.models.parameters import LORA
    from jaxpref.models.placement import param_shardings
    from jaxpref.objectives import OBJECTIVES, bind
    from jaxpref.runs.adapters import adapter_spec
    from jaxpref.runs.build import param_shapes
    from jaxpref.runs.flops import peak_flops, step_flops
    from jaxpref.sharding import batch_sharding
    from jaxpref.step.batch_loss import LossSpec
    from jaxpref.step.optim import make_optimizer, make_schedule
    from jaxpref.step.policy import Frozen
    from jaxpref.step.state import init_state, state_shardings
    from jaxpref.step.train_step import make_train_step

    spec = _spec(job["model"])
    item = _one_step(job, spec.vocab)
    mesh = _mesh()
    adapter = adapter_spec(AdapterConfig(rank=job["lora"]), spec)
    if job["kernels"]:
        attention, attend = job["kernels"], partial(fused_attention, kernels=(job["kernels"],))
    else:
        choice = choose_attention(job["attention"], mesh.devices.item(), spec, jnp.bfloat16)
        attention, attend = f"{choice.name}: {choice.why}", choice.attend
    model = build_model(
        spec,
        dtype=jnp.bfloat16,
        remat=job["remat"],
        attention_block=job["block"],
        attend=attend,
        lora=adapter,
    )
    schedule = make_schedule(OptimConfig(), 1000)
    optimizer = make_optimizer(OptimConfig(), schedule)
    rows = item.batch.token_RL.shape[1]
    loss_spec = LossSpec(model, bind([{"name": "dpo"}], OBJECTIVES), job["chunk"] // rows)
    step = make_train_step(loss_spec, optimizer, schedule)

    def placed(shapes: Any, shardings: Any, dtype: Any = None) -> Any:
        place = lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=s)
        return jax.tree.map(place, shapes, shardings)

    def new_adapter(layers: Any) -> Any:
        return lora.init(jax.random.key(0), layers, adapter)

    params = param_shapes(model)
    frozen_params = placed(params, param_shardings(params, mesh), jnp.bfloat16)
    if adapter is None:
        trained, base, reference = params, {}, frozen_params
    else:
        trained = {LORA: jax.eval_shape(new_adapter, frozen_params["layers"])}
        base, reference = frozen_params, {}

    def first_state(params: Any) -> Any:
        return init_state(params, optimizer, 0)

    shapes = jax.eval_shape(first_state, trained)
    shardings, replicated = state_shardings(shapes, mesh), NamedSharding(mesh, P())
    batch = placed(item.batch, jax.tree.map(lambda _: batch_sharding(mesh, leading=1), item.batch))
    micro = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    with jax.set_mesh(mesh):
        compiled, measured = _compiled(
            job,
            step,
            placed(shapes, shardings),
            Frozen(base, reference),
            batch,
            micro,
            donate_argnums=0,
            out_shardings=(shardings, replicated),
        )
        measured["attention"] = attention
        with _alone(job):
            start = jax.jit(first_state, donate_argnums=0, out_shardings=shardings)
            state = start(_random(placed(trained, shardings.params)))
            frozen = Frozen(_random(base), _random(reference))
            on_device = jax.device_put(item.batch, batch_sharding(mesh, leading=1))
            micro_batches = jnp.int32(item.micro_batches)

            def one() -> Any:
                nonlocal state
                state, metrics = compiled(state, frozen, on_device, micro_batches)
                return metrics

            seconds = _times(one, job["repeats"])
            loss = float(one()["loss"])
            kernels = _kernels(one, compiled.as_text())
    flops = step_flops(spec, item, reference=True, frozen=adapter is not None)
    taken, peak = median(seconds), peak_flops()
    work = {
        "pairs": item.groups,
        "rows": rows,
        "run_tokens": item.run_tokens,
        "tokens": item.tokens,
        "tokens_unshared": item.tokens_unshared,
        "loss_tokens": item.loss_tokens,
        "tokens_s": item.tokens / taken,
        "tokens_unshared_s": item.tokens_unshared / taken,
        "model_tflops": flops / taken / 1e12,
        "mfu": peak and flops / taken / peak,
        "peak_gib": _peak_gib(),
        "loss": loss,
        "kernels": kernels,
    }
    return measured | _spread(seconds) | work


def _kernels(one: Callable[[], Any], program: str, steps: int = 2) -> list[dict]:
    """The kernels that take most of a step's device time, each with where in the model it is from.

    Args:
        one: takes a step.
        program: text of the compiled step, whose instructions name their place in the model.
    """
    import jax
    from jax.profiler import ProfileData

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                jax.block_until_ready(one())
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = list(ProfileData.from_file(str(file)).planes)
    on_device = [plane for plane in planes if plane.name.startswith("/device:")] or planes
    places = dict(re.findall(r'%([\w.-]+) = .*op_name="([^"]*)"', program))
    places = {name.replace(".", "_").replace("-", "_"): place for name, place in places.items()}
    taken: dict[tuple[str, str], list[float]] = {}
    for event in (e for plane in on_device for line in plane.lines for e in line.events):
        operation = dict(event.stats).get("hlo_op")
        if event.name.startswith("while") or (operation is None and on_device is planes):
            continue  # what holds other kernels; on a CPU, the host's own events
        place = places.get(str(operation or event.name).replace(".", "_").replace("-", "_"), "")
        taken.setdefault((event.name, place), []).append(event.duration_ns)
    order = sorted(taken.items(), key=lambda item: -sum(item[1]))
    return [
        {"kernel": name, "place": place, "ms": sum(ns) / steps / 1e6, "calls": len(ns) / steps}
        for (name, place), ns in order[:80]
    ]


def _random(shapes: Any) -> Any:
    """Normal numbers in the place of shapes; ones for the norms."""
    import jax
    import jax.numpy as jnp

    from jaxpref.models.parameters import leaf_path

    def leaf(path: Any, x: Any) -> Any:
        if leaf_path(path).endswith("/scale"):
            return jax.device_put(jnp.ones(x.shape, x.dtype), x.sharding)
        return _normal(x, seed=leaf_path(path))

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def _normal(x: Any, deviation: float = 0.02, seed: str = "") -> Any:
    """Normal numbers in the place of a shape, made on the device."""
    import jax

    make = lambda key: (deviation * jax.random.normal(key, x.shape)).astype(x.dtype)
    return jax.jit(make, out_shardings=x.sharding)(jax.random.key(zlib.crc32(seed.encode())))


# ---- parts of it


def _head(job: dict) -> dict:
    """The chunked LM head alone: forward, backward into hidden states and weight."""
    import jax
    import numpy as np

    from jaxpref.data.loader import Loader
    from jaxpref.data.pack import Layout
    from jaxpref.models.logprobs import completion_logps
    from jaxpref.models.model import Model
    from jaxpref.types import EncodedGroup

    tokens, width, vocab = job["tokens"], job["width"], job["vocab"]
    rng = np.random.default_rng(0)
    ids = lambda n: rng.integers(0, vocab, n).astype(np.int32)
    pair = EncodedGroup(ids(1), (ids(tokens // 2), ids(tokens // 2)), 0, "a pair")
    loader = Loader([pair], batch_size=1, micro_rows=1, layout=Layout(tokens + 128))
    batch = jax.tree.map(lambda x: x[0], next(iter(loader.iterate())).batch)
    model = Model(
        init=None,
        hidden=lambda params, *_, **__: params["x"],
        head=lambda params: params["w"],
        vocab=vocab,
    )

    def loss(params: Any, batch: Any, chunk: int, stats: bool) -> jax.Array:
        return -completion_logps(model, params, batch, chunk=chunk, stats=stats).sum.mean()

    results = {}
    variants = [
        (2048, "float32", True),
        (1024, "float32", True),
        (4096, "float32", True),
        (2048, "bfloat16", True),
        (2048, "float32", False),
    ]
    for chunk, dtype, stats in variants:
        chunk = min(chunk, tokens)
        shapes = {"x": _shape(1, tokens + 128, width), "w": _shape(vocab, width, dtype=dtype)}
        gradient = jax.value_and_grad(partial(loss, chunk=chunk, stats=stats))
        name = f"chunk {chunk}, {dtype} weight, {'with' if stats else 'without'} statistics"
        results[name], _ = _measured(job, gradient, shapes, batch)
    return {"variants": results, "peak_gib": _peak_gib()}


def _attention(job: dict) -> dict:
    """Attention alone, forward and backward, on packed and shared rows.

    With how far each variant lies from the first.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxpref.models.attention import Mask, attention
    from jaxpref.models.fused_attention import fused_attention

    item = _one_step({**STEP, **job}, 1024)
    expiry = item.batch.expiry_RL[0]
    results, first = {}, {}
    for name, size in itertools.product(job["variants"], (64, 128)):
        if name.isdigit():
            attend = partial(attention, block=int(name))
        else:
            attend = partial(fused_attention, kernels=(name,))

        def loss(q, k, v, expiry, attend=attend, scale=size**-0.5):
            out = attend(q, k, v, Mask(expiry), scale=scale)
            return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

        q = _shape(*expiry.shape, job["heads"], size)
        k = _shape(*expiry.shape, job["kv_heads"], size)
        variant = f"heads of {size}, {name}"
        try:
            with jax.set_mesh(_mesh()):
                gradient = jax.grad(loss, (0, 1, 2), has_aux=True)
                measured, values = _measured(job, gradient, q, k, k, expiry, deviation=1.0)
        except Exception as error:  # the other variants are worth having
            results[variant] = {"failed": f"{type(error).__name__}: {error}"[:1000]}
            continue
        ours = [np.asarray(x, np.float32) for x in jax.tree.leaves(values)]
        theirs = first.setdefault(size, ours)
        measured["apart"] = {
            name: float(np.linalg.norm(x - y) / np.linalg.norm(y))
            for name, x, y in zip(("dq", "dk", "dv", "out"), ours, theirs, strict=True)
        }
        results[variant] = measured
    return {"variants": results, "visible": item.visible, "pairs": item.groups}


def _measured(
    job: dict, function: Callable, *arguments: Any, deviation: float = 0.02
) -> tuple[dict, Any]:
    """Compile time, planned memory and times of a function, and what it gives.

    Args:
        arguments: arrays, and shapes in the place of normal random numbers.
        deviation: of these.
    """
    import jax
    import numpy as np

    def place(x: Any) -> Any:
        return jax.device_put(x) if isinstance(x, np.ndarray) else _normal(x, deviation)

    shapes = jax.tree.map(lambda x: _shape(*x.shape, dtype=x.dtype), arguments)
    compiled, measured = _compiled(job, function, *shapes)
    with _alone(job):
        arrays = jax.tree.map(place, arguments)
        seconds = _times(lambda: compiled(*arrays), job["repeats"])
        return measured | _spread(seconds), compiled(*arrays)


def _trl(job: dict) -> dict:
    """peers.py on this GPU, alone: SmolLM2-135M's sizes, 32 pairs a step."""
    steps, batch, pairs = (3, 2, 8) if job["tiny"] else (12, 32, 384)
    device = "cpu" if job["tiny"] else "cuda"
    with tempfile.TemporaryDirectory() as work:
        report = f"{work}/report.json"
        options = {
            "--rows": job["rows"],
            "--tokenizer": job["tokenizer"],
            "--trl-python": sys.executable,
            "--device": device,
            "--repeats": 1,
            "--json": report,
            "--record": f"{work}/records.jsonl",
            "--steps": steps,
            "--batch": batch,
            "--pairs": pairs,
            "--work": work,
            "--threads": len(os.sched_getaffinity(0)),
            "--learning-rate": 1e-5,
        }
        settings = [
            "model.logprob_chunk=512",
            f"model.attention={job['attention']}",
            "model.attention_block=128",
            "data.row_length=1024",
            "data.length_buckets=1",
            "train.micro_rows=4",
        ]
        command = [sys.executable, str(HERE / "peers.py")]
        command += [str(x) for option in options.items() for x in option]
        command += ["--entries", "trl-bfloat16", "trl-defaults", "jaxpref-bfloat16"]
        command += ["--jaxpref", *settings]
        with _alone(job):
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        return {"report": done.stdout, "runs": json.loads(Path(report).read_text())}


# ---- what is printed


def _summary(result: dict) -> str:
    if "failed" in result:
        return f"FAILED: {result['failed']}"
    if "seconds" in result:
        mfu = "" if result["mfu"] is None else f", MFU {result['mfu']:.1%}"
        return (
            f"{result['seconds']:.4f} s a step, {result['tokens_unshared_s']:.0f} tokens/s{mfu}, "
            f"peak {result['peak_gib']} GiB, compiled in {result['compile_s']} s, "
            f"{result['wall_s']} s in all"
        )
    brief = {name: value for name, value in result.items() if isinstance(value, int | float)}
    return json.dumps(brief)


def _tables(results: dict[str, dict]) -> str:
    steps, parts, others = [], [], []
    for name, result in results.items():
        if "mfu" in result:
            steps.append(_step_line(name, result))
        elif "variants" in result:
            parts += ["", f"{name}:", "", *_variant_lines(result["variants"])]
        else:
            others += ["", f"{name}: {result.get('report') or json.dumps(result)}"]
    if steps:
        head = (
            "| job | pairs | tokens run | s a step (lowest-highest) | tokens/s run | unshared "
            "| model TFLOP/s | MFU | peak GiB | planned | compile s |"
        )
        steps = [head, "|" + "---|" * 11, *steps]
    return "\n".join([*steps, *parts, *others])


def _step_line(name: str, x: dict) -> str:
    mfu = "-" if x["mfu"] is None else f"{x['mfu']:.1%}"
    return (
        f"| {name} | {x['pairs']} | {x['tokens']} "
        f"| {x['seconds']:.4f} ({x['lowest']:.4f}-{x['highest']:.4f}) "
        f"| {x['tokens_s']:.0f} | {x['tokens_unshared_s']:.0f} | {x['model_tflops']:.0f} | {mfu} "
        f"| {x['peak_gib']} | {x['planned_gib']} | {x['compile_s']} |"
    )


def _variant_lines(variants: dict[str, dict]) -> Iterator[str]:
    yield "| variant | ms (lowest-highest) | planned GiB | apart |"
    yield "|---|---|---|---|"
    for name, x in variants.items():
        if "failed" in x:
            yield f"| {name} | {x['failed']} | | |"
            continue
        ms, low, high = (1e3 * x[key] for key in ("seconds", "lowest", "highest"))
        apart = ", ".join(f"{key} {far:.0e}" for key, far in x.get("apart", {}).items())
        yield f"| {name} | {ms:.2f} ({low:.2f}-{high:.2f}) | {x['planned_gib']} | {apart} |"


if __name__ == "__main__":
    main()
