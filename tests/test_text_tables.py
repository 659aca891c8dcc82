"""Tables of the terminal: nothing is cut."""

import io

import pytest
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from jaxpref.text_tables import whole

WORDS = ["optim.learning_rate", "controllability", "runs/a-directory/with-a-long-name", "0.00262"]


def printed(table: Table, width: int) -> str:
    text = io.StringIO()
    Console(width=width, file=text).print(table)
    return text.getvalue()


@pytest.mark.parametrize("width", [24, 40, 80])
def test_what_does_not_fit_goes_on_in_the_next_line(width):
    table = Table(*WORDS[:2], box=SIMPLE)
    table.add_row(*WORDS[2:])
    assert ("…" in printed(table, width)) == (width < 80), "rich's own way, where it is too narrow"
    shown = "".join(printed(whole(table), width).split()).replace("─", "")
    assert sorted(shown) == sorted("".join(WORDS))
