"""Points (policies) and the fronts they make, with what they reached and what they cost.

Plain records, which front.json holds whole.  More is better in every measure that is an axis.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from jaxpref.errors import InputError
from jaxpref.evaluation.bootstrap import Estimate
from jaxpref.pareto.cost import Cost, Work
from jaxpref.storage.paths import as_path

Record = TypeVar("Record")


@dataclass(frozen=True)
class Point:
    """One policy.

    Args:
        name: unique in its front, and good as a name of a directory.
        method: how it was made, a name of `pareto.methods`, `reference` or another; of several
            fronts that are compared with the front behind a dot.
        weights: objective -> weight, >= 0 and not all 0; None where there are none (the reference).
        base: objective whose pairs it was trained on.
        seed: of its training.  Points of one method and seed are a sweep.
        run: directory of its run.
        estimates: measure -> objective -> value with interval.  Measures are `reward` (mean of
            generated answers), `accuracy` (share of the objective's held-out pairs) and any others.
        cost: of its training.
        curves: lines of its metrics, {step, metric: value}; numbers that are not finite become
            None.
        answers: one for each of the front's prompts, or none.
        rewards: objective -> rewards of these answers, or empty.
    Errors: InputError for a name or method that cannot be a directory, and for numbers that are not
        finite.
    """

    name: str
    method: str
    weights: Mapping[str, float] | None
    base: str | None
    seed: int
    run: str | None
    estimates: Mapping[str, Mapping[str, Estimate]]
    cost: Cost = Cost()
    curves: Sequence[Mapping[str, Any]] = ()
    answers: Sequence[str] = ()
    rewards: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_names()
        self._make_plain()
        self._check_numbers()

    def _check_names(self) -> None:
        for name in (self.name, self.method):
            if not re.fullmatch(r"[A-Za-z0-9][\w.=+-]*", name, re.ASCII):
                raise InputError(
                    "a name of letters, digits and . _ = + -",
                    f"point {self.name!r}: {name!r}",
                    "replace the other characters of the name",
                )

    def _make_plain(self) -> None:
        """Turns all numbers into Python's, and sequences into lists, as JSON gives them back."""
        plain = {
            "estimates": {
                measure: {name: _plain_estimate(e) for name, e in of_objectives.items()}
                for measure, of_objectives in self.estimates.items()
            },
            "cost": Cost(
                _plain_work(self.cost.own),
                {name: _plain_work(work) for name, work in self.cost.shared.items()},
                int(self.cost.together),
            ),
            "curves": _plain(self.curves),
            "answers": list(self.answers),
            "rewards": {name: [float(x) for x in values] for name, values in self.rewards.items()},
        }
        if self.weights is not None:
            plain["weights"] = {name: float(weight) for name, weight in self.weights.items()}
        for key, value in plain.items():
            object.__setattr__(self, key, value)

    def _check_numbers(self) -> None:
        for what, value in self._numbers():
            if not math.isfinite(value):
                raise InputError(
                    "finite numbers",
                    f"point {self.name}, {what}: {value}",
                    "measure the point again, or remove it from the front",
                )
        if self.weights is None:
            return
        weights = self.weights.values()
        if min(weights) < 0 or sum(weights) <= 0:
            raise InputError(
                "weights >= 0, not all 0",
                f"point {self.name}: {self.weights}",
                "set every weight to 0 or more and at least one above 0",
            )

    def _numbers(self) -> Iterator[tuple[str, float]]:
        """All that must be finite, each with what it is."""
        for name, weight in (self.weights or {}).items():
            yield f"weight of {name}", weight
        for measure, of_objectives in self.estimates.items():
            for name, estimate in of_objectives.items():
                for value in (estimate.value, estimate.low, estimate.high):
                    if value is not None:
                        yield f"{measure} of {name}", value
        for name, values in self.rewards.items():
            for value in values:
                yield f"rewards of {name}", value
        for name, work in {"own": self.cost.own, **self.cost.shared}.items():
            for key, value in vars(work).items():
                if value is not None:
                    yield f"{name}, {key}", value


@dataclass(frozen=True)
class Front:
    """All points of a study, compared on the same data.

    Args:
        title: of figure and report.
        objectives: two or more; the axes, in the order in which weights are shown.
        measure: what the axes show.
        points: in the order of tables.
        prompts: of the answers; a prompt that was answered several times is there as often.
        pictures: of every prompt, as `data:` URLs; empty: none has any.
        about: what else belongs to the record (configuration, versions, seeds, commands), as JSON
            can hold it.
    Errors: InputError where points do not fit each other.
    """

    title: str
    objectives: Sequence[str]
    measure: Literal["reward", "accuracy"]
    points: Sequence[Point]
    prompts: Sequence[str] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    pictures: Sequence[Sequence[str]] = ()

    def __post_init__(self) -> None:
        for key in ("objectives", "points", "prompts", "pictures"):
            object.__setattr__(self, key, list(getattr(self, key)))
        object.__setattr__(self, "about", _plain(self.about))
        if problems := list(self._problems()):
            raise InputError(
                "points that can be compared",
                "\n          ".join(problems),
                "change or remove these points",
            )

    def _problems(self) -> Iterator[str]:
        if self.measure not in ("reward", "accuracy"):
            yield f"measure {self.measure!r}; it is reward or accuracy, of which more is better"
        if len(self.objectives) < 2 or len(set(self.objectives)) < len(self.objectives):
            yield f"objectives: {self.objectives}; two or more of different names are needed"
        if not self.points:
            yield "no points"
        if self.pictures and len(self.pictures) != len(self.prompts):
            yield f"pictures of {len(self.pictures)} prompts, of {len(self.prompts)}"
        for name, count in Counter(point.name for point in self.points).items():
            if count > 1:
                yield f"{count} points named {name}"
        for point in self.points:
            for problem in self._misfits(point):
                yield f"{point.name}: {problem}"

    def _misfits(self, point: Point) -> Iterator[str]:
        known = set(self.objectives)
        measured = point.estimates.get(self.measure, {})
        for name in self.objectives:
            if name not in measured:
                yield f"no {self.measure} of {name}"
        if point.weights is not None and set(point.weights) != known:
            weighted, objectives = ", ".join(point.weights), ", ".join(self.objectives)
            yield f"weights of {weighted}, objectives are {objectives}"
        if point.answers and len(point.answers) != len(self.prompts):
            yield f"{len(point.answers)} answers to {len(self.prompts)} prompts"
        if unknown := sorted(set(point.rewards) - known):
            yield f"rewards of {', '.join(unknown)}, which is no objective"
        for name, values in point.rewards.items():
            if len(values) != len(point.answers):
                yield f"{len(values)} rewards of {name} for {len(point.answers)} answers"

    @property
    def values(self) -> np.ndarray:
        """[X, O] of the measure: one row per point, one column per objective."""
        return np.array(
            [
                [point.estimates[self.measure][name].value for name in self.objectives]
                for point in self.points
            ]
        )


def front_json(front: Front) -> dict[str, Any]:
    """The front as JSON holds it."""
    return TypeAdapter(Front).dump_python(front, mode="json")


def read_front(path: str | Path) -> Front:
    """The front that `write_front` wrote; it is equal to that one.

    Args:
        path: front.json, or its directory.
    Errors: InputError where there is none.
    """
    return _read(path, "front", Front)


def read_reference_point(path: str | Path) -> dict[str, float]:
    """The reference point from which the hypervolumes of a written front were measured.

    Args, errors: as of `read_front`.
    """
    return _read(path, "results", _Results).reference_point


def read_pairs(path: str | Path) -> list[tuple[str, str]]:
    """The pairs of methods, (method, baseline), whose differences a written front has.

    Args, errors: as of `read_front`.
    """
    differences = _read(path, "results", _Results).differences
    return [(difference["method"], difference["baseline"]) for difference in differences]


@dataclass(frozen=True)
class _Results:
    """What is read again of what follows from a front."""

    reference_point: dict[str, float]
    differences: list[dict[str, Any]] = field(default_factory=list)


def _read(path: str | Path, key: str, record: type[Record]) -> Record:
    """One of the two records in a front.json."""
    path = as_path(path)
    path = path / "front.json" if path.is_dir() else path
    fix = "name a directory that `jaxpref pareto` wrote"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))[key]
        return TypeAdapter(record).validate_python(content)
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError("a front.json", f"{path}: {type(error).__name__}: {error}", fix) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError("a front.json", f"{path}, {place}: {first['msg']}", fix) from error


def _plain_estimate(estimate: Estimate) -> Estimate:
    return Estimate(*map(_plain_float, (estimate.value, estimate.low, estimate.high)))


def _plain_work(work: Work) -> Work:
    return Work(*map(_plain_float, (work.flops, work.seconds)))


def _plain_float(x: Any) -> float | None:
    return None if x is None else float(x)


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
