"""The dimension letters of array names are those of the key in types.py, each with its one meaning."""

import re
from pathlib import Path

import pytest

from jaxpref import types

PACKAGE = Path(types.__file__).parent
SUFFIX = re.compile(r"\b[a-z][a-z0-9_]*_([A-Z][A-Z0-9]*)\b")


def read_key() -> dict[str, set[str]]:
    """Letter -> the directories whose arrays may have it; "everywhere" is one of them."""
    where, key = set(), {}
    for line in types.__doc__.splitlines():
        if re.match(r"    \w", line):
            where = set(line.strip().split(", "))
        elif letter := re.match(r"        ([A-Z])  \w", line):
            assert letter[1] not in key, f"{letter[1]} has two meanings"
            key[letter[1]] = where
    return key


def names() -> list[tuple[str, str, str]]:
    """(directory, name, letters) of every array name in the package."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        directory = path.relative_to(PACKAGE).parts[0]
        found |= {(directory, match[0], match[1]) for match in SUFFIX.finditer(path.read_text())}
    return sorted(found)


def test_every_letter_is_in_the_key_and_used_where_its_meaning_is():
    key = read_key()
    wrong = [
        f"{directory}: {name} ({letter})"
        for directory, name, letters in names()
        for letter in re.sub(r"\d", "", letters)
        if not key.get(letter, set()) & {"everywhere", directory}
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("letter", read_key())
def test_every_letter_of_the_key_is_in_use(letter):
    source = "".join(path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "types.py")
    assert re.search(rf"(_|\[|\"|, |->)[A-Z0-9]*{letter}[A-Z0-9]*\b", source), letter


def test_the_names_are_found():
    assert {("types.py", "token_RL", "RL"), ("data", "mask_RS", "RS")} <= set(names())
