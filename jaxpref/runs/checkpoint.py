"""Checkpoints of a run (orbax, asynchronous): the latest few and the best are kept."""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jaxpref.errors import InputError
from jaxpref.models.parameters import VOCAB_LEAVES, leaf_path
from jaxpref.step.state import TrainState


def _concerns_the_user(record: logging.LogRecord) -> bool:
    """Not what orbax says below an error: files it writes, options that it derives.

    Nor the traceback of an error in one of its threads: it is raised where the checkpoint is
    waited for.
    """
    told = record.levelno >= logging.ERROR and not record.exc_info
    return told or "orbax" not in Path(record.pathname).parts


logging.getLogger("absl").addFilter(_concerns_the_user)

ACCURACY, LOSS = "eval/rewards/accuracies", "eval/loss"


@dataclass(frozen=True)
class BestRule:
    """Which evaluation is the best.

    Args:
        metric: by which; None: the reward accuracy where the objective logs it, otherwise the loss,
            which all log.
        mode: `max` or `min`; None: `min` for the loss or a part of it, otherwise `max`.
    """

    metric: str | None = None
    mode: str | None = None

    def deciding(self, metrics: Mapping[str, float]) -> str | None:
        """Name of the metric that decides; None when it is not among these."""
        names = (ACCURACY, LOSS) if self.metric is None else (self.metric,)
        return next((name for name in names if name in metrics), None)

    def mode_of(self, name: str) -> str:
        """Whether the highest (`max`) or the lowest (`min`) value of a metric is the best."""
        if self.mode is not None:
            return self.mode
        is_loss = name == LOSS or name.startswith(f"{LOSS}/")
        return "min" if is_loss else "max"

    def rank(self, metrics: Mapping[str, float]) -> float:
        """A number that is higher the better.  Errors: KeyError without the metric that decides."""
        name = self.deciding(metrics)
        if name is None:
            raise KeyError(self.metric or LOSS)
        return metrics[name] if self.mode_of(name) == "max" else -metrics[name]


AUTOMATIC = BestRule()


class Checkpoints:
    """The checkpoints of a run.

    Args:
        directory: `RUN/checkpoints`.
        keep: latest ones to keep.
        best: which one is the best; kept besides.
        read_only: leaves everything as it is, also what a run in another process is just writing.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 1,
        best: BestRule = AUTOMATIC,
        read_only: bool = False,
    ):
        self.directory = Path(directory).absolute()
        self._best = best
        keep_best = policies.BestN(
            get_metric_fn=best.rank, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            # What is kept is decided by the policy alone, but without this no metrics are written.
            best_fn=best.rank,
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), keep_best]),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(
        self,
        step: int,
        state: TrainState,
        progress: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Starts saving; training goes on while the files are written.

        Args:
            progress: JSON-able: data position and counters.
            metrics: of the latest evaluation, empty when there was none; without the metric that
                decides it is never the best.
        """
        kept = dict(metrics) if self._best.deciding(metrics) else None
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state._asdict()),
                progress=ocp.args.JsonSave(dict(progress)),
            ),
            metrics=kept,
        )

    def latest(self) -> int | None:
        """Step of the latest complete checkpoint."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Step of the best one that is still there; None when none has the metric."""
        ranked = []
        for step in self._manager.all_steps():
            metrics = self._metrics(step)
            if metrics is not None:
                ranked.append((self._best.rank(metrics), step))
        return max(ranked)[1] if ranked else None

    def about_best(self) -> str:
        """Which step is the best and by which metric, in words."""
        step = self.best()
        if step is None:
            return "the latest: none was saved with an evaluation"
        metrics = self._metrics(step)
        name = self._best.deciding(metrics)
        side = "highest" if self._best.mode_of(name) == "max" else "lowest"
        return f"step {step}, {side} {name} ({metrics[name]:.4g})"

    def _metrics(self, step: int) -> Mapping[str, float] | None:
        """Saved with a step; None without the one that decides."""
        metrics = self._manager.metrics(step)
        return metrics if metrics and self._best.deciding(metrics) else None

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """State and progress of a step, laid out as `like` says.

        The mesh may differ from the one that saved, and with it the padding of the vocabulary.

        Args:
            like: arrays, or ShapeDtypeStructs with shardings.
        """
        state = self._read(step, _abstract(like)._asdict(), partial=False)
        return TrainState(**state), self.progress(step)

    def progress(self, step: int) -> dict[str, Any]:
        """What was saved beside the state of a step."""
        return self._manager.restore(
            step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())
        ).progress

    def check_vocabulary(self, step: int, tokens: int) -> None:
        """The model must have as many tokens as when the step was saved.

        Otherwise the difference would pass for padding, which is added and dropped without a word.

        Errors: InputError for another number.
        """
        saved = self.progress(step).get("vocabulary", tokens)
        if saved != tokens:
            raise InputError(
                f"the model with which {self.directory.parent} was trained, of {saved} tokens",
                f"it has {tokens} now",
                "restore the model's directory, or start a new run with the changed tokenizer",
            )

    def restore_parts(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """Some fields of the state (`params`, `running`, ...), laid out as `like` says.

        Args:
            like: ShapeDtypeStructs; those without a sharding become numpy arrays on this host, as
                they were saved: with the vocabulary's padding.
        """
        return self._read(step, like, partial=True)

    def _read(self, step: int, like: Mapping[str, Any], *, partial: bool) -> dict[str, Any]:
        of_leaves = jax.tree_util.tree_map_with_path(_restore_args, like)
        args = ocp.args.PyTreeRestore(item=like, restore_args=of_leaves, partial_restore=partial)
        with ocp.PyTreeCheckpointer() as reader:
            return reader.restore(self.directory / str(step) / "state", args=args)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints."""
        return list(self._manager.all_steps())

    def wait(self) -> None:
        """Until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _restore_args(path: Any, leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    if leaf.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    args = ocp.checkpoint_utils.construct_restore_args(leaf)
    # Another mesh may pad the vocabulary with fewer or more rows of zeros: orbax drops or adds them
    # where it is not strict.
    padded = leaf_path(path).endswith(VOCAB_LEAVES)
    return dataclasses.replace(args, strict=False) if padded else args


def _abstract(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def find_step(checkpoints: Checkpoints, wanted: str) -> int:
    """The existing step that is meant by `best`, `latest` or a number.

    `best` is the latest where none was saved with an evaluation.
    Errors: InputError that names the steps there are.
    """
    steps, step = checkpoints.steps(), None
    if wanted == "best":
        step = checkpoints.best() or checkpoints.latest()
    elif wanted == "latest":
        step = checkpoints.latest()
    elif wanted.isdigit():
        step = int(wanted)
    if step is None or step not in steps:
        raise InputError(
            "a checkpoint: `best`, `latest` or a step number",
            f"{wanted!r} in {checkpoints.directory}, which has steps {steps}",
            "name one of these steps" if steps else "train the run until it has saved one",
        )
    return step
