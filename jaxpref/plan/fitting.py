"""`train.micro_rows: auto` in a plan: as many rows as a run on these chips would take."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxpref.config import Config
from jaxpref.fields import AUTO
from jaxpref.plan.child import CompilerCrashed
from jaxpref.plan.chips import Chip
from jaxpref.plan.estimate import memory_of
from jaxpref.training.micro_rows import SHARE_OF_DEVICE

Configs = Sequence[Config]
Compiled = Callable[[Configs], dict[str, Any]]
"""Configs, as of `plan_step` -> what the compiler says of them."""


def fitting_rows(
    configs: Configs, chip: Chip, compiled: Compiled
) -> tuple[Configs, dict[str, Any]]:
    """The configs with the rows that fit, and their plan.

    Twice as many are tried each time, up to a micro-batch that holds the step, as training does.

    Returns: with `auto`, and the plan of the fewest rows, where not even these fit.  `crashed_at`
        in the plan: rows at which the compiler crashed, fewer of which are planned.
    """
    said = compiled(configs)
    if configs[0].train.micro_rows != AUTO:
        return configs, said
    while _fits(said, chip):
        configs = _with_rows(configs, said["micro_rows"])
        if said["micro_batches"] == 1 or said["on_policy"]:
            break
        try:
            more = compiled(_with_rows(configs, 2 * said["micro_rows"]))
        except CompilerCrashed:
            return configs, said | {"crashed_at": 2 * said["micro_rows"]}
        if not _fits(more, chip):
            break
        said = more
    return configs, said


def _fits(said: dict[str, Any], chip: Chip) -> bool:
    return memory_of(said, chip).share <= SHARE_OF_DEVICE


def _with_rows(configs: Configs, rows: int) -> Configs:
    return [
        dataclasses.replace(one, train=dataclasses.replace(one.train, micro_rows=rows))
        for one in configs
    ]
