"""`jaxpref objectives`: what there is to train with, in a line each or one of them in full."""

import argparse
import difflib
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from itertools import chain

from rich.console import Console

from jaxpref.errors import InputError
from jaxpref.objectives import FAMILIES, OBJECTIVES, TRANSFORMS
from jaxpref.objectives.about import data, flow, hyperparameters, sections, summary
from jaxpref.progress import is_screen

EPILOG = """    jaxpref objectives
    jaxpref objectives simpo

docs/objectives.md has them all in full, and what TRL calls them
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="to be shown in full")


def run(options: argparse.Namespace, console: Console) -> None:
    known = {**OBJECTIVES, **{name: transform.function for name, transform in TRANSFORMS.items()}}
    for name in options.names:
        if name not in known:
            close = difflib.get_close_matches(name.lower(), known, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InputError(
                "the name of an objective or a transform",
                name,
                f"{hint}`jaxpref objectives` lists them all",
            )
    lines = [_in_full(name, known[name]) for name in options.names] or _lists()
    for line in chain.from_iterable(text.splitlines() or [""] for text in lines):
        shown = _broken(line, console.width) if is_screen(console) else line
        console.print(shown, highlight=False, markup=False, soft_wrap=True)


def _broken(line: str, width: int) -> str:
    """A line for a terminal, broken between words; what follows a name stays in its column."""
    name = re.match(r" *\S+ {2,}", line)
    indent = " " * (len(name[0]) if name else 4)
    return textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False)


def _lists() -> list[str]:
    """Objectives by family, then transforms, in a line each."""
    lines = []
    for module in FAMILIES:
        own = {name: f for name, f in OBJECTIVES.items() if f.__module__ == module.__name__}
        lines += [inspect.getdoc(module).partition("\n")[0], *_listed(own), ""]
    transforms = {name: transform.function for name, transform in TRANSFORMS.items()}
    return [*lines, "Transforms of the log-probs before an objective.", *_listed(transforms)]


def _listed(functions: Mapping[str, Callable]) -> list[str]:
    return [f"  {name:<20}  {summary(function)}" for name, function in functions.items()]


def _in_full(name: str, function: Callable) -> str:
    text = sections(function)
    settings = ", ".join(key + value for key, value in hyperparameters(function).items())
    asked = [f"Data: {'; '.join(data(function))}"] if name in OBJECTIVES else []
    lines = [name, "", text[""], "", *asked, f"Settings: {settings or 'none'}"]
    lines += [f"    {line.strip()}" for line in text.get("Args", "").splitlines()]
    rest = ("Returns", "Source", "Use", "Curves")
    lines += [f"{part}: {flow(text[part])}" for part in rest if part in text]
    file = inspect.getsourcefile(function)
    return "\n".join([*lines, f"Code: {file}:{inspect.getsourcelines(function)[1]}", ""])
