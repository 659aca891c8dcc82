"""The keys of a config, their defaults and meanings: for `--help` and for `jaxpref keys`."""

import argparse
import dataclasses
import json
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from rich.console import Console

from jaxpref.config import Config
from jaxpref.errors import InputError

REQUIRED = object()
"""In place of the default of a key that has none."""

SECTIONS = {
    "model": "The model, and how it computes.",
    "adapter": "A LoRA adapter, trained in place of the weights.",
    "reference": "The reference policy, and further ones.",
    "data": "The rows: where they are, how they are read, cut and packed.",
    "online": "On-policy training: rewards of answers that the policy draws itself.",
    "optim": "The optimizer and its learning rate.",
    "train": "How long training takes, and what it writes on the way.",
    "mesh": "How a step is spread over devices.",
    "log": "Where the metrics are shown.",
}
"""Section of a run's config -> what it is about."""

EPILOG = """examples:
  jaxpref keys                     the sections
  jaxpref keys optim               all keys of a section
  jaxpref keys train.epochs        one key
  jaxpref keys checkpoint          keys in whose name or meaning the word stands
"""


def keys(cls: Any = Config, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted key, default, meaning) of every setting, in order.

    Args:
        cls: the dataclass of a config, or of a part of it.
    """
    for field in dataclasses.fields(cls):
        key, kind = prefix + field.name, field.type
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from keys(kind, f"{key}.")
            continue
        about = cls.__pydantic_fields__[field.name]
        default = REQUIRED if about.is_required() else about.get_default(call_default_factory=True)
        yield key, default, " ".join((about.description or "").split())
        for item in get_args(about.annotation):
            if isinstance(item, type) and dataclasses.is_dataclass(item):  # a list of them
                yield from keys(item, f"{key}[].")


def keys_help(cls: type = Config, prefix: str = "") -> str:
    """Every key with its default and meaning, by sections, in the width of the terminal."""
    lines = ["keys, with defaults (`jaxpref keys WORD` shows some of them):"]
    section = None
    for key, default, meaning in keys(cls, prefix):
        own = key.removeprefix(prefix).partition(".")[0]
        if cls is Config and own in SECTIONS and own != section:
            lines += ["", f"{own}: {SECTIONS[own]}"]
        section = own
        lines += _about(key, default, meaning)
    return "\n".join(lines)


def _about(key: str, default: Any, meaning: str) -> list[str]:
    value = "(required)" if default is REQUIRED else f"= {json.dumps(default)}"
    width = shutil.get_terminal_size((100, 24)).columns - 1
    indent = " " * 6
    return [
        f"  {key} {value}",
        *textwrap.wrap(
            meaning,
            max(width, 40),
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ),
    ]


# ---- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="WORD", help="a section, a key, or any words")


def run(options: argparse.Namespace, console: Console) -> None:
    for line in asked(options.words):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def asked(words: Sequence[str]) -> list[str]:
    """What is known of a section, a key or all keys with these words; of none, the sections.

    Errors: InputError where there is no such key.
    """
    if not words:
        width = max(map(len, SECTIONS))
        others = [key for key, _, _ in keys() if "." not in key]
        shown = [f"{name:<{width}}  {meaning}" for name, meaning in SECTIONS.items()]
        return [*shown, f"{'':<{width}}  outside of sections: {', '.join(others)}"]
    wanted = [word.lower() for word in words]
    everything = list(keys())
    found = [item for item in everything if item[0] in wanted]
    if len(found) < len(set(wanted)):  # they are not all keys
        section, rest = wanted[0] in SECTIONS, wanted[1:]
        found = [item for item in everything if item[0].startswith(f"{wanted[0]}.") and section]
        found = [item for item in found if _holds(item, rest)]
    if not found:
        found = [item for item in everything if _holds(item, wanted)]
    if not found:
        raise InputError(
            "a section, a key or words of its meaning",
            f"{' '.join(words)!r} in none of {len(everything)} keys",
            "try a shorter word; `jaxpref keys` lists the sections",
        )
    return [line for item in found for line in _about(*item)]


def _holds(item: tuple[str, Any, str], words: Sequence[str]) -> bool:
    text = f"{item[0]} {item[2]}".lower()
    return all(word in text for word in words)
