"""The front as a PNG."""

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpref.evaluation.bootstrap import Estimate
from jaxpref.pareto.dominance import Sweep, dominated
from jaxpref.pareto.front import Front, Point
from jaxpref.pareto.hypervolume import SweepVolume
from jaxpref.pareto.report.labels import place_labels
from jaxpref.pareto.report.style import (
    Style,
    labelled_with,
    measure_label,
    styles,
    sweep_label,
    weight_label,
)
from jaxpref.runs.plots import drawn
from jaxpref.storage.paths import as_path

_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "up": "^",
    "down": "v",
    "star": "*",
    "cross": "X",
    "hexagon": "h",
}
_GREYED = "#D4D4D4"


def plot_front(
    front: Front,
    volumes: Sequence[SweepVolume],
    reference: Mapping[str, float],
    png: str | Path,
    *,
    level: float = 0.95,
) -> Path:
    """Draws a front.

    Two objectives: one panel with the staircase of every sweep.  More: one panel per pair of
    objectives, and one with all of them side by side.  Bars are the intervals of the estimates.
    Points that another one dominates (in all objectives) are grey.

    Args:
        volumes: hypervolumes, for the legend.
        reference: their reference point.
        level: of their intervals.
    """
    pairs = list(itertools.combinations(range(len(front.objectives)), 2))
    panels = len(pairs) + (len(pairs) > 1)
    columns = math.ceil(math.sqrt(panels))
    size = (8.6, 6.4) if panels == 1 else (5.8, 4.6)
    with drawn(png, math.ceil(panels / columns), columns, panel=size) as axes:
        every_axis = list(axes.flat)
        figure = every_axis[0].figure
        for axis, pair in zip(every_axis, pairs, strict=False):
            _panel(axis, front, [volume.sweep for volume in volumes], pair)
        if panels > 1:
            _side_by_side(every_axis[len(pairs)], front)
        for axis in every_axis[panels:]:
            axis.axis("off")
        _legend_and_title(figure, front, volumes, reference, level)
        figure.draw_without_rendering()  # places are known only after the layout
        left_out = sum(
            _label(axis, front, pair) for axis, pair in zip(every_axis, pairs, strict=False)
        )
        if left_out:
            figure.text(0.995, 0.005, f"labels without room: {left_out}", ha="right", fontsize=7)
    return as_path(png)


def _panel(axis: Any, front: Front, sweeps: Sequence[Sweep], pair: tuple[int, int]) -> None:
    style_of, dominated_X = styles(front), dominated(front.values)
    if len(front.objectives) == 2:
        for sweep in sweeps:
            _staircase(axis, front.values[list(sweep.members)], style_of[sweep.method].light)
    for point, is_dominated in zip(front.points, dominated_X, strict=True):
        _mark(axis, front, point, pair, style_of[point.method], grey=bool(is_dominated))
    x, y = (_literal(measure_label(front, front.objectives[j])) for j in pair)
    axis.set(xlabel=x, ylabel=y)
    axis.margins(0.06)


def staircase(value_X2: np.ndarray) -> np.ndarray:
    """[X', 2] the points that are not dominated, each once, the first objective rising."""
    return np.unique(value_X2[~dominated(value_X2)], axis=0)


def _staircase(axis: Any, value_X2: np.ndarray, colour: str) -> None:
    step_X2 = staircase(value_X2)
    if len(step_X2) > 1:
        axis.plot(*step_X2.T, drawstyle="steps-pre", color=colour, lw=1.2, alpha=0.7, zorder=1.5)


def _mark(
    axis: Any, front: Front, point: Point, pair: tuple[int, int], style: Style, *, grey: bool
) -> None:
    x, y = (point.estimates[front.measure][front.objectives[j]] for j in pair)
    axis.errorbar(
        [x.value],
        [y.value],
        xerr=_ends(x),
        yerr=_ends(y),
        elinewidth=0.9,
        capsize=0,
        ecolor=style.light,
        alpha=0.35,
        fmt="none",
        zorder=1 if grey else 2,
    )
    axis.plot(
        [x.value],
        [y.value],
        _MARKERS[style.marker],
        ms=11 if style.marker == "star" else 7,
        mew=1.0,
        mfc=_GREYED if grey else style.light,
        mec=style.light if grey else "white",
        zorder=3 if grey else 4,
    )


def _ends(estimate: Estimate) -> list[list[float]] | None:
    """How far the interval reaches below and above the value, for matplotlib.

    0 where a percentile interval misses the value.
    """
    if estimate.low is None or estimate.high is None:
        return None
    return [[max(estimate.value - estimate.low, 0.0)], [max(estimate.high - estimate.value, 0.0)]]


def _side_by_side(axis: Any, front: Front) -> None:
    """Every objective from its worst to its best value, and one line per point."""
    worst_O, best_O = front.values.min(0), front.values.max(0)
    share_XO = (front.values - worst_O) / np.where(best_O > worst_O, best_O - worst_O, 1.0)
    style_of, dominated_X = styles(front), dominated(front.values)
    places = range(len(front.objectives))
    for share_O, point, grey in zip(share_XO, front.points, dominated_X, strict=True):
        style = style_of[point.method]
        axis.plot(
            places,
            share_O,
            marker=_MARKERS[style.marker],
            ms=4,
            lw=0.8 if grey else 1.3,
            mew=0,
            color=_GREYED if grey else style.light,
            alpha=0.8,
            zorder=1 if grey else 2,
        )
    for j in places:
        axis.axvline(j, color="black", lw=0.6, zorder=0)
        for value, y, va in ((worst_O[j], -0.03, "top"), (best_O[j], 1.03, "bottom")):
            axis.annotate(f"{value:.3g}", (j, y), ha="center", va=va, fontsize=7)
    axis.set(
        xticks=list(places),
        xticklabels=[_literal(name) for name in front.objectives],
        yticks=[],
        ylim=(-0.14, 1.14),
    )
    axis.set_title("all objectives, each from its worst to its best value", fontsize=8)
    axis.grid(False)


def _legend_and_title(
    figure: Any,
    front: Front,
    volumes: Sequence[SweepVolume],
    reference: Mapping[str, float],
    level: float,
) -> None:
    from matplotlib.lines import Line2D

    style_of, handles = styles(front), []
    for volume in volumes:
        style = style_of[volume.sweep.method]
        handles.append(
            Line2D(
                [],
                [],
                marker=_MARKERS[style.marker],
                ms=9 if style.marker == "star" else 7,
                color=style.light,
                mec="white",
                lw=0,
                label=_literal(f"{sweep_label(front, volume.sweep)}:  {_shown(volume.volume)}"),
            )
        )
    grey: dict[str, Any] = dict(marker="o", ms=7, lw=0, mfc=_GREYED, mec="#6E6E6E")
    handles.append(Line2D([], [], **grey, label="grey: dominated by another point"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        title_fontsize=8,
        title=_literal(_caption(front, volumes, reference, level)),
    )
    figure.suptitle(_literal(textwrap.fill(front.title, 90)), fontsize=12)


def _caption(
    front: Front, volumes: Sequence[SweepVolume], reference: Mapping[str, float], level: float
) -> str:
    above = ", ".join(f"{value:.3g}" for value in reference.values())
    numbers = f"numbers: hypervolume above ({above})"
    if any(volume.volume.low is not None for volume in volumes):
        numbers += f", with {level:.0%} intervals over prompts"
    return f"bars: intervals;  {labelled_with(front)}\n{numbers}"


def _literal(text: str) -> str:
    """Nothing in it is read as mathematics by matplotlib."""
    return text.replace("$", r"\$")


def _shown(estimate: Estimate) -> str:
    if estimate.low is None:
        return _digits(estimate.value)
    return f"{_digits(estimate.value)} [{_digits(estimate.low)}, {_digits(estimate.high)}]"


def _digits(x: float) -> str:
    """Three significant digits, zeros at the end among them."""
    return f"{x:#.3g}".rstrip(".") if x else "0"


def _label(axis: Any, front: Front, pair: tuple[int, int]) -> int:
    """Labels the points of a panel by their weights; returns how many labels had no room.

    With more than two objectives only points that are not dominated have one.
    """
    style_of, dominated_X = styles(front), dominated(front.values)
    wanted = []
    for index, point in enumerate(front.points):
        if point.weights and not (dominated_X[index] and len(front.objectives) > 2):
            label = weight_label(front, point.weights)
            wanted.append((index, label, style_of[point.method].light))
    at_X2 = axis.transData.transform(front.values[:, pair])
    return place_labels(axis, at_X2, wanted, fontsize=8 if len(front.objectives) == 2 else 7)
