"""A run's checkpoint, opened for evaluation and as a reward."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpref.build import Pieces, load_params, reference_params
from jaxpref.export import run_state


@dataclass(frozen=True)
class OpenRun:
    """A run's checkpoint on the mesh, with what its objective is evaluated against."""

    pieces: Pieces
    params: Any
    ref_params: Any
    """None where the objective has no reference, or its log-probs are cached."""
    running: Any
    step: int


def open_run(pieces: Pieces, run: str | Path, step: str) -> OpenRun:
    """Args: step is `best`, `latest` or a number."""
    state, number = run_state(pieces, run, step, objective=True)
    if pieces.moving:
        ref_params = state["ref_params"]
    else:
        wants_copy = pieces.needs_reference and pieces.config.reference.mode == "copy"
        start = lambda: load_params(pieces) if pieces.lora is None else state["params"]  # the weights are the same
        ref_params = reference_params(pieces, start()) if wants_copy else None
    return OpenRun(pieces, state["params"], ref_params, state["running"], number)
