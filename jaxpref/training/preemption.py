"""SIGTERM and Ctrl-C: a run is told to stop, and saves itself first."""

import contextlib
import logging
import os
import signal
import threading

import jax

PREEMPTED = 75
"""Exit code after SIGTERM: the state is saved, run the same command again (EX_TEMPFAIL)."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

_log = logging.getLogger(__name__)


class Preempted(RuntimeError):
    """SIGTERM came; everything is saved."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a notebook's stop; everything is saved."""


class TermFlag:
    """Remembers SIGTERM and Ctrl-C; all processes agree on the step at which to stop."""

    def __enter__(self) -> "TermFlag":
        self._asked = False
        self.interrupted = False
        """Whether it was Ctrl-C, here."""
        handlers = {}
        # Another thread than the main one: Python lets it set no handler, nor interrupts it.
        if threading.current_thread() is threading.main_thread():
            # Several processes: jax's own handler spreads the notice, so ours must not replace it.
            if jax.process_count() == 1:
                handlers[signal.SIGTERM] = self._ask
            if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as of a job in the background
                handlers[signal.SIGINT] = self._interrupt
        self._before = {
            number: signal.signal(number, handler) for number, handler in handlers.items()
        }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_) -> None:
        self._asked = True

    def _interrupt(self, *_) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        with contextlib.suppress(RuntimeError):  # the terminal was just being written to
            _log.warning("stopping after this step, to save it; once more stops at once")
        if jax.process_count() == 1:
            self._asked = True
        else:
            os.kill(os.getpid(), signal.SIGTERM)  # which is spread to the others

    def agreed(self, step: int) -> bool:
        """Whether to stop after this step; every process gets the same answer."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
