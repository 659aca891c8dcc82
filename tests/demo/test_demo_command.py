"""What the demo shows at its end."""

import io

from rich.console import Console

from jaxpref.demo import command
from jaxpref.demo.synthetic import generate


def shown(table, width):
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_answers_are_shown_as_they_are_and_scored_by_the_rules():
    _, rows = generate(100, seed=0, test_fraction=0.2)
    before = command._Answers([f"[/b] Obviously {row['wrong'][0]}." for row in rows], ["[bold]?"] * 4)
    after = command._Answers([f"Gladly: {row['answer']}." for row in rows], ["Of course."] * 4)
    for width in (80, 160):
        answers = shown(command._shown_answers(rows, before, after), width)
        assert max(map(len, answers.splitlines())) <= width
        assert answers.count("[/b]") == answers.count("[bold]?") == answers.count("Of course.") == 4
    lines = shown(command._shown_scores(rows, before, after), 80).splitlines()
    cells = [line.split() for line in lines if line.startswith("│")]
    assert [(cell[1], cell[3], cell[8]) for cell in cells] == [
        ("correctness", "0.00", "1.00"),
        ("brevity", "1.00", "1.00"),
        ("politeness", "0.25", "0.75"),
    ]
