"""Drawn pictures: right answers are right, by the pixels, and the same seed draws the same."""

import json
from random import Random

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from jaxpref.demo import pictures
from jaxpref.demo.pictures import ASPECTS, COLOURS, SIDE

ASPECT_OF = {question: aspect for aspect, (question, _) in ASPECTS.items()}


def seen(image: Image.Image) -> dict[str, str]:
    """The answers to all questions, read off the pixels."""
    pixels = np.asarray(image).astype(int)
    coloured = np.ptp(pixels, axis=2) > 60
    labels, count = ndimage.label(coloured)
    box = coloured[ndimage.find_objects(labels)[0]]
    if box.mean() > 0.9:
        shape = "square"
    elif box[-1, 0]:
        shape = "triangle"  # only its lower corners are filled
    else:
        shape = "circle" if box.mean() > 0.65 else "cross"
    [colour] = {tuple(pixel) for pixel in pixels[coloured]}
    return {
        "colour": next(name for name, rgb in COLOURS.items() if rgb == colour),
        "shape": shape,
        "count": ASPECTS["count"][1][count - 1],
        "side": "left" if np.nonzero(coloured)[1].mean() < SIDE / 2 else "right",
    }


def test_pictures_show_their_scenes():
    rng = Random(0)
    for _ in range(100):
        scene = pictures.random_scene(rng)
        assert seen(pictures.draw(scene, rng)) == scene


@pytest.mark.parametrize(("usual", "share"), [(0.0, 0), (1.0, 1), (0.9, 0.9)])
def test_chosen_answers_are_right_and_usual_as_asked(usual, share, tmp_path):
    file = pictures.write_pairs(tmp_path / "rows.jsonl", 100, Random(1), usual=usual)
    usual_chosen, asked = [], set()
    for row in map(json.loads, file.read_text().splitlines()):
        aspect = ASPECT_OF[row["prompt"][0]["content"][1]["text"]]
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert seen(Image.open(tmp_path / row["images"][0]))[aspect] == chosen != rejected
        first, answers = ASPECTS[aspect][1][0], ASPECTS[aspect][1]
        assert first in (chosen, rejected) and {chosen, rejected} <= set(answers), "the usual one and another"
        usual_chosen.append(chosen == first)
        asked.add(aspect)
    assert np.mean(usual_chosen) == pytest.approx(share, abs=0.1 if 0 < usual < 1 else 0)
    assert asked == set(ASPECTS)


def test_answers_to_learn_from_are_right(tmp_path):
    file = pictures.write_answers(tmp_path / "rows.jsonl", 20, Random(2))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 40 and len({row["images"][0] for row in rows}) == 20
    for row in rows:
        scene = seen(Image.open(tmp_path / row["images"][0]))
        question, answer = row["prompt"][0]["content"][1]["text"], row["completion"][0]["content"]
        right = {asked: scene[aspect] for asked, aspect in ASPECT_OF.items()}
        assert answer == right.get(question, pictures.description(scene))


def test_equal_seeds_draw_equal_files(tmp_path):
    written = []
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        pictures.write_pairs(tmp_path / folder / "rows.jsonl", 5, Random(seed), usual=0.5)
        files = sorted(path for path in (tmp_path / folder).rglob("*") if path.is_file())
        written.append([path.read_bytes() for path in files])
    assert written[0] == written[1] != written[2] and len(written[0]) == 6
