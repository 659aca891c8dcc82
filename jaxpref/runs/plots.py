"""How figures look, and the curves of a run as a PNG."""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import rcsetup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxpref.errors import InputError
from jaxpref.files import whole_file
from jaxpref.runs.metrics import read_jsonl
from jaxpref.storage.paths import as_path

# Okabe and Ito's colours, which colour-blind people can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"

_PANELS = (
    ("loss", ("loss",)),
    ("reward accuracy (1 = all pairs)", ("rewards/accuracies",)),
    ("reward margin (nats)", ("rewards/margins",)),
    ("rewards (nats)", ("rewards/chosen", "rewards/rejected")),
    ("log-probs (nats)", ("logps/chosen", "logps/rejected")),
    ("gradient norm", ("grad_norm",)),
)
_NOT_DRAWN = {"entropy", "mean_token_accuracy"}


@contextmanager
def drawn(
    png: str | Path, rows: int, columns: int, *, panel: tuple[float, float] = (4.8, 3.6)
) -> Iterator[Any]:
    """Axes [rows, columns] to draw on; written to `png` at the end.

    Without pyplot, which would choose a backend for the whole process: in a notebook, the user's.

    Args:
        panel: width and height of one, in inches.
    """
    small: Any = {
        "font.size": 9,
        "axes.titlesize": 10,
        "legend.fontsize": 8,
        "legend.framealpha": 1.0,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.axisbelow": True,
        "axes.prop_cycle": rcsetup.cycler(color=[BLUE, ORANGE, GREEN, GREY]),
    }
    with matplotlib.rc_context(small):
        figure = Figure(figsize=(panel[0] * columns, panel[1] * rows), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure.subplots(rows, columns, squeeze=False)
        with whole_file(png) as partial:
            figure.savefig(partial, format="png", dpi=120)


def grid(panels: int) -> tuple[int, int]:
    """Rows and columns for so many panels, at most three side by side."""
    columns = 2 if panels == 4 else min(3, max(panels, 1))
    return max(-(-panels // columns), 1), columns


def plot_curves(run: str | Path, png: str | Path | None = None) -> Path:
    """Plots metrics.jsonl of a run: training as lines, evaluations as points.

    Args:
        png: None: `curves.png` in the run's directory.
    Returns: the path of the PNG.
    """
    file = as_path(run) / "metrics.jsonl"
    if not file.is_file():
        raise InputError(
            "a run that has logged metrics", f"{file}: no such file", "name the `out` of a run"
        )
    lines = read_jsonl(file)
    png = as_path(png) if png else as_path(run) / "curves.png"
    panels = _panels(dict.fromkeys(name for line in lines for name in line))
    with drawn(png, *grid(len(panels))) as axes:
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for axis, (title, names) in zip(axes.flat, panels.items(), strict=False):
            for name, held_out in names.items():
                _curve(axis, lines, name, held_out)
            axis.set(title=title, xlabel="step")
            axis.legend()
    return png


def _panels(logged: Collection[str]) -> dict[str, dict[str, dict[str, str]]]:
    """Title -> metric -> what `_held_out` says of it, of all panels that something is drawn in.

    A metric that an objective has beside the usual ones gets a panel of its own: what is evaluated
    too, for everything else is the trainer's.
    """
    usual = {name for _, names in _PANELS for name in names} | _NOT_DRAWN
    own = [name for name in logged if name not in usual and _held_out(logged, name)]
    panels = {}
    for title, names in (*_PANELS, *((name, (name,)) for name in own)):
        drawn = {name: _held_out(logged, name) for name in names}
        drawn = {name: sets for name, sets in drawn.items() if sets or name in logged}
        if drawn:
            panels[title] = drawn
    return panels


def _held_out(logged: Collection[str], name: str) -> dict[str, str]:
    """Set -> the name of a metric's evaluations there; a single set has the name ""."""
    matches = (re.fullmatch(rf"eval/(?:([^/]+)/)?{re.escape(name)}", key) for key in logged)
    return {match[1] or "": match[0] for match in matches if match}


def _curve(axis: Any, lines: list[dict[str, Any]], name: str, held_out: Mapping[str, str]) -> None:
    label = name.rsplit("/", 1)[-1]
    (line,) = axis.plot(*_points(lines, name), label=label)
    for of_set, key in held_out.items():
        # Of several sets each has a colour of its own.
        color = None if of_set else line.get_color()
        told = f"{label}, {of_set or 'held out'}"
        axis.plot(*_points(lines, key), "o--", color=color, label=told)


def _points(lines: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in points], [value for _, value in points]
