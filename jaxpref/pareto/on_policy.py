"""Methods that train on the policy's own answers: their runs, and what these cost."""

from collections.abc import Mapping
from dataclasses import replace

from jaxpref.config import Config
from jaxpref.pareto.config import SHARED, FrontConfig, point_name
from jaxpref.pareto.cost import Cost, Work
from jaxpref.pareto.rewards import temperature
from jaxpref.pareto.run_configs import conditioned_out, point_out, single_out, unevaluated_run
from jaxpref.pareto.stages import Stages
from jaxpref.storage.paths import as_path

_OBJECTIVE = {"rloo": "rloo", "online_dpo": "dpo", "mo_odpo": "dpo"}


def on_policy_run(
    front: FrontConfig, method: str, weights: Mapping[str, float] | None, stages: Stages
) -> Config:
    """The run of one weight vector, or of all.

    It answers the prompts of all objectives' training pairs.

    Args:
        weights: None: one run for all, whose prompts say them.
    """
    name = _OBJECTIVE[method]
    if weights is None:
        out = conditioned_out(front, method)
    else:
        out = point_out(front, weights, method)
    run = unevaluated_run(front, out, _prompts(front))
    serves_all = weights is None
    points = [list(point.values()) for point in front.points]
    online = replace(
        run.online,
        rewards={objective: _reward(front, objective) for objective in front.names},
        scales={objective: _scale(front, objective, stages) for objective in front.names},
        weights=dict(weights or {}),
        dirichlet=front.pareto.dirichlet if serves_all else None,
        weight_vectors=points if serves_all and front.pareto.dirichlet is None else [],
        samples=run.online.samples if name == "rloo" else 2,
    )
    objective = [{"name": name, "beta": front.pareto.beta}]
    return replace(run, objective=objective, online=online)


def on_policy_stage(method: str, weights: Mapping[str, float] | None) -> str:
    """Name of the stage of such a run."""
    return method if weights is None else point_name(method, weights)


def on_policy_cost(
    front: FrontConfig, method: str, weights: Mapping[str, float] | None, stages: Stages
) -> Cost:
    """Of a point: its own run, or the one that serves all weights, and what its rewards need.

    Drawing the answers is a part of the run; FLOPs of models that judge them are not counted.
    """
    run = stages.cost(on_policy_stage(method, weights))
    shared = {}
    for objective in front.pareto.objectives:
        if objective.reward is None:
            shared[f"DPO on {objective.name}"] = stages.cost(f"dpo-{objective.name}")
        if objective.temperature == "fit":
            fit = f"temperature-{objective.name}"
            shared[f"temperature of {objective.name}"] = stages.cost(fit)
    if any(_is_model(_reward(front, name)) for name in front.names):
        run = Work(None, run.seconds)
    if weights is None:
        return Cost(shared={f"the run of {method}": run, **shared})
    return Cost(run, shared)


def _prompts(front: FrontConfig) -> list[str]:
    """Files with the pairs of all objectives, each once."""
    of_pool = {front.pool(name): name for name in front.names}
    paths: list[str] = []
    for pool, name in of_pool.items():
        paths += front.run.data.train if pool == SHARED else front.objective(name).train
    return list(dict.fromkeys(paths))


def _reward(front: FrontConfig, name: str) -> str:
    """What judges answers: the explicit reward, or the implicit one of the DPO policy."""
    return front.objective(name).reward or single_out(front, name)


def _scale(front: FrontConfig, name: str, stages: Stages) -> float:
    """What the reward is divided by."""
    objective = front.objective(name)
    if objective.temperature == "fit":
        return temperature(front, name, stages)["temperature"]
    return objective.temperature


def _is_model(reward: str) -> bool:
    return reward.startswith("adapter:") or as_path(reward).is_dir()
