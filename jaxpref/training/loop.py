"""The training loop: data -> step -> metrics, evaluations and checkpoints.

What is trained is described by a `Training`.  A single run (`run.py`) and a stack of adapters
(`stacked.py`) each describe one, and this loop runs them all.
"""

import gc
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxpref.data.loader import Step
from jaxpref.errors import InputError, NotWrittenError, RunError, shortened
from jaxpref.files import disk_problem
from jaxpref.runs.checkpoint import Checkpoints
from jaxpref.runs.damage import unprinted_late_errors
from jaxpref.runs.feed import Feed
from jaxpref.runs.made_from import Digests
from jaxpref.runs.metrics import Window
from jaxpref.sharding import place_numbers, replicated
from jaxpref.step.state import TrainState
from jaxpref.training.description import Training, Values
from jaxpref.training.preemption import Interrupted, Preempted, TermFlag
from jaxpref.training.progress import OnLog
from jaxpref.types import Batch

_log = logging.getLogger(__name__)


class NotFiniteError(RunError):
    """A value of a step or an evaluation is NaN or infinite; the last checkpoint is untouched."""


@dataclass
class Progress:
    """What a run goes on from beside the state; JSON in the checkpoint."""

    vocabulary: int
    made_from: Digests
    """Both as of `Training`."""
    data: Any = None
    """Position of the feed."""
    window: Values = field(default_factory=dict)
    """Of the steps since the last log line, as `Window.stored` gives it."""
    first_eval: Values = field(default_factory=dict)
    """Before the first step; empty without held-out data."""
    last_eval: Values = field(default_factory=dict)
    last_log: Values = field(default_factory=dict)
    num_tokens: int = 0
    """Trained on, a shared prompt once per completion."""
    flops: float = 0.0
    seconds: float = 0.0
    """Of all sessions."""
    stopped: str = ""
    """Why a callback has ended the run; empty: none has."""
    callbacks: list[Any] = field(default_factory=list)
    """As `Callbacks.state` gives it."""


class Finished(NamedTuple):
    """What the loop ends with."""

    state: TrainState
    progress: Progress
    steps: int
    """Trained in all."""
    best: str
    """Which checkpoint is the best, and which metric decided it."""


def run(training: Training, on_log: OnLog, term: TermFlag | None = None) -> Finished:
    """Trains to the last step of the plan, closing checkpoints and writers whatever happens.

    Args:
        on_log: called with (step, steps, values of the step) after every step.
        term: one that may have listened before; None: SIGTERM is not expected so far.
    Errors:
        InputError for a checkpoint of another vocabulary, or an evaluation without the metric that
            decides which one is the best.
        NotFiniteError with the step and its rows.
        NotWrittenError where the disk takes no more.
        Preempted after SIGTERM and Interrupted after Ctrl-C, once the state is saved.
    """
    try:
        with unprinted_late_errors():
            return _Loop(training, on_log, term or TermFlag()).run()
    except Exception as error:
        problem = disk_problem(error)
        if problem is None:
            raise
    gc.collect()  # what was left of the checkpoint, which orbax would report as lost at the end
    where = training.checkpoints.directory
    with Checkpoints(where, read_only=True) as checkpoints:
        step = checkpoints.latest()
    safe = "nothing was saved before" if step is None else f"the checkpoint of step {step} is safe"
    raise NotWrittenError(
        f"{problem}; {safe} in {where}. Once there is room, and leave to write, start the same run "
        "again to go on."
    )


class _Loop:
    def __init__(self, training: Training, on_log: OnLog, term: TermFlag):
        self.training, self.on_log, self.term = training, on_log, term
        self.progress = Progress(training.vocabulary, training.made_from)
        self.window = Window()
        self.seconds_before = 0.0

    def run(self) -> Finished:
        training = self.training
        feed = training.open_feed()
        with training.checkpoints as checkpoints:
            self.state = training.start()
            first = 0 if training.resume_step is None else self._restore(feed)
            self.writers = training.writers(first)
            with closing(self.writers), self.term.listening(), jax.set_mesh(training.mesh):
                if first == 0 and training.evaluate:
                    self.progress.first_eval = self._evaluate(0)
                done = first if self.progress.stopped else self._steps(first, feed)
                checkpoints.wait()
                if self.term.interrupted:  # too late to stop this run, but what comes after it
                    raise Interrupted(self._saved("Ctrl-C", training.plan.steps))
                best = checkpoints.about_best()
        self._count_seconds()
        return Finished(self.state, self.progress, done, best)

    def _restore(self, feed: Feed) -> int:
        """State, progress and the feed's position of the newest whole checkpoint; its step."""
        training, checkpoints = self.training, self.training.checkpoints
        checkpoints.check_vocabulary(training.resume_step, training.vocabulary)
        step, self.state, stored = checkpoints.restore_newest(self.state)
        own = {"vocabulary": training.vocabulary, "made_from": training.made_from}
        self.progress = Progress(**stored | own)
        self.window = Window(**self.progress.window)
        training.callbacks.restore(self.progress.callbacks)
        self.seconds_before = self.progress.seconds
        feed.set_state(self.progress.data)
        return step

    def _steps(self, first: int, feed: Feed) -> int:
        """Trains from after step `first` to the end, or until it is told to stop; the last step."""
        training, settings = self.training, self.training.settings
        callbacks = training.callbacks
        total = training.plan.steps
        compiled = None
        pending: deque = deque()
        self.term.tell(training.mesh)
        for step in range(first + 1, total + 1):
            item, batch, micro_batches = feed.next(self.state)
            if compiled is None:
                numbers = place_numbers(training.numbers, training.mesh)
                compiled = _compile(training, self.state, batch, micro_batches, numbers)
                training.checkpoints.prepare(self.state)
                self.window.resume()
                self.saved_at = time.perf_counter()
            arguments = self.state, training.frozen, batch, micro_batches, numbers
            self.state, metrics = compiled(*arguments)
            self.progress.num_tokens += item.tokens_unshared
            pending.append((step, item, metrics))
            last = step == total
            per_epoch = training.plan.steps_per_epoch
            evaluate = last or _every(settings.eval_every, step, per_epoch)
            stop = self.term.agreed(training.mesh)
            save_now = _every(settings.save_every, step, per_epoch)
            save = last or stop or save_now or self._due(step)
            # One step stays in flight, so the host prepares the next batch meanwhile; everything is
            # read before an evaluation or a checkpoint, which a non-finite step must never reach.
            in_flight = 0 if evaluate or save or _every(settings.log_every, step) else 1
            while len(pending) > in_flight:
                self._read(*pending.popleft())
            evaluate = callbacks.evaluates() or evaluate or bool(callbacks.why_stop)
            if evaluate and training.evaluate:
                self.window.pause()
                self.progress.last_eval = self._evaluate(step)
                self.window.resume()
            ended = bool(callbacks.why_stop) and step < total
            if ended:
                self._end(step)
            if save or ended:
                self.progress.data = feed.get_state()
                evaluated = evaluate and training.evaluate
                self._save(step, self.progress.last_eval if evaluated else None)
            if ended:
                return step
            if stop and not last:
                training.checkpoints.wait()
                if self.term.interrupted:
                    raise Interrupted(self._saved("Ctrl-C", step))
                raise Preempted(self._saved("SIGTERM", step))
        return total

    def _end(self, step: int) -> None:
        """Takes note that a callback ends the run here."""
        self.progress.stopped = self.training.callbacks.why_stop
        if self.window.steps:  # since the last line
            self._log(step)
        _log.info("stopped at step %d: %s", step, self.progress.stopped)

    def _read(self, step: int, item: Step, metrics: Any) -> None:
        """Takes note of a finished step."""
        training, plan = self.training, self.training.plan
        values: Values = {
            name: np.asarray(x, float)[()] for name, x in jax.device_get(metrics).items()
        } | dict(item.made_values)
        _check_finite(step, item, values, training.where)
        if step == 1 and training.check_first:
            training.check_first(values)
        flops = training.step_flops(item) + item.made_flops
        self.progress.flops += flops
        self.window.add(values, item, flops)
        speed = self.window.tokens_per_second()
        if _every(training.settings.log_every, step) or step == plan.steps:
            self._log(step)
        self.on_log(step, plan.steps, values | {"tokens_per_second": speed})

    def _log(self, step: int) -> None:
        """Writes the means since the last line, and what callbacks add to them."""
        plan, callbacks = self.training.plan, self.training.callbacks
        counted = {
            "epoch": step / plan.steps_per_epoch,
            "num_tokens": float(self.progress.num_tokens),
        }
        means = self.window.means() | counted
        line = {name: np.asarray(x).tolist() for name, x in means.items()}
        added = callbacks.logged(step, plan.steps, line, self.state)
        self.window = Window()
        self.window.resume()
        self.progress.last_log = line | added
        self.writers.write(step, self.progress.last_log)

    def _evaluate(self, step: int) -> Values:
        """Evaluates and writes it down; the metric that decides must be among the values."""
        steps, callbacks = self.training.plan.steps, self.training.callbacks
        values = self.training.evaluate(self.state)
        values = values | callbacks.evaluated(step, steps, values, self.state)
        if bad := _not_finite(values):  # NaN would count as the best
            raise NotFiniteError(
                f"the evaluation after step {step}: {bad}. The last checkpoint is untouched; lower "
                "optim.learning_rate, or look at the held-out rows."
            )
        self.writers.write(step, values)
        if self.training.sample:
            self.writers.write_samples(step, self.training.sample(self.state))
        best = self.training.best
        name = best.deciding(values)
        if name is None:
            raise InputError(
                "a metric of the evaluation",
                f"train.best_metric={best.metric}",
                f"set it to one of {', '.join(sorted(values))}",
            )
        return values

    def _save(self, step: int, evaluated: Values | None) -> None:
        """Args: evaluated: the evaluation of this step; None: there was none."""
        self._count_seconds()
        self.progress.window = self.window.stored()
        self.progress.callbacks = self.training.callbacks.state()
        metrics = {} if evaluated is None else self.training.deciding(evaluated)
        self.training.checkpoints.save(step, self.state, asdict(self.progress), metrics)
        self.saved_at = time.perf_counter()

    def _due(self, step: int) -> bool:
        """Whether the last checkpoint is too old; every process gets the same answer."""
        settings = self.training.settings
        if settings.save_minutes is None:
            return False
        due = time.perf_counter() - self.saved_at >= 60 * settings.save_minutes
        if jax.process_count() == 1:
            return due
        # To ask the first process, all wait for it: not more often than log lines are written.
        return _every(settings.log_every, step) and bool(
            multihost_utils.broadcast_one_to_all(np.int32(due))
        )

    def _saved(self, why: str, step: int) -> str:
        """What is said of a run that was stopped."""
        steps, where = self.training.plan.steps, self.training.checkpoints.directory
        goes_on = "start the same run again to go on" if step < steps else "the run is finished"
        return f"{why}: saved step {step} of {steps} in {where}; {goes_on}"

    def _count_seconds(self) -> None:
        self.progress.seconds = self.seconds_before + time.perf_counter() - self.training.began


def jitted_step(step: Callable, shardings: TrainState, mesh: Mesh) -> Any:
    """The step as the loop runs it: the state before it is given up."""
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def _compile(
    training: Training, state: TrainState, batch: Batch, micro_batches: jax.Array, numbers: Any
) -> Callable:
    """The step compiled ahead of time: another shape is then an error, not a second compile."""
    step = jitted_step(training.step, training.shardings, training.mesh)
    if any(x.dtype.name.endswith("int4") for x in jax.tree.leaves(training.frozen)):
        return step  # jax 0.10 passes arrays of 4 bits to no program compiled ahead of time
    return step.lower(state, training.frozen, batch, micro_batches, numbers).compile()


def _every(interval: int | str | None, step: int, per_epoch: int = 1) -> bool:
    """Whether a step ends an interval: some steps, an epoch, or the Nth part of one."""
    if interval is None:
        return False
    if isinstance(interval, int):
        return step % interval == 0
    parts = int(interval.removeprefix("epoch").removeprefix("/") or 1)
    return step * parts // per_epoch > (step - 1) * parts // per_epoch


def _check_finite(step: int, item: Step, values: Values, where: Mapping[int, str]) -> None:
    if bad := _not_finite(values):
        rows = sorted({int(r) for r in np.unique(item.batch.row_id_RG) if r >= 0})
        listed = shortened(", ".join(where[r] for r in rows), 8)
        raise NotFiniteError(
            f"step {step}: {bad}; rows of the batch: {listed}. "
            "Nothing was saved since the last checkpoint; lower optim.learning_rate or look at "
            "these rows, and at the objective where only a metric is named."
        )


def _not_finite(values: Values) -> str:
    """The values that are NaN or infinite, with their names."""
    bad = (name for name, value in values.items() if not np.isfinite(value).all())
    return ", ".join(f"{name}={values[name]}" for name in bad)
