"""What is shown of a training run: step, loss, accuracy, margin, tokens per second."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean

import jax
from rich.console import Console

from jaxpref.progress import is_live, progress

OnLog = Callable[[int, int, dict[str, float]], None]
"""(step, steps, values of the step), as `jaxpref.train` calls it."""


@contextmanager
def training_progress(
    console: Console, log_every: int, title: str = "step", *, show: bool = True
) -> Iterator[OnLog]:
    """What to give to `train` as `on_log`; of several processes the first shows it.

    Args:
        log_every: steps between lines, where there are no bars; they are means, as the metrics.
    """
    show = show and jax.process_index() == 0
    with progress(console, show=show, every=1) as update:
        update(title, 0, None, "loading, compiling")
        since: list[dict[str, float]] = []

        def on_log(step: int, steps: int, values: dict[str, float]) -> None:
            since.append(values)
            if is_live(console) or step % log_every == 0 or step == steps:
                update(title, step, steps, _summary(since))
                since.clear()

        yield on_log


def _summary(steps: Sequence[dict[str, float]]) -> str:
    """Means of the steps, in words."""

    def mean(name: str) -> float:
        return fmean(values[name] for values in steps)

    text = f"loss {mean('loss'):.4f}"
    if "rewards/margins" in steps[-1]:
        text += f"  accuracy {mean('rewards/accuracies'):.2f}"
        text += f"  margin {mean('rewards/margins'):+.3f}"
    return text + f"  {steps[-1]['tokens_per_second']:.0f} tokens/s"
