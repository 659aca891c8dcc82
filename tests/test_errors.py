"""Errors: whatever was found, the message fits on a screen and says how much there is besides."""

import math

import pytest

from jaxpref.errors import LINES, WIDTH, InputError, shortened


def lines_filled(text: str, width: int) -> int:
    return sum(max(math.ceil(len(line) / width), 1) for line in text.split("\n"))


LONG = {
    "many lines": "\n".join(f"line {i}" for i in range(100_000)),
    "one line": "x" * 10_000_000,
    "both": "\n".join("y" * (7 * i) for i in range(1000)),
    "empty lines": "\n" * 500,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_long_text_is_cut_and_counted(text):
    short = shortened(text, 6)
    *kept, last = short.split("\n")
    assert lines_filled(short, WIDTH) <= 6
    assert text.startswith("\n".join(kept))
    more = int(last.removeprefix("... and ").removesuffix(" characters more").replace(",", ""))
    assert 0 <= len(text) - more - len("\n".join(kept)) <= 6, "blanks at the cut aside"


def test_what_fits_stays_as_it_is():
    text = "\n".join(["a" * WIDTH] * 6)
    assert shortened(text, 6) == text and shortened(text, 5) != text
    assert shortened("", 1) == ""


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_an_error_fits_on_a_screen_and_keeps_everything(text):
    error = InputError("a number", text, "give one")
    assert lines_filled(str(error), WIDTH + 10) <= LINES
    assert str(error).startswith("expected: a number\n     got: ") and str(error).endswith("\n     fix: give one")
    assert error.got == text
    assert lines_filled(str(InputError(text, text, text)), WIDTH + 10) <= LINES
