"""How far long work has come: bars on a terminal and in a notebook, lines elsewhere."""

import html
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Watch = Callable[[str, int, int], None]
"""(what is done, how much of it is done, how much there is)."""
Update = Callable[..., None]
"""As `Watch`, and then a text that says more.  How much there is may be None: not known yet."""

_REDRAWN = 0.1
"""Seconds between two states of a notebook's bar."""


def unwatched(what: str, done: int, total: int) -> None:
    """Shows nothing."""


def is_live(console: Console) -> bool:
    """Whether what was shown can be replaced: bars rather than lines."""
    return console.is_jupyter or is_screen(console)


def is_screen(console: Console) -> bool:
    """A terminal that shows the output.  FORCE_COLOR makes rich take a pipe for one too."""
    return console.is_terminal and console.file.isatty()


@contextmanager
def progress(console: Console, *, show: bool = True, every: int | None = None) -> Iterator[Update]:
    """Shows what is told to the function that it gives.

    Args:
        every: between two lines, where there are lines; None: a tenth of all.
    """
    if not show:
        yield lambda *_: None
    elif console.is_jupyter:
        yield _notebook_bars()
    elif is_screen(console):
        with _terminal_bars(console) as update:
            yield update
    else:
        yield _lines(console, every)


@contextmanager
def _terminal_bars(console: Console) -> Iterator[Update]:
    columns = (
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks = {}

        def update(what: str, done: int, total: int | None, text: str = "") -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, text=text)
            bars.update(tasks[what], completed=done, total=total, text=text)

        yield update


def _notebook_bars() -> Update:
    """By what every kernel has; rich's own bars and tqdm's need widgets."""
    from IPython.display import display

    handles: dict[str, Any] = {}
    drawn: dict[str, float] = {}

    def update(what: str, done: int, total: int | None, text: str = "") -> None:
        now = time.monotonic()
        if done != total and now - drawn.get(what, -_REDRAWN) < _REDRAWN:
            return
        drawn[what] = now
        line = _line(what, done, total, text)
        bar = f'<progress value="{done}" max="{total}"></progress> ' if total else ""
        content = {"text/plain": line, "text/html": f"{bar}<code>{html.escape(line)}</code>"}
        if what in handles:
            handles[what].update(content, raw=True)
        else:
            handles[what] = display(content, raw=True, display_id=True)

    return update


def _lines(console: Console, every: int | None) -> Update:
    last: dict[str, int] = {}

    def update(what: str, done: int, total: int | None, text: str = "") -> None:
        step = every or max((total or 1) // 10, 1)
        before = last.setdefault(what, done - 1)
        if done == total or done // step > before // step:
            line = _line(what, done, total, text)
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        last[what] = done

    return update


def _line(what: str, done: int, total: int | None, text: str) -> str:
    start = f"{what}: " if total is None else f"{what} {done}/{total}  "
    return f"{start}{text}".rstrip()
