"""What is wrong with a config, each problem in a line."""

import difflib
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from pydantic import ValidationError

from jaxpref.config import Config
from jaxpref.fields import PATHS, SETS
from jaxpref.settings.keys import keys
from jaxpref.settings.other_trainers import answer

_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
_PATHS = re.compile(r"(data|pareto\.objectives\.\d+)\.(train|eval)\..*")
"""Keys of items of paths."""
_ROWS_FOR_FILES = (
    "names of files, folders or data sets are expected, got rows: write them into a .jsonl file, "
    "one JSON object a line"
)


def described(error: ValidationError, cls: type = Config, prefix: str = "") -> list[str]:
    """The problems; the same one at many items of a list is told once.

    Args:
        cls: the dataclass of the config.
        prefix: before its keys.
    """
    known, lines = [name for name, _, _ in keys(cls, prefix)], []
    for (key, _), same in groupby(error.errors(), _kind):
        first, *others = same
        place = ".".join(map(str, [*prefix.split(".")[:-1], *location(first)]))
        more = f" (and {len(others)} more items of {prefix}{key})" if others else ""
        lines.append(f"{place}{more}: {_said(first, place, known)}")
    return lines


def location(problem: Mapping[str, Any]) -> list[str | int]:
    """Where in the settings a problem is."""
    return [part for part in problem["loc"] if part not in (PATHS, SETS, "[key]")]


def _kind(problem: Mapping[str, Any]) -> tuple[str, str]:
    """The key, without places in lists, and the type of the problem."""
    return ".".join(x for x in location(problem) if isinstance(x, str)), problem["type"]


def _said(problem: Mapping[str, Any], key: str, known: Sequence[str]) -> str:
    got = problem["input"]
    if problem["type"] in _UNKNOWN:
        return f"unknown key{_instead(key, known)}"
    if problem["type"] == "dataclass_type":
        inner = [name.removeprefix(f"{key}.") for name in known if name.startswith(f"{key}.")]
        inner = [name for name in inner if "[]" not in name]  # of the items of a list
        return f"a section with keys ({', '.join(inner)}) is expected, got {got!r:.80}"
    if _PATHS.fullmatch(key) and isinstance(got, Mapping):
        return _ROWS_FOR_FILES
    return f"{problem['msg']}, got {got!r:.80}"


def _instead(key: str, known: Sequence[str]) -> str:
    """What to write in place of an unknown key: a key in another section, what another trainer's
    option is called here, or the nearest spelling."""
    *_, name = key.split(".")
    if near := difflib.get_close_matches(key, known, 1, 0.9):
        return f"; did you mean {near[0]}?"
    if same := [other for other in known if other.rpartition(".")[2] == name]:
        return f"; did you mean {' or '.join(same)}?"
    if meant := answer(name):
        return f"; {meant}"
    near = difflib.get_close_matches(key, known, 1, 0.75)
    near = near or _nearest_last_word(name, known)
    return f"; did you mean {near[0]}?" if near else ""


def _nearest_last_word(name: str, known: Sequence[str]) -> list[str]:
    """The key whose last word is spelt most like this one."""
    by_last_word = {other.rpartition(".")[2]: other for other in known}
    return [by_last_word[near] for near in difflib.get_close_matches(name, by_last_word, 1, 0.6)]
