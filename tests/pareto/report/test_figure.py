"""The PNG shows every method, greys what is dominated, and its labels do not cover each other."""

import fronts
import matplotlib
import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from jaxpref.errors import InputError
from jaxpref.evaluation.bootstrap import Bootstrap
from jaxpref.pareto.hypervolume import default_reference, sweep_volumes
from jaxpref.pareto.report.figure import _GREYED, plot_front, staircase
from jaxpref.pareto.report.labels import place_labels
from jaxpref.pareto.report.style import styles
from jaxpref.pareto.report.write import write_front
from jaxpref.runs.plots import drawn

QUICK = Bootstrap(resamples=100)


def count(pixels: np.ndarray, colour: str) -> int:
    return int((np.abs(pixels[..., :3] - to_rgb(colour)).max(-1) < 0.01).sum())


@pytest.mark.parametrize("names", ["ab", "abc", pytest.param("abcd", marks=pytest.mark.slow)])
def test_every_method_is_drawn_and_dominated_points_are_grey(tmp_path, names):
    front = fronts.study(tuple(names))
    write_front(front, tmp_path, bootstrap=QUICK)
    pixels = matplotlib.image.imread(tmp_path / "front.png")
    assert 500 < pixels.shape[0] < 3000 and 500 < pixels.shape[1] < 3000
    assert all(count(pixels, look.light) > 20 for look in styles(front).values())


def test_what_is_dominated_is_grey(tmp_path):
    others = [fronts.point(f"m{w}", (w, 1 - w)) for w in (0.2, 0.5, 0.8)]
    greys = []
    for values in ((0.6, 0.45), (0.4, 0.45)):  # not dominated, and dominated by (0.5, 0.5)
        front = fronts.front([*others, fronts.point("one", values)])
        png = plot_front(front, sweep_volumes(front, None, QUICK), default_reference(front), tmp_path / "front.png")
        greys.append(count(matplotlib.image.imread(png), _GREYED))
    assert greys[1] > greys[0] + 40, greys  # a marker has about 90 pixels


def test_the_staircase_goes_through_what_is_not_dominated():
    value_X2 = np.array([[3, 1], [1, 3], [2, 2], [2, 2], [1, 1], [2, 1]])
    assert staircase(value_X2).tolist() == [[1, 3], [2, 2], [3, 1]]


def test_labels_do_not_cover_each_other_and_those_without_room_are_counted(tmp_path):
    rng = np.random.default_rng(0)
    with drawn(tmp_path / "labels.png", 1, 1) as axes:
        axis = axes[0, 0]
        x_X2 = rng.random((60, 2)) * 0.3  # crowded in one corner
        axis.plot(*x_X2.T, "o")
        axis.set(xlim=(0, 1), ylim=(0, 1))
        axis.figure.draw_without_rendering()
        wanted = [(i, f"0.{i:02d}", "black") for i in range(60)]
        left_out = place_labels(axis, axis.transData.transform(x_X2), wanted, fontsize=8)
        axis.figure.draw_without_rendering()
        boxes = [Text.get_window_extent(text).shrunk(0.9, 0.9) for text in axis.texts]  # without their lines
    assert 0 < left_out < 60 and len(boxes) == 60 - left_out
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_reference_point_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="reference point"):
        write_front(fronts.study(), tmp_path / "new", reference={"helpful": 0.0})
    assert not (tmp_path / "new").exists()
