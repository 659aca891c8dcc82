"""Functions of the user's own that a run calls: to stop it, to evaluate now, to log more.

They are called when metrics are written, every `train.log_every` steps, and after evaluations.
Everything has been read from the devices then; between these steps the host runs ahead of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxpref.errors import InputError
from jaxpref.generation.completions import Completion, generate
from jaxpref.generation.opening import OpenPolicy
from jaxpref.runs.build import Pieces


@dataclass
class Moment:
    """A run between two steps, as a callback sees it."""

    step: int
    """Finished steps."""
    steps: int
    """Of the whole run."""
    values: Mapping[str, float]
    """What is about to be written: means since the last line, or an evaluation."""
    params: Any
    """The policy's parameters, as `pieces.model` takes them; they are gone after the next step."""
    pieces: Pieces
    """Config, model, mesh and tokenizer of the run."""
    added: dict[str, float] = field(default_factory=dict)
    """What `log` was given."""
    why_stop: str = ""
    evaluates: bool = False
    has_held_out: bool = True

    def stop(self, why: str = "a callback asked for it") -> None:
        """Evaluates, saves and ends the run; started again, it stays ended."""
        self.why_stop = why

    def evaluate(self) -> None:
        """Evaluates on the held-out data before the next step.

        Errors: InputError where there is none.
        """
        if not self.has_held_out:
            raise InputError("held-out data", "now.evaluate() in a run without", _NO_HELD_OUT)
        self.evaluates = True

    def log(self, name: str, value: float) -> None:
        """Writes a number of the user's own beside the others.

        In an evaluation it may be named by `train.best_metric` too.

        Errors: InputError for one that is not finite, and for the name of one of the others.
        """
        if not isinstance(name, str) or name in self.values:
            raise InputError(
                "a name that the run does not log itself", f"{name!r}", "log under another name"
            )
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise InputError("a number to log", f"{name}={value!r}", "give one number") from error
        if not np.isfinite(number):
            raise InputError("a finite number to log", f"{name}={value}", "leave it out")
        self.added[name] = number

    def generate(self, prompts: Sequence[Any], **settings: Any) -> list[Completion]:
        """Answers of the policy as it is now; arguments as of `Result.generate`."""
        return generate(OpenPolicy(self.pieces, self.params), prompts, **settings)


_NO_HELD_OUT = "set data.eval=[FILE], or in Python give rows: eval=rows"


class Callback:
    """What a run calls: subclasses define what they need.

    With several processes each calls its own, for `params` may lie on all of them; what is asked of
    the run counts as the first process asks it.
    """

    def on_log(self, now: Moment) -> None:
        """Before metrics are written, every `train.log_every` steps."""

    def on_evaluate(self, now: Moment) -> None:
        """Before an evaluation is written, the one before the first step included."""

    def state(self) -> Any:
        """What checkpoints keep of the callback, as JSON."""
        return None

    def restore(self, state: Any) -> None:
        """Given what `state` returned when the checkpoint was saved from which a run goes on."""


@dataclass
class EarlyStopping(Callback):
    """Ends the run when an evaluation's metric has not become better for some evaluations."""

    metric: str = "eval/loss"
    patience: int = 3
    """Evaluations without a better value."""
    mode: Literal["min", "max"] = "min"
    """Which values are better: small ones or large ones."""
    min_delta: float = 0.0
    """By how much a value must be better than the best one."""

    def __post_init__(self) -> None:
        if self.patience < 1 or self.mode not in ("min", "max"):
            raise InputError(
                "patience from 1, and mode min or max",
                f"patience={self.patience}, mode={self.mode}",
                "change them",
            )
        self._best: float | None = None
        self._waited = 0

    def on_evaluate(self, now: Moment) -> None:
        if now.step == 0:  # another run, as of a sweep
            self._best, self._waited = None, 0
        values = {**now.values, **now.added}
        if self.metric not in values:
            raise InputError(
                "a metric of the evaluation for EarlyStopping",
                f"metric={self.metric}",
                f"set it to one of {', '.join(sorted(values))}",
            )
        value, sign = values[self.metric], -1 if self.mode == "min" else 1
        if self._best is None or sign * (value - self._best) > self.min_delta:
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited >= self.patience:
            now.stop(
                f"{self.metric} has not been better than {self._best:.6g} for "
                f"{self.patience} evaluations"
            )

    def state(self) -> dict[str, Any]:
        return {"best": self._best, "waited": self._waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._best, self._waited = state["best"], state["waited"]


def as_callbacks(given: Any) -> list[Callback]:
    """Callbacks of what `train` is given: one, or several; functions are called as `on_log`.

    Errors: InputError for anything else, and for a class in place of a callback.
    """
    several = given if isinstance(given, Sequence) else [given]
    wrong = [
        one
        for one in several
        if isinstance(one, type) or not (isinstance(one, Callback) or callable(one))
    ]
    if wrong:
        raise InputError(
            "callbacks: functions of a Moment, and instances of Callback",
            f"{wrong[0]!r}",
            "give as in callbacks=[jaxpref.EarlyStopping(), my_function]",
        )
    return [one if isinstance(one, Callback) else _Function(one) for one in several]


class Callbacks:
    """All callbacks of a run, as the loop sees them.

    Args:
        callbacks: as `as_callbacks` makes them of what `train` is given.
        policy: state of the run -> the policy's parameters.
        has_held_out: whether the run evaluates.
    Errors: InputError for EarlyStopping where nothing is evaluated.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback] = (),
        pieces: Pieces | None = None,
        policy: Callable[[Any], Any] | None = None,
        has_held_out: bool = True,
    ):
        self._callbacks = callbacks
        self._pieces, self._policy, self._has_held_out = pieces, policy, has_held_out
        if not has_held_out and any(isinstance(one, EarlyStopping) for one in self._callbacks):
            raise InputError("held-out data for EarlyStopping", "a run without", _NO_HELD_OUT)
        self.why_stop, self._evaluates = "", False

    def logged(self, step: int, steps: int, values: Mapping[str, Any], state: Any) -> dict:
        """Calls `on_log`.  Returns: what is to be written besides."""
        return self._call("on_log", step, steps, values, state)

    def evaluated(self, step: int, steps: int, values: Mapping[str, Any], state: Any) -> dict:
        """Calls `on_evaluate`.  Returns: what is to be written besides."""
        return self._call("on_evaluate", step, steps, values, state)

    def evaluates(self) -> bool:
        """Whether an evaluation was asked for since this was called before."""
        asked, self._evaluates = self._evaluates, False
        return asked

    def state(self) -> list[Any]:
        """As JSON, of every callback."""
        return [[type(one).__qualname__, one.state()] for one in self._callbacks]

    def restore(self, stored: Sequence[Any]) -> None:
        """Of the callbacks that are of the same class as then, in the same place."""
        for one, (name, state) in zip(self._callbacks, stored, strict=False):
            if name == type(one).__qualname__ and state is not None:
                one.restore(state)

    def _call(
        self, what: str, step: int, steps: int, values: Mapping[str, Any], state: Any
    ) -> dict[str, float]:
        if not self._callbacks:
            return {}
        now = Moment(
            step,
            steps,
            values,
            self._policy(state),
            self._pieces,
            has_held_out=self._has_held_out,
        )
        for one in self._callbacks:
            getattr(one, what)(now)
        stops, evaluates = _of_first_process(bool(now.why_stop), now.evaluates)
        if stops:
            self.why_stop = now.why_stop or "a callback of the first process asked for it"
        self._evaluates |= evaluates
        return now.added


@dataclass
class _Function(Callback):
    function: Callable[[Moment], None]

    def on_log(self, now: Moment) -> None:
        self.function(now)


def _of_first_process(*asked: bool) -> tuple[bool, ...]:
    if jax.process_count() == 1:
        return asked
    agreed = multihost_utils.broadcast_one_to_all(np.array(asked, np.int32))
    return tuple(bool(x) for x in np.asarray(agreed))
