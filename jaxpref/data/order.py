"""Which rows every step of a run trains on, whatever they hold: by seed and batch size alone."""

import math
from functools import cached_property

import grain
import numpy as np

from jaxpref.errors import InputError

MOST_STEPS = 1_000_000
"""Every step is planned before the first one, in 5 to 100 microseconds for each of its groups."""
_ROUNDING = 1e-9
"""0.1 of 30 steps are 3, and not 4 because 0.1 * 30 is 3.0000000000000004."""


def check_steps(groups: int, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """How many steps a run over so many groups has; arguments as of `Loader`.

    Errors: InputError for more than can be planned.
    """
    per_epoch = -(-groups // batch_size)
    steps = max_steps or math.ceil(per_epoch * epochs - _ROUNDING)
    if steps > MOST_STEPS:
        raise InputError(
            f"at most {MOST_STEPS:,} steps, which are planned before the first one",
            f"{steps:,} steps; an epoch has {per_epoch:,}",
            "lower train.epochs or train.max_steps, or raise train.batch_size",
        )
    return steps


class Order:
    """Which of `count` rows every step trains on: by seed and batch size, and nothing else.

    Args: as of `Loader`.
    Errors: InputError for more steps than can be planned.
    """

    def __init__(
        self,
        count: int,
        *,
        batch_size: int,
        seed: int | None = None,
        epochs: float = 1,
        max_steps: int | None = None,
    ):
        order = grain.MapDataset.range(count)
        if seed is not None:
            order = order.shuffle(seed=seed)
        # The last batch of an epoch may be smaller: no row is lost.
        self._batch_size = batch_size
        self._epoch = order.batch(batch_size, batch_fn=list)
        self.per_epoch = len(self._epoch)
        self.steps = check_steps(count, batch_size, epochs, max_steps)
        self.dataset = self._epoch.repeat(-(-self.steps // self.per_epoch))[: self.steps]

    def __getitem__(self, step: int) -> list[int]:
        """The rows of a step, counted from 0."""
        if step >= self.per_epoch:
            return [int(i) for i in self.dataset[step]]
        first = step * self._batch_size
        return self.first_epoch[first : first + self._batch_size].tolist()

    @cached_property
    def first_epoch(self) -> np.ndarray:
        """The rows in the order of the first epoch, whatever the number of steps."""
        return np.array([i for s in range(self.per_epoch) for i in self._epoch[s]], np.int64)
