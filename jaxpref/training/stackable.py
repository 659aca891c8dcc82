"""Which runs can be trained in one step: they differ in numbers among hyperparameters alone."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxpref.config import Config
from jaxpref.errors import InputError
from jaxpref.files import whole_file
from jaxpref.objectives import OBJECTIVES, TRANSFORMS, Part, bind
from jaxpref.processes.together import first_does
from jaxpref.settings import to_dict
from jaxpref.storage.paths import as_path

RUNS = "runs.json"
"""In the directory of the common state."""


class NotStackable(InputError):
    """Runs that must be trained one by one."""


def check_stackable(configs: Sequence[Config]) -> None:
    """Errors: NotStackable where runs differ in more than they may, or cannot be stacked."""
    for config in configs:
        if not config.adapter.trained or config.reference.sync_every:
            raise NotStackable(
                "runs that train an adapter on a reference that stays, to train them together",
                f"{config.out}: adapter.rank={config.adapter.rank}, "
                f"reference.sync_every={config.reference.sync_every}",
                "set adapter.rank and reference.sync_every=null, or train them one by one",
            )
        if config.train.samples:
            raise NotStackable(
                "train.samples=0 for runs that are trained together",
                f"{config.out}: train.samples={config.train.samples}",
                "set train.samples=0, or train the runs one by one",
            )
    if configs[0].optim.offload:
        raise InputError(
            "moments on the devices, of adapters that are trained together",
            f"{configs[0].out}: optim.offload=true",
            "remove optim.offload: an adapter's moments are small",
        )
    first, *others = (to_dict(config) for config in configs)
    differing = {key for other in others for key in other if other[key] != first[key]}
    differing -= {"out", "objective", "log"}
    outs = [config.out for config in configs]
    if differing:
        raise NotStackable(
            "runs that differ in `out`, `log` and numbers of their objectives only",
            f"{', '.join(outs)} differ in {', '.join(sorted(differing))}",
            "make these settings the same in all, or train the runs one by one",
        )
    if len(set(outs)) < len(outs):
        raise NotStackable(
            "runs with an `out` each", f"out={', '.join(outs)}", "give every run its own `out`"
        )


def write_runs(configs: Sequence[Config], out: str | Path) -> None:
    """Writes down which adapter of the common state is whose."""
    with whole_file(as_path(out) / RUNS) as partial:
        partial.write_text(json.dumps(_told_apart(configs), indent=1) + "\n", encoding="utf-8")


def check_same_runs(configs: Sequence[Config], out: str | Path) -> None:
    """Errors: NotStackable where the common state is of other runs, or of these in another order.

    A state without a list of its runs is of a version that wrote none.
    """
    file = as_path(out) / RUNS
    before = first_does(lambda: json.loads(file.read_text()) if file.is_file() else None)
    if before not in (None, _told_apart(configs)):
        raise NotStackable(
            f"the runs with which {out} was started, in their order: {json.dumps(before)}",
            json.dumps(_told_apart(configs)),
            "give the same ones, choose another directory, or train the runs one by one",
        )


def _told_apart(configs: Sequence[Config]) -> list:
    """The objectives, in which alone runs of a stack differ, as JSON gives them back."""
    text = json.dumps([config.objective for config in configs], default=lambda own: own.__name__)
    return json.loads(text)


def stacked_numbers(configs: Sequence[Config]) -> list[dict[str, np.ndarray]]:
    """Per part of the objective, the numbers that vary between runs: {name: [P, ...]}.

    They are hyperparameters, and `weight`.

    Errors: NotStackable where runs differ in something else of their objectives.
    """
    bound = [bind(config.objective, OBJECTIVES, TRANSFORMS) for config in configs]
    fixed = [
        [dataclasses.replace(part, weight=1.0, hyperparameters={}) for part in parts]
        for parts in bound
    ]
    if any(repr(other) != repr(fixed[0]) for other in fixed[1:]):
        raise NotStackable(
            "objectives that differ in numbers among their hyperparameters only",
            "; ".join(f"{config.out}: {config.objective}" for config in configs),
            "train the runs one by one",
        )
    return [_varied([parts[i] for parts in bound]) for i in range(len(bound[0]))]


def _varied(parts: Sequence[Part]) -> dict[str, np.ndarray]:
    """Of one part in all runs, the numbers in which they differ."""
    varied = {}
    numbers = [{"weight": part.weight, **part.hyperparameters} for part in parts]
    for name, first in numbers[0].items():
        values = [own[name] for own in numbers]
        if all(value == first for value in values):
            continue
        try:
            varied[name] = np.array(values, np.float32)
        except (TypeError, ValueError) as error:
            raise NotStackable(
                "numbers, as many in every run, for a hyperparameter in which runs differ",
                f"{parts[0].name}.{name}: {values}",
                "train the runs one by one",
            ) from error
    return varied
