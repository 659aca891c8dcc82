"""Labels of points that do not cover each other."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_AROUND = [(dx, dy) for dx, dy in itertools.product((1, 0, -1), (1, 0, -1)) if (dx, dy) != (0, 0)]
_REACH = (8.0, 14.0, 22.0)
"""Points (1/72 inch) between a marker's centre and its label."""
_HALF_MARKER = 5.0
"""Points from a marker's centre to its border."""


def place_labels(
    axis: Any, at_X2: np.ndarray, wanted: Sequence[tuple[int, str, str]], *, fontsize: float
) -> int:
    """Writes each label at the first free place around its point, near before far.

    Args:
        at_X2: all points of the axis, in pixels; labels do not cover their markers.
        wanted: (index of the point in at_X2, text, colour).
    Returns: how many labels had no free place.
    """
    unit = axis.figure.dpi / 72
    room = axis.get_window_extent()
    taken = [_box(centre, 2 * _HALF_MARKER * unit, 2 * _HALF_MARKER * unit) for centre in at_X2]
    left_out = 0
    for index, text, colour in wanted:
        boxes = _boxes_around(at_X2[index], *_size(axis, text, fontsize), unit)
        free = (box for box in boxes if _inside(box, room) and not _covers(box, taken))
        box = next(free, None)
        if box is None:
            left_out += 1
            continue
        taken.append(box)
        _write(axis, text, colour, fontsize, at_X2[index], box, unit)
    return left_out


def _boxes_around(
    centre: np.ndarray, width: float, height: float, unit: float
) -> Iterator[np.ndarray]:
    """Where a label may lie, the best place first."""
    for reach in _REACH:
        for dx, dy in _AROUND:
            yield _beside(centre, dx, dy, reach * unit, width, height)


def _size(axis: Any, text: str, fontsize: float) -> tuple[float, float]:
    """Width and height in pixels."""
    probe = axis.figure.text(0, 0, text, fontsize=fontsize)
    extent = probe.get_window_extent()
    probe.remove()
    return extent.width, extent.height


def _box(centre: Sequence[float], width: float, height: float) -> np.ndarray:
    """[4] left, bottom, right, top."""
    x, y = centre
    return np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])


def _beside(
    centre: np.ndarray, dx: int, dy: int, reach: float, width: float, height: float
) -> np.ndarray:
    """The box whose nearest side (or corner) is `reach` away in direction (dx, dy)."""
    away = reach if dx == 0 or dy == 0 else 0.7 * reach
    x = centre[0] + dx * (away + width / 2)
    y = centre[1] + dy * (away + height / 2)
    return _box((x, y), width, height)


def _inside(box: np.ndarray, room: Any) -> bool:
    return box[0] >= room.x0 and box[1] >= room.y0 and box[2] <= room.x1 and box[3] <= room.y1


def _covers(box: np.ndarray, taken: Sequence[np.ndarray]) -> bool:
    other_X4 = np.array(taken)
    apart_X = (other_X4[:, :2] >= box[2:]).any(1) | (other_X4[:, 2:] <= box[:2]).any(1)
    return not apart_X.all()


def _write(
    axis: Any,
    text: str,
    colour: str,
    fontsize: float,
    centre: np.ndarray,
    box: np.ndarray,
    unit: float,
) -> None:
    from matplotlib.patheffects import withStroke

    middle = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    distance = np.abs(np.clip(centre, box[:2], box[2:]) - centre).max()
    line = None
    if distance > _REACH[0] * unit * 1.2:
        line = dict(arrowstyle="-", color=colour, lw=0.5, alpha=0.6, shrinkA=0, shrinkB=3)
    written = axis.annotate(
        text,
        xy=axis.transData.inverted().transform(centre),
        xytext=axis.transData.inverted().transform(middle),
        textcoords="data",
        ha="center",
        va="center",
        fontsize=fontsize,
        color=colour,
        annotation_clip=False,
        zorder=5,
        arrowprops=line,
    )
    # Readable across bars and grid.
    written.set_path_effects([withStroke(linewidth=2, foreground="white")])
