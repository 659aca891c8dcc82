"""Questions about drawn pictures, and pairs of answers in which the usual one is a good guess.

A picture shows one to three shapes of one kind and colour on one side.  Of every question one
answer is called usual.  In most training pairs the picture shows just that, so that a model may
learn to prefer the usual answer without looking at any picture.  Held-out pairs tell whether it
looks: those whose rejected answer is the usual one.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from jaxpref.data.pictures.decode import pillow
from jaxpref.data.rewrite import write_lines

if TYPE_CHECKING:
    from PIL import Image

SIDE = 128
"""Pixels."""
ASPECTS = {
    "colour": ("What is the colour?", ("red", "green", "blue", "yellow")),
    "shape": ("What is the shape?", ("circle", "square", "triangle", "cross")),
    "count": ("How many are there?", ("one", "two", "three")),
    "side": ("On which side?", ("left", "right")),
}
"""Aspect of a picture -> its question, and the answers, of which the first is the usual one."""
DESCRIBE = "What do you see?"
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 40),
}
_RADIUS = 15, 17
"""Of a shape, from and to, in pixels."""

Scene = dict[str, str]
"""Aspect -> what the picture shows, one of its answers."""


# ---- pictures


def draw(scene: Scene, rng: Random) -> "Image.Image":
    """A picture of a scene; `rng` decides on places, sizes and the background."""
    grey = _between(rng, 190, 250)
    image = pillow().new("RGB", (SIDE, SIDE), (grey, grey, grey))
    count = ASPECTS["count"][1].index(scene["count"]) + 1
    middle = SIDE // 4 if scene["side"] == "left" else 3 * SIDE // 4
    for number in range(count):
        x = middle + _between(rng, -8, 8)
        y = (2 * number + 1) * SIDE // (2 * count) + _between(rng, -3, 3)  # apart from each other
        _draw_shape(image, scene, x, y, _between(rng, *_RADIUS))
    return image


def _draw_shape(image: "Image.Image", scene: Scene, x: int, y: int, radius: int) -> None:
    from PIL import ImageDraw

    pen, fill = ImageDraw.Draw(image), COLOURS[scene["colour"]]
    left, top, right, bottom = x - radius, y - radius, x + radius, y + radius
    if scene["shape"] == "circle":
        pen.ellipse((left, top, right, bottom), fill)
    elif scene["shape"] == "square":
        pen.rectangle((left, top, right, bottom), fill)
    elif scene["shape"] == "triangle":
        pen.polygon([(left, bottom), (right, bottom), (x, top)], fill)
    else:
        thickness = radius // 4
        pen.rectangle((left, y - thickness, right, y + thickness), fill)
        pen.rectangle((x - thickness, top, x + thickness, bottom), fill)


def random_scene(rng: Random) -> Scene:
    """Every answer is as likely as any other."""
    return {aspect: _pick(rng, answers) for aspect, (_, answers) in ASPECTS.items()}


def _between(rng: Random, low: int, high: int) -> int:
    return low + int((high - low + 1) * rng.random())


def _pick(rng: Random, options: Sequence[str]) -> str:
    return options[int(rng.random() * len(options))]


# ---- rows


def write_answers(file: Path, pictures: int, rng: Random) -> Path:
    """Right answers about random pictures: a description of each, and one to a question."""
    rows = []
    for number in range(pictures):
        scene = random_scene(rng)
        image = _save(scene, file, number, rng)
        aspect = _pick(rng, tuple(ASPECTS))
        question, _ = ASPECTS[aspect]
        rows.append(_asked(image, question) | {"completion": _answer(scene[aspect])})
        rows.append(_asked(image, DESCRIBE) | {"completion": _answer(description(scene))})
    write_lines(file, rows)
    return file


def description(scene: Scene) -> str:
    return "{count} {colour} {shape} on the {side}".format(**scene)


def write_pairs(file: Path, pairs: int, rng: Random, *, usual: float) -> Path:
    """Pairs about random pictures.

    Args:
        usual: the probability that the right answer, which is chosen, is the usual one.  The
            rejected one is then any other; elsewhere the usual one is rejected.
    """
    rows = []
    for number in range(pairs):
        aspect = _pick(rng, tuple(ASPECTS))
        question, (first, *others) = ASPECTS[aspect]
        other = _pick(rng, others)
        right, wrong = (first, other) if rng.random() < usual else (other, first)
        image = _save(random_scene(rng) | {aspect: right}, file, number, rng)
        answers = {"chosen": _answer(right), "rejected": _answer(wrong)}
        rows.append(_asked(image, question) | answers)
    write_lines(file, rows)
    return file


def texts() -> list[str]:
    """All that is said: what a tokenizer needs to know."""
    asked = [text for question, answers in ASPECTS.values() for text in (question, *answers)]
    words = {aspect: " ".join(answers) for aspect, (_, answers) in ASPECTS.items()}
    return [*asked, DESCRIBE, description(words)]


def _save(scene: Scene, rows_file: Path, number: int, rng: Random) -> str:
    """Draws a picture into a folder beside the rows; returns its name there."""
    name = f"{rows_file.stem}/{number}.png"
    path = rows_file.parent / name
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(scene, rng).save(path)
    return name


def _asked(image: str, question: str) -> dict:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return {"images": [image], "prompt": [{"role": "user", "content": content}]}


def _answer(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]
