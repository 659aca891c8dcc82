"""How the work of a train step grows: with row length, prompts, completions, devices, and rows.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --curves prompt devices --rows 1000 10000

Work is FLOPs of the traced step (with what attention's mask and packing leave out), so it does not
depend on the machine and is no timing; only the planning of a data set is timed.  The sizes are
those of Llama-3.2-1B, whose weights are not needed.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax  # noqa: E402
import numpy as np  # noqa: E402
from record import add_argument, append, record  # noqa: E402

from jaxpref.data.loader import Loader  # noqa: E402
from jaxpref.data.pack import Layout  # noqa: E402
from jaxpref.objectives import OBJECTIVES, bind  # noqa: E402
from jaxpref.plan.flops import program_flops  # noqa: E402
from jaxpref.plan.loops import count_loops  # noqa: E402
from jaxpref.plan.planned_step import PlannedStep, plan_step  # noqa: E402
from jaxpref.plan.row_sizes import made_rows  # noqa: E402
from jaxpref.settings import make_config  # noqa: E402
from jaxpref.types import EncodedGroup  # noqa: E402

MODEL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256,
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 65536, "rope_theta": 1e4, "hidden_act": "silu",
    "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
Curve = Iterator[tuple[str, dict[str, Any]]]
"""(case, what was measured) of every point."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=list(CURVES))
    parser.add_argument(
        "--rows",
        nargs="+",
        type=int,
        default=[1_000, 10_000, 100_000, 1_000_000],
        help="sizes of the data sets that are planned (default 1000 to 1000000)",
    )
    add_argument(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in args.curves:
            for case, measured in CURVES[name](Path(folder), args):
                shown = ", ".join(f"{quantity} {x:.4g}" for quantity, x in measured.items())
                print(f"{name} {case}: {shown}", flush=True)
                versions = {"jax": jax.__version__}
                append(
                    args.record,
                    [record("scaling", f"{name} {case}", measured, versions=versions)],
                )


# ---- the curves


def row_length(folder: Path, args: argparse.Namespace) -> Curve:
    """Short pairs, of which a longer row holds more, and one pair as long as the row."""
    for length in (512, 1024, 2048, 4096, 8192, 16384, 32768):
        short = _step(folder, length, groups=32768 // 256, prompt=128, completion=64)
        long = _step(
            folder, length, groups=32768 // length, prompt=length // 2, completion=length // 4
        )
        yield (
            f"{length}",
            {
                "MFLOP/token, short pairs": _flops(short) / 1e6 / short.item.tokens,
                "MFLOP/token, a pair as long as the row": _flops(long) / 1e6 / long.item.tokens,
            },
        )


def prompt(folder: Path, args: argparse.Namespace) -> Curve:
    """Pairs of 2 x 1,024 tokens, of which the prompt is a growing share."""
    for share in (0.0, 0.1, 0.25, 0.5, 0.75, 0.9):
        tokens = int(1024 * share)
        sizes = {"prompt": tokens, "completion": 1024 - tokens, "completions": 2}
        yield f"{share:g}", _shared_and_not(folder, sizes)


def completions(folder: Path, args: argparse.Namespace) -> Curve:
    """K completions of 128 tokens to a prompt of 512, a ranked list."""
    for count in (2, 4, 8, 16):
        sizes = {"prompt": 512, "completion": 128, "completions": count}
        yield f"{count}", _shared_and_not(folder, sizes, "plackett_luce")


def devices(folder: Path, args: argparse.Namespace) -> Curve:
    """The same batch of 8 rows over more devices, fsdp: what one of them does and holds."""
    for count in (1, 2, 4, 8):
        # One of each loop, which the compiler's count takes as run once.
        changes = {"mesh": {"fsdp": count}, "model": {"attention_block": 512}}
        sizes = {"groups": 8, "prompt": 256, "completion": 128}
        planned = _step(
            folder, 512, **sizes, changes=changes, layers=1, micro_rows=8, devices=count
        )
        with jax.set_mesh(planned.pieces.mesh):
            compiled = planned.jitted.lower(*planned.arguments).compile()
        memory = compiled.memory_analysis()
        held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        yield (
            f"{count}",
            {
                "GFLOP a device": compiled.cost_analysis()["flops"] / 1e9,
                "MiB a device": held / 2**20,
            },
        )


def planning(folder: Path, args: argparse.Namespace) -> Curve:
    """Data sets of short pairs that are encoded: until the loader has planned an epoch."""
    rng = np.random.default_rng(0)
    ids = lambda n: np.zeros(n, np.int32)
    for rows in args.rows:
        sizes = rng.integers(10, 60, (rows, 3)).tolist()
        groups = [
            EncodedGroup(ids(a), (ids(b), ids(c)), row_id=i, where=f"train.jsonl:{i + 1}")
            for i, (a, b, c) in enumerate(sizes)
        ]
        before, began = _resident(), time.process_time()
        loader = Loader(groups, batch_size=64, micro_rows=4, layout=Layout(1024), seed=0)
        seconds = time.process_time() - began
        yield (
            f"{rows} rows",
            {
                "CPU s": seconds,
                "us/row": 1e6 * seconds / rows,
                "MiB": _resident() - before,
            },
        )
        del loader, groups


CURVES = {
    "row length": row_length,
    "prompt": prompt,
    "completions": completions,
    "devices": devices,
    "planning": planning,
}


# ---- a step


def _shared_and_not(
    folder: Path, sizes: dict[str, int], objective: str = "dpo"
) -> dict[str, float]:
    """TFLOP per group in a row that is full, with shared prompts and without."""
    length, each = 65536, {}
    for shared in (True, False):
        answers = sizes["completions"] * sizes["completion"]
        tokens = answers + sizes["prompt"] * (1 if shared else sizes["completions"])
        groups = length // tokens
        changes = {"data": {"share_prefix": shared}}
        step = _step(folder, length, groups=groups, **sizes, objective=objective, changes=changes)
        each[shared] = _flops(step) / 1e12 / groups
    return {
        "TFLOP/group, shared": each[True],
        "TFLOP/group, not shared": each[False],
        "times more": each[False] / each[True],
    }


def _step(
    folder: Path,
    length: int,
    *,
    groups: int,
    prompt: int,
    completion: int,
    completions: int | None = None,
    objective: str = "dpo",
    changes: dict[str, dict] | None = None,
    layers: int = 16,
    micro_rows: int = 1,
    devices: int = 1,
) -> PlannedStep:
    """The step of a run over groups of one size."""
    (folder / "config.json").write_text(json.dumps(MODEL | {"num_hidden_layers": layers}))
    settings: dict[str, dict] = {
        "model": {"path": str(folder), "compute_dtype": "float32", "attention": "xla"},
        "data": {"train": ["none"], "row_length": length, "max_length": length},
        "train": {"batch_size": groups, "micro_rows": micro_rows},
    }
    for section, values in (changes or {}).items():
        settings[section] = settings.get(section, {}) | values
    config = make_config(
        {"out": str(folder / "run"), "objective": [{"name": objective}], **settings}
    )
    rows = made_rows(
        bind(config.objective, OBJECTIVES),
        groups=groups,
        prompt=prompt,
        completion=completion,
        completions=completions,
    )
    return plan_step([config], rows, jax.devices()[:devices])


def _flops(planned: PlannedStep) -> float:
    """FLOPs of the step's products, on all devices together."""
    with jax.set_mesh(planned.pieces.mesh):
        traced = planned.jitted.trace(*planned.arguments)
    return program_flops(traced.jaxpr, count_loops(planned).at)


def _resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
