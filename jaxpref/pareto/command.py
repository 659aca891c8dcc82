"""`jaxpref pareto`: a whole front from one config, or the report of a finished one again."""

import argparse
from functools import partial

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from jaxpref.errors import InputError
from jaxpref.evaluation.bootstrap import Estimate
from jaxpref.pareto.config import ParetoConfig
from jaxpref.pareto.front import Front, read_front
from jaxpref.pareto.report.write import write_front
from jaxpref.pareto.settings import load_front_config
from jaxpref.pareto.sweep import Watch, run_front
from jaxpref.processes.together import is_first
from jaxpref.settings import keys_help, named, numbers
from jaxpref.storage.paths import as_path
from jaxpref.training.progress import training_progress

EPILOG = """the config is that of a run (`jaxpref train --help`) without `objective`, with a section
`pareto`:
    pareto:
      objectives:
        # pairs; its reward is learned by DPO
        - {name: helpful, train: [helpful.jsonl], eval: [helpful-test.jsonl]}
        # an explicit reward of the pairs in data.train and data.eval
        - {name: brief, reward: "rule:words"}
      weights: [[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]]      # or grid: 10
      methods: [dpo, modpo, mod, soup_deltas]
a front that was killed goes on where it was when the same command is given again

    jaxpref pareto CONFIG.yaml
    jaxpref pareto runs/front --reference-point helpful=0 brief=-60      # only the report

""" + keys_help(ParetoConfig, "pareto.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="CONFIG_OR_FRONT", help="YAML file; or the directory of a finished front")
    add(
        "--reference-point",
        nargs="+",
        default=[],
        metavar="OBJECTIVE=VALUE",
        help="the point from which hypervolumes are measured",
    )
    add(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="as pareto.beta=0.05 or optim.learning_rate=1e-4",
    )


def run(options: argparse.Namespace, console: Console) -> None:
    """Makes the front; writes its record, table, figure and page; prints the table.

    Of several processes all make it, and the first writes and prints.
    """
    reference = numbers(named(options.reference_point, "--reference-point")) or None
    if as_path(options.source).is_dir():
        if options.overrides:
            raise InputError(
                "no settings for a finished front",
                ", ".join(options.overrides),
                "remove them, or give the config of a new front",
            )
        front, out = read_front(options.source), as_path(options.source)
    else:
        config = load_front_config(options.source, options.overrides)
        if reference is not None and set(reference) != set(config.names):
            raise InputError(
                f"--reference-point with a value for each of {', '.join(config.names)}",
                ", ".join(reference),
                "give one value per objective; write settings before --reference-point",
            )
        settings = config.run
        bar = partial(
            training_progress, console, settings.train.log_every, show=settings.log.progress
        )
        say = lambda line: console.print(line, highlight=False, markup=False)
        front, out = run_front(config, Watch(say, bar)), as_path(config.run.out)
    if not is_first():
        return
    results = write_front(front, out, reference=reference)
    show(front, results, console)
    for name in ("front.png", "report.html", "front.csv", "front.json"):
        console.print(f"written: {out / name}", highlight=False)


def show(front: Front, results: dict, console: Console) -> None:
    """Prints a table of the points and one line per method."""
    caption = "mean reward of the answers, below it held-out accuracy;  * dominated"
    table = Table(
        "point", *front.objectives, title=front.title, caption=caption, box=SIMPLE, pad_edge=False
    )
    table.title_justify = table.caption_justify = "left"
    table.columns[0].no_wrap = True
    for point in front.points:
        reward, accuracy = point.estimates["reward"], point.estimates["accuracy"]
        name = f"{point.name}*" if point.name in results["dominated"] else point.name
        cells = [f"{_shown(reward[of])}\n{accuracy[of].value:.2f}" for of in front.objectives]
        table.add_row(name, *cells)
    console.print(table)
    for sweep in results["sweeps"]:
        console.print(
            f"{sweep['label']}: hypervolume {sweep['hypervolume']['value']:.4g}", highlight=False
        )
    for violation in results["violations"]:
        console.print(f"not monotone: {violation}", highlight=False, markup=False)


def _shown(estimate: Estimate) -> str:
    """A value and half the width of its interval."""
    if estimate.low is None:
        return f"{estimate.value:.3g}"
    return f"{estimate.value:.3g} ±{(estimate.high - estimate.low) / 2:.2g}"
