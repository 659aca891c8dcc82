"""The numbers in which runs that are trained together differ."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxpref.config import Config
from jaxpref.errors import InputError
from jaxpref.objectives import OBJECTIVES, TRANSFORMS, Part, bind


def stacked_numbers(configs: Sequence[Config]) -> list[dict[str, np.ndarray]]:
    """Per part of the objective, the numbers that vary between runs: {name: [P, ...]}.

    They are hyperparameters, and `weight`.

    Errors: InputError where runs differ in something else of their objectives.
    """
    bound = [bind(config.objective, OBJECTIVES, TRANSFORMS) for config in configs]
    fixed = [
        [dataclasses.replace(part, weight=1.0, hyperparameters={}) for part in parts]
        for parts in bound
    ]
    if any(repr(other) != repr(fixed[0]) for other in fixed[1:]):
        raise InputError(
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
            raise InputError(
                "numbers, as many in every run, for a hyperparameter in which runs differ",
                f"{parts[0].name}.{name}: {values}",
                "train the runs one by one",
            ) from error
    return varied
