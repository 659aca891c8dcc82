"""What the stages of a sweep cost, given to the points that need them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from jaxpref.data.rewrite import configured, groups_of
from jaxpref.pareto.config import SHARED, FrontConfig, point_name
from jaxpref.pareto.cost import Cost, Work
from jaxpref.pareto.rewards import limits
from jaxpref.pareto.run_configs import RACO_POINTS
from jaxpref.pareto.stages import Stages
from jaxpref.rewards.tokens import encode_within
from jaxpref.runs.build import Pieces
from jaxpref.runs.flops import forward_flops
from jaxpref.storage.paths import as_path


def single_cost(front: FrontConfig, name: str, stages: Stages) -> Cost:
    """Of the DPO policy of one objective."""
    return Cost(stages.cost(f"dpo-{name}"), _label_costs(front, name, stages))


def combined_cost(front: FrontConfig, method: str, stages: Stages) -> Cost:
    """Of a policy that is made of all DPO policies; FLOPs of the answers for MPO do not count."""
    own = replace(stages.cost("max-min"), flops=None) if method == "mpo" else Work()
    return Cost(own, shared=_policy_costs(front, front.names, stages))


def point_cost(
    front: FrontConfig, weights: Mapping[str, float], pieces: Pieces, stages: Stages
) -> Cost:
    """Of a MODPO point: an equal share of the run that trained it, and what it needs besides."""
    base = front.base(weights)
    together = 1
    if front.pareto.together:
        together = sum(front.base(other) == base for other in front.points)
    stage = point_name("modpo", weights) if together == 1 else f"stacked-{base}"
    run = stages.cost(stage)
    own = Work(run.flops / together, run.seconds / together)
    shared = {
        **_policy_costs(front, _policies_before(front, base), stages),
        **_scoring_costs(front, base, pieces, stages),
    }
    return Cost(own, shared, together)


def raco_cost(front: FrontConfig, weights: Mapping[str, float], stages: Stages) -> Cost:
    """Of a RACO point: an equal share of the run that trained it, and the labels."""
    together = len(front.points) if front.pareto.together else 1
    run = stages.cost(f"stacked-{RACO_POINTS}" if together > 1 else point_name("raco", weights))
    own = Work(run.flops / together, run.seconds / together)
    return Cost(own, _shared_label_costs(front, stages), together)


def conditioned_cost(front: FrontConfig, method: str, stages: Stages) -> Cost:
    """Of one weight vector of a policy that serves all: the run is shared by all that are asked."""
    rows = {f"rows of {method}": stages.cost(f"rows-{method}")}
    run = {f"the run of {method}": stages.cost(method)}
    return Cost(shared={**run, **rows, **_shared_label_costs(front, stages)})


def _shared_label_costs(front: FrontConfig, stages: Stages) -> dict[str, Work]:
    """Of the labels of all pairs: the explicit scores of the shared ones, and one file of all."""
    scores = _explicit_costs(front, SHARED, stages) if front.relabelled else {}
    return {"labels": stages.cost("labels"), **scores}


def _policies_before(front: FrontConfig, base: str) -> list[str]:
    """Objectives whose DPO policy a MODPO point needs.

    They are the ones whose reward is learned, and the one that the point starts from.
    """
    needed = []
    for name in front.names:
        learned = name != base and front.objective(name).reward is None
        started_from = name == base and front.pareto.warm_start
        if learned or started_from:
            needed.append(name)
    return needed


def _policy_costs(front: FrontConfig, names: Sequence[str], stages: Stages) -> dict[str, Work]:
    """Of the DPO policies of objectives, with the labels that they were trained on."""
    costs = {f"DPO on {name}": stages.cost(f"dpo-{name}") for name in names}
    for name in names:
        costs |= _label_costs(front, name, stages)
    return costs


def _label_costs(front: FrontConfig, name: str, stages: Stages) -> dict[str, Work]:
    """Of an objective's pairs, where its reward labels them."""
    return {} if front.objective(name).train else _explicit_costs(front, SHARED, stages)


def _explicit_costs(front: FrontConfig, pool: str, stages: Stages) -> dict[str, Work]:
    """Of the explicit scores of some pairs; FLOPs of models among the rewards are not counted."""
    rewards = {o.name: o.reward for o in front.pareto.objectives if o.reward}
    work = stages.cost(f"score-explicit-{pool}-train")
    if any(
        reward.startswith("adapter:") or as_path(reward).exists() for reward in rewards.values()
    ):
        work = replace(work, flops=None)
    costs = {f"explicit scores of {pool}": work}
    for name in rewards:
        if front.objective(name).temperature == "fit":
            costs[f"temperature of {name}"] = stages.cost(f"temperature-{name}")
    return costs


def _scoring_costs(
    front: FrontConfig, base: str, pieces: Pieces, stages: Stages
) -> dict[str, Work]:
    """Of the scores of a base's training pairs.

    An implicit reward is a forward pass of its policy and one of the reference.
    """
    pool, costs = front.pool(base), {}
    others = [name for name in front.names if name != base]
    scored = front.names if pool == SHARED else others
    if any(front.objective(name).reward for name in scored):
        costs |= _explicit_costs(front, pool, stages)
    implicit = [name for name in others if front.objective(name).reward is None]
    if implicit:
        one_pass = stages(
            f"forward-flops-{pool}", lambda: {"flops": _forward_flops(front, pool, pieces)}
        )
        flops = 2 * len(implicit) * one_pass["flops"]
        work = stages.cost(f"score-implicit-{pool}-train")
        costs[f"implicit scores of {pool}"] = replace(work, flops=flops)
    return costs


def _forward_flops(front: FrontConfig, pool: str, pieces: Pieces) -> float:
    """Of one pass over all training pairs of a pool, ties among them, as they are scored."""
    data = front.run.data
    paths = data.train if pool == SHARED else front.objective(pool).train
    pairs = list(groups_of(configured(data, paths, "train")))
    groups = encode_within(pairs, pieces.tokenizer, limits(front), pieces.processor)
    return forward_flops(pieces.source.spec, groups, share_prefix=data.share_prefix)
