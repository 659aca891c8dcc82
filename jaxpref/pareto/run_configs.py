"""The runs of a front: their directories and their configurations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from jaxpref.config import AdapterKind, Config, DataConfig, LogConfig
from jaxpref.data.splits import may_have_splits
from jaxpref.pareto.config import BY_ADAPTER, FrontConfig, point_name
from jaxpref.pareto.labels import label_columns, weight_columns
from jaxpref.storage.paths import as_path

RACO_POINTS = "raco.points"
"""Name of the common state of the RACO points; no objective can be called so."""


def single_out(front: FrontConfig, name: str) -> str:
    """Directory of the DPO run of one objective."""
    return str(as_path(front.run.out) / "dpo" / name)


def point_out(front: FrontConfig, weights: Mapping[str, float], method: str = "modpo") -> str:
    """Directory of the run of one weight vector."""
    return str(as_path(front.run.out) / "points" / point_name(method, weights))


def conditioned_out(front: FrontConfig, method: str) -> str:
    """Directory of the run of all weights."""
    return str(as_path(front.run.out) / method)


def single_run(front: FrontConfig, name: str, train: Sequence[str], eval: Sequence[str]) -> Config:
    """The DPO run of one objective.

    Every policy is measured at the end, on the same pairs; a run evaluates itself only if
    `train.eval_every` is set.

    Args:
        train, eval: its pairs, scored where they have to be relabelled.
    """
    relabel = None if front.objective(name).train else name
    data = replace(_read(front, train, eval), prefer=relabel)
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


def raco_run(front: FrontConfig, weights: Mapping[str, float], train: str) -> Config:
    """The RACO run of one weight vector: a part per objective, their gradients combined.

    Args:
        train: pairs with a label of every objective.
    """
    parts = [
        {
            "name": "signed_dpo",
            "weight": weights[name],
            "beta": front.pareto.beta,
            "columns": {"sign": column},
        }
        for name, column in zip(front.names, label_columns(front.names), strict=True)
    ]
    run = _labelled_run(front, point_out(front, weights, "raco"), train, parts)
    return replace(run, optim=replace(run.optim, combine="raco"))


def conditioned_run(front: FrontConfig, method: str, train: str) -> Config:
    """The run of all weights, on labels: by prompts (COS-DPO), or by an adapter that reads them.

    Args:
        train: as `labels.conditioned_rows` makes them: every pass over the pairs is in there.
    """
    names = front.names
    columns = {"labels": label_columns(names), "objective_weights": weight_columns(names)}
    part = {"name": "cos_dpo", "beta": front.pareto.beta, "columns": columns}
    run = _labelled_run(front, conditioned_out(front, method), train, [part])
    epochs = run.train.epochs / math.ceil(run.train.epochs)  # the last pass may be a part of one
    run = replace(run, train=replace(run.train, epochs=epochs))
    if method not in BY_ADAPTER:
        return run
    adapter = replace(
        run.adapter, kind=cast(AdapterKind, method), weight_columns=weight_columns(names)
    )
    return replace(run, adapter=adapter)


def _labelled_run(front: FrontConfig, out: str, train: str, objective: list[dict]) -> Config:
    """A run on rows that this package wrote."""
    run = unevaluated_run(front, out, [train])
    data = replace(run.data, format="auto", columns={})
    return replace(run, data=data, objective=objective)


def unevaluated_run(front: FrontConfig, out: str, train: Sequence[str]) -> Config:
    """The front's run in `out`, on these rows; it does not evaluate itself on the way."""
    run = front.run
    return replace(
        run,
        out=out,
        data=_read(front, train, []),
        train=replace(run.train, eval_every=None, samples=0),
        log=_log_of(front, as_path(out).name),
    )


def _read(front: FrontConfig, train: Sequence[str], eval: Sequence[str]) -> DataConfig:
    """The front's `data` with other paths.

    A split that it asks for is of those that may have several, not of files of an objective's own
    or of this package.
    """
    data = front.run.data
    return replace(
        data,
        train=list(train),
        eval=list(eval),
        train_split=data.train_split if may_have_splits(train) else None,
        eval_split=data.eval_split if may_have_splits(eval) else None,
    )


def _log_of(front: FrontConfig, name: str) -> LogConfig:
    """Of one of the front's runs: where they are all named, its own name is behind theirs."""
    log = front.run.log
    return log if log.name is None else replace(log, name=f"{log.name}-{name}")
