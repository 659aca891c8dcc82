"""The training loop: data -> step -> metrics, evaluations and checkpoints."""

import json
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref import build as b
from jaxpref.checkpoint import BestRule, Checkpoints
from jaxpref.config import Config, save_config
from jaxpref.data.loader import Step
from jaxpref.errors import InputError
from jaxpref.evaluation import Evaluator
from jaxpref.export import OBJECTIVE_FILE
from jaxpref.metrics import Window, Writers, step_flops
from jaxpref.optim import make_optimizer, make_schedule
from jaxpref.policy import Frozen, split
from jaxpref.resume import resume_step
from jaxpref.sharding import leaf_path, param_shardings
from jaxpref.step import Scoring, TrainState, init_state, make_eval_step, make_train_step

PREEMPTED = 75
"""Exit code after SIGTERM: the state is saved, run the same command again (sysexits.h: EX_TEMPFAIL)."""


class NotFiniteError(RuntimeError):
    """Loss or gradient became NaN or infinite; the last checkpoint is untouched."""


class Preempted(RuntimeError):
    """SIGTERM came; everything is saved."""


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
    """Model FLOPs of all steps, as `metrics.step_flops` counts them; without evaluations."""
    seconds: float
    """Of all sessions of the run, with loading, compilation and evaluations."""


def train(
    config: Config,
    *,
    objective: Sequence[Any] | None = None,
    on_log: Callable[[int, int, dict[str, float]], None] | None = None,
) -> Result:
    """Runs (or continues) a training run.

    Args:
        objective: in place of `config.objective`, from a notebook: the list may hold functions of one's own.
        on_log: called with (step, steps, values of the step) after every step; for progress bars.
    Errors:
        InputError for anything wrong with config, model or data, before anything is compiled.
        NotFiniteError with the step and its rows.
        Preempted after SIGTERM, once the state is saved.
    """
    return Run(config, objective, on_log or (lambda *_: None)).train()


class Run:
    """One run; __init__ prepares, train() loops.  `stacked.py` has the one of several adapters at once."""

    donated: tuple[int, ...] = (0,)
    """Of the arguments of `start`: the parameters become the state's."""

    def __init__(self, config: Config, objective: Sequence[Any] | None, on_log: Callable):
        self.began = time.perf_counter()
        self.config, self.on_log, self.out, self.given = config, on_log, Path(config.out), objective
        self.pieces = pieces = b.build(config, objective)
        groups, report = b.read_data(pieces, "train")
        held_out, eval_report = b.read_data(pieces, "eval") if config.data.eval else (None, None)
        self.best = BestRule(config.train.best_metric, config.train.best_mode)
        self.checkpoints = Checkpoints(self.out / "checkpoints", keep=config.train.keep, best=self.best)
        self.resume_step = resume_step(config, self.checkpoints)
        params = b.load_params(pieces)
        groups, _ = b.with_reference_logps(pieces, groups, params)
        self.loader = b.make_loader(pieces, groups, training=True)
        self.where: dict[int, str] = {group.row_id: group.where for group in groups}
        if held_out is not None:
            held_out, _ = b.with_reference_logps(pieces, held_out, params)
        self.evaluator = None
        if held_out is not None:
            self.evaluator = Evaluator(pieces, held_out, eval_report.kind, self.make_evaluation)
        trained, base = split(params)
        reference = b.reference_overlay(pieces, params)
        self.frozen = Frozen(base, None if pieces.moving else reference)
        schedule = make_schedule(config.optim, self.loader.plan.steps)
        self.optimizer = make_optimizer(config.optim, schedule, pieces.source.spec.vocab)
        self._make_state(trained, reference if pieces.moving else None)
        scoring = pieces.scoring(self.loader.layout, report.kind)
        self.step_function = self.make_step(scoring, schedule)
        self.num_tokens, self.flops, self.seconds_before = 0, 0.0, 0.0
        self.write_header(report, eval_report)

    def _make_state(self, params: Any, moving_ref: Any) -> None:
        shapes = jax.eval_shape(self.start, params, moving_ref)
        self.shardings = self.lay_out(shapes)
        init = jax.jit(self.start, out_shardings=self.shardings, donate_argnums=self.donated)
        with jax.set_mesh(self.pieces.mesh):
            self.state = init(params, moving_ref)

    def start(self, params: Any, moving_ref: Any) -> TrainState:
        """The state before the first step."""
        ref = jax.tree.map(lambda x: x.astype(jnp.float32), moving_ref)
        return init_state(params, self.optimizer, self.config.train.seed, self.pieces.parts, ref)

    def lay_out(self, shapes: TrainState) -> TrainState:
        """Shardings of the state."""
        return state_shardings(shapes, self.pieces.mesh)

    def make_step(self, scoring: Scoring, schedule: Any) -> Callable:
        return make_train_step(scoring, self.optimizer, schedule, self.pieces.moving)

    def make_evaluation(self, scoring: Scoring) -> Callable:
        return make_eval_step(scoring)

    def step_flops(self, item: Step) -> float:
        """Model FLOPs of a step."""
        spec, reference = self.pieces.source.spec, self.frozen.reference is not None or bool(self.pieces.moving)
        return step_flops(spec, item, reference=reference, frozen=bool(self.frozen.base))

    def deciding(self, values: dict[str, float]) -> dict[str, float]:
        """Of an evaluation, the metrics by which a checkpoint is the best."""
        return values

    def make_writers(self, start: int) -> Writers:
        return Writers(self.out, self.config, start)

    def evaluate(self) -> dict[str, float]:
        """Metrics of the policy as it is now, against the reference: the fixed one, or the state's moving one."""
        state, frozen, moving = self.state, self.frozen, self.pieces.moving
        if moving:
            frozen = moving.laid_over(frozen.base, state.ref_params)
        return self.evaluator(frozen.policy(state.params), frozen.reference_params(), state.running)

    def write_header(self, *reports: Any) -> None:
        """Settings, and an account of the data, before the first step.  Args: reports on training and held-out data."""
        if jax.process_index() == 0:
            self.write_settings(self.config, *reports)
            if self.given:
                (self.out / OBJECTIVE_FILE).write_text(json.dumps([part.name for part in self.pieces.parts]) + "\n")

    def write_settings(self, config: Config, report: Any, eval_report: Any) -> None:
        out = Path(config.out)
        out.mkdir(parents=True, exist_ok=True)
        save_config(config, out / "config.yaml")
        (out / "data.txt").write_text(f"{report}\n{eval_report or ''}\n{self.loader.plan}\n")

    def train(self) -> Result:
        plan = self.loader.plan
        iterator = self.loader.iterate(b.owned_rows(self.loader, self.pieces.mesh))
        start, evaluated = 0, {}
        if self.resume_step is not None:
            self.checkpoints.check_vocabulary(self.resume_step, self.pieces.source.spec.vocab)
            self.state, progress = self.checkpoints.restore(self.resume_step, self.state)
            self.data_state = progress["data"]
            iterator.set_state(self.data_state)
            start, evaluated = self.resume_step, progress["first_eval"]
            self.num_tokens, self.flops, self.seconds_before = (progress[n] for n in ("num_tokens", "flops", "seconds"))
        writers = self.make_writers(start)
        try:
            with _TermFlag() as term, jax.set_mesh(self.pieces.mesh):
                if start == 0 and self.evaluator:
                    evaluated = self._evaluate(writers, 0)
                self.first_eval, self.last_eval, self.saved = evaluated, {}, start
                self._loop(iterator, writers, start, plan.steps, term)
                if self.evaluator and not self.last_eval:  # a finished run was started again
                    self.last_eval = self.evaluate()
                self.checkpoints.wait()
                best = self.checkpoints.about_best()
        finally:
            self.checkpoints.close()  # waits for what is being written
            writers.close()
        seconds = self._seconds()
        return Result(self.out, plan.steps, self.last_log, self.first_eval, self.last_eval, best, self.flops, seconds)

    def progress(self) -> dict[str, Any]:
        """Beside the state, what a run goes on from."""
        return {
            "data": self.data_state, "first_eval": self.first_eval, "vocabulary": self.pieces.source.spec.vocab,
            "num_tokens": self.num_tokens, "flops": self.flops, "seconds": self._seconds(),
        }  # fmt: skip

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.began

    def _loop(self, iterator: Any, writers: Writers, start: int, steps: int, term: "_TermFlag") -> None:
        config, compiled = self.config, None
        window = Window()
        pending: deque = deque()
        self.last_log: dict[str, float] = {}
        for step in range(start + 1, steps + 1):
            item = next(iterator)
            batch = b.put_batch(item.batch, self.pieces.mesh)
            micro = b.put_scalar(item.micro_batches, self.pieces.mesh)
            if compiled is None:
                compiled = self.compile(batch, micro)
                window.restart()
            self.state, metrics = compiled(self.state, self.frozen, batch, micro)
            self.num_tokens += item.tokens_unshared
            pending.append((step, item, metrics))
            last = step == steps
            evaluate = self.evaluator and (last or _every(config.train.eval_every, step))
            stop = term.agreed(step)
            save = last or stop or _every(config.train.save_every, step)
            # One step stays in flight, so the host prepares the next batch meanwhile; everything is read before
            # an evaluation or a checkpoint, which a non-finite step must never reach.
            while len(pending) > (0 if evaluate or save or _every(config.train.log_every, step) else 1):
                self._read(*pending.popleft(), window, writers, steps)
            if evaluate:
                window.pause()
                self.last_eval = self._evaluate(writers, step)
                window.resume()
            if save:
                self.data_state = iterator.get_state()
                self.checkpoints.save(
                    step, self.state, self.progress(), self.deciding(self.last_eval) if evaluate else {}
                )
            if stop and not last:
                self.checkpoints.wait()
                raise Preempted(f"SIGTERM: saved step {step} in {self.checkpoints.directory}; run again to continue")

    def compile(self, batch: Any, micro: jax.Array) -> Any:
        """The train step, compiled ahead of time: another shape later would be an error, not a second compile."""
        replicated = NamedSharding(self.pieces.mesh, P())
        step = jax.jit(self.step_function, donate_argnums=0, out_shardings=(self.shardings, replicated))
        if any(x.dtype.name.endswith("int4") for x in jax.tree.leaves(self.frozen)):
            return step  # jax 0.10 refuses arrays of 4 bits as arguments of what was compiled ahead of time
        return step.lower(self.state, self.frozen, batch, micro).compile()

    def _read(self, step: int, item: Step, metrics: Any, window: "Window", writers: Writers, steps: int) -> None:
        values = {name: np.asarray(x, float)[()] for name, x in jax.device_get(metrics).items()}
        _check_finite(step, item, values, self.where)
        flops = self.step_flops(item)
        self.flops += flops
        window.add(values, item, flops)
        speed = window.tokens_per_second()
        epoch = step / self.loader.plan.steps_per_epoch
        if step % self.config.train.log_every == 0 or step == steps:
            self.last_log = window.means() | {"epoch": epoch, "num_tokens": float(self.num_tokens)}
            writers.write(step, self.last_log)
        self.on_log(step, steps, values | {"tokens_per_second": speed})

    def _evaluate(self, writers: Writers, step: int) -> dict[str, float]:
        values = self.evaluate()
        writers.write(step, values)
        if self.best.deciding(values) is None:
            fix = f"one of {sorted(values)}"
            raise InputError("a metric of the evaluation", f"train.best_metric={self.best.metric}", fix)
        return values


def state_shardings(shapes: TrainState, mesh: Any) -> TrainState:
    """Moments lie as their parameters do; counters, factored moments and the key are replicated."""
    params = {
        (leaf_path(path), leaf.shape): sharding
        for (path, leaf), (_, sharding) in zip(
            jax.tree_util.tree_leaves_with_path(shapes.params),
            jax.tree_util.tree_leaves_with_path(param_shardings(shapes.params, mesh)),
            strict=True,
        )
    }
    replicated = NamedSharding(mesh, P())

    def sharding(path, leaf):
        names = leaf_path(path).split("/")
        tails = ("/".join(names[i:]) for i in range(len(names)))
        return next((params[tail, leaf.shape] for tail in tails if (tail, leaf.shape) in params), replicated)

    return jax.tree_util.tree_map_with_path(sharding, shapes)


def _every(interval: int | None, step: int) -> bool:
    return interval is not None and step % interval == 0


def _check_finite(step: int, item: Step, values: dict[str, float], where: dict[int, str]) -> None:
    bad = [name for name in ("loss", "grad_norm") if not np.isfinite(values[name]).all()]
    if bad:
        rows = sorted({int(r) for r in np.unique(item.batch.row_id_RG) if r >= 0})
        raise NotFiniteError(
            f"step {step}: {', '.join(f'{name}={values[name]}' for name in bad)}; rows of the batch: "
            + ", ".join(where[r] for r in rows)
            + ". Nothing was saved since the last checkpoint; lower optim.learning_rate or look at these rows."
        )


class _TermFlag:
    """Remembers SIGTERM; all processes agree on the step at which to stop."""

    def __enter__(self) -> "_TermFlag":
        self._asked = False
        # Several processes: jax's own handler spreads the notice, so ours must not replace it.
        self._ours = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        if self._ours:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_) -> None:
        if self._ours:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, *_) -> None:
        self._asked = True

    def agreed(self, step: int) -> bool:
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
