"""What processes tell each other by the coordinator: no device takes part, nothing is compiled."""

from collections.abc import Iterator

# The store has no public name in jax; orbax takes it from here too.
from jax._src import distributed

from jaxpref.errors import InputError

_PIECE = 2**20
"""Bytes of a value at most; gRPC takes no message above 4 MiB."""
_PATIENCE = 24 * 60 * 60 * 1000
"""Milliseconds.  A slow process is waited for; one that is lost ends the wait (`watch.py`)."""


class _Calls:
    made = 0
    """Exchanges so far: all processes make the same ones in the same order."""


def process_count() -> int:
    """How many there are; unlike `jax.process_count` it starts no backend."""
    return distributed.global_state.num_processes


def process_index() -> int:
    """Which this one is."""
    return distributed.global_state.process_id


def coordinator_address() -> str:
    """HOST:PORT of process 0."""
    return distributed.global_state.coordinator_address


def store() -> distributed._jax.DistributedRuntimeClient:
    """The values that the coordinator keeps for all.

    Errors: InputError where this process never joined the others.
    """
    client = distributed.global_state.client
    if client is None:
        raise InputError(
            "processes that have joined each other",
            "jax finds several processes, but jax.distributed is not initialized",
            "call jaxpref.join() before anything else",
        )
    return client


def exchanged(own: bytes) -> list[bytes]:
    """What every process gives, in their order; all must call it."""
    if process_count() == 1:
        return [own]
    _Calls.made += 1
    values, mine = store(), _at(_Calls.made, process_index())
    pieces = [own[i : i + _PIECE] for i in range(0, len(own), _PIECE)]
    for number, piece in enumerate(pieces):
        values.key_value_set_bytes(f"{mine}/{number}", piece)
    values.key_value_set(f"{mine}/pieces", str(len(pieces)))
    of_each = [b"".join(_pieces(_at(_Calls.made, process))) for process in range(process_count())]
    # Who has come here has read what was exchanged before.
    values.key_value_delete(_at(_Calls.made - 1, process_index()))
    return of_each


def wait_for_all(name: str) -> None:
    """Until all processes have come here; each may come in a thread of its own.

    Args:
        name: of this place and time; it is used once.
    """
    if process_count() > 1:
        store().wait_at_barrier(f"jaxpref/{name}", _PATIENCE)


def _at(call: int, process: int) -> str:
    return f"jaxpref/exchange/{call}/{process}"


def of_first(own: bytes) -> bytes:
    """What process 0 gives; all must call it."""
    return exchanged(own if process_index() == 0 else b"")[0]


def _pieces(at: str) -> Iterator[bytes]:
    values = store()
    for number in range(int(values.blocking_key_value_get(f"{at}/pieces", _PATIENCE))):
        yield values.blocking_key_value_get_bytes(f"{at}/{number}", _PATIENCE)
