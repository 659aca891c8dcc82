"""Training as the config asks for it: on given answers, or on the policy's own."""

from typing import Any

from jaxpref.config import Config
from jaxpref.online.data import RolloutData
from jaxpref.processes.together import is_first
from jaxpref.runs.plots import plot_curves
from jaxpref.settings import check_made
from jaxpref.training import run
from jaxpref.training.data import FileData
from jaxpref.training.prepare import ReadData
from jaxpref.training.result import Result


def train(config: Config, **given: Any) -> Result:
    """Runs (or continues) a training run; with `online.rewards` on the policy's own answers.

    Its curves are drawn at the end, as `curves.png` in `config.out`, unless `on_log` is given: then
    what is shown of the run is the caller's affair.

    Args:
        given: as of `training.run.train`: objective, model, params, callbacks, optimizer,
            schedule, data, eval, on_log.
    Errors: as of `training.run.train`.
    """
    check_made(config, Config, "jaxpref.make_config")
    read: ReadData = RolloutData if config.online.rewards else FileData
    result = run.train(config, read=read, **given)
    if given.get("on_log") is None and is_first():
        plot_curves(result.out)
    return result
