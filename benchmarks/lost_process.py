"""How long the other processes run on after one is lost: killed in a collective, or between them.

    python benchmarks/lost_process.py [--processes N] [--tries N] [--how killed frozen]
        [--heartbeat-timeout SECONDS]

prints a table: seconds from the loss of a process until the last of the others has ended, and
their exit codes.  The processes run on this machine and meet over localhost; no model is trained,
for the time does not depend on it.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

from record import add_argument, append, record

from jaxpref.processes.timeouts import HEARTBEAT_TIMEOUT
from jaxpref.processes.watch import LOST

CHILD = """
import sys, time
import numpy as np
from jax.experimental import multihost_utils
from jaxpref.processes.start import join

at, count, number, timeout, collective = sys.argv[1], *map(int, sys.argv[2:6])
join(at, count, number, heartbeat_timeout=timeout)
multihost_utils.process_allgather(np.int32(0))
print("ready", flush=True)
while True:
    if collective:
        multihost_utils.process_allgather(np.int32(0))
    else:
        time.sleep(0.1)
"""
LOSSES = {"killed": signal.SIGKILL, "frozen": signal.SIGSTOP}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--heartbeat-timeout", type=int, default=HEARTBEAT_TIMEOUT)
    parser.add_argument("--how", nargs="+", choices=LOSSES, default=list(LOSSES))
    add_argument(parser)
    options = parser.parse_args()
    print("| lost | how | the others were | seconds until the last ended | exit codes |")
    print("|---|---|---|---|---|")
    for victim, name in ((1, "a worker"), (0, "the coordinator")):
        for how in options.how:
            for collective, where in ((1, "in a collective"), (0, "between collectives")):
                tries = [
                    measure(
                        options.processes,
                        victim,
                        LOSSES[how],
                        options.heartbeat_timeout,
                        collective,
                    )
                    for _ in range(options.tries)
                ]
                times = ", ".join(f"{seconds:.1f}" for seconds, _ in tries)
                codes = sorted({code for _, ended in tries for code in ended})
                print(
                    f"| {name} | {how} | {where} | {times} | {', '.join(map(str, codes))} |",
                    flush=True,
                )
                measured = {"s until the last ended": [seconds for seconds, _ in tries]}
                note = "" if codes == [LOST] else f"{name}, {how}: exit codes {codes}"
                case = f"{name} {how}, the others {where}"
                append(options.record, [record("lost_process", case, measured, note=note)])


def measure(
    count: int, victim: int, number: int, timeout: int, collective: int
) -> tuple[float, list[int]]:
    """Seconds until the last of the others has ended, and their exit codes."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        at = f"localhost:{probe.getsockname()[1]}"
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, at, *map(str, (count, i, timeout, collective))],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            text=True,
        )
        for i in range(count)
    ]
    try:
        for child in children:
            while "ready" not in (line := child.stdout.readline()):
                assert line, "a process ended before it was ready"
        time.sleep(1.0)
        children[victim].send_signal(number)
        lost = time.monotonic()
        others = [child for i, child in enumerate(children) if i != victim]
        codes = [child.wait() for child in others]
        return time.monotonic() - lost, codes
    finally:
        for child in children:
            child.kill()
            child.wait()


if __name__ == "__main__":
    main()
