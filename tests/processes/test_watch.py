"""A process that is killed, frozen or fails while several train: the others end in time and say which it was."""

import signal
import socket
import time
from dataclasses import replace

import hosts
import pytest
import tiny

from jaxpref.processes.watch import LOST

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

TIMEOUT = 30
"""Seconds within which the others must end; with less, a busy machine loses processes that live."""
SCHEDULING = 3.0
"""Seconds by which threads and ends of processes may be late on a busy machine."""


def train(count, folder, files, **changes):
    """A run that is long enough to be interrupted, and the commands that train it together."""
    config = tiny.config(
        folder / "run", files.model, files.train, mesh={"fsdp": hosts.DEVICES},
        train={"epochs": 40, "save_every": 2}, optim={"schedule": "constant"}, **changes,
    )  # fmt: skip
    path = tiny.write_config(config, folder / "config.yaml")
    return config, hosts.together(count, "-m", "jaxpref.cli", "train", path, "--heartbeat-timeout", TIMEOUT)


def saved(out, step):
    return (out / "checkpoints" / str(step)).is_dir()


CASES = [
    (2, 0, signal.SIGKILL),  # seen at once
    pytest.param(2, 1, signal.SIGKILL, marks=pytest.mark.slow),
    pytest.param(2, 1, signal.SIGSTOP, marks=pytest.mark.slow),
    pytest.param(2, 0, signal.SIGSTOP, marks=pytest.mark.slow),
    pytest.param(4, 2, signal.SIGKILL, marks=pytest.mark.slow),
    pytest.param(4, 0, signal.SIGKILL, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("count", "victim", "number"), CASES)
def test_the_others_end_and_say_who_is_lost(count, victim, number, tiny_files, tmp_path, compile_cache):
    config, commands = train(count, tmp_path, tiny_files)
    out = tmp_path / "run"
    with hosts.running(commands, tmp_path, compile_cache) as all_hosts:
        end = time.monotonic() + hosts.LIMIT
        while not saved(out, 4):
            assert time.monotonic() < end and all_hosts[0].process.poll() is None, all_hosts[0].said
            time.sleep(0.02)
        others = [host for i, host in enumerate(all_hosts) if i != victim]
        all_hosts[victim].process.send_signal(number)
        killed = time.monotonic()
        codes = hosts.wait_for_all(others)
    assert codes == [LOST] * len(others)
    name = f"process {victim} on {socket.gethostname()}" + (", the coordinator," if victim == 0 else "")
    for host in others:
        assert f"jaxpref: {name} is lost" in host.said and "Start all of them again" in host.said
        assert host.ended_at - killed < TIMEOUT + SCHEDULING

    # What was saved is whole: one process goes on from it.
    steps = tiny.stored_steps(out)
    assert steps and steps[-1] >= 4
    config = replace(config, train=replace(config.train, max_steps=steps[-1] + 1))
    assert list(tiny.run(config).steps) == [steps[-1] + 1]


@pytest.mark.slow
def test_the_others_end_where_one_fails(tiny_files, tmp_path, compile_cache):
    """One host has no such config: it says so, and the other does not wait for it for ever."""
    _, commands = train(2, tmp_path, tiny_files)
    path = tmp_path / "config.yaml"
    commands[1] = [word if word != path else tmp_path / "none.yaml" for word in commands[1]]
    with hosts.running(commands, tmp_path, compile_cache) as both:
        assert hosts.wait_for_all(both) == [LOST, 2], both[0].said + both[1].said
    assert "none.yaml" in both[1].said
    assert f"process 1 on {socket.gethostname()} failed: bad input" in both[0].said and "none.yaml" in both[0].said
