"""Checkpoints (orbax, asynchronous): state, data position and counters; the latest few and the best are kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jaxpref.errors import InputError
from jaxpref.step import TrainState


class Checkpoints:
    """The checkpoints of a run.

    Args:
        directory: `RUN/checkpoints`.
        keep: latest ones to keep.
        best_metric, best_mode: which one is the best; kept besides.
        read_only: leaves everything as it is, also what a run in another process is just writing.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 1,
        best_metric: str = "",
        best_mode: str = "max",
        read_only: bool = False,
    ):
        self.directory = Path(directory).absolute()
        metric = lambda metrics: metrics[best_metric]
        best = policies.BestN(
            get_metric_fn=metric,
            reverse=best_mode == "min",
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._best_metric, self._best_mode = best_metric, best_mode
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=metric,  # without it orbax does not write the metrics; what is kept is the policy's matter
                best_mode=best_mode,
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
            ),
        )

    def save(self, step: int, state: TrainState, progress: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Starts saving; training goes on while the files are written.

        Args:
            progress: JSON-able: data position and counters.
            metrics: of the latest evaluation, empty when there was none; without `best_metric` it is never the best.
        """
        kept = dict(metrics) if self._best_metric in metrics else None
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state._asdict()), progress=ocp.args.JsonSave(dict(progress))
            ),
            metrics=kept,
        )

    def latest(self) -> int | None:
        """Step of the latest complete checkpoint."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Step of the best one that is still there; None when none has the metric."""
        scored = [(s, m[self._best_metric]) for s in self._manager.all_steps() if (m := self._metrics(s))]
        if not scored:
            return None
        sign = 1 if self._best_mode == "max" else -1
        return max(scored, key=lambda item: (sign * item[1], item[0]))[0]

    def _metrics(self, step: int) -> Mapping[str, float] | None:
        metrics = self._manager.metrics(step)
        return metrics if metrics and self._best_metric in metrics else None

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """State and progress of a step, laid out as `like` (arrays or ShapeDtypeStructs with shardings) says.

        The mesh may differ from the one that saved.
        """
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(_abstract(like)._asdict()), progress=ocp.args.JsonRestore()
            ),
        )
        return TrainState(**restored.state), restored.progress

    def restore_parts(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """Some fields of the state (`params`, `running`, ...), laid out as `like` says.

        Leaves of `like` are ShapeDtypeStructs; those without a sharding become numpy arrays on this host.
        """
        with ocp.PyTreeCheckpointer() as reader:
            args = ocp.args.PyTreeRestore(
                item=like, restore_args=jax.tree.map(_restore_args, like), partial_restore=True
            )
            return reader.restore(self.directory / str(step) / "state", args=args)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints."""
        return list(self._manager.all_steps())

    def wait(self) -> None:
        """Until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _restore_args(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    if leaf.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def find_step(checkpoints: Checkpoints, wanted: str) -> int:
    """`best`, `latest` or a number -> an existing step.  Errors: InputError naming what is there."""
    steps = checkpoints.steps()
    if wanted == "best":
        step = checkpoints.best() or checkpoints.latest()
    else:
        step = checkpoints.latest() if wanted == "latest" else int(wanted) if wanted.isdigit() else None
    if step is None or step not in steps:
        raise InputError(
            "a checkpoint: `best`, `latest` or a step number",
            f"{wanted!r} in {checkpoints.directory}, which has steps {list(steps)}",
            "choose one of them, or train the run first",
        )
    return step
