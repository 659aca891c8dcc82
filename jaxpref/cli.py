"""The command line: train, data, generate, eval, export, demo."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence

from rich.console import Console

from jaxpref.conditioning import command as conditioning
from jaxpref.errors import InputError
from jaxpref.evaluation import command as evaluation
from jaxpref.generation import command as generation
from jaxpref.pareto import command as pareto
from jaxpref.rewards import command as rewards
from jaxpref.settings import keys, load_config
from jaxpref.training.progress import training_bar

console = Console()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 for a failed run, 2 for bad input, 75 after
    SIGTERM."""
    os.environ.setdefault(
        "TRANSFORMERS_NO_ADVISORY_WARNINGS", "1"
    )  # only its tokenizers are used: no torch is fine
    options = _parse(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every file it writes
    from jaxpref.training.loop import NotFiniteError
    from jaxpref.training.preemption import PREEMPTED, Preempted

    try:
        if getattr(options, "distributed", False):
            import jax

            jax.distributed.initialize()
        options.run(options)
    except InputError as error:
        print(f"jaxpref {options.command}: bad input\n{error}", file=sys.stderr)
        return 2
    except NotFiniteError as error:
        print(f"jaxpref {options.command}: {error}", file=sys.stderr)
        return 1
    except Preempted as error:
        print(f"jaxpref {options.command}: {error}", file=sys.stderr)
        return PREEMPTED
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; key=value may stand before and behind flags, which argparse by itself does not
    allow."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if odd := [item for item in rest if item.startswith("-") or not hasattr(options, "overrides")]:
        parser.error(f"unrecognized arguments: {' '.join(odd)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxpref", description="Aligns Flax language models with preferences."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shape = argparse.RawDescriptionHelpFormatter

    train = commands.add_parser(
        "train", help="train a run", epilog=_keys_help(), formatter_class=shape
    )
    train.set_defaults(run=_train)
    train.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes (TPU pods, GPU clusters)",
    )
    data = commands.add_parser(
        "data",
        help="show how rows are formatted, tokenised, masked and packed",
        epilog=_keys_help(),
        formatter_class=shape,
    )
    data.set_defaults(run=_data)
    demo = commands.add_parser(
        "demo", help="align SmolLM2-135M on generated data, on a laptop's CPU"
    )
    demo.set_defaults(run=_demo)
    for command in (train, data, demo):
        command.add_argument("config", help="YAML file")
        command.add_argument(
            "overrides", nargs="*", metavar="key=value", help="as optim.learning_rate=1e-6"
        )
    generate = commands.add_parser(
        "generate", help="continue prompts with a run's policy or any model"
    )
    generate.set_defaults(run=generation.run)
    generation.add_arguments(generate)
    evaluate = commands.add_parser(
        "eval",
        help="evaluate a run on held-out preferences, or answers by reward functions",
        epilog=evaluation.EPILOG,
        formatter_class=shape,
    )
    evaluate.set_defaults(run=lambda options: evaluation.run(options, console))
    evaluation.add_arguments(evaluate)
    score = commands.add_parser(
        "score",
        help="write scores of the answers into a data set",
        epilog=rewards.EPILOG,
        formatter_class=shape,
    )
    score.set_defaults(run=lambda options: rewards.run(options, console))
    rewards.add_arguments(score)
    condition = commands.add_parser(
        "condition",
        help="put a preference into prompts",
        epilog=conditioning.EPILOG,
        formatter_class=shape,
    )
    condition.set_defaults(run=lambda options: conditioning.run(options, console))
    conditioning.add_arguments(condition)
    front = commands.add_parser(
        "pareto",
        help="train a front of policies over weights of objectives, and show it",
        epilog=pareto.EPILOG,
        formatter_class=shape,
    )
    front.set_defaults(run=lambda options: pareto.run(options, console))
    pareto.add_arguments(front)
    export = commands.add_parser(
        "export", help="write a run's checkpoint as a Hugging Face directory"
    )
    export.set_defaults(run=_export)
    export.add_argument(
        "--to", required=True, metavar="DIR", help="where to; must not hold anything else"
    )
    export.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    export.add_argument(
        "--adapter", action="store_true", help="the adapter alone, for PEFT; otherwise it is merged"
    )
    export.add_argument("directory", metavar="RUN", help="directory of the run")
    export.add_argument("--step", default="best", help="best (default), latest or a number")
    merge = commands.add_parser("merge", help="average the parameters of several policies (a soup)")
    merge.set_defaults(run=_merge)
    merge.add_argument(
        "sources",
        nargs="+",
        metavar="RUN_OR_MODEL:WEIGHT",
        help="run, model or PEFT adapter directory",
    )
    merge.add_argument(
        "--how",
        required=True,
        choices=["weights", "deltas", "factors"],
        help="average whole models; what adapters add to their base; or each factor of the adapters by itself",
    )
    merge.add_argument(
        "--to", required=True, metavar="DIR", help="where to; must not hold anything else"
    )
    merge.add_argument(
        "--adapter",
        action=argparse.BooleanOptionalAction,
        help="a PEFT directory (factors: default)",
    )
    merge.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    merge.add_argument("--step", default="best", help="of runs: best (default), latest or a number")
    merge.add_argument(
        "--any-weights", action="store_true", help="weights need not sum to 1, nor be positive"
    )
    return parser


def _keys_help() -> str:
    rows = [f"  {key} = {json.dumps(default)}\n      {meaning}" for key, default, meaning in keys()]
    return "keys, with defaults:\n" + "\n".join(rows)


def _train(options: argparse.Namespace) -> None:
    config = load_config(options.config, options.overrides)
    report(run_with_progress(config))


def run_with_progress(config):
    """Trains with a progress bar."""
    from jaxpref.training.run import train

    with training_bar(console, show=config.log.progress) as on_log:
        return train(config, on_log=on_log)


def report(result) -> None:
    """Where a run's results are, and its held-out accuracy before and after."""
    from jaxpref.runs.plots import plot_curves

    name = "eval/rewards/accuracies"
    if name in result.first_eval and name in result.last_eval:
        before, after = result.first_eval[name], result.last_eval[name]
        tie = " (the policy is the reference: every pair ties)" if before == 0 else ""
        console.print(
            f"held-out reward accuracy: {before:.3f} before{tie}, [bold]{after:.3f}[/bold] after {result.steps} steps"
        )
    console.print(f"curves      {plot_curves(result.out)}", highlight=False)
    console.print(f"checkpoints {result.out / 'checkpoints'}; best: {result.best}", highlight=False)


def _data(options: argparse.Namespace) -> None:
    from jaxpref.data.inspect import show
    from jaxpref.runs.build import build
    from jaxpref.runs.feed import make_loader, read_data

    config = load_config(options.config, options.overrides)
    pieces = build(config)
    for which in ("train", "eval") if config.data.eval else ("train",):
        groups, data_report = read_data(pieces, which)
        loader = make_loader(pieces, groups, training=which == "train")
        show(console, which, groups, data_report, loader, pieces.tokenizer)


def _export(options: argparse.Namespace) -> None:
    from jaxpref.runs.export import export_run

    step = export_run(
        options.directory,
        options.to,
        step=options.step,
        dtype=options.dtype,
        adapter=options.adapter,
    )
    console.print(f"step {step} written to {options.to}", highlight=False)


def _merge(options: argparse.Namespace) -> None:
    from jaxpref.generation.mixing import parse_policies
    from jaxpref.runs.merge import merge

    sources = [policy for text in options.sources for policy in parse_policies(text)]
    merge(
        sources,
        options.to,
        how=options.how,
        adapter=options.adapter,
        step=options.step,
        dtype=options.dtype,
        any_weights=options.any_weights,
    )
    console.print(f"soup of {len(sources)} written to {options.to}", highlight=False)


def _demo(options: argparse.Namespace) -> None:
    from jaxpref.demo.command import demo

    demo(load_config(options.config, options.overrides), console, run_with_progress, report)


if __name__ == "__main__":
    sys.exit(main())
