"""Runs side by side: what differs in their settings, their last metrics, and their curves."""

import base64
import re
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from rich.box import SIMPLE
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Table

from jaxpref.errors import InputError
from jaxpref.models.parameters import flatten
from jaxpref.objectives import OBJECTIVES
from jaxpref.objectives.about import defaults
from jaxpref.runs.directory import RUN_FILE, is_run, objective_from_python
from jaxpref.runs.metrics import read_history
from jaxpref.runs.plots import drawn, grid
from jaxpref.settings import load_config, to_dict
from jaxpref.storage.paths import as_path
from jaxpref.text_tables import whole

_METRICS = {
    "loss": "loss",
    "eval/loss": "held-out loss",
    "eval/rewards/accuracies": "held-out accuracy",
    "eval/rewards/margins": "held-out margin",
    "eval/logps/chosen": "held-out log-prob of chosen",
    "grad_norm": "gradient norm",
}
"""Metric -> what it is called in table and figure."""
_NOT_COMPARED = ("out", "log", "compilation_cache")
_WIDTH = 110


@dataclass(frozen=True)
class Comparison:
    """Several runs: a table as text, in a notebook with a figure; `rows` for a frame."""

    runs: list[Path]
    rows: list[dict[str, Any]]
    """Per run `run`, the settings in which runs differ, `step`, and the last value of every metric
    that was logged: `pandas.DataFrame(comparison.rows)`."""
    settings: list[str]
    """Keys in which runs differ, as overrides are written."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """A table of the settings that differ and the metrics that most look at first.

        A run is a row, or where these have no room a column; what has no room then either stands in
        further tables below.
        """
        headings = {key: key for key in ("run", *self.settings, "step")}
        headings |= _shown(dict.fromkeys(name for row in self.rows for name in row))
        cells = [[_cell(row.get(name)) for name in headings] for row in self.rows]
        unbounded = options.update_width(sys.maxsize)

        def has_room(table: Table) -> bool:
            return Measurement.get(console, unbounded, table).maximum <= options.max_width

        whole = _table([*headings.values()], cells)
        if has_room(whole):
            yield whole
            return
        columns: list[list[str]] = []
        for run in cells:
            if columns and not has_room(_table_of_columns(headings, [*columns, run])):
                yield _table_of_columns(headings, columns)
                columns = []
            columns.append(run)
        yield _table_of_columns(headings, columns)

    def plot(self, png: str | Path) -> Path:
        """The curves of all runs, as a PNG.  Returns: its path."""
        histories = [read_history(run) for run in self.runs]
        logged = (name for history in histories for line in history for name in line)
        shown = _shown(dict.fromkeys(logged))
        colours = colormaps["viridis"].resampled(max(len(self.runs), 2))
        with drawn(png, *grid(len(shown))) as axes:
            for axis in axes.flat[len(shown) :]:
                axis.set_axis_off()
            for axis, name in zip(axes.flat, shown, strict=False):
                style = "o-" if name.startswith("eval/") else "-"
                for i, (row, history) in enumerate(zip(self.rows, histories, strict=True)):
                    points = [(line["step"], line[name]) for line in history if name in line]
                    if points:
                        steps, values = zip(*points, strict=True)
                        label, colour = self._label(row), colours(i / max(len(self.runs) - 1, 1))
                        axis.plot(steps, values, style, label=label, color=colour, markersize=3)
                axis.set(title=shown[name], xlabel="step")
            if shown:
                axes.flat[0].legend()
        return as_path(png)

    def _label(self, row: Mapping[str, Any]) -> str:
        told = [f"{key.split('.')[-1]}={_cell(row.get(key))}" for key in self.settings]
        return ", ".join(told) if 0 < len(told) <= 3 else row["run"]

    def __repr__(self) -> str:
        console = Console(width=_WIDTH, color_system=None, force_jupyter=False)
        with console.capture() as text:
            console.print(self)
        return text.get().strip("\n")

    def _repr_html_(self) -> str:
        with tempfile.TemporaryDirectory() as directory:
            image = base64.b64encode(self.plot(Path(directory) / "curves.png").read_bytes())
        return (
            f"<pre>{escape(repr(self))}</pre>"
            f'<img src="data:image/png;base64,{image.decode()}" style="max-width:100%">'
        )


def compare(runs: Any) -> Comparison:
    """Runs side by side.

    Args:
        runs: directories of runs, what `train` returned, and sweeps for all their runs; one of
            these, or a list of them.
    Errors: InputError for a directory that holds none.
    """
    given = list(runs) if isinstance(runs, Iterable) and not isinstance(runs, str) else [runs]
    each = [run for one in given for run in getattr(one, "results", [one])]
    paths = [as_path(getattr(run, "out", run)) for run in each]
    if missing := [str(path) for path in paths if not is_run(path)]:
        raise InputError(
            f"directories of runs, with {RUN_FILE} in each",
            ", ".join(missing),
            "name the directories that `out` gave the runs",
        )
    if not paths:
        raise InputError("runs to compare", "none", "name their directories")
    chosen_in = [_settings(path) for path in paths]
    keys = dict.fromkeys(key for one in chosen_in for key in _flat(one))
    # What nobody sets is not shown, but what one run sets is compared with the others' defaults.
    settings = [_flat(_with_defaults(one)) for one in chosen_in]
    differing = [
        key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)
    ]
    rows = []
    for path, name, one in zip(paths, _names(paths), settings, strict=True):
        last: dict[str, Any] = {}
        for line in read_history(path):
            last |= line
        chosen = {key: one.get(key) for key in differing}
        rows.append({"run": name} | chosen | {"step": last.pop("step", 0)} | last)
    return Comparison(paths, rows, differing)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Of texts, the first of every row to the left."""
    table = Table(headings[0], box=SIMPLE)
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    return whole(table)


def _table_of_columns(headings: Mapping[str, str], columns: Sequence[Sequence[str]]) -> Table:
    """As `_table`, a run in every column."""
    first, *rows = zip(headings.values(), *columns, strict=True)
    return _table(first, rows)


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, where these tell them apart."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _settings(run: Path) -> dict[str, Any]:
    settings = to_dict(load_config(run / RUN_FILE))
    if functions := objective_from_python(run):
        settings["objective"] = [{"name": name} for name in functions]
    return settings


def _shown(logged: Collection[str]) -> dict[str, str]:
    """Metric -> heading, of those that were logged; held-out sets with names have one each."""
    shown = {}
    for metric, heading in _METRICS.items():
        pattern = re.escape(metric).replace("eval/", "eval/(?:(?P<set>[^/]+)/)?", 1)
        for name in logged:
            if matched := re.fullmatch(pattern, name):
                of_set = matched.groupdict().get("set")
                shown[name] = f"{heading}, {of_set}" if of_set else heading
    return shown


def _with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with what objectives have where nothing is set."""
    objective = []
    for part in settings["objective"]:
        function = OBJECTIVES.get(part["name"])
        unset = {} if function is None else defaults(function)
        objective.append({"weight": 1.0} | unset | part)
    return {**settings, "objective": objective}


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`objective.0.beta` -> value, of what may differ in the results."""
    objectives = {str(i): part for i, part in enumerate(settings["objective"])}
    kept = {k: v for k, v in settings.items() if k not in _NOT_COMPARED}
    return flatten(kept | {"objective": objectives}, ".")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
