"""Rewards: functions of prompts and answers, from Python functions, reward models and trained policies."""

from pathlib import Path

from jaxpref.errors import InputError
from jaxpref.rewards.classifier import is_classifier
from jaxpref.rewards.functions import function_reward
from jaxpref.rewards.models import classifier_reward, run_reward
from jaxpref.rewards.reward import Reward

__all__ = ["Reward", "classifier_reward", "function_reward", "open_reward", "run_reward"]


def open_reward(what: str, *, step: str = "best", overrides=()) -> Reward:
    """The reward that a text names: a run (its scalar head, or its implicit reward), a directory with a reward model,
    or `module:function`, `FILE.py:function`.

    Args:
        step: of a run: `best`, `latest` or a number.
        overrides: for a run or a model, as `mesh.data=8`.
    Errors: InputError when it is none of these.
    """
    if (Path(what) / "config.yaml").is_file():
        return run_reward(what, step=step, overrides=overrides)
    if is_classifier(what):
        return classifier_reward(what, overrides=overrides)
    if ":" in what and "://" not in what:
        return function_reward(what)
    raise InputError(
        "a run, a directory with a reward model, module:function or FILE.py:function",
        f"{what}: " + ("a model without a reward head" if Path(what).is_dir() else "none of these"),
        "correct the name; a run with a reference has an implicit reward, its export alone has none",
    )
