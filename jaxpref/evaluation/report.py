"""The result of an evaluation: as JSON, and as a table to read."""

import dataclasses
import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxpref.evaluation.bootstrap import Estimate
from jaxpref.files import whole_file
from jaxpref.storage.paths import as_path
from jaxpref.text_tables import whole

_UNITS = {
    "rewards/accuracies": "share of groups",
    "rewards/ties": "share of groups",
    "rewards/roc_area": "share of pairs of answers",
    "rewards": "nats",
    "logps_per_token": "nats per token",
    "logps": "nats per answer",
    "kl_k1_per_token": "nats per token",
    "kl_k3_per_token": "nats per token",
    "kl": "nats per answer",
    "lengths/chosen_longer": "share of groups",
    "lengths/margin_correlation": "correlation, -1 to 1",
    "lengths": "tokens",
    "calibration/ece": "probability",
    "calibration/brier": "0 to 1; 0.25 at equal rewards",
    "calibration/nll": "nats; 0.693 at equal rewards",
    "entropy": "nats per token",
    "mean_token_accuracy": "share of tokens",
    "win_rate/": "share of comparisons, ties half",
    "ties/": "share of comparisons",
    "expected_win_rate/": "probability",
    "length_correlation/": "correlation, -1 to 1",
    "characters": "characters",
}
"""Start of a name -> unit; the first that fits is taken."""


def unit_of(name: str) -> str:
    """The unit of a value; empty for a metric of an objective that is not listed."""
    return next((unit for start, unit in _UNITS.items() if name.startswith(start)), "")


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Quartiles and extremes, by the names of a table's columns."""
    names = ("least", "quarter", "median", "three_quarters", "most")
    at = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    return {name: float(value) for name, value in zip(names, at, strict=True)}


@dataclass(frozen=True)
class Report:
    """What an evaluation measured.

    Args:
        about: what was evaluated, on what, and how intervals were made.
        sections: title -> name -> value with interval; a name is unique in the report.
        metrics: as training logs them.
        tables: further results, each a list of rows.
        left_out: what makes no sense here, and why.
        notes: what must be known to read the values.
    """

    about: Mapping[str, Any]
    sections: Mapping[str, Mapping[str, Estimate]]
    metrics: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def estimates(self) -> dict[Any, Estimate]:
        """Those of all sections."""
        together: dict[str, Estimate] = {}
        for section in self.sections.values():
            together |= section
        return together

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it; there the sections are `estimates`, in the order of the table."""
        report = dataclasses.asdict(self)
        del report["sections"]
        report["estimates"] = {
            name: dataclasses.asdict(estimate) | {"unit": unit_of(name)}
            for name, estimate in self.estimates.items()
        }
        return report

    def write(self, path: str | Path) -> Path:
        """Writes strict JSON, whole or not at all; numbers that are not finite are null there."""
        with whole_file(path) as partial:
            partial.write_text(
                json.dumps(_finite(self.as_dict()), indent=1, allow_nan=False) + "\n"
            )
        return as_path(path)

    def show(self, console: Console) -> None:
        """Prints a table of the estimates, then what was left out and the notes."""
        level = self.about["bootstrap"]["level"]
        table = Table(
            "",
            "value",
            f"{level:.0%} interval",
            "unit",
            title=self.about["title"],
            title_justify="left",
            box=SIMPLE,
        )
        labels = {
            name: f"  {name.removeprefix(f'{title}/').removesuffix(f'/{title}')}"
            for title, section in self.sections.items()
            for name in section
        }
        longest = max(map(len, labels.values()), default=0)
        # Units are broken between words before names are; names of files may be too long for that.
        table.columns[0].no_wrap = 2 * longest <= console.width
        table.columns[1].justify = "right"
        for title, section in self.sections.items():
            table.add_section()
            table.add_row(Text(textwrap.fill(title, max(longest, len("reference"))), "bold"))
            for name, estimate in section.items():
                ends = estimate.low, estimate.high
                interval = "" if None in ends else f"{ends[0]:.4g} to {ends[1]:.4g}"
                table.add_row(Text(labels[name]), f"{estimate.value:.4g}", interval, unit_of(name))
        console.print(whole(table), highlight=False)
        for name, reason in self.left_out.items():
            console.print(f"left out: {name}: {reason}", highlight=False, markup=False)
        for note in self.notes:
            console.print(f"note: {note}", highlight=False, markup=False)


def is_report(path: Path) -> bool:
    """Whether a file is what `Report.write` wrote."""
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(stored, dict) and {"about", "estimates"} <= set(stored)


def split_defined(
    estimates: Mapping[str, Estimate], reasons: Mapping[str, str]
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """The estimates with a finite value, and for the others why they have none.

    Args:
        reasons: start of a name -> reason; the first that fits is given.
    """
    defined, undefined = {}, {}
    for name, estimate in estimates.items():
        if math.isfinite(estimate.value):
            defined[name] = estimate
        else:
            fitting = (reason for start, reason in reasons.items() if name.startswith(start))
            undefined[name] = next(fitting, "no group has a finite value")
    return defined, undefined


def write_rows(rows: Iterable[Mapping[str, Any]], path: str | Path) -> Path:
    """Writes one JSON object per line; numbers that are not finite are null."""
    with whole_file(path) as partial, partial.open("w") as stream:
        stream.writelines(
            json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows
        )
    return as_path(path)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
