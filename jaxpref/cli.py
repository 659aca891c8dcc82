"""The command line: `jaxpref COMMAND`, from data and training to answers, evaluation and fronts."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from rich.console import Console

from jaxpref.errors import InputError, RunError, is_dependency
from jaxpref.files import disk_problem
from jaxpref.progress import is_screen

if TYPE_CHECKING:
    pass

AddArguments = Callable[[argparse.ArgumentParser], None]

console = Console()
if not is_screen(console) and "COLUMNS" not in os.environ:
    console.width = 200  # files and pipes have no width; rich's 80 columns would break paths


class _Printed(logging.Handler):
    """What the package says goes where the results go, above the bars of progress."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(record.getMessage(), highlight=False, markup=False, soft_wrap=True)


_log = logging.getLogger("jaxpref")
_log.addHandler(_Printed())
_log.propagate = False  # or it would be printed twice where a library has set up the root logger


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns:
        The exit code: 0, 1 for a failed run, 2 for bad input, 75 after SIGTERM, 76 where another
            process was lost, 130 after Ctrl-C.
    """
    # transformers warns that there is no torch; only its tokenizers are used.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    from jaxpref.processes.watch import leave
    from jaxpref.training.preemption import (
        INTERRUPTED,
        PREEMPTED,
        Interrupted,
        Preempted,
        remember_sigterm,
    )

    def ended(code: int, why: object, *, alone: bool = True) -> int:
        print(f"jaxpref {options.command}: {why}", file=sys.stderr)
        if alone:
            leave(code, str(why))
        return code

    try:
        if options.command not in _ONE_PROCESS:
            from jaxpref.processes.options import join_as_asked

            join_as_asked(options, console)
            if options.command in _TRAINING:
                remember_sigterm()
        options.run(options)
    except SystemExit as error:
        if error.code in (None, 0):  # no command ends so: a function of the user's does
            return ended(1, "ended by sys.exit() in Python code")
        leave(error.code if isinstance(error.code, int) else 1, "sys.exit() in Python code")
        raise
    except InputError as error:
        return ended(2, f"bad input\n{error}")
    except ModuleNotFoundError as error:
        if not is_dependency(error.name):
            raise
        return ended(2, f"{error}: install jaxpref again")
    except RunError as error:
        return ended(1, error)
    except Preempted as error:
        return ended(PREEMPTED, error, alone=False)
    except KeyboardInterrupt as error:
        print(file=sys.stderr)  # behind the ^C of the terminal
        alone = not isinstance(error, Interrupted)
        return ended(INTERRUPTED, str(error) or "interrupted", alone=alone)
    except Exception as error:
        problem = disk_problem(error)
        if problem is None:
            raise
        safe = "files that were there before are as they were"
        again = "Once there is room, and leave to write, run the same command again."
        return ended(1, f"{problem}; {safe}. {again}")
    return 0


# ---- the parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options.  key=value may stand before and behind flags, unlike argparse's own."""
    parser = _parser(arguments)
    options, rest = parser.parse_known_args(arguments)
    takes_overrides = hasattr(options, "overrides")
    unknown = [item for item in rest if item.startswith("-") or not takes_overrides]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


class _Commands(argparse.HelpFormatter):
    """Names of commands beside what they do: argparse forgets that they are indented."""

    def __init__(self, prog: str):
        super().__init__(prog)
        self._action_max_length = max(map(len, _COMMANDS)) + 2 * self._indent_increment


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of these arguments.

    Only the command among them gets its own arguments: their modules load jax, for which the help
    of the others need not wait.
    """
    parser = argparse.ArgumentParser(
        prog="jaxpref",
        description="Aligns Flax language models with preferences.",
        formatter_class=_Commands,
    )
    parser.add_argument("--version", action="version", version=f"jaxpref {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    called = next((item for item in arguments if not item.startswith("-")), None)
    for name, (summary, add_arguments) in _COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == called:
            add_arguments(command)
            if name not in _ONE_PROCESS:
                from jaxpref.processes.options import add_process_arguments

                add_process_arguments(command)
    return parser


def _version() -> str:
    try:
        return version("jaxpref")
    except PackageNotFoundError:  # run from its sources
        return "of no installed package"


def _of_config(run: Callable[[argparse.Namespace], None]) -> AddArguments:
    """Those of a command on the config of a run."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        from jaxpref.settings import keys_help

        parser.epilog = keys_help()
        parser.add_argument("config", help="YAML file")
        parser.add_argument(
            "overrides", nargs="*", default=[], metavar="key=value", help="as train.epochs=2"
        )
        parser.set_defaults(run=run)

    return add_arguments


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    _of_config(_data)(parser)
    parser.add_argument(
        "--write-tfds",
        metavar="DIR",
        help="write the rows instead, for tensorflow-datasets, as ArrayRecord (pip install "
        "jaxpref[tfds])",
    )


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    from jaxpref.generation import command

    command.add_arguments(parser)
    parser.set_defaults(run=command.run)


def _arguments_of(module: str) -> AddArguments:
    """Those of a command that prints to the console and has examples to show."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        command = importlib.import_module(module)
        command.add_arguments(parser)
        parser.epilog = command.EPILOG
        parser.set_defaults(run=lambda options: command.run(options, console))

    return add_arguments


def _completion_arguments(parser: argparse.ArgumentParser) -> None:
    from jaxpref.completion import EPILOG

    parser.epilog = EPILOG
    parser.add_argument("shell", choices=["bash", "zsh"])
    parser.set_defaults(run=_completion)


# ---- the commands that have no module of their own


def _train(options: argparse.Namespace) -> None:
    from jaxpref.online.command import report, run_with_progress
    from jaxpref.settings import load_config

    report(run_with_progress(load_config(options.config, options.overrides), console), console)


def _data(options: argparse.Namespace) -> None:
    from jaxpref.runs.show_data import show_data
    from jaxpref.settings import load_config

    config = load_config(options.config, options.overrides)
    if options.write_tfds:
        from jaxpref.data.write_tfds import write_tfds

        counts = write_tfds(config.data, options.write_tfds)
        told = ", ".join(f"{name}: {count:,} rows" for name, count in counts.items())
        console.print(f"{told}; written to {options.write_tfds}", highlight=False)
    elif config.online.rewards:
        from jaxpref.online.prompts import show_prompts

        show_prompts(config, console)
    else:
        show_data(config).show(console)


def _demo(options: argparse.Namespace) -> None:
    from jaxpref.demo.command import demo
    from jaxpref.settings import load_config

    demo(load_config(options.config, options.overrides), console)


def _completion(options: argparse.Namespace) -> None:
    from dataclasses import fields

    from jaxpref.completion import script, words_behind
    from jaxpref.config import Config
    from jaxpref.objectives import OBJECTIVES, TRANSFORMS
    from jaxpref.pareto.config import ParetoConfig
    from jaxpref.settings import keys

    asked = {
        "keys": [*(field.name for field in fields(Config)), *(key for key, _, _ in keys())],
        "objectives": [*OBJECTIVES, *TRANSFORMS],
    }
    front = [key for key, _, _ in keys(ParetoConfig, "pareto.") if "[]" not in key]
    words = {}
    for name in _COMMANDS:
        parsers: Any = _parser([name])._subparsers._group_actions[0].choices
        behind = words_behind(parsers[name], front if name in ("pareto", "plan") else [])
        words[name] = [*behind, *asked.get(name, [])]
    text = script(options.shell, words)
    console.print(text, end="", highlight=False, markup=False, soft_wrap=True)


_COMMANDS: dict[str, tuple[str, AddArguments]] = {
    "train": ("train a run", _of_config(_train)),
    "data": ("show how rows are formatted, tokenised, masked and packed", _data_arguments),
    "plan": (
        "what a run costs on a TPU slice, compiled for it without a TPU",
        _arguments_of("jaxpref.plan.command"),
    ),
    "demo": ("align SmolLM2-135M on generated data, on a laptop's CPU", _of_config(_demo)),
    "generate": ("continue prompts with a run's policy or any model", _generate_arguments),
    "eval": (
        "evaluate a run on held-out preferences, or answers by reward functions",
        _arguments_of("jaxpref.evaluation.command"),
    ),
    "score": (
        "write scores of the answers into a data set",
        _arguments_of("jaxpref.rewards.command"),
    ),
    "condition": (
        "put a preference into prompts",
        _arguments_of("jaxpref.conditioning.command"),
    ),
    "sweep": (
        "train a run for every combination of settings, and compare them",
        _arguments_of("jaxpref.training.sweep_command"),
    ),
    "compare": (
        "show runs side by side, as a table and a figure",
        _arguments_of("jaxpref.runs.compare_command"),
    ),
    "pareto": (
        "train a front of policies over weights of objectives, and show it",
        _arguments_of("jaxpref.pareto.command"),
    ),
    "from-trl": (
        "translate a config, script or command of TRL, or a config of axolotl",
        _arguments_of("jaxpref.from_trl.command"),
    ),
    "objectives": (
        "list the objectives, or show one with its settings and source",
        _arguments_of("jaxpref.objectives.command"),
    ),
    "keys": (
        "what the keys of a config mean, by section or by word",
        _arguments_of("jaxpref.settings.keys"),
    ),
    "completion": (
        "what bash or zsh needs to complete commands, flags and keys",
        _completion_arguments,
    ),
    "export": (
        "write a run's checkpoint as a Hugging Face directory",
        _arguments_of("jaxpref.runs.export_command"),
    ),
    "push": (
        "upload a run's checkpoint, or an export, to the Hugging Face Hub",
        _arguments_of("jaxpref.runs.push"),
    ),
    "merge": (
        "average the parameters of several policies (a soup)",
        _arguments_of("jaxpref.generation.merge_command"),
    ),
}
"""Name -> what it does in one line, and what adds its arguments."""
_ONE_PROCESS = {"compare", "completion", "from-trl", "keys", "objectives", "plan", "push"}
"""Commands that have nothing to share among several processes."""
_TRAINING = {"train", "demo", "pareto", "sweep"}
"""Commands that save what they have when they are asked to end."""


if __name__ == "__main__":
    sys.exit(main())
