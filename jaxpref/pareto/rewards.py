"""The objectives' explicit rewards and judges, on their scales."""

from dataclasses import replace

from jaxpref.data.rewrite import configured
from jaxpref.pareto.config import FrontConfig
from jaxpref.pareto.inputs import file_digest
from jaxpref.pareto.stages import Stages
from jaxpref.rewards import Limits, Reward, calibrate, open_reward
from jaxpref.runs.directory import is_run
from jaxpref.storage.paths import as_path


def temperature(front: FrontConfig, name: str, stages: Stages) -> dict[str, float]:
    """The fitted temperature of an objective's reward and its standard error; fitted once."""

    def fit() -> dict[str, float]:
        pairs = configured(front.run.data, front.objective(name).train, "train")
        reward = _opened(front, front.objective(name).reward)
        fitted = calibrate(reward, pairs, limits=limits(front))
        return {"temperature": fitted.temperature, "error": fitted.temperature_error}

    return stages(f"temperature-{name}", fit)


def _opened(front: FrontConfig, what: str) -> Reward:
    """A reward; the chat template of a model that is no run prints the front's date."""
    day = front.run.data.date
    overrides = [] if day is None or is_run(what) else [f"data.date={day}"]
    return open_reward(what, overrides=overrides)


def explicit_reward(front: FrontConfig, name: str, stages: Stages) -> Reward:
    """An objective's explicit reward, divided by its temperature."""
    objective = front.objective(name)
    reward = _opened(front, objective.reward)
    if objective.temperature != "fit":
        return replace(reward, temperature=objective.temperature)
    fitted = temperature(front, name, stages)
    return replace(
        reward,
        temperature=fitted["temperature"],
        temperature_error=fitted["error"],
        bradley_terry=True,
    )


def judge(front: FrontConfig, name: str, stages: Stages) -> Reward:
    """What answers are judged by for an objective that has a judge or an explicit reward."""
    objective = front.objective(name)
    if objective.judge is None:
        return explicit_reward(front, name, stages)
    return _opened(front, objective.judge)


def judge_digest(front: FrontConfig, name: str) -> str:
    """Part of a stage's name, which changes with the file of a judge that is a function."""
    path, colon, _ = (front.objective(name).judge or "").rpartition(":")
    return f"-{file_digest(path)[:12]}" if colon and as_path(path).is_file() else ""


def limits(front: FrontConfig) -> Limits:
    """How long the answers are that reward models score."""
    return Limits(front.run.data.max_length, front.run.data.truncation)
