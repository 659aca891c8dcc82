"""A progress bar for training: step, loss, accuracy, margin, tokens per second."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

OnLog = Callable[[int, int, dict[str, float]], None]
"""(step, steps, values of the step), as `jaxpref.train` calls it."""


@contextmanager
def training_bar(console: Console, title: str = "step", *, show: bool = True) -> Iterator[OnLog]:
    """What to give to `train` as `on_log`."""
    columns = (
        TextColumn(title),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[values]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not show) as bar:
        task = bar.add_task("train", total=None, values="loading, compiling")

        def on_log(step: int, steps: int, values: dict[str, float]) -> None:
            shown = f"loss {values['loss']:.4f}"
            if "rewards/margins" in values:
                shown += f"  accuracy {values['rewards/accuracies']:.2f}"
                shown += f"  margin {values['rewards/margins']:+.3f}"
            shown += f"  {values['tokens_per_second']:.0f} tokens/s"
            bar.update(task, completed=step, total=steps, values=shown)

        yield on_log
