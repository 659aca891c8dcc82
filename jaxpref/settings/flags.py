"""Values of command-line flags that several commands take."""

from collections.abc import Iterable, Mapping, Sequence

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
    """The values as numbers.  Errors: InputError for one that is none."""
    try:
        return {name: float(value) for name, value in named.items()}
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
