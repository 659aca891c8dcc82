"""What the synthetic data asks about: every item with its answer and tempting wrong ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random

from jaxpref.demo import wording as tables


@dataclass(frozen=True)
class Item:
    """One thing to ask, and what fills the slots of the sentences that ask and answer."""

    entity: str
    """What the split keeps apart: no entity is asked about in both splits, whatever the kind."""
    answer: str
    wrong: tuple[str, ...]
    """The tempting wrong answers."""
    slots: Mapping[str, str]


def items(rng: Random) -> dict[str, list[Item]]:
    """Every item of every kind; `rng` only decides how number pairs are asked."""
    return {
        "arithmetic": _arithmetic(rng),
        "capital": _capitals(),
        "continent": _continents(),
        "opposite": _opposites(),
        "comparison": _comparison(rng),
        "units": _units(),
        "calendar": [*_calendar("day", tables.DAYS), *_calendar("month", tables.MONTHS)],
        "letters": [_letters(word) for word in tables.LETTER_WORDS],
        "plural": _forms(tables.PLURALS),
        "past_tense": _forms(tables.PAST),
        "colour": _colours(),
    }


def _records(table: Sequence[str]) -> list[list[str]]:
    return [cell.split(",") for cell in table]


def _without(options: Sequence[str], *gone: str) -> tuple[str, ...]:
    return tuple(option for option in options if option not in gone)


def _capitals() -> list[Item]:
    return [
        Item(name, city, tuple(others), {"country": name})
        for name, _, city, *others in _records(tables.COUNTRIES)
    ]


def _continents() -> list[Item]:
    return [
        Item(name, where, _without(tables.CONTINENTS, where), {"country": name})
        for name, where, *_ in _records(tables.COUNTRIES)
        if where != "-"
    ]


def _opposites() -> list[Item]:
    made = []
    for a, b, near_a, near_b in _records(tables.OPPOSITES):
        made.append(Item(f"{a}/{b}", b, (near_a,), {"word": a}))
        made.append(Item(f"{a}/{b}", a, (near_b,), {"word": b}))
    return made


def _forms(table: Sequence[str]) -> list[Item]:
    """Plurals, or past tenses, and forms that are wrong."""
    return [
        Item(word, form, tuple(wrong), {"word": word}) for word, form, *wrong in _records(table)
    ]


def _colours() -> list[Item]:
    made = []
    for row in tables.THINGS:
        colour, things = row.split(": ")
        for thing in things.split(","):
            made.append(Item(thing, colour, _without(tables.COLOURS, colour), {"thing": thing}))
    return made


def _arithmetic(rng: Random) -> list[Item]:
    made = []
    large = [pair for pair in combinations(range(2, 90), 2) if pair[1] > 12]
    for low, high in [*combinations(range(2, 13), 2), *large[::17]]:
        a, b = (low, high) if rng.random() < 0.5 else (high, low)
        if high <= 12:
            sign, word, value = "x", "times", a * b
        elif rng.random() < 0.5:
            sign, word, value = "+", "plus", a + b
        else:
            a, b = high, low
            sign, word, value = "-", "minus", a - b
        if value not in (a, b):  # else the question itself would hold the answer
            slots = {"expr": f"{a} {sign} {b}", "words": f"{a} {word} {b}"}
            near = (value + slip for slip in (-10, -2, -1, 1, 2, 10))
            wrong = tuple(str(number) for number in near if number > 1 and number not in (a, b))
            made.append(Item(f"{low} and {high}", str(value), wrong, slots))
    return made


def _comparison(rng: Random) -> list[Item]:
    made = []
    for low, high in list(combinations(range(11, 100), 2))[::23]:
        if rng.random() < 0.3:  # three digits
            low, high = (10 * number + int(10 * rng.random()) for number in (low, high))
        words, answer, wrong = ["larger", "bigger", "greater", "higher"], high, low
        if rng.random() < 0.5:
            words, answer, wrong = ["smaller", "lower"], low, high
        x, y = (low, high) if rng.random() < 0.5 else (high, low)
        slots = {"cmp": words[int(rng.random() * len(words))], "x": str(x), "y": str(y)}
        made.append(Item(f"{low} and {high}", str(answer), (str(wrong),), slots))
    return made


def _letters(word: str) -> Item:
    count = len(word)
    wrong = tuple(str(count + slip) for slip in (-2, -1, 1, 2))
    return Item(word, str(count), wrong, {"word": word})


def _units() -> list[Item]:
    made = []
    for small, large, one, size in _records(tables.UNITS):
        for n in range(2, 13):
            value = n * int(size)
            slips = (value - int(size), value + int(size), value * 10, n * 100)
            usable = [str(slip) for slip in slips if slip not in (n, int(size), value)]
            wrong = tuple(dict.fromkeys(usable))
            slots = {"small": small, "large": large, "one": one, "factor": size, "n": str(n)}
            made.append(Item(f"{n} {large} in {small}", str(value), wrong, slots))
    return made


def _calendar(unit: str, names: Sequence[str]) -> list[Item]:
    made = []
    for at, name in enumerate(names):
        for steps, count in ((1, "right"), (2, f"two {unit}s"), (3, f"three {unit}s")):
            for way, side, to in (("forward", "after", at + steps), ("back", "before", at - steps)):
                answer, when = names[to % len(names)], f"{count} {side} {name}"
                slots = {"unit": unit, "item": name, "when": when, "way": way}
                made.append(Item(when, answer, _without(names, answer, name), slots))
    return made
