"""What was read of another trainer's config, script or command: its options, under TRL's names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TRAINERS = ("dpo", "kto", "cpo", "orpo", "reward")
"""Trainers of TRL that have a counterpart."""

_OF_ONE_TRAINER = {
    "desirable_weight": "kto",
    "undesirable_weight": "kto",
    "cpo_alpha": "cpo",
    "simpo_gamma": "cpo",
    "center_rewards_coefficient": "reward",
}


@dataclass(frozen=True)
class Unknown:
    """A value that is known only when the script runs: its text there."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass
class Source:
    """Options as they were given; those that were not have TRL's defaults."""

    options: dict[str, Any] = field(default_factory=dict)
    trainer: str | None = None
    """One of TRAINERS, or another name where the file says it; None: it does not say."""
    remarks: list[str] = field(default_factory=list)
    """What a reader of the translation should know of what was read."""
    ours: dict[str, Any] = field(default_factory=dict)
    """Dotted keys of our config that follow at once, where TRL has no option for it."""

    @property
    def trainer_or_guess(self) -> str:
        """The trainer, or the one that an option belongs to; dpo where none does."""
        if self.trainer is not None:
            return self.trainer
        own = (_OF_ONE_TRAINER[name] for name in self.options if name in _OF_ONE_TRAINER)
        return next(own, "dpo")

    def add(self, options: Mapping[str, Any]) -> None:
        """More options; those whose values are known already stay."""
        for name, value in options.items():
            if isinstance(self.options.get(name, Unknown("")), Unknown):
                self.options[name] = value
