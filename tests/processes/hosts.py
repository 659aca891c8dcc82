"""Commands as several processes on this machine, each in the place of a host."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import tiny

DEVICES = 4
"""Of all processes together."""
LIMIT = 600.0
"""Seconds after which a test that waits has failed."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@dataclass
class Host:
    """A running process and the file that it prints into."""

    process: subprocess.Popen
    printed: Path
    ended_at: float | None = field(default=None)

    @property
    def said(self) -> str:
        return self.printed.read_text()

    def until(self, text: str) -> None:
        """Returns once it has printed the text."""
        end = time.monotonic() + LIMIT
        while text not in self.said:
            assert self.process.poll() is None and time.monotonic() < end, self.said
            time.sleep(0.02)


@contextmanager
def running(commands: Sequence[Sequence[object]], folder: Path, cache: Path):
    """Starts Python with each of these arguments, and leaves none behind."""
    env = os.environ | {
        "XLA_FLAGS": tiny.xla_flags(DEVICES // len(commands)),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    hosts = []
    try:
        for number, command in enumerate(commands):
            printed = folder / f"host_{number}.txt"
            with printed.open("w") as file:
                process = subprocess.Popen([sys.executable, *map(str, command)], env=env, stdout=file, stderr=file)
            hosts.append(Host(process, printed))
        yield hosts
    finally:
        for host in hosts:
            host.process.kill()
            host.process.wait()


def together(count: int, *options: object) -> list[list[object]]:
    """The options by which `count` processes find each other, behind the others."""
    at = f"localhost:{free_port()}"
    return [[*options, "--coordinator", at, "--processes", count, "--process-id", number] for number in range(count)]


def wait_for_all(hosts: Sequence[Host]) -> list[int]:
    """The exit codes; when each ended is noted."""
    end = time.monotonic() + LIMIT
    while any(host.ended_at is None for host in hosts):
        assert time.monotonic() < end, "\n".join(host.said for host in hosts)
        for host in hosts:
            if host.ended_at is None and host.process.poll() is not None:
                host.ended_at = time.monotonic()
        time.sleep(0.02)
    return [host.process.returncode for host in hosts]
