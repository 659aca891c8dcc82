"""What one process does for all of them, and what they know of each other."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

from jaxpref.errors import InputError, RunError
from jaxpref.processes.store import exchanged, of_first

# What JSON can say; so that a path is refused before several processes meet it.
Json = None | bool | int | float | str | Sequence[Any] | Mapping[str, Any]
Result = TypeVar("Result", bound=Json)


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


def processes_where(here: bool) -> list[int]:
    """The processes in which something is so; asked by all of them at once."""
    if jax.process_count() == 1:
        return [0] if here else []
    return [process for process, said in enumerate(exchanged(b"here" if here else b"")) if said]


def _described(error: Exception) -> Mapping[str, Any]:
    if isinstance(error, InputError):
        return {"refused": [error.expected, error.got, error.fix]}
    return {"failed": f"{type(error).__name__}: {error}"}
