"""Command lines: `accelerate launch SCRIPT --option value`, `python SCRIPT ...`, `trl dpo ...`."""

import re
import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from jaxpref.errors import InputError
from jaxpref.from_trl.source import Source
from jaxpref.from_trl.yaml_text import read_yaml

_STARTS = ("accelerate", "trl", "python", "python3", "torchrun", "uv")
_SCRIPT_TRAINER = re.compile(
    r"(online_dpo|dpo|kto|cpo|orpo|reward|sft|grpo|rloo|ppo)(_modeling|_vlm)?\.py$"
)


def commands_in(text: str) -> list[str]:
    """The commands in a shell script or a docstring, continued lines joined."""
    joined = re.sub(r"\\\s*\n", " ", text)
    lines = (line.strip().removeprefix("$ ") for line in joined.splitlines())
    return [line for line in lines if _is_command(line)]


def _is_command(line: str) -> bool:
    first, _, rest = line.partition(" ")
    return first in _STARTS and "--" in rest


def read_command(words: str | Sequence[str], where: str) -> Source:
    """Options of a command line.

    Errors: InputError for one that has no options.
    """
    words = shlex.split(words) if isinstance(words, str) else list(words)
    source, launcher = Source(), {}
    found = _start_of_options(words)
    if found is None:
        raise InputError(
            "a command that starts a trainer, as `accelerate launch SCRIPT.py --option value`",
            f"{where}: {shlex.join(words):.200}",
            "give the whole command, with the script or `trl dpo` and its options",
        )
    named, at = found
    launcher = _options(words[:named]) if words[0] == "accelerate" else {}
    if words[0] == "trl":
        source.trainer = words[named]
    else:
        source.script, source.trainer = words[named], _trainer_of_script(words[named])
    source.options = _options(words[at:])
    source.config = source.options.pop("config", None)
    devices = source.options.pop("num_processes", None) or launcher.get("num_processes")
    if words[0] == "torchrun":
        devices = _options(words[:named]).get("nproc_per_node")
    if isinstance(devices, int):
        source.ours["mesh.fsdp"] = devices
    for name in ("config_file", "accelerate_config"):
        given = launcher.get(name) or source.options.pop(name, None)
        if given and "mesh.fsdp" not in source.ours:
            source.remarks.append(f"{given} says how many devices there are: set mesh.fsdp to it")
    return source


def _start_of_options(words: Sequence[str]) -> tuple[int, int] | None:
    """(the word that names the script or TRL's command, the first word behind it)."""
    if len(words) > 1 and words[0] == "trl":
        return 1, 2
    for i, word in enumerate(words):
        if word.endswith(".py"):
            return i, i + 1
    return None


def _trainer_of_script(path: str) -> str | None:
    """As TRL's own scripts are named; None for another name."""
    matched = _SCRIPT_TRAINER.search(path)
    return matched[1] if matched else None


def _options(words: Sequence[str]) -> dict[str, Any]:
    """`--name value ...`, `--name=value`, `--flag` and `--no_flag`."""
    options: dict[str, Any] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].replace("-", "_", _dashes(word)).partition("=")
            if equals:
                options[name] = _value(value)
            elif name.startswith("no_"):
                options[name.removeprefix("no_")] = False
            else:
                options[name] = True
        elif name is not None:
            before = options.get(name)
            if before is True or before is False:
                options[name] = _value(word)
            else:
                listed = before if isinstance(before, list) else [before]
                options[name] = [*listed, _value(word)]
    return options


def _dashes(word: str) -> int:
    """Dashes in an option's name, not in its value."""
    return word[2:].partition("=")[0].count("-")


def _value(text: str) -> Any:
    """A number, a truth value or a list where it reads so, else the text."""
    try:
        value = read_yaml(text)
    except yaml.YAMLError:
        return text
    return text if value is None else value
