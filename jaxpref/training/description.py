"""What the loop is told of what it trains."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from jaxpref.config import TrainConfig
from jaxpref.data.loader import Plan, Step
from jaxpref.runs.best import BestRule
from jaxpref.runs.checkpoint import Checkpoints
from jaxpref.runs.feed import Feed
from jaxpref.runs.made_from import Digests
from jaxpref.runs.metrics import Sample
from jaxpref.step.policy import Frozen
from jaxpref.step.state import TrainState
from jaxpref.training.callbacks import Callbacks
from jaxpref.types import Batch

Values = dict[str, Any]
"""Metrics of a step or an evaluation: numbers, or one for each of several policies."""


@dataclass(frozen=True)
class Training:
    """All that the loop knows of what it trains: it has no notion of models or objectives."""

    settings: TrainConfig
    mesh: Mesh
    plan: Plan
    open_feed: Callable[[], Feed]
    """Makes what gives the steps of the plan; called once."""
    vocabulary: int
    """Tokens of the model, which a checkpoint must agree with."""
    made_from: Digests
    """Digests of rows, weights and objective, which checkpoints keep."""
    checkpoints: Checkpoints
    best: BestRule
    resume_step: int | None
    """The latest checkpoint, to go on from it or, where it is damaged, from one before it; None: a
    new run."""
    start: Callable[[], TrainState]
    """Makes the state before the first step, on the mesh; called once."""
    shardings: TrainState
    """How the state lies there."""
    step: Callable[[TrainState, Frozen, Batch, jax.Array, Any], tuple[TrainState, Values]]
    """The optimizer step, a pure function as `step.train_step.make_train_step` makes it, but for
    its last argument; `loss` is among its metrics, and all of them must be finite."""
    numbers: Any
    """The step's last argument: what would otherwise be constants in it."""
    frozen: Frozen
    evaluate: Callable[[TrainState], Values] | None
    """Metrics on held-out data; None: there is none."""
    sample: Callable[[TrainState], list[Sample]] | None
    """Answers of the policy, written beside every evaluation; None: there are none."""
    deciding: Callable[[Values], dict[str, float]]
    """An evaluation -> the numbers saved with a checkpoint, by which it may be the best."""
    step_flops: Callable[[Step], float]
    """Model FLOPs of a step, for the log."""
    writers: Callable[[int], Any]
    """(step to go on from) -> where metrics are written: `write(step, values)` and `close()`."""
    callbacks: Callbacks
    """What the user has called."""
    where: Mapping[int, str]
    """Row id -> file and row, for messages."""
    check_first: Callable[[Values], None] | None
    """Raises for metrics that the first step of this new run cannot have; None: any may be."""
    began: float
    """`time.perf_counter()` before anything was loaded, for the seconds of the run."""
