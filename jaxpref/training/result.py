"""What a training run ends with."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxpref.generation.completions import Completion, generate
from jaxpref.generation.opening import OpenPolicy
from jaxpref.runs.build import Pieces
from jaxpref.runs.directory import run_params
from jaxpref.runs.metrics import read_history

_SHOWN = {"loss": "loss", "rewards/accuracies": "reward accuracy", "rewards/margins": "margin"}
"""Metrics in the text of a result, and what they are called there."""


@dataclass(frozen=True)
class Result:
    """What a run ends with; its parameters are read from its checkpoints when asked for."""

    out: Path
    steps: int
    """Trained in all."""
    metrics: dict[str, float]
    """Of the last log line."""
    first_eval: dict[str, float]
    """Before the first step; empty without held-out data."""
    last_eval: dict[str, float]
    best: str
    """Which checkpoint is the best, and which metric decided it."""
    flops: float
    """Model FLOPs of all steps, as `runs.flops.step_flops` counts them; without evaluations."""
    seconds: float
    """Of all sessions of the run, with loading, compilation and evaluations."""
    pieces: Pieces = field(repr=False, compare=False)
    """Of the config: model, mesh, tokenizer."""

    @property
    def history(self) -> list[dict[str, float]]:
        """The metrics of every step that was logged or evaluated, as of `metrics.jsonl`.

        One dict per step, with `step` among its keys: `pandas.DataFrame(result.history)`.
        """
        return read_history(self.out)

    @property
    def params(self) -> Any:
        """Parameters of the best checkpoint, on the mesh.

        `train(params=)` takes them, but for those with an adapter, which lies beside the weights
        under `lora`.  Those of another checkpoint: `runs.directory.run_params`.
        """
        own = self.pieces.source.own
        return self._run_params if own is None else own.params_of(self._run_params)

    @cached_property
    def _run_params(self) -> Any:
        """As `pieces.model` takes them."""
        params, _ = run_params(self.pieces, self.out, "best")
        return params

    def generate(self, prompts: str | Path | Sequence[Any], **settings: Any) -> list[Completion]:
        """Completions by the best checkpoint, which is opened once; arguments as of `generate`.

        `step` and `overrides` are not among them: `jaxpref.generate(result.out, ...)` takes these.
        """
        return generate(OpenPolicy(self.pieces, self._run_params), prompts, **settings)

    def __repr__(self) -> str:
        parts = [f"{self.out}: {self.steps:,} steps in {self.seconds:,.0f} s"]
        parts += [
            f"{told} {self.metrics[name]:.4g}"
            for name, told in _SHOWN.items()
            if name in self.metrics
        ]
        for name in _held_out_sets(self.first_eval):
            at = f"eval/{name}/" if name else "eval/"
            held_out = [
                f"{told} {self.first_eval[at + metric]:.4g} -> {self.last_eval[at + metric]:.4g}"
                for metric, told in _SHOWN.items()
                if at + metric in self.first_eval and at + metric in self.last_eval
            ]
            if held_out:
                of_set = f" ({name})" if name else ""
                parts.append(f"held out{of_set}: {', '.join(held_out)}")
        return f"<Result {'; '.join(parts)}; best: {self.best}>"


def _held_out_sets(values: Iterable[str]) -> list[str]:
    """Names of held-out sets in the metrics of an evaluation; of a single one it is empty."""
    matched = (re.fullmatch(r"eval/(?:([\w.-]+)/)?loss", name) for name in values)
    return [found[1] or "" for found in matched if found]
