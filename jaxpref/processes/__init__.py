"""Several processes that work as one: how they start, and what only one of them does."""

from jaxpref.processes.options import add_process_arguments, join_as_asked
from jaxpref.processes.start import HEARTBEAT_TIMEOUT, START_TIMEOUT, join
from jaxpref.processes.together import first_does, is_first, processes_where

__all__ = [
    "HEARTBEAT_TIMEOUT",
    "START_TIMEOUT",
    "add_process_arguments",
    "first_does",
    "is_first",
    "join",
    "join_as_asked",
    "processes_where",
]
