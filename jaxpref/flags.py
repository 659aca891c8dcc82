"""Values of flags that several commands take."""

from collections.abc import Iterable, Mapping, Sequence

from jaxpref.errors import InputError


def named(items: Sequence[str], flag: str) -> dict[str, str]:
    """`NAME=VALUE` items as a mapping.  Errors: InputError for another form, and for a name that is given twice."""
    found: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals and value) or name in found:
            raise InputError(f"{flag} NAME=..., each name once", item, "correct it")
        found[name] = value
    return found


def numbers(named: Mapping[str, str]) -> dict[str, float]:
    """The values as numbers.  Errors: InputError for one that is none."""
    try:
        return {name: float(value) for name, value in named.items()}
    except ValueError as error:
        raise InputError("numbers", f"{dict(named)}: {error}", "correct them") from error


def for_all_models(overrides: Iterable[str]) -> list[str]:
    """Overrides that fit every model which takes part: where and in which dtype it runs.

    Errors: InputError for any other.
    """
    fit = [item for item in overrides if item.startswith(("mesh.", "model.compute_dtype="))]
    if odd := [item for item in overrides if item not in fit]:
        raise InputError("with rewards: overrides of mesh.* or model.compute_dtype", ", ".join(odd), "leave them out")
    return fit
