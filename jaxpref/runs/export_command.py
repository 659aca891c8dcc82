"""`jaxpref export`: a run's checkpoint as a directory that transformers, or PEFT, loads."""

import argparse

from rich.console import Console

from jaxpref.fields import WRITTEN_DTYPES

EPILOG = """examples:
  jaxpref export runs/dpo --to model               an adapter is merged into it
  jaxpref export runs/dpo --to adapter --adapter   the adapter alone, for PEFT
  jaxpref export runs/panacea --to adapter --adapter --weights 0.3,0.7
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="RUN", help="directory of the run")
    destination_arguments(parser)
    parser.add_argument(
        "--adapter", action="store_true", help="the adapter alone, for PEFT; otherwise it is merged"
    )
    parser.add_argument("--step", default="best", help="best (default), latest or a number")
    parser.add_argument(
        "--weights",
        type=_weights,
        metavar="W,W",
        help="of the objectives, for a run that serves all weights (adapter.kind)",
    )


def _weights(text: str) -> list[float]:
    try:
        return [float(weight) for weight in text.split(",")]
    except ValueError as error:
        said = f"{text!r}: numbers with commas between them, as 0.3,0.7"
        raise argparse.ArgumentTypeError(said) from error


def destination_arguments(parser: argparse.ArgumentParser) -> None:
    """Where a model is written, and how."""
    parser.add_argument(
        "--to", required=True, metavar="DIR", help="where to; must not hold anything else"
    )
    parser.add_argument("--dtype", default="float32", choices=WRITTEN_DTYPES)


def run(options: argparse.Namespace, console: Console) -> None:
    from jaxpref.runs.export import export_run  # waits for jax, as help need not

    step = export_run(
        options.directory,
        options.to,
        step=options.step,
        dtype=options.dtype,
        adapter=options.adapter,
        weights=options.weights,
    )
    console.print(f"step {step} written to {options.to}", highlight=False)
