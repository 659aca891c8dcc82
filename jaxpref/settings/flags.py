"""Values of command-line flags that several commands take."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxpref.errors import InputError


def named(items: Sequence[str], flag: str) -> dict[str, str]:
    """`NAME=VALUE` items as a mapping.

    Errors: InputError for another form, and for a name that is given twice.
    """
    values: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise InputError(f"{flag} NAME=...", item, "write the name, = and what it stands for")
        if name in values:
            raise InputError(f"{flag} with each name once", item, f"give one value for {name}")
        values[name] = value
    return values


def numbers(named: Mapping[str, str]) -> dict[str, float]:
    """The values as numbers.  Errors: InputError for one that is none, or not finite."""
    try:
        values = {name: float(value) for name, value in named.items()}
        if wrong := [name for name, value in values.items() if not math.isfinite(value)]:
            raise ValueError(f"not finite: {', '.join(wrong)}")
        return values
    except ValueError as error:
        raise InputError(
            "numbers", f"{dict(named)}: {error}", "write each value as a number, as 0.5"
        ) from error


def for_all_models(overrides: Iterable[str]) -> list[str]:
    """Overrides that fit every model which takes part: where, in which dtype, on which date.

    Errors: InputError for any other.
    """
    overrides = list(overrides)
    fitting = ("mesh.", "model.compute_dtype=", "data.date=")
    others = [x for x in overrides if not x.startswith(fitting)]
    if others:
        raise InputError(
            "with rewards: overrides of mesh.*, model.compute_dtype or data.date",
            ", ".join(others),
            "remove the other overrides",
        )
    return overrides


def weighted_policies(given: Any) -> tuple[tuple[Any, float], ...]:
    """Policies with their weights.

    Args:
        given: source -> weight, pairs of these, or a text as of `parse_policies`.
    Errors: InputError for anything else.
    """
    if isinstance(given, str):
        return parse_policies(given)
    try:
        pairs = given.items() if isinstance(given, Mapping) else given
        return tuple((source, float(weight)) for source, weight in pairs)
    except (TypeError, ValueError) as error:
        raise InputError(
            "policies with weights, as {run_a: 0.3, run_b: 0.7}",
            f"{given!r:.200}: {error}",
            "give every policy a number as its weight",
        ) from error


def parse_policies(text: str) -> tuple[tuple[str, float], ...]:
    """`run_a:0.3,run_b:0.7` -> policies of a mix or a soup."""
    return tuple(_parse_policy(item) for item in text.split(","))


def _parse_policy(item: str) -> tuple[str, float]:
    source, _, weight = item.strip().rpartition(":")
    try:
        parsed = float(weight)
    except ValueError:
        parsed = None
    if not source or parsed is None:
        raise InputError(
            "policies with weights, as run_a:0.3,run_b:0.7", f"{item!r}", "write SOURCE:WEIGHT"
        )
    return source, parsed
