"""`jaxpref pareto`: a whole front from one config, or the report of a finished one again."""

import argparse
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from jaxpref.errors import InputError
from jaxpref.evaluation.bootstrap import Estimate
from jaxpref.pareto.compare import compared
from jaxpref.pareto.config import ParetoConfig
from jaxpref.pareto.front import Front, read_front, read_pairs, read_reference_point
from jaxpref.pareto.measures import LESS_IS_BETTER, MEASURES
from jaxpref.pareto.report.write import write_front
from jaxpref.pareto.settings import load_front_config
from jaxpref.pareto.sweep import Watch, run_front
from jaxpref.processes.together import is_first
from jaxpref.settings import keys_help, named, numbers
from jaxpref.storage.paths import as_path
from jaxpref.text_tables import whole
from jaxpref.training.progress import training_progress

EPILOG = """the config is that of a run (`jaxpref train --help`) without `objective`, with a
section `pareto`:
    pareto:
      objectives:
        # pairs; its reward is learned by DPO
        - {name: helpful, train: [helpful.jsonl], eval: [helpful-test.jsonl]}
        # an explicit reward of the pairs in data.train and data.eval
        - {name: brief, reward: "rule:words"}
      weights: [[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]]      # or grid: 10
      methods: [dpo, modpo, mod, soup_deltas]
a front that was killed goes on where it was when the same command is given
again

    jaxpref pareto CONFIG.yaml

    # only the report
    jaxpref pareto runs/front --reference-point helpful=0 brief=-60

    # on the same prompts; differences are paired
    jaxpref pareto --compare runs/front runs/other

""" + keys_help(ParetoConfig, "pareto.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "source",
        nargs="?",
        metavar="CONFIG_OR_FRONT",
        help="YAML file; or the directory of a finished front",
    )
    add(
        "--compare",
        nargs=2,
        metavar="FRONT",
        help="two finished fronts: the second is held against the first",
    )
    add("--out", help="directory of a comparison (default: beside the second front)")
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
    pairs = None
    if options.out and not options.compare:
        raise InputError(
            "--out with --compare alone",
            f"--out {options.out}",
            "write the directory of a new front as out=DIR; a finished one is drawn where it is",
        )
    if options.compare:
        front, pairs, out, kept = _comparison(options)
    elif options.source is None:
        raise InputError(
            "CONFIG_OR_FRONT, or --compare FRONT FRONT", "neither", "name a config or fronts"
        )
    elif as_path(options.source).is_dir():
        _refuse_settings(options.overrides)
        front, out = read_front(options.source), as_path(options.source)
        kept, pairs = read_reference_point(options.source), read_pairs(options.source) or None
    else:
        front, out, kept = *_made(options, reference, console), None
    if not is_first():
        return
    results = write_front(front, out, reference=reference or kept, pairs=pairs)
    show(front, results, console)
    for name in ("front.png", "report.html", "front.csv", "front.json"):
        console.print(f"written: {out / name}", highlight=False)


def _made(
    options: argparse.Namespace, reference: Mapping[str, float] | None, console: Console
) -> tuple[Front, Path]:
    """A new front, or one that goes on, and its directory."""
    config = load_front_config(options.source, options.overrides)
    complete = reference is None or set(reference) == set(config.names)
    if not complete or not all(map(math.isfinite, (reference or {}).values())):
        raise InputError(
            f"--reference-point with a finite value for each of {', '.join(config.names)}",
            ", ".join(f"{name}={value}" for name, value in (reference or {}).items()),
            "give one value per objective; write settings before --reference-point",
        )
    settings = config.run
    bar = partial(training_progress, console, settings.train.log_every, show=settings.log.progress)
    say = lambda line: console.print(line, highlight=False, markup=False)
    return run_front(config, Watch(say, bar)), as_path(config.run.out)


def _comparison(
    options: argparse.Namespace,
) -> tuple[Front, list[tuple[str, str]], Path, dict[str, float]]:
    """Two fronts as one, the pairs of methods to compare, where to write, the reference point.

    The reference point is the lower one of theirs in every objective.
    """
    if options.source is not None:
        _refuse_settings([options.source, *options.overrides])
    first, second = map(as_path, options.compare)
    front, pairs = compared([(path.name, read_front(path)) for path in (first, second)])
    points = [read_reference_point(path) for path in (first, second)]
    lower = {name: min(point[name] for point in points) for name in front.objectives}
    out = second.with_name(f"{second.name}-against-{first.name}")
    return front, pairs, as_path(options.out) if options.out else out, lower


def _refuse_settings(overrides: Sequence[str]) -> None:
    if overrides:
        raise InputError(
            "no settings for a finished front",
            ", ".join(overrides),
            "remove them, or give the config of a new front",
        )


def show(front: Front, results: dict, console: Console) -> None:
    """Prints a table of the points and one line per method."""
    caption = "mean reward of the answers, below it held-out accuracy;  * dominated"
    table = Table(
        "point", *front.objectives, title=front.title, caption=caption, box=SIMPLE, pad_edge=False
    )
    table.title_justify = table.caption_justify = "left"
    table.columns[0].no_wrap = True
    for point in front.points:
        reward, accuracy = point.estimates["reward"], point.estimates.get("accuracy", {})
        name = f"{point.name}*" if point.name in results["dominated"] else point.name
        below = {of: f"\n{estimate.value:.2f}" for of, estimate in accuracy.items()}
        cells = [_shown(reward[of]) + below.get(of, "") for of in front.objectives]
        table.add_row(name, *cells)
    console.print(whole(table))
    for sweep in results["sweeps"]:
        console.print(
            f"{sweep['label']}: hypervolume {sweep['hypervolume']['value']:.4g}", highlight=False
        )
    point_of = ", ".join(f"{name} {x:.4g}" for name, x in results["reference_point"].items())
    console.print(f"above the reference point {point_of}", highlight=False)
    if results["measures"]:
        console.print(whole(_measures_table(results)))
    for violation in results["violations"]:
        console.print(f"not monotone: {violation}", highlight=False, markup=False)


_HYPHENATED = {"hypervolume": "hyper-\nvolume", "controllability": "controll-\nability"}
"""Headings that are too long for seven columns of 80 characters."""


def _measures_table(results: Mapping[str, Any]) -> Table:
    """A row per method, and a row for every difference of two."""
    caption = "less is better for " + ", ".join(name.replace("_", " ") for name in LESS_IS_BETTER)
    headings = [_HYPHENATED.get(name, name.replace("_", " ")) for name in MEASURES]
    table = Table(
        "method", *headings, caption=caption, box=SIMPLE, pad_edge=False, collapse_padding=True
    )
    table.caption_justify = "left"
    for row in results["measures"]:
        table.add_row(row["method"], *_cells(row["measures"]))
    for row in results["differences"]:
        table.add_row(f"{row['method']} - {row['baseline']}", *_cells(row["measures"]))
    return table


def _cells(measures: Mapping[str, Any]) -> list[str]:
    """A value, below it its interval; empty where a measure is not defined."""
    cells = []
    for name in MEASURES:
        estimate = measures.get(name)
        cell = "" if estimate is None else f"{estimate['value']:.3g}"
        if estimate and estimate["low"] is not None:
            cell += f"\n{estimate['low']:.3g} to {estimate['high']:.3g}"
        cells.append(cell)
    return cells


def _shown(estimate: Estimate) -> str:
    """A value and half the width of its interval."""
    if estimate.low is None:
        return f"{estimate.value:.3g}"
    return f"{estimate.value:.3g} ±{(estimate.high - estimate.low) / 2:.2g}"
