"""`jaxpref compare`: runs side by side, as a table and a figure."""

import argparse

from rich.console import Console

from jaxpref.runs.compare import compare
from jaxpref.storage.paths import as_path

EPILOG = """    jaxpref compare runs/a runs/b
    jaxpref compare runs/sweep/* --png sweep.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directories of runs")
    parser.add_argument("--png", default="compare.png", help="the figure (compare.png)")


def run(options: argparse.Namespace, console: Console) -> None:
    """Prints the table and draws the figure."""
    # RUNS/* names figures too, as `sweep` leaves one beside its runs.
    comparison = compare([run for run in options.runs if not as_path(run).is_file()])
    console.print(comparison)
    console.print(f"curves {comparison.plot(options.png)}", highlight=False)
