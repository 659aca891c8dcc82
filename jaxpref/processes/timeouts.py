"""How long processes wait for each other, unless a command is told otherwise."""

START_TIMEOUT = 300
"""Seconds until all processes must have started."""
HEARTBEAT_TIMEOUT = 30
"""Seconds after which the others have ended where a process, its host or the network is gone."""
SILENT = 4
"""So many times as long may a process that is there, as its kernel says, show no sign of life:
it may only be short of processor time.  Then it counts as frozen, and is lost too."""
