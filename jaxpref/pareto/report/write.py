"""A front, written: JSON, table, figure and page."""

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxpref.evaluation.bootstrap import DEFAULT, Bootstrap
from jaxpref.files import whole_file
from jaxpref.pareto.cost import separate_work, total_work
from jaxpref.pareto.dominance import dominated, violations
from jaxpref.pareto.front import Front, front_json
from jaxpref.pareto.hypervolume import Achieved, achieved, checked_reference
from jaxpref.pareto.report.figure import plot_front
from jaxpref.pareto.report.html import report_html
from jaxpref.pareto.report.style import sweep_label


def write_front(
    front: Front,
    directory: str | Path,
    *,
    reference: Mapping[str, float] | None = None,
    bootstrap: Bootstrap = DEFAULT,
) -> dict[str, Any]:
    """Writes front.json (all of it, and what follows from it), front.csv (a row a point), front.png
    and report.html.

    Args:
        reference: objective -> value, the point that hypervolumes are above; otherwise
            `hypervolume.default_reference`.
        bootstrap: of the hypervolumes' intervals.
    Returns: what follows: hypervolumes, dominated points, violations, as front.json has them under
        `results`.
    Errors: InputError for a reference point that does not fit.
    """
    reference = checked_reference(front, reference)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    found = achieved(front, reference, bootstrap)
    results = _results(front, found, reference, bootstrap)
    record = {"front": front_json(front), "results": results}
    _write(directory / "front.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    _write_table(front, directory / "front.csv")
    plot_front(front, found, reference, directory / "front.png", level=bootstrap.level)
    _write(directory / "report.html", report_html(front, record))
    return results


def _results(
    front: Front, found: list[Achieved], reference: Mapping[str, float], bootstrap: Bootstrap
) -> dict[str, Any]:
    return {
        "reference_point": dict(reference),
        "dominated": [
            p.name for p, worse in zip(front.points, dominated(front.values), strict=True) if worse
        ],
        "sweeps": [_sweep(front, one) for one in found],
        "violations": [asdict(violation) for violation in violations(front)],
        "bootstrap": asdict(bootstrap),
    }


def _sweep(front: Front, found: Achieved) -> dict[str, Any]:
    names = lambda places: [front.points[at].name for at in places]
    sweep = found.sweep
    costs = [front.points[at].cost for at in sweep.points]
    return {
        "method": sweep.method,
        "seed": sweep.seed,
        "label": sweep_label(front, sweep),
        "points": names(sweep.points),
        "ends": names(sweep.ends),
        "hypervolume": asdict(found.volume),
        "share": found.share,
        "cost": asdict(total_work(costs)),
        "separate_cost": asdict(separate_work(costs)),
    }


def _write_table(front: Front, path: Path) -> None:
    worse_X = dominated(front.values)
    rows = [_row(front, at) | {"dominated": int(worse_X[at])} for at in range(len(front.points))]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def _row(front: Front, at: int) -> dict[str, Any]:
    """One point; what it has not is empty."""
    point = front.points[at]
    row = {key: getattr(point, key) for key in ("name", "method", "seed", "base")}
    row |= {f"weight/{name}": (point.weights or {}).get(name) for name in front.objectives}
    for measure, estimates in point.estimates.items():
        for name, estimate in estimates.items():
            column = f"{measure}/{name}"
            row |= {
                column: estimate.value,
                f"{column}/low": estimate.low,
                f"{column}/high": estimate.high,
            }
    shared = {f"shared_{key}": value for key, value in asdict(point.cost.all_shared).items()}
    return (
        row | asdict(point.cost.own) | shared | {"together": point.cost.together, "run": point.run}
    )


def _write(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
