"""Checkpoints of a run (orbax, asynchronous): the latest few and the best are kept."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from jaxpref.errors import InputError
from jaxpref.files import as_disk_problem
from jaxpref.models.finite import not_finite
from jaxpref.models.parameters import VOCAB_LEAVES, leaf_path
from jaxpref.runs.best import AUTOMATIC, BestRule
from jaxpref.runs.checksums import checksums, device_checksums
from jaxpref.runs.damage import (
    DamagedCheckpoint,
    anywhere,
    json_checksum,
    nothing_whole,
    read_item,
    saved_checksums,
    set_aside,
    steps_in,
    unprinted_late_errors,
    with_damaged_items,
)
from jaxpref.runs.uploaded import UploadingManager, is_uploaded, readable
from jaxpref.step.state import TrainState
from jaxpref.storage.paths import as_path

_log = logging.getLogger(__name__)


def _concerns_the_user(record: logging.LogRecord) -> bool:
    """Not what orbax says below an error: files it writes, options that it derives.

    Nor the traceback of an error in one of its threads: it is raised where the checkpoint is
    waited for.
    """
    told = record.levelno >= logging.ERROR and not record.exc_info
    return told or "orbax" not in Path(record.pathname).parts


logging.getLogger("absl").addFilter(_concerns_the_user)


class Checkpoints:
    """The checkpoints of a run.

    Each holds checksums of all that is in it, and whatever is read is held against them.

    Args:
        directory: `RUN/checkpoints`.
        keep: latest ones to keep.
        best: which one is the best; kept besides.
        read_only: leaves everything as it is, also what a run in another process is just writing.
    Errors: InputError where all checkpoints of a run that goes on are damaged.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 1,
        best: BestRule = AUTOMATIC,
        read_only: bool = False,
    ):
        self.directory = as_path(directory).absolute()
        self._best = best
        self._checksums: Callable[[Any], dict[str, jax.Array]] = device_checksums
        self._manager = None if read_only else self._open(keep)

    def _open(self, keep: int) -> ocp.CheckpointManager | UploadingManager:
        """What writes and deletes.  It reads all metrics, so the damaged ones go before."""
        set_aside(self.directory, with_damaged_items(self.directory))
        if is_uploaded(self.directory):
            return UploadingManager(self.directory, keep, self._best)
        keep_best = policies.BestN(
            get_metric_fn=self._best.rank, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            # What is kept is decided by the policy alone, but without this no metrics are written.
            best_fn=self._best.rank,
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), keep_best]),
            cleanup_tmp_directories=True,
            create=True,
        )
        return ocp.CheckpointManager(epath.Path(str(self.directory)), options=options)

    # ---- writing

    def prepare(self, like: TrainState) -> None:
        """Compiles what `save` runs of states like this, so that no step waits for it."""
        self._checksums = device_checksums.lower(like._asdict()).compile()

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
        fields = state._asdict()
        sums = {path: int(x) for path, x in jax.device_get(self._checksums(fields)).items()}
        items = {"progress": dict(progress)} | ({} if kept is None else {"metrics": kept})
        of_items = {name: json_checksum(item) for name, item in items.items()}
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(fields),
            progress=ocp.args.JsonSave(items["progress"]),
            checksums=ocp.args.JsonSave({"state": sums, "items": of_items}),
        )
        with as_disk_problem(self.directory):
            self._manager.save(step, args=args, metrics=kept)

    def wait(self) -> None:
        """Until everything is on disk."""
        if self._manager is not None:
            with as_disk_problem(self.directory):
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being written."""
        if self._manager is not None:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # ---- which there are

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints."""
        return steps_in(self.directory)

    def latest(self) -> int | None:
        """Step of the latest complete checkpoint."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Step of the best one that is still there; None when none has the metric."""
        ranked = []
        for step in self.steps():
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
        metrics = read_item(self.directory, step, "metrics")
        return metrics if metrics and self._best.deciding(metrics) else None

    # ---- reading

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """State and progress of a step, laid out as `like` says.

        The mesh may differ from the one that saved, and with it the padding of the vocabulary.

        Args:
            like: arrays, or ShapeDtypeStructs with shardings.
        Errors: DamagedCheckpoint; InputError for parameters that are not finite.
        """
        state = self._read(step, _abstract(like)._asdict(), partial=False)
        return TrainState(**state), self.progress(step)

    def restore_newest(self, like: TrainState) -> tuple[int, TrainState, dict[str, Any]]:
        """The newest step that is whole, with its state and progress.

        Damaged ones that are newer are kept aside, under another name.

        Errors: InputError where none is whole; those of `restore`.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                state, progress = self.restore(step, like)
            except DamagedCheckpoint as error:
                damaged[step] = error.why
                continue
            set_aside(self.directory, damaged)
            self._manager.reload()  # steps that are trained again are saved again
            return step, state, progress
        raise nothing_whole(self.directory, damaged)

    def restore_parts(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """Some fields of the state (`params`, `running`, ...), laid out as `like` says.

        Args:
            like: ShapeDtypeStructs; those without a sharding become numpy arrays on this host, as
                they were saved: with the vocabulary's padding.
        Errors: as of `restore`.
        """
        return self._read(step, like, partial=True)

    def progress(self, step: int) -> dict[str, Any]:
        """What was saved beside the state of a step.  Errors: DamagedCheckpoint."""
        return read_item(self.directory, step, "progress") or {}

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

    def _read(self, step: int, like: Mapping[str, Any], *, partial: bool) -> dict[str, Any]:
        """Fields of the state, held against their checksums."""
        of_leaves = jax.tree_util.tree_map_with_path(_restore_args, like)
        args = ocp.args.PyTreeRestore(item=like, restore_args=of_leaves, partial_restore=partial)
        tree, wrong = None, ""
        try:
            # A handler, not a checkpointer, which would wait for processes that found damage.
            with unprinted_late_errors(), closing(ocp.PyTreeCheckpointHandler()) as reader:
                tree = reader.restore(readable(self.directory / str(step) / "state"), args=args)
        except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
            raise  # says nothing about the files
        except Exception as error:  # orbax raises nothing narrower
            said = str(error).partition("\n")[0][:200]
            wrong = f"its state cannot be read ({type(error).__name__}: {said})"
        if anywhere(bool(wrong)):
            raise DamagedCheckpoint(self.directory, step, wrong or "another process found damage")
        self._verify(step, tree)
        self._check_finite(step, tree)
        return tree

    def _verify(self, step: int, tree: Mapping[str, Any]) -> None:
        saved = saved_checksums(self.directory, step)
        if saved is None:
            _log.warning(
                "step %d in %s was saved without checksums, by an older version: it is read as it "
                "is",
                step,
                self.directory,
            )
            return
        changed = [path for path, x in checksums(tree).items() if saved["state"].get(path) != x]
        if changed:
            raise DamagedCheckpoint(
                self.directory, step, f"not what was saved: {_some(changed)} (by their checksums)"
            )

    def _check_finite(self, step: int, tree: Mapping[str, Any]) -> None:
        """Parameters that are not finite: nothing that is computed from them means anything."""
        bad = not_finite({name: tree.get(name) for name in ("params", "ref_params")})
        if bad:
            raise InputError(
                "finite parameters",
                f"step {step} in {self.directory}: NaN or infinite numbers in {_some(bad)}",
                f"take another step, of {self.steps()}, or train again with a lower learning rate",
            )


def _some(names: Sequence[str]) -> str:
    """A few of many names."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


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


def find_step(checkpoints: Checkpoints, wanted: str | int) -> int:
    """The existing step that is meant by `best`, `latest` or a number.

    `best` is the latest where none was saved with an evaluation.
    Errors: InputError that names the steps there are.
    """
    steps, step = checkpoints.steps(), None
    if wanted == "best":
        step = checkpoints.best() or checkpoints.latest()
    elif wanted == "latest":
        step = checkpoints.latest()
    elif str(wanted).isdecimal():  # from Python also a number
        step = int(wanted)
    if step is None or step not in steps:
        raise InputError(
            "a checkpoint: `best`, `latest` or a step number",
            f"{wanted!r} in {checkpoints.directory}, which has steps {steps}",
            "name one of these steps" if steps else "train the run until it has saved one",
        )
    return step
