"""How far `jaxpref plan`'s method is from measured step times, on this machine's own CPU.

    python benchmarks/plan_error.py --out benchmarks/results/plan-error.jsonl

The rates that a plan takes from a TPU's data sheet are measured here: the largest product and the
largest copy.  Then a train step is compiled, predicted from its FLOPs and bytes as a plan does, and
timed.  Rates are measured before and after every step, for other work may run beside it.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from record import Record, append, read, record

from jaxpref.objectives import OBJECTIVES, bind
from jaxpref.plan.compiled import read_program
from jaxpref.plan.flops import program_flops
from jaxpref.plan.loops import count_loops
from jaxpref.plan.planned_step import PlannedStep, plan_step
from jaxpref.plan.row_sizes import made_rows
from jaxpref.runs.feed import put_batch
from jaxpref.settings import make_config
from jaxpref.sharding import place_numbers

# Widths and depths between a toy and SmolLM2-135M.
MODEL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8192,
    "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192, "rope_theta": 1e4, "hidden_act": "silu",
    "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
# name: (changes of the model, of the config, tokens of prompt and completion)
CASES: dict[str, tuple[dict, dict, tuple[int, int]]] = {
    "base": ({}, {}, (128, 64)),
    "long rows": ({}, {"data": {"row_length": 2048}}, (768, 256)),
    "wide": ({"hidden_size": 768, "num_attention_heads": 12}, {}, (128, 64)),
    "large vocabulary": ({"vocab_size": 49152}, {}, (32, 96)),
    "adapter": ({}, {"adapter": {"rank": 8}}, (128, 64)),
    "no remat": ({}, {"model": {"remat": "none"}}, (128, 64)),
    "cached reference": ({}, {"reference": {"mode": "cache"}}, (128, 64)),
    "two micro-batches": ({}, {"train": {"batch_size": 16, "micro_rows": 2}}, (128, 64)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="records; cases that stand there are kept"
    )
    parser.add_argument("--minutes", type=float, default=60, help="begin no case after so many")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each case")
    parser.add_argument("--work", type=Path, default=Path("runs/plan_error"))
    options = parser.parse_args()
    results = [dict(kept.details) for kept in read(options.out)] if options.out.exists() else []
    began = time.perf_counter()
    for name, case in CASES.items():
        known = any(one["case"] == name for one in results)
        if known or time.perf_counter() - began > 60 * options.minutes:
            continue
        results.append(measure(name, *case, options))
        append(options.out, [_record(results[-1])])
    print(table(results))


def _record(one: dict) -> Record:
    middle = (one["least"] + one["most"]) / 2
    measured = {
        "predicted at least, s": one["least"],
        "predicted at most, s": one["most"],
        "measured, s": one["all_measured"],
        "error of the middle, %": 100 * (middle / one["measured"] - 1),
    }
    versions = {"jax": one["jax"]}
    return record("plan_error", one["case"], measured, versions=versions, details=one)


def measure(name: str, model: dict, changes: dict, sizes: tuple[int, int], options: Any) -> dict:
    """Predicts and times the step of one case."""
    directory = options.work / name.replace(" ", "-")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(MODEL | model))
    settings = {
        "out": str(directory / "run"),
        "model": {"path": str(directory), "compute_dtype": "float32", "attention": "xla"},
        "data": {"train": ["none"], "row_length": 1024},
        "train": {"batch_size": 16, "micro_rows": 4},
    }
    for section, values in changes.items():
        settings[section] = settings.get(section, {}) | values
    config = make_config(settings)
    prompt, completion = sizes
    rows = made_rows(
        bind(config.objective, OBJECTIVES),
        groups=config.train.batch_size,
        prompt=prompt,
        completion=completion,
    )
    planned = plan_step([config], rows, jax.devices()[:1])
    loops = count_loops(planned)
    with jax.set_mesh(planned.pieces.mesh):
        traced = planned.jitted.trace(*planned.arguments)
        compiled = traced.lower().compile()
        flops = program_flops(traced.jaxpr, loops.at, loops.kernels)
        moved = read_program(compiled, planned, loops)["bytes_moved"]
        before = rates()
        seconds = timed(compiled, planned, options.steps)
        after = rates()
    product, copy = ((a + b) / 2 for a, b in zip(before, after, strict=True))
    compute, memory = flops / product, moved / copy
    return {
        "case": name, "gflops": flops / 1e9, "gbytes": moved / 1e9,
        "product_gflops": product / 1e9, "copy_gbytes": copy / 1e9,
        "compute_seconds": compute, "memory_seconds": memory,
        "least": max(compute, memory), "most": compute + memory,
        "measured": float(np.median(seconds)), "all_measured": seconds,
        "jax": jax.__version__,
    }  # fmt: skip


def rates() -> tuple[float, float]:
    """(FLOP/s of a large float32 product, bytes/s of a large copy), the best of five."""
    a = jnp.ones((2048, 2048), jnp.float32)
    product, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1.0)
    b = jnp.ones(2**26, jnp.float32)
    return 2 * 2048**3 / best_of(product, a), 2 * b.nbytes / best_of(copy, b)


def best_of(function: Any, x: jax.Array, runs: int = 5) -> float:
    jax.block_until_ready(function(x))
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        jax.block_until_ready(function(x))
        times.append(time.perf_counter() - began)
    return min(times)


def timed(compiled: Any, planned: PlannedStep, steps: int) -> list[float]:
    """Seconds of each step but the first, on random weights."""
    mesh = planned.pieces.mesh
    values = lambda x: (
        jax.random.key(0)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        else (0.02 * np.random.default_rng(0).standard_normal(x.shape)).astype(x.dtype)
    )
    state = jax.tree.map(lambda x: jax.device_put(values(x), x.sharding), planned.state)
    state = state._replace(opt_state=jax.tree.map(jnp.zeros_like, state.opt_state))
    frozen = jax.tree.map(lambda x: jax.device_put(values(x), x.sharding), planned.frozen)
    batch = put_batch(planned.item.batch, mesh)
    used = jax.device_put(np.int32(planned.item.micro_batches))
    numbers = place_numbers(planned.numbers, mesh)
    times = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        state, metrics = compiled(state, frozen, batch, used, numbers)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - began)
    return times[1:]


def table(results: list[dict]) -> str:
    """Predicted and measured, and the error of the middle of the range."""
    lines = [
        "| case | GFLOPs | GB | predicted, s | measured, s | error of the middle |",
        "|---|---|---|---|---|---|",
    ]
    for one in results:
        middle = (one["least"] + one["most"]) / 2
        lines.append(
            f"| {one['case']} | {one['gflops']:.0f} | {one['gbytes']:.1f} | "
            f"{one['least']:.2f} to {one['most']:.2f} | {one['measured']:.2f} | "
            f"{middle / one['measured'] - 1:+.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
