"""`jaxpref sweep`: a run for every combination of values, and what came out side by side."""

import argparse
from contextlib import AbstractContextManager
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from jaxpref.errors import InputError
from jaxpref.processes.together import is_first
from jaxpref.settings import load_config
from jaxpref.training.progress import OnLog, training_progress
from jaxpref.training.sweep import sweep

EPILOG = """examples:
  jaxpref sweep dpo.yaml --over optim.learning_rate=[1e-6,1e-5]
  jaxpref sweep dpo.yaml --over train.epochs=[1,2] --over train.seed=[0,1]
  jaxpref sweep dpo.yaml adapter.rank=16 --over objective.0.beta=[0.1,0.3]

The runs lie in `out`, each in a directory that is named by its values. Runs of
an adapter that differ in numbers of their objectives alone, as in the last
example, are trained in one step. Given again, the command goes on with a sweep
that was stopped. Quote the brackets in zsh: --over 'train.seed=[0,1]'.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file")
    parser.add_argument(
        "--over",
        action="append",
        required=True,
        metavar="KEY=[A,B,...]",
        help="a key and its values, without spaces; of several keys every combination is trained",
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="of all runs: train.epochs=2"
    )


def run(options: argparse.Namespace, console: Console) -> None:
    """Trains the runs; prints the table and where the figure is."""
    config = load_config(options.config, options.overrides)
    over = dict(_key_and_values(text) for text in options.over)

    def shown(title: str) -> AbstractContextManager[OnLog]:
        return training_progress(console, config.train.log_every, title, show=config.log.progress)

    swept = sweep(config, over, shown=shown)
    if is_first():
        console.print(swept.comparison)
        console.print(f"curves {swept.figure}", highlight=False)


def _key_and_values(text: str) -> tuple[str, list]:
    key, _, values = text.partition("=")
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={values}"]))
    except OmegaConfBaseException:
        parsed = {"value": None}
    if not isinstance(parsed["value"], list):
        raise InputError(
            "--over KEY=[A,B,...]", f"--over {text}", "write the values in brackets, without spaces"
        )
    return key, parsed["value"]
