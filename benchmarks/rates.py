"""What this machine reaches: products of a training step's and of decoding's shapes, and copies.

    python benchmarks/rates.py
    python benchmarks/rates.py --torch-python /path/to/torch-env/bin/python     # beside oneDNN

Float32 products of SmolLM2-135M's sizes as XLA takes them, forward and both of the backward pass,
and through torch on the same processors.  A step can be no faster than its FLOPs at this rate, nor
decoding than its weights at the rate of reading.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

from record import add_argument, append, record

# name: (rows of activations, inputs, outputs).
SHAPES = {
    "MLP in": (1024, 576, 1536),
    "MLP out": (1024, 1536, 576),
    "attention": (1024, 576, 576),
    "LM head": (256, 576, 49152),
    "square": (2048, 2048, 2048),
}
# name -> einsum of a [n, i] or [n, o] and b.
PRODUCTS = {
    "forward": "ni,io->no",
    "input's gradient": "no,io->ni",
    "weight's gradient": "ni,no->io",
}
READ = 2**28
"""Bytes that are read and written for the rate of memory, far more than caches hold."""


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] in SIDES:
        print(json.dumps(SIDES[sys.argv[1]](json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", help="the python of an environment that has torch")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls (default 5)")
    add_argument(parser)
    args = parser.parse_args()
    pythons = {"XLA": sys.executable}
    if args.torch_python:
        pythons["torch"] = args.torch_python
    results = {side: _run(python, side, args.repeats) for side, python in pythons.items()}
    print(f"| | {' | '.join(results)} |\n|{'---|' * (1 + len(results))}")
    for case in next(iter(results.values()))["rates"]:
        measured = {side: result["rates"][case] for side, result in results.items()}
        print(f"| {case} | {' | '.join(f'{median(x):.0f}' for x in measured.values())} |")
        versions = {name: v for x in results.values() for name, v in x["versions"].items()}
        append(args.record, [record("rates", case, measured, versions=versions)])


def _run(python: str, side: str, repeats: int) -> dict:
    threads = str(len(os.sched_getaffinity(0)))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "JAX_PLATFORMS": "cpu"}
    command = [python, __file__, side, json.dumps({"repeats": repeats})]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


# ---- the sides, each in a process of its own


def xla(job: dict) -> dict:
    """Products as jaxpref's step takes them."""
    import jax
    import jax.numpy as jnp

    def product(equation: str, a, b):
        return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)

    def array(*shape):
        return jax.random.normal(jax.random.key(0), shape)

    def call(equation: str, a, b) -> Callable[[], None]:
        compiled = jax.jit(product, static_argnums=0).lower(equation, a, b).compile()
        return lambda: jax.block_until_ready(compiled(a, b))

    x = jnp.zeros(READ // 4)
    add = jax.jit(lambda x: x + 1.0)
    sum_up = jax.jit(jnp.sum)
    copies = lambda: jax.block_until_ready(add(x)), lambda: jax.block_until_ready(sum_up(x))
    return _rates(job, array, call, copies) | {"versions": {"jax": jax.__version__}}


def torch(job: dict) -> dict:
    """The same through torch, whose CPU products are oneDNN's or MKL's."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    x = torch.zeros(READ // 4)
    call = lambda equation, a, b: lambda: torch.einsum(equation, a, b)
    copies = lambda: torch.add(x, 1.0), lambda: torch.sum(x)
    return _rates(job, torch.randn, call, copies) | {"versions": {"torch": torch.__version__}}


SIDES = {"XLA": xla, "torch": torch}


def _rates(job: dict, array: Callable, call: Callable, copies: tuple[Callable, Callable]) -> dict:
    """case -> GFLOP/s or GB/s of every timed call."""
    rates = {}
    for shape, (n, i, o) in SHAPES.items():
        sizes = {"n": n, "i": i, "o": o}
        for name, equation in PRODUCTS.items():
            a, b = (array(*(sizes[x] for x in axes)) for axes in equation.split("->")[0].split(","))
            seconds = _seconds(call(equation, a, b), job["repeats"])
            rates[f"{shape}, {name}, GFLOP/s"] = [2e-9 * n * i * o / s for s in seconds]
    copy, read = (_seconds(function, job["repeats"]) for function in copies)
    rates["copy, GB/s read and written"] = [2e-9 * READ / s for s in copy]
    rates["sum, GB/s read"] = [1e-9 * READ / s for s in read]
    return {"rates": rates}


def _seconds(function: Callable[[], object], repeats: int) -> list[float]:
    """Of single calls; short ones are called several times, and their mean counts."""
    function()
    began = time.perf_counter()
    function()
    calls = max(1, int(0.05 / max(time.perf_counter() - began, 1e-6)))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(calls):
            function()
        seconds.append((time.perf_counter() - began) / calls)
    return seconds


if __name__ == "__main__":
    main()
