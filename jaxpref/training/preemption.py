"""SIGTERM and Ctrl-C: a run is told to stop, and saves itself first."""

import functools
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.sharding import place, replicated

PREEMPTED = 75
"""Exit code after SIGTERM: the state is saved, run the same command again (EX_TEMPFAIL)."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

_log = logging.getLogger(__name__)


class Preempted(RuntimeError):
    """SIGTERM came; everything is saved."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a notebook's stop; everything is saved."""


class _Early:
    asked = False
    """Whether SIGTERM came before there was a run to tell."""


def remember_sigterm() -> None:
    """From now on SIGTERM is kept for the run to come, where this process has joined others.

    One that ended at once would take the others with it, which may be loading for minutes yet.
    """
    if jax.distributed.is_initialized():
        signal.signal(signal.SIGTERM, _ask_early)


def _ask_early(*_) -> None:
    _Early.asked = True


class TermFlag:
    """Remembers SIGTERM and Ctrl-C; all processes agree on the step after which to stop.

    jax has a protocol for that (`reached_preemption_sync_point`), but it forgets a signal that
    comes before the first step of a resumed run, and orbax takes part in it with steps of its own.
    """

    def __init__(self) -> None:
        self._asked = _Early.asked
        self._told: jax.Array | None = None
        self.interrupted = False
        """Whether it was Ctrl-C, here."""

    def listening(self) -> AbstractContextManager[None]:
        """SIGTERM and Ctrl-C are remembered in here."""
        handlers: dict[int, Callable] = {signal.SIGTERM: self._ask}
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as of a job in the background
            handlers[signal.SIGINT] = self._interrupt
        return _handling(handlers)

    def listening_at_once(self) -> AbstractContextManager[None]:
        """SIGTERM is remembered in here: while a run is loaded, where it would otherwise be lost.

        Of several processes all are told; one alone that has nothing to save yet ends, as it
        should.
        """
        if jax.distributed.is_initialized():
            return _handling({signal.SIGTERM: self._ask})
        return nullcontext()

    def _ask(self, *_) -> None:
        self._asked = True

    def _interrupt(self, *_) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self._asked = self.interrupted = True
        with suppress(RuntimeError):  # the terminal was just being written to
            _log.warning("stopping after this step, to save it; once more stops at once")

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


@contextmanager
def _handling(handlers: Mapping[int, Callable]) -> Iterator[None]:
    """Signals go to these handlers in here.

    In another thread than the main one nothing changes: Python lets that set no handler, nor does
    it interrupt it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@functools.lru_cache(maxsize=1)  # compiled once
def _any(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(jnp.any, out_shardings=replicated(mesh))
