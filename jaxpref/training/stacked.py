"""Several adapters on one base, trained in one compiled step: one per weight vector of a front.

The adapters lie on a leading axis P of the train state, and the train step is mapped over it
(`jax.vmap`).  Data, base and reference do not carry that axis, so the batch is built once, the
reference runs once, and every product with a frozen weight is one product for all adapters.  The
results are ordinary runs, one directory per point.

Policy and reference are then products of other shapes, so that before the first step they differ by
rounding, where in a run by itself they are equal to the bit.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.config import Config
from jaxpref.data.loader import Step
from jaxpref.objectives import OBJECTIVES, TRANSFORMS, Part, bind
from jaxpref.processes.watch import watch_others
from jaxpref.runs.build import Pieces
from jaxpref.runs.checkpoint import Checkpoints
from jaxpref.runs.directory import CHECKPOINTS, check_run_directory, is_run
from jaxpref.runs.flops import step_flops
from jaxpref.runs.lock import sole_writer
from jaxpref.runs.made_from import of_objective
from jaxpref.runs.metrics import Writers
from jaxpref.runs.resume import check_unchanged, settled_as
from jaxpref.step.batch_loss import LossSpec
from jaxpref.step.policy import Frozen, split
from jaxpref.step.state import TrainState, state_shardings
from jaxpref.step.train_step import make_eval_step
from jaxpref.storage.paths import as_path
from jaxpref.training import loop
from jaxpref.training.description import Training
from jaxpref.training.loop import Finished
from jaxpref.training.preemption import TermFlag
from jaxpref.training.prepare import Prepared, StepNumbers, prepare
from jaxpref.training.progress import OnLog
from jaxpref.training.result import Result
from jaxpref.training.stackable import (
    NotStackable,
    check_same_runs,
    check_stackable,
    stacked_numbers,
    write_runs,
)
from jaxpref.types import Batch


def train_stacked(
    configs: Sequence[Config],
    out: str | Path,
    *,
    on_log: OnLog | None = None,
) -> list[Result]:
    """Trains the adapters of several runs at once, or goes on with them.

    Every run ends as `train` would leave it: config, metrics and a checkpoint of the last step in
    its own directory.  Flops and seconds of a result are its share, an equal part of the whole.

    Args:
        configs: alike but for `out`, `log` and numbers of the objectives: their weights, and
            numbers among their hyperparameters, as modpo's `w`.
        out: directory of the common state, from which training goes on.
        on_log: as of `train`; called with means over the runs.
    Errors: InputError for runs that cannot share a step; those of `train`.
    """
    check_stackable(configs)
    watch_others()
    with ExitStack() as locks:
        for directory in (out, *(config.out for config in configs)):
            locks.enter_context(sole_writer(directory))
        return _train_stacked(configs, out, on_log or (lambda *_: None))


def _train_stacked(configs: Sequence[Config], out: str | Path, on_log: OnLog) -> list[Result]:
    for config in configs:
        check_run_directory(config.out)
    check_same_runs(configs, out)
    if (as_path(out) / CHECKPOINTS).is_dir():
        for config in configs:
            if is_run(config.out):  # killed before it began, a run has none
                check_unchanged(config)
    numbers = stacked_numbers(configs)
    show = on_log or (lambda *_: None)

    def show_means(step: int, steps: int, values: Mapping[str, Any]) -> None:
        show(step, steps, _means(values))

    term = TermFlag()
    with term.listening_at_once():
        prepared, params, _ = prepare(dataclasses.replace(configs[0], out=str(out)))
        training = _training(configs, numbers, prepared, params)
        done = loop.run(training, show_means, term)
    return _split(training, configs, done, prepared.pieces)


def make_stacked_step(
    make_step: Callable[[StepNumbers], Callable], parts: Sequence[Part]
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """A train step for P states on a leading axis, each with its own hyperparameters.

    Its last argument are the numbers that all have in common, and for every part of the objective
    those that vary, as `stacked_numbers` gives them.  Metrics are [P].

    Args:
        make_step: makes the step of one state, as `Prepared.train_step`.
    Errors: NotStackable for a hyperparameter that decides more than numbers do.
    """

    def one(state: TrainState, own, common: StepNumbers, *arguments):
        return make_step(common.with_own(own))(state, *arguments)

    def step(state: TrainState, frozen: Frozen, batch: Batch, micro_batches: jax.Array, numbers):
        mapped = jax.vmap(one, in_axes=(0, 0, None, None, None, None))
        common, own = numbers
        try:
            return mapped(state, own, common, frozen, batch, micro_batches)
        except jax.errors.ConcretizationTypeError as error:
            names = [
                f"{part.name}.{name}"
                for part, varied in zip(parts, own, strict=True)
                for name in varied
            ]
            raise NotStackable(
                "hyperparameters that enter the loss as numbers, to train runs together",
                f"{', '.join(names)}: one of them decides which loss it is",
                "train these runs one by one",
            ) from error

    return step


def make_stacked_eval_step(loss_spec: LossSpec, numbers: tuple[StepNumbers, Any]) -> Callable:
    """`make_eval_step` for P adapters on a leading axis; sums are [P].

    Args:
        numbers: the last argument of the stacked train step.
    """
    common, own_of_all = numbers

    def one(own, params, ref_params, running, batch: Batch, micro_batches: jax.Array):
        eval_step = make_eval_step(loss_spec.with_numbers(common.with_own(own).objective))
        return eval_step(params, ref_params, running, batch, micro_batches)

    def step(params, ref_params, running, batch: Batch, micro_batches: jax.Array):
        trained, _ = split(params)
        axes = {name: 0 if name in trained else None for name in params}
        mapped = jax.vmap(one, in_axes=(0, axes, None, 0, None, None))
        return mapped(own_of_all, params, ref_params, running, batch, micro_batches)

    return step


def _training(
    configs: Sequence[Config],
    numbers: Sequence[Mapping[str, np.ndarray]],
    prepared: Prepared,
    params: Any,
) -> Training:
    """The description of the stack; values of steps and evaluations are lists of P numbers.

    Args:
        numbers: as `stacked_numbers` gives them.
        params: the adapter from which all start.
    """
    pieces, frozen = prepared.pieces, prepared.frozen
    if jax.process_index() == 0:
        write_runs(configs, prepared.config.out)
        prepared.write_settings(prepared.config)
        for config in configs:
            prepared.write_settings(settled_as(config, prepared.config))

    def first_of_one(params: Any) -> TrainState:
        return prepared.first_state(params, None)

    def first_of_all(params: Any) -> TrainState:
        one = first_of_one(params)
        return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (len(configs), *x.shape)), one)

    one_shardings = state_shardings(jax.eval_shape(first_of_one, params), pieces.mesh)
    shardings = jax.tree.map(lambda one: NamedSharding(one.mesh, P(None, *one.spec)), one_shardings)
    common_and_own = prepared.numbers, list(numbers)
    evaluator = prepared.evaluator(make_stacked_eval_step, common_and_own)

    def start() -> TrainState:
        with jax.set_mesh(pieces.mesh):
            return jax.jit(first_of_all, out_shardings=shardings)(params)

    def evaluate(state: TrainState) -> dict[str, Any]:
        return evaluator(frozen.policy(state.params), frozen.reference_params(), state.running)

    def flops(item: Step) -> float:
        runs_reference = frozen.reference is not None
        return step_flops(
            pieces.source.spec,
            item,
            reference=runs_reference,
            frozen=True,
            policies=len(configs),
            backward=pieces.backward_passes,
            tower=pieces.tower,
        )

    return prepared.training(
        start=start,
        shardings=shardings,
        step=make_stacked_step(prepared.train_step, pieces.parts),
        numbers=common_and_own,
        evaluate=evaluate if evaluator else None,
        sample=None,
        deciding=_means,
        step_flops=flops,
        writers=lambda first: _Writers(configs, first),
        points=[bind(config.objective, OBJECTIVES, TRANSFORMS) for config in configs],
    )


def _split(
    training: Training, configs: Sequence[Config], done: Finished, pieces: Pieces
) -> list[Result]:
    """The finished runs, each with a checkpoint of its own."""
    one_shardings = jax.tree.map(
        lambda whole: NamedSharding(whole.mesh, P(*whole.spec[1:])), training.shardings
    )
    state_of_point = jax.jit(_point, out_shardings=one_shardings)
    return [
        _finish(i, config, training, state_of_point, done, len(configs), pieces)
        for i, config in enumerate(configs)
    ]


def _finish(
    i: int,
    config: Config,
    training: Training,
    state_of_point: Callable[[TrainState, int], TrainState],
    done: Finished,
    points: int,
    pieces: Pieces,
) -> Result:
    """Point i as a run of its own, with a checkpoint of the last step."""
    progress = done.progress
    first_eval, last_eval = _of_point(progress.first_eval, i), _of_point(progress.last_eval, i)
    last_log = _of_point(progress.last_log, i)
    objective = of_objective(bind(config.objective, OBJECTIVES, TRANSFORMS))
    own = {
        "made_from": progress.made_from | {"objective": objective},
        "first_eval": first_eval,
        "last_eval": last_eval,
        "last_log": last_log,
    }
    with Checkpoints(as_path(config.out) / CHECKPOINTS, keep=1, best=training.best) as checkpoints:
        if checkpoints.latest() != done.steps:
            with jax.set_mesh(training.mesh):
                state = state_of_point(done.state, i)
            checkpoints.save(done.steps, state, dataclasses.asdict(progress) | own, last_eval)
            checkpoints.wait()
        best = checkpoints.about_best()
    return Result(
        out=as_path(config.out),
        steps=done.steps,
        metrics=last_log,
        first_eval=first_eval,
        last_eval=last_eval,
        best=best,
        flops=progress.flops / points,
        seconds=progress.seconds / points,
        pieces=pieces,
    )


class _Writers:
    """The metrics of every point into its own directory."""

    def __init__(self, points: Sequence[Config], start: int):
        self._writers = [Writers(as_path(point.out), point, start) for point in points]

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        for i, writers in enumerate(self._writers):
            writers.write(step, _of_point(values, i))

    def close(self) -> None:
        for writers in self._writers:
            writers.close()


def _point(state: TrainState, i: int) -> TrainState:
    return jax.tree.map(lambda x: x[i], state)


def _of_point(values: Mapping[str, Any], i: int) -> dict[str, float]:
    """Point i's values; a single number counts for all points."""
    return {
        name: float(value if np.ndim(value) == 0 else value[i]) for name, value in values.items()
    }


def _means(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(np.mean(value)) for name, value in values.items()}
