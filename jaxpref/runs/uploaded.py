"""Checkpoints in s3:// buckets: saved on the hosts' disks, then uploaded.

orbax writes to gs:// itself, and to no other bucket.  Of several processes each saves its part on
its own disk and uploads it; together the parts are what one process would have saved.  A file that
marks the end is uploaded last, the one that orbax writes last to gs://, so half a checkpoint never
counts.
"""

import itertools
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

# It has no public name in orbax.
from orbax.checkpoint._src.metadata.array_metadata_store import Store

from jaxpref.files import as_disk_problem, upload_file
from jaxpref.processes.store import wait_for_all
from jaxpref.processes.together import is_first
from jaxpref.runs.best import BestRule
from jaxpref.runs.damage import COMMITTED, read_item, steps_in
from jaxpref.storage.local_copies import local_directory
from jaxpref.storage.paths import file_system, key_of

_opened = itertools.count()
"""Numbers the managers: all processes open the same ones in the same order."""


def is_uploaded(directory: Path) -> bool:
    """Whether checkpoints there are uploaded, as orbax does not write there."""
    return str(directory).startswith("s3://")


def readable(directory: Path) -> epath.Path:
    """A directory of a checkpoint as orbax reads it: where it does not, a copy on this host."""
    return epath.Path(str(local_directory(directory) if is_uploaded(directory) else directory))


class UploadingManager:
    """Has those methods of orbax's CheckpointManager that runs use.

    Args:
        directory: in the bucket.
        keep: latest checkpoints to keep, beside the best.
    """

    def __init__(self, directory: Path, keep: int, best: BestRule):
        self._directory, self._keep, self._best = directory, keep, best
        self._scratch = tempfile.TemporaryDirectory(prefix="jaxpref-checkpoints-")
        self._manager = _on_own_disk(self._scratch.name, best)
        self._pool = ThreadPoolExecutor(1, "upload")
        self._upload: Future | None = None
        self._name, self._saves = f"uploads {next(_opened)}", 0

    def save(self, step: int, args: Any, metrics: Mapping[str, float] | None) -> None:
        """Starts saving, once the checkpoint before is in the bucket; called by all processes."""
        self.wait_until_finished()
        self._saves += 1
        self._manager.save(step, args=args, metrics=metrics)
        self._upload = self._pool.submit(self._finish, step)

    def wait_until_finished(self) -> None:
        """Until the last checkpoint is in the bucket.  Errors: OSError where it cannot be."""
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.result()

    def reload(self) -> None:
        """Nothing is remembered of the checkpoints in the bucket."""

    def close(self) -> None:
        try:
            self.wait_until_finished()
        finally:
            self._pool.shutdown()
            self._manager.close()
            self._scratch.cleanup()

    def _finish(self, step: int) -> None:
        self._manager.wait_until_finished()
        saved, to = Path(self._scratch.name) / str(step), self._directory / str(step)
        with as_disk_problem(to):
            if is_first():
                _remove(to)  # of an upload that was killed
            self._wait_for_all("removed")
            for file in sorted(path for path in saved.rglob("*") if path.is_file()):
                if file.name != COMMITTED:  # which says it of this process alone
                    upload_file(file, to / str(file.relative_to(saved)))
            self._wait_for_all("uploaded")
            if is_first():
                (to / COMMITTED).write_text("whole\n")
                self._remove_old()
            self._wait_for_all("whole")

    def _wait_for_all(self, what: str) -> None:
        """Until all processes have come so far with what is saved."""
        wait_for_all(f"{self._name}, {self._saves}, {what}")

    def _remove_old(self) -> None:
        steps = steps_in(self._directory)
        metrics = {step: read_item(self._directory, step, "metrics") for step in steps}
        ranks = [
            (self._best.rank(m), s) for s, m in metrics.items() if m and self._best.deciding(m)
        ]
        kept = {*steps[-self._keep :], *(step for _, step in sorted(ranks)[-1:])}
        for step in set(steps) - kept:
            _remove(self._directory / str(step))


def _on_own_disk(directory: str, best: BestRule) -> ocp.CheckpointManager:
    """Saves the latest checkpoint; of several processes each saves its own part, by itself.

    Numbers lie in a file for each part of an array (no OCDBT, whose index one process makes of
    the files of all), and what is no array is written by every process.
    """
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )
    # Of its own, for orbax keeps in the common one which process makes the directories, and whoever
    # reads a checkpoint changes that.
    arrays = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, ocp.type_handlers.ArrayHandler(array_metadata_store=Store()))
    )
    state = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,
        # "All are primary": the parts of the others are not looked for.
        multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=None),
        type_handler_registry=arrays,
    )
    json = ocp.JsonCheckpointHandler(multiprocessing_options=alone)
    options = ocp.CheckpointManagerOptions(
        best_fn=best.rank,  # or no metrics are written
        preservation_policy=policies.LatestN(1),
        create=False,
        multiprocessing_options=alone,
        # Otherwise it is told to all processes that one has made its directories.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    handlers = {"state": state, "progress": json, "checksums": json}
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def _remove(directory: Path) -> None:
    """Removes a checkpoint, and first what says that it is whole."""
    (directory / COMMITTED).unlink(missing_ok=True)
    if directory.is_dir():
        file_system(directory).rm(key_of(directory), recursive=True)
