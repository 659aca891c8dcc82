"""The objectives' explicit rewards and judges, on their scales."""

from dataclasses import replace
from pathlib import Path

from jaxpref.data.rewrite import configured
from jaxpref.pareto.config import FrontConfig
from jaxpref.pareto.inputs import file_digest
from jaxpref.pareto.stages import Stages
from jaxpref.rewards import Limits, Reward, calibrate, open_reward


def temperature(front: FrontConfig, name: str, stages: Stages) -> dict[str, float]:
    """The fitted temperature of an objective's reward and its standard error; fitted once."""

    def fit() -> dict[str, float]:
        pairs = configured(front.run.data, front.objective(name).train, "train")
        fitted = calibrate(open_reward(front.objective(name).reward), pairs, limits=limits(front))
        return {"temperature": fitted.temperature, "error": fitted.temperature_error}

    return stages(f"temperature-{name}", fit)


def explicit_reward(front: FrontConfig, name: str, stages: Stages) -> Reward:
    """An objective's explicit reward, divided by its temperature."""
    objective = front.objective(name)
    reward = open_reward(objective.reward)
    if objective.temperature != "fit":
        return replace(reward, temperature=objective.temperature)
    found = temperature(front, name, stages)
    return replace(
        reward,
        temperature=found["temperature"],
        temperature_error=found["error"],
        bradley_terry=True,
    )


def judge(front: FrontConfig, name: str, stages: Stages) -> Reward:
    """What an objective's answers are judged by, where it has a judge or an explicit reward."""
    objective = front.objective(name)
    return (
        explicit_reward(front, name, stages)
        if objective.judge is None
        else open_reward(objective.judge)
    )


def judge_digest(front: FrontConfig, name: str) -> str:
    """What tells a changed judge from what it was, where it is a function in a file."""
    path, colon, _ = (front.objective(name).judge or "").rpartition(":")
    return f"-{file_digest(path)[:12]}" if colon and Path(path).is_file() else ""


def limits(front: FrontConfig) -> Limits:
    """How long the answers are that its models score."""
    return Limits(front.run.data.max_length, front.run.data.truncation)
