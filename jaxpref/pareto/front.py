"""What a front is made of: points (policies) with what they reached in every objective, and what
they cost.

Plain records, which front.json holds whole.  More is better in every measure that is an axis.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from jaxpref.errors import InputError
from jaxpref.evaluation.bootstrap import Estimate
from jaxpref.pareto.cost import Cost, Work


@dataclass(frozen=True)
class Point:
    """One policy.

    Args:
        name: unique in its front, and good as a name of a directory.
        method: how it was made: reference, dpo, modpo, mod, soup_deltas, soup_factors, or another.
        weights: objective -> weight, >= 0 and not all 0; None where there are none (the reference).
        base: objective whose pairs it was trained on.
        seed: of its training.  Points of one method and seed are a sweep.
        run: directory of its run.
        estimates: measure -> objective -> value with interval.  Measures are `reward` (mean of
            generated answers), `accuracy` (share of the objective's held-out pairs) and any others.
        cost: of its training.
        curves: lines of its metrics, {step, metric: value}; what is not finite becomes None.
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
        for name in (self.name, self.method):
            if not re.fullmatch(r"[A-Za-z0-9][\w.=+-]*", name, re.ASCII):
                raise InputError(
                    "a name of letters, digits and . _ = + -",
                    f"point {self.name!r}: {name!r}",
                    "rename it",
                )
        of = lambda key, value: object.__setattr__(self, key, value)
        of(
            "estimates",
            {m: {o: _estimate(e) for o, e in found.items()} for m, found in self.estimates.items()},
        )
        of(
            "weights",
            None if self.weights is None else {o: float(w) for o, w in self.weights.items()},
        )
        cost = self.cost
        of(
            "cost",
            Cost(
                _work(cost.own),
                {name: _work(x) for name, x in cost.shared.items()},
                int(cost.together),
            ),
        )
        of("curves", _plain(self.curves))
        of("answers", list(self.answers))
        of("rewards", {o: [float(x) for x in values] for o, values in self.rewards.items()})
        for what, value in self._numbers():
            if not math.isfinite(value):
                raise InputError(
                    "finite numbers", f"point {self.name}, {what}: {value}", "leave the point out"
                )
        weights = [0.0, 1.0] if self.weights is None else list(self.weights.values())
        if min(weights) < 0 or sum(weights) <= 0:
            raise InputError(
                "weights >= 0, not all 0", f"point {self.name}: {self.weights}", "correct them"
            )

    def _numbers(self) -> list[tuple[str, float]]:
        """All that must be finite, each with what it is."""
        found = [(f"weight of {name}", weight) for name, weight in (self.weights or {}).items()]
        for measure, estimates in self.estimates.items():
            for name, e in estimates.items():
                found += [
                    (f"{measure} of {name}", x) for x in (e.value, e.low, e.high) if x is not None
                ]
        found += [
            (f"rewards of {name}", x) for name, values in self.rewards.items() for x in values
        ]
        works = {"own": self.cost.own, **self.cost.shared}
        costs = [
            (f"{name}, {key}", x) for name, work in works.items() for key, x in vars(work).items()
        ]
        return found + [(name, value) for name, value in costs if value is not None]


@dataclass(frozen=True)
class Front:
    """All points of a study, compared on the same data.

    Args:
        title: of figure and report.
        objectives: two or more; the axes, in the order in which weights are shown.
        measure: what the axes show.
        points: in the order of tables.
        prompts: of the answers; a prompt that was answered several times is there as often.
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

    def __post_init__(self) -> None:
        for key in ("objectives", "points", "prompts"):
            object.__setattr__(self, key, list(getattr(self, key)))
        object.__setattr__(self, "about", _plain(self.about))
        problems = self._problems()
        if problems:
            raise InputError(
                "points that can be compared", "\n          ".join(problems), "correct the points"
            )

    def _problems(self) -> list[str]:
        found, names = [], Counter(point.name for point in self.points)
        if self.measure not in ("reward", "accuracy"):
            found.append(
                f"measure {self.measure!r}; it is reward or accuracy, of which more is better"
            )
        if len(self.objectives) < 2 or len(set(self.objectives)) < len(self.objectives):
            found.append(
                f"objectives: {self.objectives}; two or more of different names are needed"
            )
        if not self.points:
            found.append("no points")
        found += [f"{n} points named {name}" for name, n in names.items() if n > 1]
        return found + [
            f"{point.name}: {problem}" for point in self.points for problem in self._misfits(point)
        ]

    def _misfits(self, point: Point) -> list[str]:
        known = set(self.objectives)
        found = [
            f"no {self.measure} of {o}"
            for o in self.objectives
            if o not in point.estimates.get(self.measure, {})
        ]
        if point.weights is not None and set(point.weights) != known:
            found.append(
                f"weights of {', '.join(point.weights)}, objectives are {', '.join(self.objectives)}"
            )
        if point.answers and len(point.answers) != len(self.prompts):
            found.append(f"{len(point.answers)} answers to {len(self.prompts)} prompts")
        if not set(point.rewards) <= known:
            found.append(
                f"rewards of {', '.join(sorted(set(point.rewards) - known))}, which is no objective"
            )
        for name, values in point.rewards.items():
            if len(values) != len(point.answers):
                found.append(f"{len(values)} rewards of {name} for {len(point.answers)} answers")
        return found

    @property
    def values(self) -> np.ndarray:
        """[X, J] of the measure: a row a point, a column an objective."""
        return np.array(
            [
                [p.estimates[self.measure][name].value for name in self.objectives]
                for p in self.points
            ]
        )


def front_json(front: Front) -> dict[str, Any]:
    """The front as JSON holds it."""
    return TypeAdapter(Front).dump_python(front, mode="json")


def read_front(path: str | Path) -> Front:
    """The front that `write_front` wrote, equal to it.

    Args:
        path: front.json, or its directory.
    Errors: InputError where there is none.
    """
    path = Path(path)
    path = path / "front.json" if path.is_dir() else path
    fix = "name a directory that `jaxpref pareto` wrote"
    try:
        return TypeAdapter(Front).validate_python(
            json.loads(path.read_text(encoding="utf-8"))["front"]
        )
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError("a front.json", f"{path}: {type(error).__name__}: {error}", fix) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError("a front.json", f"{path}, {place}: {first['msg']}", fix) from error


def _estimate(found: Estimate) -> Estimate:
    """The same in Python's numbers."""
    return Estimate(
        *(None if x is None else float(x) for x in (found.value, found.low, found.high))
    )


def _work(work: Work) -> Work:
    """The same in Python's numbers."""
    return Work(*(None if x is None else float(x) for x in (work.flops, work.seconds)))


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
