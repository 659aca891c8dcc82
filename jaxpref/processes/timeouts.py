"""How long processes wait for each other, unless a command is told otherwise."""

START_TIMEOUT = 300
"""Seconds until all processes must have started."""
HEARTBEAT_TIMEOUT = 30
"""Seconds without a sign of life after which a process is gone, and the others end."""
