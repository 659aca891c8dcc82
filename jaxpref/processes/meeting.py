"""All processes meet at the coordinator's port before jax starts on it.

jax ends a process without a word of its own where the port is in use, the coordinator does not
answer or another process does not come.  Here it is said which one, and why.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Container
from typing import Any

from jaxpref.errors import InputError

_RETRY = 0.2
"""Seconds between two attempts to reach the coordinator."""
_PATIENCE = 5.0
"""Seconds for a message that is on its way."""
_LONGEST = 10_000
"""Bytes of a message."""


def meet(
    coordinator: str, processes: int, process_id: int, timeout: float
) -> dict[int, socket.socket]:
    """Returns when all processes are there.

    Args:
        coordinator: HOST:PORT of process 0.
        timeout: seconds to wait for the others.
    Returns: process -> the connection to it, which stays open: of process 0 to all others, of the
        others to process 0.
    Errors: InputError on every process that came, with what is wrong: processes that did not come,
        two of one number, other numbers of processes, a port in use.
    """
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + timeout
    if process_id == 0:
        return _receive_all(coordinator, int(port), processes, until, timeout)
    said = {"processes": processes, "process_id": process_id, "host": socket.gethostname()}
    return {0: _report((host.strip("[]"), int(port)), said, until, timeout)}


# ---- process 0


def _receive_all(
    coordinator: str, port: int, processes: int, until: float, timeout: float
) -> dict[int, socket.socket]:
    host_of = {0: socket.gethostname()}
    with contextlib.ExitStack() as links:
        came, wrong = [], None
        with _listening(coordinator, port) as listener:
            while len(host_of) < processes and wrong is None:
                listener.settimeout(max(until - time.monotonic(), 0.01))
                try:
                    link = listener.accept()[0]
                except TimeoutError:
                    wrong = _missing(host_of, processes, timeout)
                    break
                try:
                    said = _read(link, _PATIENCE)
                    number, host, count = said["process_id"], said["host"], said["processes"]
                except (OSError, ValueError, KeyError):
                    link.close()  # none of ours
                    continue
                came.append((number, links.enter_context(link)))
                if count != processes:
                    wrong = f"{processes} processes by process 0, {count} by process {number}"
                    wrong += f" on {host}"
                elif number in host_of:
                    wrong = f"two processes {number}: on {host_of[number]} and on {host}"
                host_of[number] = host
        # jax may have the port from here on, beside the connections that stay.
        for _, link in came:
            with contextlib.suppress(OSError):
                _send(link, {"wrong": wrong})
        if wrong is not None:
            raise _not_together(wrong)
        links.pop_all()
    return dict(came)


def _listening(coordinator: str, port: int) -> socket.socket:
    """Errors: InputError where the port is taken."""
    try:
        if bind := os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"):
            host, _, port_here = bind.rpartition(":")
            return socket.create_server((host.strip("[]"), int(port_here)))
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise InputError(
            f"a free port on the host of process 0 (coordinator {coordinator})",
            f"port {port}: {error.strerror}",
            "choose another port, the same for all processes; or end what uses it",
        ) from error


def _missing(there: Container[int], processes: int, timeout: float) -> str:
    missing = ", ".join(str(number) for number in range(processes) if number not in there)
    return f"no sign of process {missing} of {processes} within {timeout:g} s"


# ---- the others


def _report(
    address: tuple[str, int], said: dict[str, Any], until: float, timeout: float
) -> socket.socket:
    while True:
        try:
            link, wrong = _answered(address, said, until)
            break
        except (OSError, ValueError) as error:
            if time.monotonic() + _RETRY > until:
                raise InputError(
                    f"process 0 at the coordinator's address {address[0]}:{address[1]}",
                    f"no answer within {timeout:g} s: {error}",
                    "start process 0 on that host; let the port through the firewall; or wait "
                    "for longer (--start-timeout)",
                ) from error
            time.sleep(_RETRY)
    if wrong is not None:
        link.close()
        raise _not_together(wrong)
    return link


def _answered(
    address: tuple[str, int], said: dict[str, Any], until: float
) -> tuple[socket.socket, str | None]:
    """The connection to process 0, and what it finds wrong.  Errors: as `_read`."""
    link = socket.create_connection(address, until - time.monotonic())
    try:
        _send(link, said)
        # Where somebody is missing, process 0 knows who, a little later.
        return link, _read(link, until - time.monotonic() + _PATIENCE)["wrong"]
    except BaseException:
        link.close()
        raise


# ---- both


def _not_together(wrong: str) -> InputError:
    return InputError(
        "all processes, each with a number of its own",
        wrong,
        "start the same command on every host, with --process-id 0, 1, ...; see what the missing "
        "ones say; or wait for longer (--start-timeout)",
    )


def _send(link: socket.socket, message: dict[str, Any]) -> None:
    link.sendall(json.dumps({"jaxpref": message}).encode() + b"\n")


def _read(link: socket.socket, timeout: float) -> dict[str, Any]:
    """A message.  Errors: OSError and ValueError where none comes, or one of another program."""
    link.settimeout(max(timeout, 0.01))
    with link.makefile("rb") as stream:
        message = json.loads(stream.readline(_LONGEST))
    if not isinstance(message, dict) or "jaxpref" not in message:
        raise ValueError("another program answers there")
    return message["jaxpref"]
