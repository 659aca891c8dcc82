"""`jaxpref train`: a run with its progress, and what is shown at its end."""

import logging
import re

from rich.console import Console

from jaxpref.config import Config
from jaxpref.online.train import train
from jaxpref.processes.together import is_first
from jaxpref.runs.plots import plot_curves  # missing, it is missed before a run, not after
from jaxpref.training.progress import training_progress
from jaxpref.training.result import Result


def run_with_progress(config: Config, console: Console) -> Result:
    """Trains and shows the progress; what a run says of itself at the start is printed."""
    logging.getLogger("jaxpref").setLevel(logging.INFO)
    with training_progress(console, config.train.log_every, show=config.log.progress) as on_log:
        return train(config, on_log=on_log)


def report(result: Result, console: Console) -> None:
    """Draws a run's curves; prints where its results are, and its accuracy before and after."""
    if not is_first():
        return
    for name in (name for name in result.first_eval if name in result.last_eval):
        match = re.fullmatch("eval/(?:([^/]+)/)?rewards/accuracies", name)
        if match is None:
            continue
        before, after = result.first_eval[name], result.last_eval[name]
        of_set = f" ({match[1]})" if match[1] else ""
        tie = " (the policy is the reference: every pair ties)" if before == 0 else ""
        console.print(
            f"held-out reward accuracy{of_set}: {before:.3f} before{tie}, "
            f"[bold]{after:.3f}[/bold] after {result.steps} steps"
        )
    name = "eval/reward"
    if name in result.first_eval and name in result.last_eval:
        before, after = result.first_eval[name], result.last_eval[name]
        console.print(
            f"reward of answers to held-out prompts: {before:.3f} before, "
            f"[bold]{after:.3f}[/bold] after {result.steps} steps"
        )
    console.print(f"curves      {plot_curves(result.out)}", highlight=False)
    console.print(f"checkpoints {result.out / 'checkpoints'}; best: {result.best}", highlight=False)
