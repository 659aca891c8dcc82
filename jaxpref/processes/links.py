"""The connections that processes keep to the coordinator: where one ends, its kernel closes them.

So a process that was killed is told from one that is too busy to show a sign of life.
"""

import socket
from collections.abc import Iterable

_PROBES = 3
"""Without an answer, one after another, after which a host counts as down."""


def probe_hosts(links: Iterable[socket.socket], timeout: float) -> None:
    """Sees to it that a link ends also where the other host or the network is down.

    Args:
        timeout: seconds after which it does.
    """
    every = max(1, round(timeout / (1 + _PROBES)))
    for link in links:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # Other systems than Linux have these options in part, and minutes of their own.
        for option, value in {
            "TCP_KEEPIDLE": every,
            "TCP_KEEPINTVL": every,
            "TCP_KEEPCNT": _PROBES,
        }.items():
            if hasattr(socket, option):
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def has_ended(link: socket.socket) -> bool:
    """Whether the other process has ended, or its host does not answer; nothing is ever sent."""
    link.setblocking(False)
    try:
        return link.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
