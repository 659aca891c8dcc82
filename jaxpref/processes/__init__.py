"""Several processes that work as one: how they start, what only one of them does, how they end."""

from jaxpref.processes.options import add_process_arguments, join_as_asked
from jaxpref.processes.start import START_TIMEOUT, join
from jaxpref.processes.together import first_does, is_first, processes_where
from jaxpref.processes.watch import HEARTBEAT_TIMEOUT, LOST, leave, watch_others

__all__ = [
    "HEARTBEAT_TIMEOUT",
    "LOST",
    "START_TIMEOUT",
    "add_process_arguments",
    "first_does",
    "is_first",
    "join",
    "join_as_asked",
    "leave",
    "processes_where",
    "watch_others",
]
