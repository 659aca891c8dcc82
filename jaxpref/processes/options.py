"""The options by which a command becomes one of several processes."""

import argparse

from rich.console import Console

from jaxpref.errors import InputError
from jaxpref.processes.timeouts import HEARTBEAT_TIMEOUT, START_TIMEOUT

_GIVEN = {
    "coordinator": "--coordinator HOST:PORT",
    "processes": "--processes N",
    "process_id": "--process-id I",
}
"""Name -> option; all three or none."""
_MAY_DIFFER = {
    *_GIVEN,
    "distributed",
    "start_timeout",
    "heartbeat_timeout",
    "config",
    "overrides",
    "cache",
    "run",
}
"""How a process joins; its own files; settings, which are compared once they are read; what is no
option, the function of the command."""


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds them; alike for every command that runs models."""
    group = parser.add_argument_group(
        "several processes", "the same command on every host; the first one writes and prints"
    )
    group.add_argument(
        "--distributed",
        action="store_true",
        help="one of those that a cluster started: a TPU pod, GKE, SLURM, Open MPI",
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="without a cluster: the host of process 0, and a free port there",
    )
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process-id", type=int, metavar="I", help="which this one is, from 0")
    group.add_argument(
        "--start-timeout",
        type=int,
        default=START_TIMEOUT,
        metavar="SECONDS",
        help=f"until all must have started (default {START_TIMEOUT})",
    )
    group.add_argument(
        "--heartbeat-timeout",
        type=int,
        default=HEARTBEAT_TIMEOUT,
        metavar="SECONDS",
        help="within which the others end, with exit code 76, where a process is lost "
        f"(default {HEARTBEAT_TIMEOUT})",
    )


def join_as_asked(options: argparse.Namespace, console: Console) -> None:
    """Joins the other processes where the options of a command ask for it.

    Args:
        console: on which then the first one prints.
    Errors: InputError for options that do not fit together, and as of `join`.
    """
    given = [option for name, option in _GIVEN.items() if getattr(options, name) is not None]
    if given and len(given) < len(_GIVEN):
        missing = [option for option in _GIVEN.values() if option not in given]
        raise InputError(
            f"{', '.join(_GIVEN.values())}: all three, or none",
            f"{', '.join(given)} without {', '.join(missing)}",
            "add what is missing, or let a cluster say it (--distributed)",
        )
    if given and options.distributed:
        raise InputError(
            "--distributed, or --coordinator, --processes and --process-id",
            "both",
            "leave out --distributed where no cluster is to be asked",
        )
    if not given and not options.distributed:
        return
    # Here: they load jax, for which the help of a command need not wait.
    from jaxpref.processes.agreement import check_same
    from jaxpref.processes.output import first_prints
    from jaxpref.processes.start import join

    join(
        options.coordinator,
        options.processes,
        options.process_id,
        start_timeout=options.start_timeout,
        heartbeat_timeout=options.heartbeat_timeout,
    )
    first_prints(console)
    check_same(
        "options",
        {name: value for name, value in vars(options).items() if name not in _MAY_DIFFER},
        "start the same command on every host",
    )
