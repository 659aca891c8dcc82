"""The policies of a front, on one base in memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxpref.conditioning.weights import weighted_prompt
from jaxpref.config import Config
from jaxpref.generation.answer_logps import answer_logps
from jaxpref.generation.completions import Completion, Settings, complete
from jaxpref.generation.mixed_distribution import Rule
from jaxpref.generation.mixing import Mix
from jaxpref.generation.opening import (
    MixedModels,
    OpenPolicy,
    mesh_overrides,
    open_source,
    opened_mix,
)
from jaxpref.models.parameters import LORA
from jaxpref.pareto.measure import Candidate
from jaxpref.runs.adapters import read_adapter
from jaxpref.runs.build import build
from jaxpref.runs.directory import run_params
from jaxpref.runs.params import load_params, reference_params
from jaxpref.step.policy import split
from jaxpref.types import Group

LATEST = "latest"
"""The checkpoint that a front is made of.

The best one would be chosen by the data that the front is shown on.
"""
_MOD = Rule("reverse_kl", 0.5, reference=False)
"""DPO's divergence; weights sum to 1, so the reference plays no part."""


class FrontPolicies:
    """Base and reference of a front's runs, read once, and what is laid over them.

    Args:
        config: of any of these runs with a reference; they differ in data and objective only.
    """

    def __init__(self, config: Config):
        # The answers that are measured were never in the data: nothing is cached for them, and
        # rows are as long as they need to be.
        reference = replace(config.reference, mode="copy")
        data = replace(config.data, row_length=None)
        self.pieces = build(replace(config, reference=reference, data=data))
        start = load_params(self.pieces)
        self._base = split(start)[1]
        self._reference = reference_params(self.pieces, start)

    def reference(self) -> Candidate:
        return _candidate(OpenPolicy(self.pieces, self._reference))

    def run(self, directory: str | Path) -> Candidate:
        """Of a finished run."""
        return _candidate(OpenPolicy(self.pieces, self._params(directory)))

    def conditioned(self, directory: str | Path, weights: Mapping[str, float]) -> Candidate:
        """Of a finished run whose prompts say the weights."""
        tell = partial(weighted_prompt, weights=weights)
        return replace(self.run(directory), tell=tell)

    def adapter(self, directory: str | Path) -> Candidate:
        """Of a PEFT directory."""
        pieces = self.pieces
        tree = read_adapter(str(directory), pieces.lora, pieces.source.spec, pieces.mesh)
        return _candidate(OpenPolicy(pieces, {**self._base, LORA: tree}))

    def mix(self, runs: Mapping[str | Path, float]) -> Candidate:
        """Runs that decide every token together: MOD under the reverse KL (arXiv 2406.18853)."""
        pieces = self.pieces
        if pieces.lora is None:
            mesh = mesh_overrides(pieces.mesh)
            return _candidate(open_source(Mix(runs), step=LATEST, overrides=mesh))
        models, specs = ((pieces.model, 0),) * len(runs), (pieces.source.spec,) * len(runs)
        overlays = [split(self._params(run))[0] for run in runs]
        weights = list(runs.values())
        return _candidate(
            opened_mix(pieces, MixedModels(models, _MOD, specs), weights, [self._base], overlays)
        )

    def _params(self, directory: str | Path) -> Any:
        return run_params(self.pieces, directory, LATEST, base=self._base or None)[0]


def _candidate(opened: OpenPolicy) -> Candidate:
    def generate(prompts: Sequence[Group], settings: Settings) -> list[Completion]:
        done = complete(opened.pieces, opened.params, prompts, settings, opened.mixed)
        return sorted(done, key=lambda item: (item.prompt_index, item.sample))

    return Candidate(lambda groups: answer_logps(opened, groups), generate)


MakeCandidate = Callable[[FrontPolicies], Candidate]
"""Reads or makes a policy when it is its turn to be measured."""
