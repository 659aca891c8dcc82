"""Several fronts as one: those of several seeds, or two that are compared."""

import re
from collections.abc import Sequence
from dataclasses import replace

from jaxpref.errors import InputError
from jaxpref.pareto.front import Front, Point

_REFERENCE = "reference"


def of_seeds(fronts: Sequence[Front]) -> Front:
    """One front of several seeds: points are called by their seed, and the reference is one point.

    Args:
        fronts: of the same configuration but for the seed.
    """
    _check_comparable([(f"seed {front.points[0].seed}", front) for front in fronts])
    first = fronts[0]
    points = list(_references(first))
    for front in fronts:
        points += [
            replace(point, name=f"{point.name}_seed{point.seed}")
            for point in front.points
            if point.method != _REFERENCE
        ]
    about = dict(first.about) | {"seeds": [front.points[0].seed for front in fronts]}
    return replace(first, points=points, about=about)


def compared(fronts: Sequence[tuple[str, Front]]) -> tuple[Front, list[tuple[str, str]]]:
    """Two fronts as one, and the pairs of methods that are in both.

    Args:
        fronts: two, each with its label; the second is held against the first.
    Returns: the front, methods called as `modpo.LABEL`; (method of the second, of the first).
    Errors: InputError for fronts of other objectives or prompts.
    """
    _check_comparable(fronts)
    (first_label, first), (second_label, second) = fronts
    first_name, second_name = _names(first_label, second_label)
    points = [_of_front(point, first_name) for point in first.points]
    points += [_of_front(point, second_name) for point in second.points]
    methods = [dict.fromkeys(point.method for point in front.points) for front in (first, second)]
    pairs = [
        (f"{method}.{second_name}", f"{method}.{first_name}")
        for method in methods[1]
        if method in methods[0] and method not in (_REFERENCE, "dpo")
    ]
    about = {first_name: dict(first.about), second_name: dict(second.about)}
    title = f"{second_label} against {first_label}"
    return replace(first, title=title, points=points, about=about), pairs


def _references(front: Front) -> list[Point]:
    return [point for point in front.points if point.method == _REFERENCE]


def _of_front(point: Point, name: str) -> Point:
    return replace(point, name=f"{point.name}.{name}", method=f"{point.method}.{name}")


def _names(first: str, second: str) -> tuple[str, str]:
    """Labels as parts of names: letters, digits and _ - only, and not the same."""
    one, other = (re.sub(r"[^\w-]", "_", label, flags=re.ASCII) for label in (first, second))
    return (one, other) if one != other else (f"{one}_A", f"{other}_B")


def _check_comparable(fronts: Sequence[tuple[str, Front]]) -> None:
    (first_label, first), *others = fronts
    for label, front in others:
        for what in ("objectives", "measure", "prompts"):
            if getattr(front, what) != getattr(first, what):
                raise InputError(
                    "fronts of the same objectives, measured on the same prompts",
                    f"{first_label} and {label} have other {what}",
                    "measure both with the same pareto.objectives and pareto.answers",
                )
