"""The front as a PNG.

Dimension letters beside those of types.py: X points, J objectives.
"""

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
from jaxpref.pareto.hypervolume import Achieved
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
    found: Sequence[Achieved],
    reference: Mapping[str, float],
    png: str | Path,
    *,
    level: float = 0.95,
) -> Path:
    """Two objectives: one panel with the staircase of every sweep.  More: a panel a pair of
    objectives, and all of them side by side.

    Bars are the intervals of the estimates.  Points that another one dominates (in all objectives)
    are grey.

    Args:
        found: the hypervolumes, for the legend.
        reference: the point that they are above.
        level: of their intervals.
    """
    pairs = list(itertools.combinations(range(len(front.objectives)), 2))
    panels = len(pairs) + (len(pairs) > 1)
    columns = math.ceil(math.sqrt(panels))
    size = (8.6, 6.4) if panels == 1 else (5.8, 4.6)
    with drawn(png, math.ceil(panels / columns), columns, panel=size) as axes:
        free = iter(axes.flat)
        for pair, axis in zip(
            pairs, free, strict=False
        ):  # in this order: zip takes no axis for no pair
            _panel(axis, front, [a.sweep for a in found], pair)
        if panels > 1:
            _side_by_side(next(free), front)
        for axis in free:
            axis.axis("off")
        _around(axes.flat[0].figure, front, found, reference, level)
        left_out = 0
        axes.flat[0].figure.draw_without_rendering()  # places are known only after the layout
        for axis, pair in zip(axes.flat, pairs, strict=False):
            left_out += _label(axis, front, pair)
        if left_out:
            axes.flat[0].figure.text(
                0.995, 0.005, f"labels without room: {left_out}", ha="right", fontsize=7
            )
    return Path(png)


def _panel(axis: Any, front: Front, every: Sequence[Sweep], pair: tuple[int, int]) -> None:
    looks, worse_X = styles(front), dominated(front.values)
    if len(front.objectives) == 2:
        for sweep in every:
            _staircase(axis, front.values[list(sweep.members)], looks[sweep.method].light)
    for at, point in enumerate(front.points):
        _mark(axis, front, point, pair, looks[point.method], grey=bool(worse_X[at]))
    x, y = (_literal(measure_label(front, front.objectives[at])) for at in pair)
    axis.set(xlabel=x, ylabel=y)
    axis.margins(0.06)


def staircase(value_X2: np.ndarray) -> np.ndarray:
    """[X', 2] the points that no other of them dominates, the first objective rising, without
    repetition."""
    return np.unique(value_X2[~dominated(value_X2)], axis=0)


def _staircase(axis: Any, value_X2: np.ndarray, colour: str) -> None:
    step_X2 = staircase(value_X2)
    if len(step_X2) > 1:
        axis.plot(*step_X2.T, drawstyle="steps-pre", color=colour, lw=1.2, alpha=0.7, zorder=1.5)


def _mark(
    axis: Any, front: Front, point: Point, pair: tuple[int, int], look: Style, *, grey: bool
) -> None:
    x, y = (point.estimates[front.measure][front.objectives[at]] for at in pair)
    ends = dict(
        xerr=_ends(x),
        yerr=_ends(y),
        elinewidth=0.9,
        capsize=0,
        ecolor=look.light,
        alpha=0.35,
        fmt="none",
    )
    axis.errorbar([x.value], [y.value], **ends, zorder=1 if grey else 2)
    axis.plot(
        [x.value],
        [y.value],
        _MARKERS[look.marker],
        ms=11 if look.marker == "star" else 7,
        mew=1.0,
        mfc=_GREYED if grey else look.light,
        mec=look.light if grey else "white",
        zorder=3 if grey else 4,
    )


def _ends(estimate: Estimate) -> list[list[float]] | None:
    """How far the interval reaches below and above, for matplotlib; a percentile interval may miss
    the value."""
    if estimate.low is None or estimate.high is None:
        return None
    return [[max(estimate.value - estimate.low, 0.0)], [max(estimate.high - estimate.value, 0.0)]]


def _side_by_side(axis: Any, front: Front) -> None:
    """Every objective from its worst to its best value, and a line a point."""
    worst_J, best_J = front.values.min(0), front.values.max(0)
    share_XJ = (front.values - worst_J) / np.where(best_J > worst_J, best_J - worst_J, 1.0)
    looks, worse_X = styles(front), dominated(front.values)
    places = range(len(front.objectives))
    for share_J, point, worse in zip(share_XJ, front.points, worse_X, strict=True):
        look = looks[point.method]
        axis.plot(
            places,
            share_J,
            marker=_MARKERS[look.marker],
            ms=4,
            lw=0.8 if worse else 1.3,
            mew=0,
            color=_GREYED if worse else look.light,
            alpha=0.8,
            zorder=1 if worse else 2,
        )
    for at in places:
        axis.axvline(at, color="black", lw=0.6, zorder=0)
        for value, y, va in ((worst_J[at], -0.03, "top"), (best_J[at], 1.03, "bottom")):
            axis.annotate(f"{value:.3g}", (at, y), ha="center", va=va, fontsize=7)
    axis.set(
        xticks=list(places),
        xticklabels=[_literal(name) for name in front.objectives],
        yticks=[],
        ylim=(-0.14, 1.14),
    )
    axis.set_title("all objectives, each from its worst to its best value", fontsize=8)
    axis.grid(False)


def _around(
    figure: Any,
    front: Front,
    found: Sequence[Achieved],
    reference: Mapping[str, float],
    level: float,
) -> None:
    from matplotlib.lines import Line2D

    looks, handles = styles(front), []
    for one in found:
        look, size = looks[one.sweep.method], 9 if looks[one.sweep.method].marker == "star" else 7
        label = _literal(f"{sweep_label(front, one.sweep)}:  {_shown(one.volume)}")
        handles.append(
            Line2D(
                [],
                [],
                marker=_MARKERS[look.marker],
                ms=size,
                color=look.light,
                mec="white",
                lw=0,
                label=label,
            )
        )
    grey = dict(marker="o", ms=7, lw=0, mfc=_GREYED, mec="#6E6E6E")
    handles.append(Line2D([], [], **grey, label="grey: dominated by another point"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        title_fontsize=8,
        title=_literal(_caption(front, found, reference, level)),
    )
    figure.suptitle(_literal(textwrap.fill(front.title, 90)), fontsize=12)


def _caption(
    front: Front, found: Sequence[Achieved], reference: Mapping[str, float], level: float
) -> str:
    above = ", ".join(f"{value:.3g}" for value in reference.values())
    interval = (
        f", with {level:.0%} intervals over prompts"
        if any(one.volume.low is not None for one in found)
        else ""
    )
    return (
        f"bars: intervals;  {labelled_with(front)}\nnumbers: hypervolume above ({above}){interval}"
    )


def _literal(text: str) -> str:
    """Without what matplotlib would read as mathematics."""
    return text.replace("$", r"\$")


def _shown(estimate: Estimate) -> str:
    if estimate.low is None:
        return _digits(estimate.value)
    return f"{_digits(estimate.value)} [{_digits(estimate.low)}, {_digits(estimate.high)}]"


def _digits(x: float) -> str:
    """Three, zeros at the end among them."""
    return f"{x:#.3g}".rstrip(".") if x else "0"


def _label(axis: Any, front: Front, pair: tuple[int, int]) -> int:
    """Labels the points of a panel by their weights; how many found no room.

    With more than two objectives only those that are not dominated.
    """
    looks, worse_X = styles(front), dominated(front.values)
    wanted = [
        (at, weight_label(front, point.weights), looks[point.method].light)
        for at, point in enumerate(front.points)
        if point.weights and not (worse_X[at] and len(front.objectives) > 2)
    ]
    at_X2 = axis.transData.transform(front.values[:, pair])
    return place_labels(axis, at_X2, wanted, fontsize=8 if len(front.objectives) == 2 else 7)
