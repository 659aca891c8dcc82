"""One training run: `jaxpref train`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from rich import get_console

from jaxpref.config import Config
from jaxpref.data.loader import Step
from jaxpref.data.memory import Given
from jaxpref.files import whole_file
from jaxpref.processes.watch import watch_others
from jaxpref.runs.directory import OBJECTIVE_FILE
from jaxpref.runs.flops import step_flops
from jaxpref.runs.lock import sole_writer
from jaxpref.runs.metrics import Writers
from jaxpref.step.policy import Frozen
from jaxpref.step.state import TrainState, state_shardings
from jaxpref.storage.paths import as_path
from jaxpref.training import loop
from jaxpref.training.loop import Training
from jaxpref.training.preemption import TermFlag
from jaxpref.training.prepare import Prepared, prepare
from jaxpref.training.progress import OnLog, training_progress
from jaxpref.types import Batch


@dataclass(frozen=True)
class Result:
    """What a run ends with."""

    out: Path
    steps: int
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


def train(
    config: Config,
    *,
    objective: Sequence[Any] | None = None,
    data: Given = None,
    eval: Given = None,
    on_log: OnLog | None = None,
) -> Result:
    """Runs (or continues) a training run; of a finished one the results are returned again.

    Args:
        objective: in place of `config.objective`; either list may hold functions.
        data, eval: rows in memory in place of `data.train` and `data.eval`: a list of dicts, a
            pandas frame, a `Dataset` or `DatasetDict` of `datasets`, a generator function; or
            paths.  A run goes on from nothing else, so they are given again where it goes on.
        on_log: called with (step, steps, values of the step) after every step; None: the progress
            is shown, unless `log.progress` is false.
    Errors:
        InputError for anything wrong with config, model or data, before anything is compiled.
        NotFiniteError with the step and its rows.
        FirstLossError where policy and reference start equal and the first loss denies it.
        NotWrittenError where the disk takes no more, with what is safe.
        Preempted after SIGTERM and Interrupted after Ctrl-C, once the state is saved.
    """
    if objective is None and any(callable(part.get("name")) for part in config.objective):
        # The config is written down, which functions cannot be.
        objective, config = config.objective, replace(config, objective=Config().objective)
    if on_log is None:
        console, log = get_console(), config.log.progress
        with training_progress(console, config.train.log_every, show=log) as on_log:
            return train(config, objective=objective, data=data, eval=eval, on_log=on_log)
    watch_others()
    term = TermFlag()
    with sole_writer(config.out), term.listening_at_once():
        # Not named here, the first parameters are freed as soon as the state holds them.
        training = _training(objective, *prepare(config, objective, data, eval))
        done = loop.run(training, on_log, term)
    return Result(
        out=as_path(config.out),
        steps=done.steps,
        metrics=done.progress.last_log,
        first_eval=done.progress.first_eval,
        last_eval=done.progress.last_eval,
        best=done.best,
        flops=done.progress.flops,
        seconds=done.progress.seconds,
    )


def _training(
    objective: Sequence[Any] | None, prepared: Prepared, params: Any, moving_ref: Any
) -> Training:
    """The description of the run; settings and an account of the data are written on the way.

    Args: as `prepare` returns them.  `params` are given up to the state when training starts.
    """
    config, pieces, frozen = prepared.config, prepared.pieces, prepared.frozen
    if jax.process_index() == 0:
        prepared.write_settings(config)
        if objective:
            with whole_file(as_path(config.out) / OBJECTIVE_FILE) as partial:
                partial.write_text(json.dumps([part.name for part in pieces.parts]) + "\n")
    evaluator = prepared.evaluator()
    shardings = state_shardings(
        jax.eval_shape(prepared.first_state, params, moving_ref), pieces.mesh
    )

    def start() -> TrainState:
        nonlocal params, moving_ref
        init = jax.jit(prepared.first_state, out_shardings=shardings, donate_argnums=0)
        with jax.set_mesh(pieces.mesh):
            state = init(params, moving_ref)
        params = moving_ref = None  # only the state holds them now
        return state

    def train_step(
        state: TrainState, frozen: Frozen, batch: Batch, micro_batches: jax.Array, numbers
    ):
        return prepared.train_step(numbers)(state, frozen, batch, micro_batches)

    def evaluate(state: TrainState) -> dict[str, float]:
        now = pieces.moving.laid_over(frozen.base, state.ref_params) if pieces.moving else frozen
        return evaluator(now.policy(state.params), now.reference_params(), state.running)

    def flops(item: Step) -> float:
        runs_reference = frozen.reference is not None or pieces.moving is not None
        return step_flops(
            pieces.source.spec, item, reference=runs_reference, frozen=bool(frozen.base)
        )

    return prepared.training(
        start=start,
        shardings=shardings,
        step=train_step,
        numbers=prepared.numbers,
        evaluate=evaluate if evaluator else None,
        deciding=lambda values: values,
        step_flops=flops,
        writers=lambda first: Writers(as_path(config.out), config, first),
        points=[pieces.parts],
    )
