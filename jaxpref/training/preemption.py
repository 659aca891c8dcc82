"""SIGTERM: the machine is taken away, and a run has to save itself."""

import signal
import threading

import jax

PREEMPTED = 75
"""Exit code after SIGTERM: the state is saved, run the same command again (EX_TEMPFAIL)."""


class Preempted(RuntimeError):
    """SIGTERM came; everything is saved."""


class TermFlag:
    """Remembers SIGTERM; all processes agree on the step at which to stop."""

    def __enter__(self) -> "TermFlag":
        self._asked = False
        # Several processes: jax's own handler spreads the notice, so ours must not replace it.
        # Another thread than the main one: Python lets it set no handler.
        alone = jax.process_count() == 1
        self._ours = alone and threading.current_thread() is threading.main_thread()
        if self._ours:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_) -> None:
        if self._ours:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, *_) -> None:
        self._asked = True

    def agreed(self, step: int) -> bool:
        """Whether to stop after this step; every process gets the same answer."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
