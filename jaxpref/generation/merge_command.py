"""`jaxpref merge`: the parameters of several policies, averaged (a soup)."""

import argparse

from rich.console import Console

from jaxpref.runs.export_command import destination_arguments

EPILOG = """examples:
  jaxpref merge runs/a:0.3 runs/b:0.7 --how deltas --to soup
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="RUN_OR_MODEL:WEIGHT",
        help="run, model or PEFT adapter directory",
    )
    parser.add_argument(
        "--how",
        required=True,
        choices=["weights", "deltas", "factors"],
        help="average whole models; what adapters add to their base; or each factor of the "
        "adapters by itself",
    )
    destination_arguments(parser)
    parser.add_argument(
        "--adapter",
        action=argparse.BooleanOptionalAction,
        help="a PEFT directory (factors: default)",
    )
    parser.add_argument(
        "--step", default="best", help="of runs: best (default), latest or a number"
    )
    parser.add_argument(
        "--any-weights", action="store_true", help="weights need not sum to 1, nor be positive"
    )


def run(options: argparse.Namespace, console: Console) -> None:
    from jaxpref.runs.merge import merge  # waits for jax, as help need not
    from jaxpref.settings import parse_policies

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
    averaged = ", ".join(f"{source} {weight:g}" for source, weight in sources)
    console.print(f"averaged {options.how}: {averaged}", highlight=False, markup=False)
    console.print(f"written to {options.to}", highlight=False, markup=False)
