"""What the policy is asked: prompts, which may carry objective weights of their own."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxpref.conditioning.weights import weight_draw, weighted_prompt
from jaxpref.config import OnlineConfig
from jaxpref.data.encode import encode_prompts
from jaxpref.data.order import Order
from jaxpref.online.prompts import Prompts
from jaxpref.runs.build import Pieces
from jaxpref.types import Group

_WEIGHTS = 1
"""In the seed of weights, beside the draws of the loader (0)."""


class Asked(NamedTuple):
    """Prompts of a step."""

    prompts: Sequence[Group]
    """As they were read: as rewards see them."""
    given: Sequence[Group]
    """As the policy sees them."""
    ids: Sequence[np.ndarray]
    """Token ids of these."""
    weight_BO: np.ndarray
    """Objective weights of every prompt."""


class Asking:
    """The prompts of a run, asked in steps.

    With `online.dirichlet` or `online.weight_vectors` each has weights of its own in every step,
    which depend on the seed, the step and the row alone.
    """

    def __init__(self, pieces: Pieces, prompts: Prompts):
        self._prompts, self._tokenizer = prompts, pieces.tokenizer
        self._online, self._seed = pieces.config.online, pieces.config.train.seed
        online = self._online
        self._told = online.dirichlet is not None or bool(online.weight_vectors)
        self._draw = weight_draw(len(online.rewards), online.dirichlet, online.weight_vectors)

    def at(self, step: int, members: Sequence[int]) -> Asked:
        """The prompts of these numbers, as they are asked in a step."""
        prompts = [self._prompts.groups[i] for i in members]
        if not self._told:
            weight_BO = np.tile(weights_of(self._online), (len(prompts), 1))
            return Asked(prompts, prompts, [self._prompts.ids[i] for i in members], weight_BO)
        weights = [self._drawn(step, prompt) for prompt in prompts]
        given = [
            dataclasses.replace(prompt, prompt=weighted_prompt(prompt.prompt, own))
            for prompt, own in zip(prompts, weights, strict=True)
        ]
        weight_BO = np.array([list(own.values()) for own in weights])
        return Asked(prompts, given, encode_prompts(given, self._tokenizer), weight_BO)

    def all(self, step: int) -> Asked:
        """All prompts, as they are asked in a step."""
        return self.at(step, range(len(self._prompts.groups)))

    def lengths(self, order: Order) -> tuple[list[np.ndarray], int]:
        """Every prompt's token ids at their longest in a run, and tokens of the shortest prompt."""
        longest = list(self.all(0).ids)
        shortest = min(map(len, longest))
        if not self._told:
            return longest, shortest
        for step in range(order.steps):
            members = order[step]
            for i, ids in zip(members, self.at(step, members).ids, strict=True):
                shortest = min(shortest, len(ids))
                longest[i] = max(longest[i], ids, key=len)
        return longest, shortest

    def _drawn(self, step: int, prompt: Group) -> dict[str, float]:
        """Reward -> weight."""
        rng = np.random.default_rng((self._seed, step, prompt.row_id, _WEIGHTS))
        return dict(zip(self._online.rewards, self._draw(rng), strict=True))


def weights_of(online: OnlineConfig) -> np.ndarray:
    """[O] objective weights, in the order of the rewards."""
    return np.array([online.weights.get(name, 1.0) for name in online.rewards])
