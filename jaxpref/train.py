"""The training loop: data -> step -> metrics, evaluations and checkpoints."""

import json
import math
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
from jaxpref.config import Config, load_config, save_config, to_dict
from jaxpref.data.loader import Step
from jaxpref.errors import InputError
from jaxpref.evaluation import Evaluator
from jaxpref.export import OBJECTIVE_FILE
from jaxpref.metrics import Writers, peak_flops, step_flops
from jaxpref.optim import make_optimizer, make_schedule
from jaxpref.policy import Frozen, split
from jaxpref.sharding import leaf_path, param_shardings
from jaxpref.step import TrainState, init_state, make_train_step

PREEMPTED = 75
"""Exit code after SIGTERM: the state is saved, run the same command again (sysexits.h: EX_TEMPFAIL)."""

# What may differ between the run that saved a checkpoint and the one that continues it.
_MAY_CHANGE = ("mesh", "log", "out")
_MAY_CHANGE_KEYS = {
    "train": ("log_every", "eval_every", "save_every", "keep", "resume", "micro_rows"),
    "model": ("remat", "attention_block", "logprob_chunk"),
    "reference": ("cache_dir",),
}


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
    return _Run(config, objective, on_log or (lambda *_: None)).train()


class _Run:
    """One run; __init__ prepares, train() loops."""

    def __init__(self, config: Config, objective: Sequence[Any] | None, on_log: Callable):
        self.config, self.on_log, self.out, self.given = config, on_log, Path(config.out), objective
        self.pieces = pieces = b.build(config, objective)
        groups, report = b.read_data(pieces, "train")
        held_out, eval_report = b.read_data(pieces, "eval") if config.data.eval else (None, None)
        self.best = BestRule(config.train.best_metric, config.train.best_mode)
        self.checkpoints = Checkpoints(self.out / "checkpoints", keep=config.train.keep, best=self.best)
        self.resume_step = _resume_step(config, self.checkpoints)
        params = b.load_params(pieces)
        groups, _ = b.with_reference_logps(pieces, groups, params)
        self.loader = b.make_loader(pieces, groups, training=True)
        self.where: dict[int, str] = {group.row_id: group.where for group in groups}
        if held_out is not None:
            held_out, _ = b.with_reference_logps(pieces, held_out, params)
        self.evaluator = Evaluator(pieces, held_out, eval_report.kind) if held_out is not None else None
        trained, base = split(params)
        reference = b.reference_overlay(pieces, params)
        self.frozen = Frozen(base, None if pieces.moving else reference)
        schedule = make_schedule(config.optim, self.loader.plan.steps)
        self.optimizer = make_optimizer(config.optim, schedule, pieces.source.spec.vocab)
        self.state = self._initial_state(trained, reference if pieces.moving else None)
        scoring = pieces.scoring(self.loader.layout, report.kind)
        self.step_function = make_train_step(scoring, self.optimizer, schedule, pieces.moving)
        self.num_tokens = 0
        self._write_header(report, eval_report)

    def _initial_state(self, params: Any, moving_ref: Any) -> TrainState:
        def start(params, ref):
            ref = jax.tree.map(lambda x: x.astype(jnp.float32), ref)
            return init_state(params, self.optimizer, self.config.train.seed, self.pieces.parts, ref)

        self.shardings = state_shardings(jax.eval_shape(start, params, moving_ref), self.pieces.mesh)
        # The parameters are donated: they become the state's.
        init = jax.jit(start, out_shardings=self.shardings, donate_argnums=0)
        with jax.set_mesh(self.pieces.mesh):
            return init(params, moving_ref)

    def evaluate(self) -> dict[str, float]:
        """Metrics of the policy as it is now, against the reference: the fixed one, or the state's moving one."""
        state, frozen, moving = self.state, self.frozen, self.pieces.moving
        if moving:
            frozen = moving.laid_over(frozen.base, state.ref_params)
        return self.evaluator(frozen.policy(state.params), frozen.reference_params(), state.running)

    def _write_header(self, report: Any, eval_report: Any) -> None:
        if jax.process_index() == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            save_config(self.config, self.out / "config.yaml")
            if self.given:
                (self.out / OBJECTIVE_FILE).write_text(json.dumps([part.name for part in self.pieces.parts]) + "\n")
            (self.out / "data.txt").write_text(f"{report}\n{eval_report or ''}\n{self.loader.plan}\n")

    def train(self) -> Result:
        config, plan = self.config, self.loader.plan
        iterator = self.loader.iterate(b.owned_rows(self.loader, self.pieces.mesh))
        start, evaluated = 0, {}
        if self.resume_step is not None:
            self.state, progress = self.checkpoints.restore(self.resume_step, self.state)
            iterator.set_state(progress["data"])
            self.num_tokens, start, evaluated = progress["num_tokens"], self.resume_step, progress["first_eval"]
        writers = Writers(self.out, config, start)
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
        return Result(self.out, plan.steps, self.last_log, self.first_eval, self.last_eval, best)

    def _loop(self, iterator: Any, writers: Writers, start: int, steps: int, term: "_TermFlag") -> None:
        config, compiled = self.config, None
        reference = self.frozen.reference is not None or bool(self.pieces.moving)
        window = _Window(self.pieces.source.spec, reference, bool(self.frozen.base))
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
                progress = {"data": iterator.get_state(), "num_tokens": self.num_tokens, "first_eval": self.first_eval}
                self.checkpoints.save(step, self.state, progress, self.last_eval if evaluate else {})
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

    def _read(self, step: int, item: Step, metrics: Any, window: "_Window", writers: Writers, steps: int) -> None:
        values = {name: float(x) for name, x in jax.device_get(metrics).items()}
        _check_finite(step, item, values, self.where)
        window.add(values, item)
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
    bad = [name for name in ("loss", "grad_norm") if not math.isfinite(values[name])]
    if bad:
        rows = sorted({int(r) for r in np.unique(item.batch.row_id_RG) if r >= 0})
        raise NotFiniteError(
            f"step {step}: {', '.join(f'{name}={values[name]}' for name in bad)}; rows of the batch: "
            + ", ".join(where[r] for r in rows)
            + ". Nothing was saved since the last checkpoint; lower optim.learning_rate or look at these rows."
        )


def _resume_step(config: Config, checkpoints: Checkpoints) -> int | None:
    """The step to continue from, or None for a fresh start.

    Errors: InputError when `train.resume` forbids what is there, or the run was made with other settings.
    """
    latest, mode = checkpoints.latest(), config.train.resume
    if latest is None:
        if mode == "must":
            raise InputError("a checkpoint to resume from", f"none in {checkpoints.directory}", "set train.resume=auto")
        return None
    if mode == "never":
        raise InputError(
            "an empty run directory (train.resume=never)",
            f"{checkpoints.directory} has step {latest}",
            "choose another `out`, delete that one, or set train.resume=auto",
        )
    stored = to_dict(load_config(Path(config.out) / "config.yaml"))
    changed = _differences(stored, to_dict(config))
    if changed:
        raise InputError(
            f"the settings with which {config.out} was started",
            "changed: " + ", ".join(changed),
            "restore them, or choose another `out` for a new run",
        )
    return latest


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    found = []
    for section in (name for name in new if name not in _MAY_CHANGE):
        if not isinstance(new[section], dict):
            found += [section] if json.dumps(old[section]) != json.dumps(new[section]) else []
            continue
        for key, value in new[section].items():
            if key not in _MAY_CHANGE_KEYS.get(section, ()) and old[section][key] != value:
                found.append(f"{section}.{key} {old[section][key]!r} -> {value!r}")
    return found


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


class _Window:
    """Means since the last log line; speed without compile and evaluation time."""

    def __init__(self, spec: Any, reference: bool, frozen: bool):
        self._spec, self._reference, self._frozen = spec, reference, frozen
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = self._tokens = self._flops = self._columns = 0
        self.restart()

    def restart(self) -> None:
        self._began, self._paused = time.perf_counter(), 0.0

    def pause(self) -> None:
        self._pause_began = time.perf_counter()

    def resume(self) -> None:
        self._paused += time.perf_counter() - self._pause_began

    def add(self, values: dict[str, float], item: Step) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1
        self._tokens += item.tokens
        self._flops += step_flops(self._spec, item, reference=self._reference, frozen=self._frozen)
        self._columns += item.columns

    def _seconds(self) -> float:
        return max(time.perf_counter() - self._began - self._paused, 1e-9)

    def tokens_per_second(self) -> float:
        return self._tokens / self._seconds()

    def means(self) -> dict[str, float]:
        """Closes the window."""
        seconds = self._seconds()
        means = {name: value / self._steps for name, value in self._sums.items()}
        means["tokens_per_second"] = self._tokens / seconds
        means["model_flops_per_second"] = self._flops / seconds
        if (peak := peak_flops()) is not None:
            means["mfu"] = self._flops / seconds / peak
        means["padding_fraction"] = 1.0 - self._tokens / self._columns
        self._clear()
        return means
