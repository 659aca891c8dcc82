"""A function over many jobs in worker processes, which are Pythons of their own.

They are started as programs, not forked (jax has threads by then) and not by `multiprocessing`,
which runs the main module of a script again.  What is sent must be picklable.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from jaxpref.errors import RunError

Job = TypeVar("Job")
Result = TypeVar("Result")

_MOST = 16
"""More would only wait for the process that reads."""


def processors() -> int:
    """How many workers are worth while: one for each processor that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), _MOST)
    return min(os.cpu_count() or 1, _MOST)


def in_workers(
    function: Callable[[Job], Result], jobs: Iterable[Job], count: int
) -> Iterator[Result]:
    """The results in the order of the jobs, of which a few are under way at a time.

    Errors: the first that the function raises; RunError for a worker that was killed.
    """
    idle: SimpleQueue[_Worker] = SimpleQueue()
    pending: deque[Future] = deque()

    def run(job: Job) -> Result:
        worker = idle.get()
        try:
            return worker.run(job)
        finally:
            idle.put(worker)

    workers = [_Worker(function) for _ in range(count)]
    for worker in workers:
        idle.put(worker)
    with ThreadPoolExecutor(count) as threads:
        try:
            for job in jobs:
                pending.append(threads.submit(run, job))
                if len(pending) > 2 * count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            for worker in workers:
                worker.end()


class _Worker:
    """One process, which answers every job before it takes the next."""

    def __init__(self, function: Callable):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "TOKENIZERS_PARALLELISM": "false",  # the workers are the parallelism
            "TRANSFORMERS_VERBOSITY": "error",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._function: Callable | None = function

    def run(self, job: Any) -> Any:
        try:
            if self._function is not None:
                self._send(self._function)
                self._function = None
            self._send(job)
            result = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError, ValueError, pickle.UnpicklingError) as error:
            code = self._process.wait()
            raise RunError(
                f"a worker process that tokenises ended with exit code {code}; a killed one (-9) "
                "usually found no memory"
            ) from error
        if isinstance(result, BaseException):
            raise result
        return result

    def _send(self, value: Any) -> None:
        pickle.dump(value, self._process.stdin, pickle.HIGHEST_PROTOCOL)
        self._process.stdin.flush()

    def end(self) -> None:
        self._process.kill()  # it holds nothing that is not written elsewhere
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()


def _serve() -> None:
    """What a worker does until nobody sends any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that sends
    jobs = sys.stdin.buffer
    results = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no result
    with suppress(EOFError, BrokenPipeError):
        function = pickle.load(jobs)
        while True:
            job = pickle.load(jobs)
            try:
                result = function(job)
            except Exception as error:
                result = error
            pickle.dump(result, results, pickle.HIGHEST_PROTOCOL)
            results.flush()


if __name__ == "__main__":
    _serve()
