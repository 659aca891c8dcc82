"""How figures look, and the curves of a run as a PNG."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import rcsetup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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


def plot_curves(run: str | Path, png: str | Path | None = None) -> Path:
    """Plots metrics.jsonl of a run: training as lines, evaluations as points.

    Args:
        png: None: `curves.png` in the run's directory.
    Returns: the path of the PNG.
    """
    lines = read_jsonl(as_path(run) / "metrics.jsonl")
    png = as_path(png) if png else as_path(run) / "curves.png"
    with drawn(png, 2, 3) as axes:
        for axis, (title, names) in zip(axes.flat, _PANELS, strict=True):
            for name in names:
                _curve(axis, lines, name)
            axis.set(title=title, xlabel="step")
            axis.legend()
    return png


def _curve(axis: Any, lines: list[dict[str, Any]], name: str) -> None:
    train = [(line["step"], line[name]) for line in lines if name in line]
    label = name.rsplit("/", 1)[-1]
    steps, values = [step for step, _ in train], [value for _, value in train]
    (line,) = axis.plot(steps, values, label=label)
    for of_set, points in _held_out(lines, name).items():
        held_out_steps, held_out_values = zip(*points, strict=True)
        held_out = f"{label}, {of_set or 'held out'}"
        # Of several sets each has a colour of its own.
        color = None if of_set else line.get_color()
        axis.plot(held_out_steps, held_out_values, "o--", color=color, label=held_out)


def _held_out(lines: list[dict[str, Any]], name: str) -> dict[str, list[tuple[int, float]]]:
    """Set -> (step, value) of a metric's evaluations; a single set has the name ""."""
    points: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for key, value in line.items():
            match = re.fullmatch(rf"eval/(?:([^/]+)/)?{re.escape(name)}", key)
            if match:
                points.setdefault(match[1] or "", []).append((line["step"], value))
    return points
