"""What was read of another trainer's config, script or command: its options, under TRL's names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TRAINERS = ("dpo", "kto", "cpo", "orpo", "reward")
"""Trainers of TRL that have a counterpart."""

_OPTIONS_OF = {
    "kto": ("desirable_weight", "undesirable_weight"),
    "cpo": ("cpo_alpha", "simpo_gamma"),
    "reward": ("center_rewards_coefficient",),
    "dpo": (
        "beta",
        "loss_type",
        "loss_weights",
        "rpo_alpha",
        "label_smoothing",
        "f_divergence_type",
        "ld_alpha",
        "use_weighting",
        "precompute_ref_log_probs",
        "sync_ref_model",
        "max_prompt_length",
        "max_completion_length",
    ),
    "sft": (
        "dataset_text_field",
        "dataset_kwargs",
        "packing",
        "packing_strategy",
        "eval_packing",
        "max_seq_length",
        "num_of_sequences",
        "completion_only_loss",
        "assistant_only_loss",
        "shuffle_dataset",
    ),
}
"""Trainer -> options that tell a file of it from those of the trainers below, older ones too."""


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
    script: str | None = None
    """Of a command: the script that it starts."""
    config: str | None = None
    """Of a command: the YAML file that it reads first."""
    remarks: list[str] = field(default_factory=list)
    """What a reader of the translation should know of what was read."""
    ours: dict[str, Any] = field(default_factory=dict)
    """Dotted keys of our config that follow at once, where TRL has no option for it."""

    def guess_trainer(self) -> tuple[str, str]:
        """The trainer that some options belong to, and which; dpo where there are none."""
        for trainer, names in _OPTIONS_OF.items():
            if own := [name for name in names if name in self.options]:
                return trainer, f" (it has {', '.join(own)})"
        return "dpo", ""

    def add(self, options: Mapping[str, Any]) -> None:
        """More options; those whose values are known already stay."""
        for name, value in options.items():
            if isinstance(self.options.get(name, Unknown("")), Unknown):
                self.options[name] = value
