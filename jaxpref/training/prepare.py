"""What training needs before its first step, for a single run as for a stack of adapters."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpref.config import Config
from jaxpref.data.loader import Step
from jaxpref.data.memory import Given
from jaxpref.errors import InputError
from jaxpref.files import whole_file
from jaxpref.models.quantize import qwix
from jaxpref.models.source import Checkpoint
from jaxpref.objectives import Part
from jaxpref.processes.agreement import check_same, check_same_programs
from jaxpref.runs.adapters import check_trainable
from jaxpref.runs.agreement import (
    check_same_objective,
    check_same_plan,
)
from jaxpref.runs.best import BestRule
from jaxpref.runs.build import Pieces, attention_of, build
from jaxpref.runs.checkpoint import Checkpoints
from jaxpref.runs.directory import CHECKPOINTS, DATA_FILE, RUN_FILE, check_run_directory
from jaxpref.runs.feed import with_given
from jaxpref.runs.made_from import (
    Digests,
    MadeFrom,
    of_given_rule,
    of_model,
    of_objective,
    of_order,
    of_own_model,
    of_references,
)
from jaxpref.runs.metrics import Sample, check_trackers
from jaxpref.runs.params import load_params, reference_overlay, runs_reference
from jaxpref.runs.resume import resume_step, with_stored
from jaxpref.settings import save_config
from jaxpref.sharding import in_host_memory
from jaxpref.step.batch_loss import LossSpec
from jaxpref.step.combine import Combine, check_combinable
from jaxpref.step.given_rule import AS_CONFIGURED, GivenRule
from jaxpref.step.optim import OptimNumbers, make_rule, optim_numbers
from jaxpref.step.policy import Frozen, split
from jaxpref.step.state import TrainState, init_state
from jaxpref.step.train_step import make_train_step
from jaxpref.storage.paths import as_path
from jaxpref.training.beginning import check_held_out, tell_dtype, tell_mesh, tell_position
from jaxpref.training.callbacks import Callbacks
from jaxpref.training.data import Evaluate, FileData, PlannedData, TrainingData
from jaxpref.training.description import Training, Values
from jaxpref.training.first_step import first_loss_check

_log = logging.getLogger(__name__)

ReadData = Callable[[Pieces], TrainingData]
"""Reads the data of a run.  Errors: InputError."""


class StepNumbers(NamedTuple):
    """The numbers of a run that a sweep changes.

    They are arguments of the compiled step, not constants in it: with others it is the same
    program, which is found where compiled programs are kept.
    """

    objective: Sequence[Mapping[str, Any]]
    """As of `LossSpec.with_numbers`."""
    optim: OptimNumbers

    @classmethod
    def of(cls, pieces: Pieces) -> "StepNumbers":
        """Those of the config."""
        objective = [part.numbers for part in pieces.parts]
        return cls(objective, optim_numbers(pieces.config.optim))

    def with_own(self, own: Sequence[Mapping[str, Any]]) -> "StepNumbers":
        """Those of one of several runs, which has its own in parts of the objective."""
        objective = [{**each, **own_} for each, own_ in zip(self.objective, own, strict=True)]
        return self._replace(objective=objective)


def step_with(
    numbers: StepNumbers,
    pieces: Pieces,
    loss_spec: LossSpec,
    steps: int,
    rule: GivenRule = AS_CONFIGURED,
) -> Callable:
    """The optimizer step with these numbers, as `make_train_step` makes it.

    Args:
        steps: of the run.
        rule: optimizer and schedule that were given in Python.
    """
    source, optim = pieces.source, pieces.config.optim
    optimizer, schedule = make_rule(
        optim, steps, source.spec.vocab, numbers.optim, rule, source.tower_layers_run
    )
    loss_spec = loss_spec.with_numbers(numbers.objective)
    combine = Combine.of(pieces.config.optim)
    return make_train_step(loss_spec, optimizer, schedule, pieces.moving, combine)


@dataclass(frozen=True)
class Prepared:
    """Model and data of a run, read and checked; nothing is compiled yet."""

    config: Config
    pieces: Pieces
    rows: TrainingData
    steps: PlannedData
    made_from: Digests
    checkpoints: Checkpoints
    best: BestRule
    resume_step: int | None
    optimizer: optax.GradientTransformation
    rule: GivenRule
    """Optimizer and schedule that were given in Python."""
    frozen: Frozen
    began: float

    @property
    def loss_spec(self) -> LossSpec:
        """How a training batch becomes losses."""
        return self.pieces.loss_spec(self.steps.layout, self.rows.kind)

    @property
    def numbers(self) -> StepNumbers:
        """Those of the config."""
        return StepNumbers.of(self.pieces)

    def train_step(self, numbers: StepNumbers) -> Callable:
        """The optimizer step with these numbers, as `make_train_step` makes it."""
        steps = self.steps.plan.steps
        return step_with(numbers, self.pieces, self.loss_spec, steps, self.rule)

    def evaluator(self, make_step: Callable | None = None, numbers: Any = None) -> Evaluate | None:
        """Of the held-out data; None without any.  Args: as of `Evaluator`."""
        return self.steps.evaluator(make_step, numbers)

    def first_state(self, params: Any, moving_ref: Any) -> TrainState:
        """The state before the first step; pure.

        Args:
            moving_ref: of a reference that moves, its start; otherwise None.
        """
        ref_params = jax.tree.map(lambda x: x.astype(jnp.float32), moving_ref)
        return init_state(
            params, self.optimizer, self.config.train.seed, self.pieces.parts, ref_params
        )

    def training(
        self,
        *,
        start: Callable[[], TrainState],
        shardings: TrainState,
        step: Callable,
        numbers: Any,
        evaluate: Callable[[TrainState], Values] | None,
        sample: Callable[[TrainState], list[Sample]] | None,
        deciding: Callable[[Values], dict[str, float]],
        step_flops: Callable[[Step], float],
        writers: Callable[[int], Any],
        callbacks: Callbacks | None = None,
        points: Sequence[Sequence[Part]],
    ) -> Training:
        """The description that the loop takes: what is prepared, and what is the caller's own.

        Args:
            points: the parts of the objective, of each policy that the state holds.
        """
        check_first = None
        if self.resume_step is None:
            check_first = first_loss_check(self.pieces, self.steps.first_groups, points)
        return Training(
            settings=self.config.train,
            mesh=self.pieces.mesh,
            plan=self.steps.plan,
            open_feed=self.steps.open_feed,
            vocabulary=self.pieces.source.spec.vocab,
            made_from=self.made_from,
            checkpoints=self.checkpoints,
            best=self.best,
            resume_step=self.resume_step,
            start=start,
            shardings=shardings,
            step=step,
            numbers=numbers,
            frozen=self.frozen,
            evaluate=evaluate,
            sample=sample,
            deciding=deciding,
            step_flops=step_flops,
            writers=writers,
            callbacks=callbacks or Callbacks(),
            where=self.rows.where,
            check_first=check_first,
            began=self.began,
        )

    def write_settings(self, config: Config) -> None:
        """Config and an account of the data into the config's directory."""
        out = as_path(config.out)
        with whole_file(out / DATA_FILE) as partial:
            partial.write_text(f"{self.rows.account}\n{self.steps.plan}\n")
        with whole_file(out / RUN_FILE) as partial:
            save_config(config, partial)


def prepare(
    config: Config,
    objective: Sequence[Any] | Callable | None = None,
    source: Checkpoint | None = None,
    rule: GivenRule = AS_CONFIGURED,
    data: Given = None,
    eval: Given = None,
    read: ReadData = FileData,
) -> tuple[Prepared, Any, Any]:
    """Reads model and data of a run.

    Args:
        source: in place of what is at `config.model.path`.
        rule: optimizer and schedule in place of those of `config.optim`.
        data, eval: as of `train`.
        read: what reads its data.
    Returns: all but what the state will hold; the trained parameters, from which training starts;
        and of a reference that moves its start, otherwise None.
    Errors: InputError for anything wrong with config, model or data.
    """
    began = time.perf_counter()
    check_same_programs()
    check_trackers(config)
    if config.adapter.quantize:
        qwix()
    check_run_directory(config.out)
    asked_dtype, config = config.model.compute_dtype, with_stored(config)
    pieces = with_given(build(config, objective, source), data, eval)
    check_held_out(pieces)
    check_same_objective(pieces.parts)
    check_combinable(pieces.config.optim, pieces.parts)
    check_trainable(pieces.source)
    if pieces.source.own is not None and rule.optimizer is None:
        _check_optimizer_of_own(config.optim.name)
    tell_mesh(pieces)
    tell_dtype(pieces, asked_dtype, config.model.compute_dtype)
    attention = attention_of(pieces.config, pieces.source)
    _log.info("attention: %s (%s)", attention.name, attention.why)
    rows = read(pieces)
    best = BestRule(config.train.best_metric, config.train.best_mode)
    checkpoints = Checkpoints(as_path(config.out) / CHECKPOINTS, keep=config.train.keep, best=best)
    resumed = resume_step(config, checkpoints)
    stored = {} if resumed is None else checkpoints.progress(resumed)
    made_from = MadeFrom(stored.get("made_from", {}), config.out, resumed)
    made_from.add(rows.digests | {"objective": of_objective(pieces.parts)})

    params = load_params(pieces)
    made_from.add({"model.path": of_model(pieces, params), "model= of train": of_own_model(pieces)})
    steps = rows.planned(params)
    check_same_plan(steps.plan, resumed)
    made_from.add({"order": of_order(steps.row_ids)})
    if resumed is not None:
        tell_position(config, resumed, steps.plan.steps, stored.get("stopped", ""))
    trained, base = split(params)
    optimizer, schedule = make_rule(
        config.optim,
        steps.plan.steps,
        pieces.source.spec.vocab,
        rule=rule,
        tower_layers=pieces.source.tower_layers_run,
    )
    of_rule = of_given_rule(rule, optimizer, schedule, trained)
    made_from.add(of_rule)
    check_same("optimizer and schedule (digests)", of_rule, "copy the same code to every host")
    reference = reference_overlay(pieces, params) if runs_reference(pieces) else None
    made_from.add(of_references(pieces, reference))
    if config.reference.offload:
        reference = jax.device_put(
            reference, jax.tree.map(lambda x: in_host_memory(x.sharding), reference)
        )
    # A reference that moves is a part of the state.
    moving_ref, frozen_ref = (reference, None) if pieces.moving else (None, reference)
    prepared = Prepared(
        config=pieces.config,
        pieces=pieces,
        rows=rows,
        steps=steps,
        made_from=made_from.known,
        checkpoints=checkpoints,
        best=best,
        resume_step=resumed,
        optimizer=optimizer,
        rule=rule,
        frozen=Frozen(base, frozen_ref),
        began=began,
    )
    return prepared, trained, moving_ref


def _check_optimizer_of_own(name: str) -> None:
    """Errors: InputError for one that treats every leaf as the built-in decoder has it."""
    if name == "muon":
        raise InputError(
            "an optimizer that needs to know nothing of a model given in Python",
            "optim.name=muon (which matrices are those of its layers is not known)",
            "set another optim.name, or give an optimizer that knows the model, as "
            "train(optimizer=...)",
        )
