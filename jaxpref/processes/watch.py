"""Every process watches the others: where one is lost, the rest say which, and end.

A collective waits for ever for a process that is gone.  So each process gives a sign of life in the
store that the coordinator (process 0) keeps for all, and looks for those of the others, in a thread
of its own.  On a busy machine a sign may be late; that a process is gone, its connection to the
coordinator tells, which says so to the others.  jax watches too, but ends the others without a word
about which one is lost and how to go on; it is the last resort here, where even this thread waits.
"""

import atexit
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import jax

from jaxpref.errors import InputError
from jaxpref.processes.links import has_ended, probe_hosts
from jaxpref.processes.store import coordinator_address, process_count, process_index, store
from jaxpref.processes.timeouts import HEARTBEAT_TIMEOUT, SILENT

LOST = 76
"""Exit code where another process is lost: start all of them again (EX_PROTOCOL)."""

_GONE = "its connection has ended (it was killed, or its host or the network went down)"
_SILENT_FOR = "no sign of life for {:.0f} s"
_UNANSWERED = (jax.errors.JaxRuntimeError, InputError)
"""By the coordinator; by a store that is left already."""
_SIGNS = "jaxpref/signs_of_life"
_RUNNING, _FAILED, _LOST, _ENDED = "running", "failed", "lost", "ended"


def watch_others(
    heartbeat_timeout: float = HEARTBEAT_TIMEOUT, links: Mapping[int, socket.socket] | None = None
) -> None:
    """Watches the other processes from now on, if there are any; a second call changes nothing.

    Args:
        heartbeat_timeout: seconds within which this process ends, with exit code LOST, where
            another one is gone.
        links: of `meet`.  None: signs of life alone tell, and who gives none in time is gone.
    """
    global _watch
    if _watch is None and process_count() > 1:
        _watch = _Watch(heartbeat_timeout, links)
        _watch.catch_all_ends()


def leave(code: int, why: str) -> None:
    """Ends this process of several, which has failed; of one alone nothing happens.

    Args:
        code: its exit code.
        why: what the others are told, who may not have failed too.
    """
    if _watch is not None:
        _watch.fail(code, why)


_watch: "_Watch | None" = None

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
"""A signal handler in C."""


@dataclass
class _Seen:
    """What is known of another process; times are those of this process's clock."""

    silent_for: float = 0.0
    """Seconds without a new sign of life, as far as this process looked."""
    link_ended: bool = False
    sign: int = -1
    host: str = "an unknown host"
    state: str = _RUNNING
    why: str = ""
    failed: float | None = None
    """When it was first seen to have failed."""


class _Watch:
    """Of this process, over the others; the arguments are those of `watch_others`."""

    def __init__(self, timeout: float, links: Mapping[int, socket.socket] | None):
        # Within the timeout a loss has to be noticed, and passed on.
        noticed = 2 / 3 * timeout
        self._links = links or {}
        probe_hosts(self._links.values(), noticed)
        self._silence = noticed if links is None else SILENT * timeout
        self._patience, self._every = noticed, min(1.0, noticed / 10)
        # In which a process may end by itself after another one failed: often for the same reason,
        # and then it says so better itself.
        self._grace = noticed / 4
        self._process, self._sign, self._state, self._why = process_index(), 0, _RUNNING, ""
        self._looked = time.monotonic()
        self._unanswered = 0.0  # seconds of silence of the coordinator
        others = [process for process in range(process_count()) if process != self._process]
        self._seen = {process: _Seen() for process in others}
        self._ending, self._stop = threading.Lock(), threading.Event()
        self._say(_RUNNING)
        threading.Thread(target=self._run, name="watch", daemon=True).start()
        if 0 in self._links:
            threading.Thread(target=self._watch_link, name="link", daemon=True).start()

    # ---- in a thread of its own

    def _run(self) -> None:
        while self._is_joined() and not self._stop.wait(self._every):
            began = time.monotonic()
            try:
                self._ask_coordinator()
                self._give_sign()
                self._look_at_links()
                self._look()
                self._unanswered = 0.0
            except _UNANSWERED:
                # No longer than it may have waited: this process may have been stopped meanwhile.
                self._unanswered += min(time.monotonic() - began, self._patience) + self._every
                lost = self._coordinator_is_lost()
                time.sleep(self._every)
                if lost and self._is_joined():
                    self._end_for_coordinator()
                continue
            for process, seen in self._seen.items():
                name = f"process {process} on {seen.host}"
                if why := self._why_lost(seen):
                    self._pass_on(process, why)
                    self._end(f"{name} is lost: {why}")
                elif self._is_missed(seen):
                    self._end(f"{name} failed: {seen.why}", then="Once that is mended, start")

    def _is_joined(self) -> bool:
        """False once the user's own code has called `jax.distributed.shutdown`."""
        return jax.distributed.is_initialized()

    def _ask_coordinator(self) -> None:
        """Errors: JaxRuntimeError where it does not answer in time; other calls may wait longer."""
        store().blocking_key_value_get(f"{_SIGNS}/{self._process}", int(1000 * self._patience))

    def _give_sign(self) -> None:
        self._sign += 1
        self._write(self._process, [self._sign, socket.gethostname(), self._state, self._why])

    def _pass_on(self, process: int, why: str) -> None:
        """Gives the last sign in the place of a process that is lost."""
        seen = self._seen[process]
        with suppress(*_UNANSWERED):
            self._write(process, [seen.sign, seen.host, _LOST, why])

    def _write(self, process: int, said: list) -> None:
        store().key_value_set(f"{_SIGNS}/{process}", json.dumps(said), allow_overwrite=True)

    def _look_at_links(self) -> None:
        """Comes before the signs of life: the last one may say why the link ends."""
        for process, link in self._links.items():
            seen = self._seen[process]
            seen.link_ended = seen.link_ended or has_ended(link)

    def _look(self) -> None:
        signs = store().key_value_dir_get(_SIGNS)
        before, self._looked = self._looked, time.monotonic()
        # What passes while nobody looks is not the others' silence.
        passed = min(self._looked - before, 2 * self._every)
        for key, value in signs:
            seen = self._seen.get(int(key.rpartition("/")[2]))
            if seen is None:  # this process itself
                continue
            sign, seen.host, seen.state, seen.why = json.loads(value)
            seen.silent_for = seen.silent_for + passed if sign == seen.sign else 0.0
            seen.sign = sign
            if seen.state == _FAILED and seen.failed is None:
                seen.failed = self._looked

    def _why_lost(self, seen: _Seen) -> str | None:
        """None: as far as this process can tell, it is not."""
        if seen.state == _LOST:
            return seen.why
        if seen.state != _RUNNING:
            return None
        if seen.link_ended and seen.silent_for > self._grace:
            return _GONE
        if seen.silent_for > self._silence:
            return _SILENT_FOR.format(seen.silent_for)
        return None

    def _is_missed(self, seen: _Seen) -> bool:
        """Whether that one has failed and this one, which still runs, cannot do without it."""
        failed_for = 0.0 if seen.failed is None else time.monotonic() - seen.failed
        return self._state == _RUNNING and failed_for > self._grace

    # ---- in another one

    def _watch_link(self) -> None:
        """Ends this process where the coordinator's host is down: a call to it may never return."""
        while not has_ended(self._links[0]):
            if self._stop.wait(self._every):
                return
        before = self._looked
        stopped = self._stop.wait(self._grace)  # it may be the link alone that has ended
        if not stopped and self._looked == before and self._is_joined():
            self._end_for_coordinator()

    # ---- the end for another process, in any thread

    def _coordinator_is_lost(self) -> bool:
        """Whether nobody is at its address, or the store has not answered for long."""
        if self._process == 0:
            return False
        host, _, port = coordinator_address().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
        except OSError:
            return True
        return self._unanswered >= self._silence

    def _end_for_coordinator(self) -> None:
        self._tell_user(f"process 0 on {self._seen[0].host}, the coordinator, is lost")
        os._exit(LOST)

    def _end(self, why: str, then: str = "Start") -> None:
        self._tell_user(why, then)
        self._say(_FAILED, why)  # for those who may have seen it otherwise
        self._outlive_others()
        os._exit(LOST)

    def _tell_user(self, why: str, then: str = "Start") -> None:
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # another thread does it
        text = (
            f"jaxpref: {why}. Process {self._process} on {socket.gethostname()} ends too. {then} "
            "all of them again by the same commands: a training run goes on from its last "
            "checkpoint, which is whole.\n"
        )
        _print_briefly(sys.stdout.flush)
        _print_briefly(lambda: os.write(2, text.encode()))

    def _say(self, state: str, why: str = "") -> None:
        self._state, self._why = state, why
        with suppress(*_UNANSWERED):
            self._give_sign()

    def _outlive_others(self) -> None:
        """The coordinator goes last: without it the others learn nothing."""
        until = time.monotonic() + self._grace + 3 * self._every
        while self._process == 0 and time.monotonic() < until:
            with suppress(*_UNANSWERED):
                self._look()
            if not any(self._lives(seen) for seen in self._seen.values()):
                return
            time.sleep(self._every)

    def _lives(self, seen: _Seen) -> bool:
        return seen.state == _RUNNING and self._why_lost(seen) is None

    # ---- the end of this process, in its main thread

    def catch_all_ends(self) -> None:
        """Sees to it that this process does not end unnoticed, nor by jax without a word."""
        atexit.register(self.finish)  # runs before jax leaves the others
        hook = sys.excepthook

        def on_uncaught(
            kind: type[BaseException], error: BaseException, trace: TracebackType | None
        ) -> Any:
            hook(kind, error, trace)
            self._wait_for_signs()
            self.fail(1, f"{kind.__name__}: {error}")

        sys.excepthook = on_uncaught
        if self._process != 0:
            # Where the coordinator is lost, jax calls abort() in a thread of its own.  A handler of
            # Python's would come too late; one of C is called on the spot.
            self._abort_handler = _HANDLER(self._on_abort)
            ctypes.CDLL(None).signal(ctypes.c_int(signal.SIGABRT), self._abort_handler)

    def _on_abort(self, _: int) -> None:
        """Says why jax ends this process, where it is for the coordinator."""
        if self._coordinator_is_lost():
            self._end_for_coordinator()

    def fail(self, code: int, why: str) -> None:
        """As `leave`."""
        self._say(_FAILED, " ".join(why.split()))
        self._outlive_others()
        _exit(code)

    def finish(self) -> None:
        """Lets this process end with the others, all being well."""
        if not self._is_joined():
            return
        self._say(_ENDED)
        while any(seen.state == _RUNNING for seen in self._seen.values()):
            time.sleep(self._every)  # or its thread ends the process
        self._stop.set()
        if any(seen.state == _FAILED for seen in self._seen.values()):
            _exit(0)  # jax would wait for it

    def _wait_for_signs(self) -> None:
        """Returns when all others live: the error of this process is then not for a lost one.

        The first new sign may have been given before the error, and be seen after it.
        """
        until = {process: seen.sign + 2 for process, seen in self._seen.items()}
        while any(
            seen.sign < until[process] or seen.failed for process, seen in self._seen.items()
        ):
            time.sleep(self._every)  # or its thread ends the process


def _print_briefly(write: Callable[[], object]) -> None:
    """Where the reader is gone, or does not read, the process must end all the same."""

    def attempt() -> None:
        with suppress(OSError, ValueError):  # a broken pipe; a closed file
            write()

    writer = threading.Thread(target=attempt, daemon=True)
    writer.start()
    writer.join(timeout=1.0)


def _exit(code: int) -> None:
    """Without jax's farewell, for which it waits for all others."""
    _print_briefly(sys.stdout.flush)
    os._exit(code)
