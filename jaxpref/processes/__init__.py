"""Several processes that work as one: how they start, and what only one of them does."""

from jaxpref.processes.options import add_process_arguments, join_as_asked
from jaxpref.processes.start import HEARTBEAT_TIMEOUT, START_TIMEOUT, join

__all__ = ["HEARTBEAT_TIMEOUT", "START_TIMEOUT", "add_process_arguments", "join", "join_as_asked"]
