"""One writer to a directory: a lock file that names it, and what becomes of one that was left.

The lock proper is the kernel's, which no process outlives.  Hosts that share a disk may not share
such locks, so the file also shows by its time that its writer lives.  In a bucket the lock is the
file itself: it is made only where there is none, and written again as a sign of life.
"""

import contextlib
import errno
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from jaxpref.errors import InputError
from jaxpref.processes.together import first_does, processes_where
from jaxpref.storage.paths import as_path, file_system, is_bucket, key_of, read_at_once

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
BEAT = 5.0
"""Seconds between two signs of life."""
SILENCE = 6 * BEAT
"""Seconds without one after which a writer on another host is gone."""

SHOWN_WITHIN = 10.0
"""Seconds until all hosts see what one has written: disks on a network take a while."""

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def sole_writer(directory: str | Path) -> Iterator[None]:
    """Holds the directory, which is made if missing; of several processes, the first does for all.

    Errors: InputError for one that another process writes to, one that cannot be written to, and
        one that the processes do not share.
    """
    path = as_path(directory)
    lock: _Lock | _BucketLock | None = None

    def acquire() -> str:
        nonlocal lock
        lock = _BucketLock(path) if is_bucket(path) else _Lock(path)
        return lock.text

    text = first_does(acquire)
    try:
        if not is_bucket(path):
            _check_shared(path, text)
        yield
    finally:
        if lock is not None:
            lock.release()


def _check_shared(directory: Path, text: str) -> None:
    """Errors: InputError where some processes do not see the lock that process 0 wrote."""
    path, until = directory / LOCK_FILE, time.monotonic() + SHOWN_WITHIN
    while not (seen := _text_of(path) == text) and time.monotonic() < until:
        time.sleep(0.1)
    if blind := processes_where(not seen):
        raise InputError(
            "a directory that all processes share, for a run",
            f"{directory}: what process 0 writes there is not seen by process "
            f"{', '.join(map(str, blind))}",
            "choose an `out` on a disk that all hosts have under this path",
        )


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


class _Lock:
    """A lock that is held; `release` gives it up.

    Errors: InputError as of `sole_writer`.
    """

    def __init__(self, directory: Path):
        self._path, self._made = directory / LOCK_FILE, not directory.exists()
        self.text = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = self._acquire()
        except OSError as error:
            above = (path for path in (directory, *directory.parents) if path.is_file())
            file = next(above, None)
            raise InputError(
                "a directory that can be written to",
                f"{directory}: {error.strerror if file is None else f'{file} is a file'}",
                "choose another `out`, or make this one writable",
            ) from error
        self._released = threading.Event()
        threading.Thread(target=self._show_life, daemon=True).start()

    def _acquire(self) -> int:
        while True:
            file, kernel_locks = self._locked()
            holder = _holder(file)
            if holder and self._lives(holder, kernel_locks):
                os.close(file)
                raise _refusal(self._path.parent, holder)
            if _same_file(self._path, file):
                break
            os.close(file)  # its holder removed it meanwhile
        if holder:
            _log.warning("%s: taken over from %s, which is gone", self._path, _name(holder))
        os.ftruncate(file, 0)
        os.pwrite(file, self.text.encode(), 0)
        return file

    def _locked(self) -> tuple[int, bool]:
        """The open file, and whether the kernel has locked it: not every file system can."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        if fcntl is None:
            return file, False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(file)
            os.close(file)
            raise _refusal(self._path.parent, holder) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS):
                raise
            return file, False
        return file, True

    def _lives(self, holder: dict, kernel_locks: bool) -> bool:
        """Whether the process that a lock names is there, where the kernel does not say so."""
        if holder["host"] == socket.gethostname():
            return not kernel_locks and _runs(holder["pid"])
        _log.warning("%s: waiting whether %s shows life", self._path, _name(holder))
        seen, end = _time_of(self._path), time.monotonic() + SILENCE
        while time.monotonic() < end:
            time.sleep(BEAT / 5)
            if (now := _time_of(self._path)) != seen:
                return now is not None
        return False

    def _show_life(self) -> None:
        while not self._released.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def release(self) -> None:
        """Leaves the directory without the lock; an empty one that was made for it goes too."""
        self._released.set()
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._file)
        if self._made:
            with contextlib.suppress(OSError):
                self._path.parent.rmdir()


class _BucketLock:
    """The lock of a directory in a bucket; methods and errors as of `_Lock`.

    A store that does not know conditions (some emulators) would let two writers begin in the same
    instant.
    """

    def __init__(self, directory: Path):
        self._path, self._beats = directory / LOCK_FILE, 0
        self._own = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex}
        self.text = self._line().decode()
        try:
            self._remove_if_left()  # asked first, for stores that know no conditions
            while not self._created():
                self._remove_if_left()
        except OSError as error:
            raise InputError(
                "a directory that can be written to",
                f"{directory}: {error.strerror or error}",
                "choose another `out`, or use an account that may write and delete there",
            ) from error
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._show_life, daemon=True)
        self._thread.start()

    def _created(self) -> bool:
        try:
            file_system(self._path).pipe_file(key_of(self._path), self._line(), mode="create")
        except FileExistsError:
            return False
        return True

    def _line(self) -> bytes:
        return json.dumps({**self._own, "beats": self._beats}).encode() + b"\n"

    def _read(self) -> dict | None:
        """What the lock says; None: it is gone."""
        try:
            return json.loads(read_at_once(self._path))
        except FileNotFoundError:
            return None

    def _remove_if_left(self) -> None:
        """Removes the lock of a process that is gone.  Errors: InputError for one that lives."""
        holder = self._read()
        if holder is None:
            return
        if self._lives(holder):
            raise _refusal(self._path.parent, holder)
        if self._read() == holder:  # or another process has taken over
            _log.warning("%s: taken over from %s, which is gone", self._path, _name(holder))
            self._path.unlink(missing_ok=True)

    def _lives(self, holder: dict) -> bool:
        if holder["host"] == socket.gethostname():
            return _runs(holder["pid"])
        _log.warning("%s: waiting whether %s shows life", self._path, _name(holder))
        end = time.monotonic() + SILENCE
        while time.monotonic() < end:
            time.sleep(BEAT / 5)
            if (now := self._read()) != holder:
                return now is not None
        return False

    def _holds(self) -> bool:
        holder = self._read()
        return holder is not None and holder["id"] == self._own["id"]

    def _show_life(self) -> None:
        while not self._released.wait(BEAT):
            with contextlib.suppress(OSError):  # the network may be back for the next one
                if not self._holds():
                    _log.error("%s: another process has taken the directory over", self._path)
                    return
                self._beats += 1
                self._path.write_bytes(self._line())

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._holds():
                self._path.unlink()


def _refusal(directory: Path, holder: dict) -> InputError:
    return InputError(
        "a directory that no other process writes to",
        f"{directory} is in use by {_name(holder)}",
        "wait for it or stop it, or choose another `out`",
    )


def _holder(file: int) -> dict:
    """Host and process that a lock names; empty: none."""
    try:
        return json.loads(os.pread(file, 1000, 0))
    except ValueError:  # its process was just about to write it, or was killed then
        return {}


def _name(holder: dict) -> str:
    return f"process {holder['pid']} on {holder['host']}" if holder else "another process"


def _same_file(path: Path, file: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file))
    return False


def _time_of(path: Path) -> float | None:
    """When it was last touched; None: it is gone.

    It is opened for that, so that a disk on the network is asked.
    """
    try:
        with path.open("rb") as stream:
            return os.fstat(stream.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
