"""A front as files: JSON, table, figure and page."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxpref.evaluation.bootstrap import DEFAULT, Bootstrap
from jaxpref.files import whole_file
from jaxpref.pareto.cost import separate_work, total_work
from jaxpref.pareto.dominance import dominated, violations
from jaxpref.pareto.front import Front, Point, front_json
from jaxpref.pareto.hypervolume import SweepVolume, checked_reference, sweep_volumes
from jaxpref.pareto.measures import MEASURES, Difference, MethodMeasures, front_measures
from jaxpref.pareto.report.figure import plot_front
from jaxpref.pareto.report.page import report_html
from jaxpref.pareto.report.style import sweep_label
from jaxpref.storage.paths import as_path


def write_front(
    front: Front,
    directory: str | Path,
    *,
    reference: Mapping[str, float] | None = None,
    bootstrap: Bootstrap = DEFAULT,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """Writes front.json, front.csv (one row per point), front.png and report.html.

    Args:
        reference: objective -> value, the reference point of the hypervolumes; otherwise
            `hypervolume.default_reference`.
        bootstrap: of the intervals.
        pairs: of methods whose differences are shown, as of `measures.front_measures`.
    Returns: what follows from the front: hypervolumes and other measures, dominated points,
        violations, as front.json has them under `results`.
    Errors: InputError for a reference point that does not fit.
    """
    reference = checked_reference(front, reference)
    directory = as_path(directory)
    volumes = sweep_volumes(front, reference, bootstrap)
    results = _results(front, volumes, reference, bootstrap)
    results |= _measures(front, reference, bootstrap, pairs)
    record = {"front": front_json(front), "results": results}
    _write(directory / "front.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    _write_table(front, directory / "front.csv")
    plot_front(front, volumes, reference, directory / "front.png", level=bootstrap.level)
    _write(directory / "report.html", report_html(front, record))
    return results


def _results(
    front: Front, volumes: list[SweepVolume], reference: Mapping[str, float], bootstrap: Bootstrap
) -> dict[str, Any]:
    dominated_X = dominated(front.values)
    return {
        "reference_point": dict(reference),
        "dominated": [
            point.name
            for point, is_dominated in zip(front.points, dominated_X, strict=True)
            if is_dominated
        ],
        "sweeps": [_sweep(front, volume) for volume in volumes],
        "violations": [asdict(violation) for violation in violations(front)],
        "bootstrap": asdict(bootstrap),
    }


def _measures(
    front: Front,
    reference: Mapping[str, float],
    bootstrap: Bootstrap,
    pairs: Sequence[tuple[str, str]] | None,
) -> dict[str, Any]:
    methods: Sequence[MethodMeasures] = ()
    differences: Sequence[Difference] = ()
    if front.measure == "reward":
        methods, differences = front_measures(front, reference, bootstrap, pairs)
    return {
        "measure_notes": [list(note) for note in MEASURES.items()],
        "measures": [asdict(measured) for measured in methods],
        "differences": [asdict(difference) for difference in differences],
    }


def _sweep(front: Front, volume: SweepVolume) -> dict[str, Any]:
    sweep = volume.sweep
    costs = [front.points[index].cost for index in sweep.points]
    return {
        "method": sweep.method,
        "seed": sweep.seed,
        "label": sweep_label(front, sweep),
        "points": [front.points[index].name for index in sweep.points],
        "ends": [front.points[index].name for index in sweep.ends],
        "hypervolume": asdict(volume.volume),
        "share": volume.share,
        "cost": asdict(total_work(costs)),
        "separate_cost": asdict(separate_work(costs)),
    }


def _write_table(front: Front, path: Path) -> None:
    dominated_X = dominated(front.values)
    rows = [
        {**_row(front, point), "dominated": int(is_dominated)}
        for point, is_dominated in zip(front.points, dominated_X, strict=True)
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(rows)


def _row(front: Front, point: Point) -> dict[str, Any]:
    """One point; a cell is empty where it has no such value."""
    row = {key: getattr(point, key) for key in ("name", "method", "seed", "base")}
    row |= {f"weight/{name}": (point.weights or {}).get(name) for name in front.objectives}
    for measure, estimates in point.estimates.items():
        for name, estimate in estimates.items():
            row[f"{measure}/{name}"] = estimate.value
            row[f"{measure}/{name}/low"] = estimate.low
            row[f"{measure}/{name}/high"] = estimate.high
    row |= asdict(point.cost.own)
    row |= {f"shared_{key}": value for key, value in asdict(point.cost.all_shared).items()}
    row |= {"together": point.cost.together, "run": point.run}
    return row


def _write(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
