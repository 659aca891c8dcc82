"""Training as the config asks for it: on given answers, or on the policy's own."""

from collections.abc import Sequence
from typing import Any

from jaxpref.config import Config
from jaxpref.online.data import RolloutData
from jaxpref.training import run
from jaxpref.training.data import FileData
from jaxpref.training.progress import OnLog
from jaxpref.training.run import Result


def train(
    config: Config,
    *,
    objective: Sequence[Any] | None = None,
    on_log: OnLog | None = None,
) -> Result:
    """Runs (or continues) a training run; with `online.rewards` on the policy's own answers.

    Args, returns and errors: as of `training.run.train`.
    """
    read = RolloutData if config.online.rewards else FileData
    return run.train(config, objective=objective, on_log=on_log, read=read)
