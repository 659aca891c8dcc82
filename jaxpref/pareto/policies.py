"""The policies of a front, on one base in memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxpref.config import Config
from jaxpref.generation.answer_logps import answer_logps
from jaxpref.generation.completions import Completion, Settings, complete
from jaxpref.generation.mixing import Mix, Rule
from jaxpref.generation.opening import Mixed, Opened, open_source, opened_mix
from jaxpref.models.parameters import LORA
from jaxpref.pareto.measure import Candidate
from jaxpref.runs.adapters import read_adapter
from jaxpref.runs.build import build
from jaxpref.runs.directory import run_params
from jaxpref.runs.params import load_params, reference_params
from jaxpref.step.policy import split
from jaxpref.types import Group

LATEST = "latest"
"""Checkpoint that a front is made of: the last, for a best one would be chosen by the data it is
shown on."""
_MOD = Rule("reverse_kl", 0.5, reference=False)
"""DPO's divergence; weights sum to 1, so the reference plays no part."""


class Shelf:
    """Base and reference of a front's runs, read once, and what is laid over them.

    Args:
        config: of any of these runs with a reference; they differ in data and objective only.
    """

    def __init__(self, config: Config):
        # What is measured was never in the data: nothing is cached, and rows are as long as they
        #     need to be.
        reference, data = (
            replace(config.reference, mode="copy"),
            replace(config.data, row_length=None),
        )
        self.pieces = build(replace(config, reference=reference, data=data))
        start = load_params(self.pieces)
        self._base = split(start)[1]
        self._reference = reference_params(self.pieces, start)

    def reference(self) -> Candidate:
        return _policy(Opened(self.pieces, self._reference))

    def run(self, directory: str | Path) -> Candidate:
        """Of a finished run."""
        return _policy(Opened(self.pieces, self._params(directory)))

    def adapter(self, directory: str | Path) -> Candidate:
        """Of a PEFT directory."""
        pieces = self.pieces
        tree = read_adapter(str(directory), pieces.lora, pieces.source.spec, pieces.mesh)
        return _policy(Opened(pieces, {**self._base, LORA: tree}))

    def mix(self, runs: Mapping[str | Path, float]) -> Candidate:
        """Runs that decide every token together; MOD under the reverse KL (Shi et al., arXiv
        2406.18853)."""
        pieces = self.pieces
        if pieces.lora is None:
            mesh = [f"mesh.{axis}={size}" for axis, size in pieces.mesh.shape.items()]
            return _policy(open_source(Mix(runs), step=LATEST, overrides=mesh))
        mixed = Mixed(((pieces.model, 0),) * len(runs), _MOD, (pieces.source.spec,) * len(runs))
        overlays = [split(self._params(run))[0] for run in runs]
        return _policy(opened_mix(pieces, mixed, list(runs.values()), [self._base], overlays))

    def _params(self, directory: str | Path) -> Any:
        return run_params(self.pieces, directory, LATEST, base=self._base or None)[0]


def _policy(opened: Opened) -> Candidate:
    def answers(prompts: Sequence[Group], settings: Settings) -> list[Completion]:
        done = complete(opened.pieces, opened.params, prompts, settings, opened.mixed)
        return sorted(done, key=lambda item: (item.prompt_index, item.sample))

    return Candidate(lambda groups: answer_logps(opened, groups), answers)


Make = Callable[[Shelf], Candidate]
"""What makes a policy when it is its turn to be measured."""
