"""The objectives' explicit rewards and judges, on their scales."""

from dataclasses import replace

from jaxpref.data.rewrite import configured
from jaxpref.pareto.config import FrontConfig
from jaxpref.pareto.stages import Stages
from jaxpref.rewards import Limits, Reward, calibrate, open_reward


def explicit_reward(front: FrontConfig, name: str, stages: Stages) -> Reward:
    """An objective's explicit reward, divided by its temperature, which is fitted once."""
    objective = front.objective(name)
    reward = open_reward(objective.reward)
    if objective.temperature != "fit":
        return replace(reward, temperature=objective.temperature)

    def fit() -> dict[str, float]:
        pairs = configured(front.run.data, objective.train, "train")
        fitted = calibrate(reward, pairs, limits=limits(front))
        return {"temperature": fitted.temperature, "error": fitted.temperature_error}

    found = stages(f"temperature-{name}", fit)
    return replace(reward, temperature=found["temperature"], temperature_error=found["error"], bradley_terry=True)


def judge(front: FrontConfig, name: str, stages: Stages) -> Reward:
    """What an objective's answers are judged by, where it has a judge or an explicit reward."""
    objective = front.objective(name)
    return explicit_reward(front, name, stages) if objective.judge is None else open_reward(objective.judge)


def limits(front: FrontConfig) -> Limits:
    """How long the answers are that its models score."""
    return Limits(front.run.data.max_length, front.run.data.truncation)
