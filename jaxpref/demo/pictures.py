"""Questions about drawn pictures, in which the usual answer is a good guess: data for mDPO.

A picture shows one to three shapes of one kind and colour on one side.  Pictures of red circles,
one of them, on the left are usual, and pairs are about usual pictures mostly: the chosen answer is
then the usual one, which a model may learn to prefer without looking.  What it sees is asked by
pairs about unusual pictures, whose rejected answer is the usual one.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

from jaxpref.files import whole_file

SIDE = 32
"""Pixels."""
ASPECTS = {
    "colour": ("What is the colour?", ("red", "green", "blue", "yellow")),
    "shape": ("What is the shape?", ("circle", "square", "triangle", "cross")),
    "count": ("How many are there?", ("one", "two", "three")),
    "side": ("On which side?", ("left", "right")),
}
"""Aspect of a picture -> its question, and the answers, of which the first is the usual one."""
_RGB = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220)}
_RGB |= {"yellow": (230, 210, 40)}
_RADIUS = 4


def draw(scene: dict[str, str], rng: Random) -> Image.Image:
    """A picture of a scene, {aspect: answer}; place, size and background are drawn."""
    grey = 190 + int(60 * rng.random())
    image = Image.new("RGB", (SIDE, SIDE), (grey, grey, grey))
    pen = ImageDraw.Draw(image)
    count = ASPECTS["count"][1].index(scene["count"]) + 1
    middle = SIDE // 4 if scene["side"] == "left" else 3 * SIDE // 4
    for number in range(count):
        x = middle + int(5 * rng.random()) - 2
        y = (2 * number + 1) * SIDE // (2 * count) + int(3 * rng.random()) - 1
        _shape(pen, scene["shape"], x, y, _RADIUS + int(2 * rng.random()) - 1, scene["colour"])
    return image


def _shape(pen: ImageDraw.ImageDraw, shape: str, x: int, y: int, r: int, colour: str) -> None:
    fill = _RGB[colour]
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill)
    elif shape == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill)
    elif shape == "triangle":
        pen.polygon([(x - r, y + r), (x + r, y + r), (x, y - r)], fill)
    else:
        pen.rectangle((x - r, y - 1, x + r, y + 1), fill)
        pen.rectangle((x - 1, y - r, x + 1, y + r), fill)


def scene_of(rng: Random, usual: float) -> dict[str, str]:
    """Answers of all aspects, each the usual one with this probability, else any other."""
    return {
        aspect: answers[0] if rng.random() < usual else _pick(rng, answers[1:])
        for aspect, (_, answers) in ASPECTS.items()
    }


def _pick(rng: Random, options: Sequence[str]) -> str:
    return options[int(rng.random() * len(options))]


def pair(number: int, directory: Path, rng: Random, *, usual: float) -> dict:
    """A row about a picture that is drawn into the directory.

    The right answer is the usual one with probability `usual`, and the wrong one then any other;
    otherwise the wrong one is the usual one.
    """
    aspect = _pick(rng, tuple(ASPECTS))
    question, answers = ASPECTS[aspect]
    scene = scene_of(rng, 0.3)
    right = answers[0] if rng.random() < usual else _pick(rng, answers[1:])
    scene[aspect] = right
    wrong = _pick(rng, answers[1:]) if right == answers[0] else answers[0]
    name = f"pictures/{directory.name}_{number}.png"
    file = directory.parent / name
    file.parent.mkdir(parents=True, exist_ok=True)
    draw(scene, rng).save(file)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    answer = lambda text: [{"role": "assistant", "content": text}]
    return {
        "images": [name],
        "prompt": [{"role": "user", "content": content}],
        "chosen": answer(right),
        "rejected": answer(wrong),
    }


def write_rows(file: Path, count: int, rng: Random, *, usual: float) -> Path:
    """A file of pairs, and their pictures beside it."""
    rows = [pair(number, file.with_suffix(""), rng, usual=usual) for number in range(count)]
    with whole_file(file) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def texts() -> list[str]:
    """Everything that is said."""
    return [text for question, answers in ASPECTS.values() for text in (question, *answers)]
