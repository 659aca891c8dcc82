"""Damaged checkpoints: how they are told, and how they are kept aside."""

import json
import logging
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxpref.errors import InputError
from jaxpref.files import rename_directory
from jaxpref.processes.together import is_first, processes_where
from jaxpref.storage.paths import is_bucket

_log = logging.getLogger(__name__)

_FILES = {"progress": "metadata", "metrics": "metrics", "checksums": "metadata"}
"""Item of a checkpoint that is JSON -> the file that orbax makes of it."""


COMMITTED = "commit_success.txt"
"""In a bucket, the file of a checkpoint that is written last; orbax's own name for it."""


class DamagedCheckpoint(InputError):
    """A checkpoint that cannot be read, or holds something else than what was saved."""

    def __init__(self, directory: Path, step: int, why: str):
        others = [other for other in steps_in(directory) if other != step]
        super().__init__(
            "a checkpoint as it was saved",
            f"step {step} in {directory} is damaged: {why}",
            f"take another step, of {others} (--step)" if others else "restore it from a backup",
        )
        self.step, self.why = step, why


def steps_in(directory: Path) -> list[int]:
    """Steps whose checkpoint was written to the end, ascending.

    Until then it has another name, or in a bucket lacks a file; a damaged one has another name.
    """
    if not directory.is_dir():
        return []
    steps = sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())
    if is_bucket(directory):
        return [step for step in steps if (directory / str(step) / COMMITTED).is_file()]
    return steps


def read_item(directory: Path, step: int, item: str) -> dict[str, Any] | None:
    """`progress` or `metrics` of a step, held against its checksum; None: no metrics were saved.

    Errors: DamagedCheckpoint.
    """
    value, saved = _read_json(directory, step, item), saved_checksums(directory, step)
    found = None if value is None else json_checksum(value)
    missing = value is None and item == "progress"
    if missing or (saved is not None and found != saved["items"].get(item)):
        wrong = "missing" if value is None else "not what was saved (by its checksum)"
        raise DamagedCheckpoint(directory, step, f"its {item}: {wrong}")
    return value


def saved_checksums(directory: Path, step: int) -> dict[str, dict[str, int]] | None:
    """Of the `state`'s leaves and of the `items` beside it; None: an older version saved none.

    Errors: DamagedCheckpoint.
    """
    saved = _read_json(directory, step, "checksums")
    if saved is None or all(isinstance(saved.get(kind), dict) for kind in ("state", "items")):
        return saved
    raise DamagedCheckpoint(directory, step, "its checksums: not what was saved")


def json_checksum(value: Any) -> int:
    """Of what is read again after `value` was written as JSON."""
    text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    return zlib.crc32(text.encode())


def with_damaged_items(directory: Path) -> dict[int, str]:
    """Steps whose progress or metrics are damaged -> what is wrong; asked by all processes."""
    damaged = {}
    for step in steps_in(directory):
        try:
            read_item(directory, step, "progress")
            read_item(directory, step, "metrics")
        except DamagedCheckpoint as error:
            damaged[step] = error.why
    anywhere(False)  # nobody renames while others read
    return damaged


def _read_json(directory: Path, step: int, item: str) -> dict[str, Any] | None:
    """None: there is no such file."""
    file = directory / str(step) / item / _FILES[item]
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedCheckpoint(directory, step, f"{file} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise DamagedCheckpoint(directory, step, f"{file} holds a {type(value).__name__}")
    return value


def anywhere(here: bool) -> bool:
    """Whether something is so in this process or in another one; asked by all of them at once."""
    return bool(processes_where(here))


@contextmanager
def unprinted_late_errors() -> Iterator[None]:
    """Around reads and writes that may fail: what they leave behind is not printed.

    Those that were under way beside the one that failed end later, when nobody waits for them and
    their event loop is closed: Python prints a traceback for each, asyncio another; those that had
    not begun are warned of.  So where one failed, these stay hidden.
    """
    warnings.filterwarnings("ignore", "coroutine 'Store", RuntimeWarning)  # of orbax
    shown, log = sys.unraisablehook, logging.getLogger("asyncio")

    def show(error: Any) -> None:
        if str(error.exc_value) != "Event loop is closed":
            shown(error)

    sys.unraisablehook = show
    log.addFilter(_is_waited_for)
    yield
    sys.unraisablehook = shown
    log.removeFilter(_is_waited_for)


def _is_waited_for(record: logging.LogRecord) -> bool:
    return "was never retrieved" not in record.getMessage()


def nothing_whole(directory: Path, damaged: Mapping[int, str]) -> InputError:
    """The error where no checkpoint is left to go on from.

    Args:
        damaged: step -> what is wrong with it.
    """
    return InputError(
        "a checkpoint to go on from",
        f"all in {directory} are damaged: {_listed(damaged)}",
        "restore one from a backup; or choose another `out`, to train from the start",
    )


def set_aside(directory: Path, damaged: Mapping[int, str]) -> None:
    """Renames damaged checkpoints, and says so; called by all processes at once.

    Errors: InputError where no other checkpoint is there; nothing is renamed then.
    """
    if not damaged:
        return
    whole = [step for step in steps_in(directory) if step not in damaged]
    if not whole:
        raise nothing_whole(directory, damaged)
    if is_first():
        names = {step: _free_name(directory / f"damaged-{step}") for step in damaged}
        for step, name in names.items():
            rename_directory(directory / str(step), name)
        _log.warning(
            "damaged checkpoints in %s: %s. Kept as %s; the newest of the others is step %d.",
            directory,
            _listed(damaged),
            ", ".join(name.name for name in names.values()),
            max(whole),
        )
    anywhere(False)  # nobody reads on before they are renamed


def _listed(damaged: Mapping[int, str]) -> str:
    return "; ".join(f"step {step}: {why}" for step, why in sorted(damaged.items()))


def _free_name(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free
