"""What one process does for all of them, and what they know of each other."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxpref.errors import InputError, RunError

Result = TypeVar("Result")


def is_first() -> bool:
    """Whether this is process 0, which writes and prints; so is one that is alone."""
    return jax.process_index() == 0


def first_does(work: Callable[[], Result]) -> Result:
    """What process 0 makes of the work: files that are written once, or lie on its disk alone.

    Called by all processes at once.  None goes on before the work is done, so what it wrote is
    there then, for those who share the disk.

    Args:
        work: no process may wait for another one in it.  Its result is passed on as JSON.
    Errors: on process 0 those of the work; on the others as well where it is an InputError,
        otherwise RunError.
    """
    if jax.process_count() == 1:
        return work()
    sent, raised = "", None
    if is_first():
        try:
            sent = json.dumps({"result": work()})
        except Exception as error:
            sent, raised = json.dumps(_described(error)), error
    outcome = json.loads(of_first(sent.encode()))
    if raised is not None:
        raise raised
    if "refused" in outcome:
        raise InputError(*outcome["refused"])
    if "failed" in outcome:
        raise RunError(f"process 0: {outcome['failed']}")
    return outcome["result"]


def of_first(own: bytes) -> bytes:
    """Process 0's bytes, for all."""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(own))))
    # As many as a power of two, so that few programs pass them on; as words of 32 bits, for jax
    # narrows 64.
    size = 1 << max(length - 1, 64).bit_length()
    words = np.frombuffer(own.ljust(size, b"\0") if is_first() else bytes(size), "<u4")
    return np.asarray(multihost_utils.broadcast_one_to_all(words), "<u4").tobytes()[:length]


def processes_where(here: bool) -> list[int]:
    """The processes in which something is so; asked by all of them at once."""
    if jax.process_count() == 1:
        return [0] if here else []
    return np.flatnonzero(multihost_utils.process_allgather(np.bool_(here))).tolist()


def _described(error: Exception) -> Mapping[str, Any]:
    if isinstance(error, InputError):
        return {"refused": [error.expected, error.got, error.fix]}
    return {"failed": f"{type(error).__name__}: {error}"}
