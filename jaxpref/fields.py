"""Types of the config's fields: what each takes, beyond its type in Python."""

import re
from datetime import date
from os.path import expanduser
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
)

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
"""Of the config's dataclasses: unknown keys and values of other types are refused."""

LocalPath = Annotated[str, AfterValidator(expanduser)]
"""A path, whose `~` is the home directory, or another name of what may lie at a path."""


def _a_day(text: str) -> str:
    return date.fromisoformat(text).isoformat()


WRITTEN_DTYPES = ("float32", "bfloat16", "float16")
"""Dtypes of the weights in a directory that is written for transformers."""

Day = Annotated[str, AfterValidator(_a_day)]
"""YYYY-MM-DD."""


def _as_list(value: Any) -> Any:
    """A single text or mapping is the only item of a list."""
    return [value] if isinstance(value, str | dict) else value


OneOrMore = BeforeValidator(_as_list)
"""Of a list: one item may stand alone."""
Paths = Annotated[list[LocalPath], OneOrMore]
Names = Annotated[list[str], OneOrMore]


def set_name(name: str) -> str:
    """The name of a held-out set.  Errors: ValueError; TypeError for no text."""
    if not re.fullmatch(r"[\w.-]+", name) or name == "loss":
        raise ValueError("a set's name has letters, digits, _, . and - alone, and is not `loss`")
    return name


def _kind_of_sets(value: Any) -> str:
    return SETS if isinstance(value, dict) else PATHS


PATHS, SETS = "(paths)", "(sets)"
"""The two forms of `HeldOut`, as pydantic's errors name them."""
HeldOut = Annotated[
    Annotated[Paths, Tag(PATHS)]
    | Annotated[dict[Annotated[str, AfterValidator(set_name)], Paths], Tag(SETS)],
    Discriminator(_kind_of_sets),
]
"""Paths of one set, or of several by their names."""


def objective_list(parts: Any) -> Any:
    """An objective may stand alone, and for one with all its defaults its name, or a function."""
    parts = [parts] if callable(parts) else _as_list(parts)
    if not isinstance(parts, list):
        return parts
    return [{"name": part} if isinstance(part, str) else part for part in parts]


def _interval(value: Any) -> Any:
    steps = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    epochs = isinstance(value, str) and re.fullmatch(r"epoch(/[1-9]\d*)?", value)
    if steps or epochs or value is None:
        return value
    raise ValueError("write a number of steps (1 or more), epoch, or a part of it as epoch/4")


AUTO = "auto"


def _count_or_auto(value: Any) -> Any:
    count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if count or value == AUTO:
        return value
    raise ValueError("write a whole number (1 or more), or auto")


CountOrAuto = Annotated[int | str, PlainValidator(_count_or_auto)]

Interval = Annotated[int | str | None, PlainValidator(_interval)]
"""A number of steps, or `epoch`, or `epoch/N` for its Nth part; None: never."""

Objectives = Annotated[list[dict[str, Any]], BeforeValidator(objective_list)]

Weights = dict[str, Annotated[float, Field(ge=0)]]
"""Name -> how much it counts."""
Scales = dict[str, Annotated[float, Field(gt=0)]]
"""Name -> what its numbers are divided by."""
