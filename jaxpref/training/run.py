"""One training run: `jaxpref train`."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import jax
from rich import get_console

from jaxpref.config import Config
from jaxpref.data.loader import Step
from jaxpref.data.memory import Given
from jaxpref.files import whole_file
from jaxpref.models.own import OwnModel
from jaxpref.models.source import given_model
from jaxpref.processes.watch import watch_others
from jaxpref.runs.build import Pieces
from jaxpref.runs.directory import MODEL_FILE, OBJECTIVE_FILE
from jaxpref.runs.flops import step_flops
from jaxpref.runs.lock import sole_writer
from jaxpref.runs.metrics import Sample, Writers
from jaxpref.step.given_rule import GivenRule
from jaxpref.step.policy import Frozen
from jaxpref.step.state import TrainState, state_shardings
from jaxpref.storage.paths import as_path
from jaxpref.training import loop
from jaxpref.training.callbacks import Callback, Callbacks, Moment, as_callbacks
from jaxpref.training.data import FileData, PlannedData
from jaxpref.training.description import Training
from jaxpref.training.micro_rows import with_fitting_rows
from jaxpref.training.preemption import TermFlag
from jaxpref.training.prepare import Prepared, ReadData, prepare
from jaxpref.training.progress import OnLog, training_progress
from jaxpref.training.result import Result
from jaxpref.training.samples import make_samples
from jaxpref.types import Batch


def train(
    config: Config,
    *,
    objective: Sequence[Any] | Callable | None = None,
    data: Given = None,
    eval: Given = None,
    model: OwnModel | None = None,
    params: Any = None,
    callbacks: Callback | Callable[[Moment], None] | Sequence[Any] = (),
    optimizer: Any = None,
    schedule: Callable[[Any], Any] | None = None,
    on_log: OnLog | None = None,
    read: ReadData = FileData,
) -> Result:
    """Runs (or continues) a training run; of a finished one the results are returned again.

    Args:
        objective: in place of `config.objective`; either may hold functions, or be one.
        data, eval: rows in memory in place of `data.train` and `data.eval`: a list of dicts, a
            pandas frame, a `Dataset` or `DatasetDict` of `datasets`, a generator function; or
            paths.  A run goes on from nothing else, so they are given again where it goes on.
        model: of the user's own, in place of the one at `config.model.path`.
        params: of the model, from which training starts, in place of those at `config.model.path`:
            a tree as `Result.params`, or as `model` takes it.
        callbacks: called when metrics are written (`training/callbacks.py`); a function is called
            as `Callback.on_log` is.  They are no part of what a run must go on with.
        optimizer: in place of `config.optim`'s, clipping and decay included: an
            `optax.GradientTransformation`, or a function of the schedule that makes one, as
            `optax.adamw`.
        schedule: step -> learning rate, in place of `config.optim`'s.
        on_log: called with (step, steps, values of the step) after every step; None: the progress
            is shown, unless `log.progress` is false.
        read: what reads its data.
    Errors:
        InputError for anything wrong with config, model or data, before anything is compiled.
        NotFiniteError with the step and its rows.
        FirstLossError where policy and reference start equal and the first loss denies it.
        NotWrittenError where the disk takes no more, with what is safe.
        Preempted after SIGTERM and Interrupted after Ctrl-C, once the state is saved.
    """
    callbacks = as_callbacks(callbacks)
    if objective is None and any(callable(part.get("name")) for part in config.objective):
        # The config is written down, which functions cannot be.
        objective, config = config.objective, replace(config, objective=Config().objective)
    if on_log is None:
        shown: AbstractContextManager[OnLog] = training_progress(
            get_console(), config.train.log_every, show=config.log.progress
        )
    else:
        shown = nullcontext(on_log)
    rule = GivenRule(optimizer, schedule)
    given = model is not None or params is not None
    source = given_model(config.model, model, params) if given else None
    watch_others()
    term = TermFlag()
    with shown as on_log, sole_writer(config.out), term.listening_at_once():
        # Not named here, the first parameters are freed as soon as the state holds them.
        training, pieces = _training(
            objective, callbacks, *prepare(config, objective, source, rule, data, eval, read)
        )
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
        pieces=pieces,
    )


def _training(
    objective: Sequence[Any] | Callable | None,
    callbacks: Sequence[Any],
    prepared: Prepared,
    params: Any,
    moving_ref: Any,
) -> tuple[Training, Pieces]:
    """The description of the run, and its pieces.

    Settings and an account of the data are written on the way.

    Args: as `train` and `prepare` name them; `params` are given up to the state at the start.
    """
    shapes = jax.eval_shape(prepared.first_state, params, moving_ref)
    pieces = prepared.pieces
    offload = pieces.config.optim.offload
    shardings = state_shardings(shapes, pieces.mesh, pieces.model.axes, offload=offload)
    prepared = _with_fitting_rows(prepared, shapes, shardings)
    config, pieces, frozen = prepared.config, prepared.pieces, prepared.frozen
    if jax.process_index() == 0:
        prepared.write_settings(config)
        if objective:
            with whole_file(as_path(config.out) / OBJECTIVE_FILE) as partial:
                partial.write_text(json.dumps([part.name for part in pieces.parts]) + "\n")
        if pieces.source.in_memory:
            with whole_file(as_path(config.out) / MODEL_FILE) as partial:
                partial.write_text(json.dumps({"own": pieces.source.own is not None}) + "\n")
    evaluator = prepared.evaluator()
    answers = make_samples(pieces, prepared.steps.held_out())

    def start() -> TrainState:
        nonlocal params, moving_ref
        init = jax.jit(prepared.first_state, out_shardings=shardings, donate_argnums=0)
        with jax.set_mesh(pieces.mesh):
            state = init(params, moving_ref)
        params = moving_ref = None  # only the state holds them now
        return state

    def evaluate(state: TrainState) -> dict[str, float]:
        now = pieces.moving.laid_over(frozen.base, state.ref_params) if pieces.moving else frozen
        return evaluator(now.policy(state.params), now.reference_params(), state.running)

    def sample(state: TrainState) -> list[Sample]:
        return answers(frozen.policy(state.params))

    def flops(item: Step) -> float:
        runs_reference = frozen.reference is not None or pieces.moving is not None
        return step_flops(
            pieces.source.spec,
            item,
            reference=runs_reference,
            frozen=bool(frozen.base),
            backward=pieces.backward_passes,
            tower=pieces.tower,
        )

    training = prepared.training(
        start=start,
        shardings=shardings,
        step=_step_of(prepared),
        numbers=prepared.numbers,
        evaluate=evaluate if evaluator else None,
        sample=sample if answers else None,
        deciding=lambda values: values,
        step_flops=flops,
        writers=lambda first: Writers(as_path(config.out), config, first),
        callbacks=Callbacks(
            callbacks, pieces, lambda state: frozen.policy(state.params), evaluator is not None
        ),
        points=[pieces.parts],
    )
    return training, pieces


def _step_of(prepared: Prepared) -> Callable:
    """The step with its numbers as the last argument."""

    def train_step(
        state: TrainState, frozen: Frozen, batch: Batch, micro_batches: jax.Array, numbers
    ):
        return prepared.train_step(numbers)(state, frozen, batch, micro_batches)

    return train_step


def _with_fitting_rows(prepared: Prepared, shapes: TrainState, shardings: TrainState) -> Prepared:
    """Args: of the state before the first step."""
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )

    def step(planned: PlannedData) -> Callable:
        own = _step_of(replace(prepared, steps=planned))
        return loop.jitted_step(own, shardings, prepared.pieces.mesh)

    return with_fitting_rows(prepared, state, step)
