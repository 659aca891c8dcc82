"""The errors that bad input raises: what was expected, what was found and where, what to change."""

import importlib
import re
from importlib.metadata import PackageNotFoundError, requires
from types import ModuleType

LINES, WIDTH = 19, 70
"""What an error fills at most, whatever was found; a label stands before some of the lines."""


def shortened(text: str, lines: int) -> str:
    """As much of the text as fills so many lines of a terminal, and how much there is besides."""
    ends = _line_ends(text)
    if len(ends) <= lines:
        return text
    end = ends[lines - 2]
    return f"{text[:end].rstrip()}\n... and {len(text) - end:,} characters more"


def _line_ends(text: str) -> list[int]:
    """Where the lines end that a text fills, long ones wrapped."""
    ends, at = [], 0
    for line in text.splitlines(keepends=True):
        ends += [*range(at + WIDTH, at + len(line.rstrip("\n")), WIDTH), at + len(line)]
        at += len(line)
    return ends


class InputError(ValueError):
    """Bad input, reported before anything is compiled.

    The message is shortened where it would be long; the attributes hold all.

    Args:
        expected: what would have been accepted.
        got: what was found, with its place (file and row, config key, tensor name, shape).
        fix: what the user can change.
    """

    def __init__(self, expected: str, got: str, fix: str):
        wanted, change = shortened(expected, 4), shortened(fix, 6)
        found = shortened(got, LINES - len(_line_ends(wanted)) - len(_line_ends(change)))
        super().__init__(f"expected: {wanted}\n     got: {found}\n     fix: {change}")
        self.expected, self.got, self.fix = expected, got, fix

    def __reduce__(self) -> tuple:
        """Another process, to which it is sent, makes it of the whole texts."""
        return type(self), (self.expected, self.got, self.fix)


class RunError(RuntimeError):
    """A run that cannot go on: why, and what is safe, in one line."""


class NotWrittenError(RunError):
    """The disk took no more: full, read-only, or at a limit."""


class RowError(InputError):
    """A row of data without usable answers.

    It says something about that row only, so a caller may drop the row and count it.

    Args:
        reason: a short fixed text to count by, such as `empty completion`.
    """

    def __init__(self, reason: str, expected: str, got: str, fix: str):
        super().__init__(expected, got, fix)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return type(self), (self.reason, self.expected, self.got, self.fix)


def optional_package(name: str, purpose: str, extra: str) -> ModuleType:
    """A package that only some settings need.

    Args:
        extra: of jaxpref, with which it is installed.
    Errors: InputError where it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"the package {name.partition('.')[0]}, for {purpose}",
            str(error),
            f"pip install 'jaxpref[{extra}]'",
        ) from error


def is_dependency(module: str | None) -> bool:
    """Whether a module comes with jaxpref; others are what functions of the user's need."""
    try:
        needed = requires("jaxpref") or []
    except PackageNotFoundError:  # run from its sources
        return False
    names = [re.split(r"[^\w-]", package)[0].replace("-", "_") for package in needed]
    return any(name.startswith((module or " ").partition(".")[0]) for name in names)
