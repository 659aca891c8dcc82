"""SIGTERM: the machine is taken away, and a run has to save itself."""

import functools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.sharding import place, replicated

PREEMPTED = 75
"""Exit code after SIGTERM: the state is saved, run the same command again (EX_TEMPFAIL)."""


class Preempted(RuntimeError):
    """SIGTERM came; everything is saved."""


class TermFlag:
    """Remembers SIGTERM; all processes agree on the step after which to stop.

    jax has a protocol for that (`reached_preemption_sync_point`), but it forgets a signal that
    comes before the first step of a resumed run, and orbax takes part in it with steps of its own.
    """

    def __init__(self) -> None:
        self._asked = self._listening = False
        self._told: jax.Array | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM is remembered in here.

        In another thread than the main one it is not: Python lets that set no handler.
        """
        if self._listening or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._ask)
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
            signal.signal(signal.SIGTERM, before)

    def listening_at_once(self) -> AbstractContextManager[None]:
        """As `listening`, while a run is loaded, where the signal would otherwise be lost.

        From `jax.distributed.initialize` on jax keeps it to itself.  Without that it ends a process
        that has nothing to save yet, as it should.
        """
        return self.listening() if jax.distributed.is_initialized() else nullcontext()

    def _ask(self, *_) -> None:
        self._asked = True

    def tell(self, mesh: Mesh) -> None:
        """Starts telling the other processes, before the first step and in every `agreed`."""
        if jax.process_count() > 1:
            asked = np.full(mesh.size, self._asked)
            by_device = NamedSharding(mesh, P(mesh.axis_names))
            self._told = _any(mesh)(place(asked, by_device))

    def agreed(self, mesh: Mesh) -> bool:
        """Whether to stop after this step; every process gets the same answer.

        Several processes go by what they told each other one step before, so that the devices are
        never waited for.
        """
        told = self._told
        if told is None:
            return self._asked
        self.tell(mesh)
        return bool(told)


@functools.lru_cache(maxsize=1)  # compiled once
def _any(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(jnp.any, out_shardings=replicated(mesh))
