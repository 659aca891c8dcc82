"""A process that is killed, frozen or fails while several train: the others end in time and say which it was."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import hosts
import pytest
import tiny

from jaxpref.processes.timeouts import SILENT
from jaxpref.processes.watch import LOST

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

TIMEOUT = {signal.SIGKILL: 30, signal.SIGSTOP: 8}
"""--heartbeat-timeout: seconds within which the others must end; one that is frozen they wait for longer."""
SCHEDULING = 3.0
"""Seconds by which threads and ends of processes may be late on a busy machine."""


def train(count, folder, files, timeout, epochs=40):
    """A run that is long enough to be interrupted, and the commands that train it together."""
    config = tiny.config(
        folder / "run", files.model, files.train, mesh={"fsdp": hosts.DEVICES},
        train={"epochs": epochs, "save_every": 2}, optim={"schedule": "constant"},
    )  # fmt: skip
    path = tiny.write_config(config, folder / "config.yaml")
    return config, hosts.together(count, "-m", "jaxpref.cli", "train", path, "--heartbeat-timeout", timeout)


def wait_for_step_4(out, host):
    end = time.monotonic() + hosts.LIMIT
    while not (out / "checkpoints/4").is_dir():
        assert time.monotonic() < end and host.process.poll() is None, host.said
        time.sleep(0.02)


CASES = [
    (2, 0, signal.SIGKILL),  # seen at once
    pytest.param(2, 1, signal.SIGKILL, marks=pytest.mark.slow),  # by its connection
    pytest.param(2, 1, signal.SIGSTOP, marks=pytest.mark.slow),
    pytest.param(2, 0, signal.SIGSTOP, marks=pytest.mark.slow),
    pytest.param(4, 2, signal.SIGKILL, marks=pytest.mark.slow),
    pytest.param(4, 0, signal.SIGKILL, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("count", "victim", "number"), CASES)
def test_the_others_end_and_say_who_is_lost(count, victim, number, tiny_files, tmp_path, compile_cache):
    timeout = TIMEOUT[number]
    config, commands = train(count, tmp_path, tiny_files, timeout)
    out = tmp_path / "run"
    with hosts.running(commands, tmp_path, compile_cache) as all_hosts:
        wait_for_step_4(out, all_hosts[0])
        others = [host for i, host in enumerate(all_hosts) if i != victim]
        all_hosts[victim].process.send_signal(number)
        killed = time.monotonic()
        codes = hosts.wait_for_all(others)
    assert codes == [LOST] * len(others)
    name = f"process {victim} on {socket.gethostname()}" + (", the coordinator," if victim == 0 else "")
    for host in others:
        assert f"jaxpref: {name} is lost" in host.said and "Start all of them again" in host.said
        took = host.ended_at - killed
        if number == signal.SIGKILL:
            assert took < timeout + SCHEDULING
        else:
            assert timeout < took < 1.5 * SILENT * timeout

    # What was saved is whole: one process goes on from it.
    steps = tiny.stored_steps(out)
    assert steps and steps[-1] >= 4
    config = replace(config, train=replace(config.train, max_steps=steps[-1] + 1))
    assert list(tiny.run(config).steps) == [steps[-1] + 1]


@pytest.mark.slow
def test_the_others_end_where_one_fails(tiny_files, tmp_path, compile_cache):
    """One host has no such config: it says so, and the other does not wait for it for ever."""
    _, commands = train(2, tmp_path, tiny_files, TIMEOUT[signal.SIGKILL])
    path = tmp_path / "config.yaml"
    commands[1] = [word if word != path else tmp_path / "none.yaml" for word in commands[1]]
    with hosts.running(commands, tmp_path, compile_cache) as both:
        assert hosts.wait_for_all(both) == [LOST, 2], both[0].said + both[1].said
    assert "none.yaml" in both[1].said
    assert f"process 1 on {socket.gethostname()} failed: bad input" in both[0].said and "none.yaml" in both[0].said


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_without_processor_time_is_waited_for(victim, tiny_files, tmp_path, compile_cache):
    """It gets none for longer than the timeout, and the run goes on as if nothing had happened."""
    timeout = TIMEOUT[signal.SIGSTOP]
    config, commands = train(2, tmp_path, tiny_files, timeout, epochs=4)
    with hosts.running(commands, tmp_path, compile_cache) as both:
        wait_for_step_4(tmp_path / "run", both[0])
        both[victim].process.send_signal(signal.SIGSTOP)
        time.sleep(1.5 * timeout)
        assert all(host.process.poll() is None for host in both)
        both[victim].process.send_signal(signal.SIGCONT)
        assert hosts.wait_for_all(both) == [0, 0], both[0].said + both[1].said
    assert tiny.stored_steps(config.out)[-1] == 20


WAITS = """
import sys, time
from jaxpref.processes.start import join
join(sys.argv[1], 2, int(sys.argv[2]), heartbeat_timeout=8)
print("joined", flush=True)
time.sleep(600)
"""


def unread_pipe(full: bool) -> tuple[int, int]:
    """(end to read, end to write); nobody reads it, or will ever."""
    reads, writes = os.pipe()
    if full:
        os.set_blocking(writes, False)
        try:
            while True:
                os.write(writes, b" " * 4096)
        except BlockingIOError:
            os.set_blocking(writes, True)
    return reads, writes


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_ends_where_nobody_reads_why(full):
    """The connection by which it was started is gone, or shown by a program that has stopped."""
    at = f"localhost:{hosts.free_port()}"
    reads, writes = unread_pipe(full)
    start = lambda number, errors: subprocess.Popen(
        [sys.executable, "-c", WAITS, at, str(number)], stdout=subprocess.PIPE, stderr=errors, text=True
    )
    both = [start(0, subprocess.DEVNULL), start(1, writes)]
    os.close(writes)
    try:
        assert [process.stdout.readline() for process in both] == ["joined\n"] * 2
        if not full:
            os.close(reads)
        both[0].kill()
        assert both[1].wait(timeout=8 + SCHEDULING) == LOST
    finally:
        for process in both:
            process.kill()
            process.communicate()
        if full:
            os.close(reads)
