"""The keys of a config with their defaults and meanings, as `--help` lists them."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, get_args

from jaxpref.config import Config

REQUIRED = object()
"""In place of the default of a key that has none."""


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
    """Two lines for every key."""
    rows = []
    for key, default, meaning in keys(cls, prefix):
        value = "(required)" if default is REQUIRED else f"= {json.dumps(default)}"
        rows.append(f"  {key} {value}\n      {meaning}")
    return "keys, with defaults:\n" + "\n".join(rows)
