"""The policies of a front, on one base in memory."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxpref import build as b
from jaxpref.config import Config
from jaxpref.export import run_params
from jaxpref.generate import Completion, Settings, complete
from jaxpref.pareto.measure import Policy, logps_of
from jaxpref.policy import split
from jaxpref.rewards.models import implicit_reward
from jaxpref.rewards.reward import Reward
from jaxpref.types import Group


class Shelf:
    """Base and reference of a front's runs, read once, and what is laid over them.

    Args:
        config: of any of these runs; they differ in data and objective only.
    """

    def __init__(self, config: Config):
        # What is measured was never in the data: nothing is cached, and rows are as long as they need to be.
        reference, data = replace(config.reference, mode="copy"), replace(config.data, row_length=None)
        self.pieces = b.build(replace(config, reference=reference, data=data))
        start = b.load_params(self.pieces)
        self._base = split(start)[1]
        self.reference_params = b.reference_params(self.pieces, start)

    def params(self, run: str | Path) -> Any:
        """Of a finished run."""
        return run_params(self.pieces, run, "latest", base=self._base)[0]

    def policy(self, params: Any) -> Policy:
        """As it is measured."""

        def answers(prompts: Sequence[Group], settings: Settings) -> list[Completion]:
            done = complete(self.pieces, params, prompts, settings)
            return sorted(done, key=lambda item: (item.prompt_index, item.sample))

        return Policy(logps_of(self.pieces, params), answers)

    def reference(self) -> Policy:
        return self.policy(self.reference_params)

    def implicit_reward(self, name: str, config: Config) -> Reward:
        """beta * (log pi - log ref) of a DPO run, on this base."""
        load = lambda: (self.params(config.out), self.reference_params)
        return implicit_reward(name, self.pieces, load, beta=config.objective[0]["beta"])
