"""The runs of a front: their directories and their configurations."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from jaxpref.config import Config, LogConfig
from jaxpref.pareto.config import FrontConfig, point_name
from jaxpref.storage.paths import as_path


def single_out(front: FrontConfig, name: str) -> str:
    """Directory of the DPO run of one objective."""
    return str(as_path(front.run.out) / "dpo" / name)


def point_out(front: FrontConfig, weights: Mapping[str, float]) -> str:
    """Directory of the MODPO run of one weight vector."""
    return str(as_path(front.run.out) / "points" / point_name("modpo", weights))


def single_run(front: FrontConfig, name: str, train: Sequence[str], eval: Sequence[str]) -> Config:
    """The DPO run of one objective.

    Every policy is measured at the end, on the same pairs; a run evaluates itself only if
    `train.eval_every` is set.

    Args:
        train, eval: its pairs, scored where they have to be relabelled.
    """
    relabel = None if front.objective(name).train else name
    data = replace(front.run.data, train=list(train), eval=list(eval), prefer=relabel)
    dpo = {"name": "dpo", "beta": front.pareto.beta}
    out, log = single_out(front, name), _log_of(front, f"dpo-{name}")
    return replace(front.run, out=out, data=data, objective=[dpo], log=log)


def point_run(
    front: FrontConfig, weights: Mapping[str, float], train: Sequence[str], eval: Sequence[str]
) -> Config:
    """The MODPO run of one weight vector.

    Args:
        train, eval: the base's pairs, with scores of the other objectives.
    """
    base = front.base(weights)
    others = [name for name in front.names if name != base]
    single = single_run(front, base, train, eval)
    w = [weights[base], *(weights[name] for name in others)]
    modpo = {"name": "modpo", "beta": front.pareto.beta, "w": w}
    data = replace(single.data, other_rewards=others)
    out, log = point_out(front, weights), _log_of(front, point_name("modpo", weights))
    return replace(single, out=out, data=data, objective=[modpo], log=log)


def _log_of(front: FrontConfig, name: str) -> LogConfig:
    """Of one of the front's runs: where they are all named, its own name is behind theirs."""
    log = front.run.log
    return log if log.name is None else replace(log, name=f"{log.name}-{name}")
