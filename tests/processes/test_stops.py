"""SIGTERM to one of several processes: all save the same step, and the run goes on in any other number of them."""

import signal
import time

import hosts
import numpy as np
import pytest
import tiny

from jaxpref.training.preemption import PREEMPTED

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

RESUMED_TOLERANCE = 1e-5
"""Relative: another mesh adds up in another order, and Adam takes it along."""

PATIENT = ("--heartbeat-timeout", 300)
"""No process is lost here, however busy the machine is."""

# As `python -m jaxpref.cli`, but the last process gets SIGTERM once it has joined, before its run begins.
STOPPED_EARLY = """
import os, signal, sys
from jaxpref import cli, settings

load = settings.load_config
def interrupted(*given):
    if sys.argv[-1] != "0":
        os.kill(os.getpid(), signal.SIGTERM)
    return load(*given)
settings.load_config = interrupted
sys.exit(cli.main())
"""


@pytest.mark.slow
def test_sigterm_before_the_run_begins_is_kept(tiny_files, tmp_path, compile_cache):
    config = tiny.config(
        tmp_path / "run", tiny_files.model, tiny_files.train, mesh={"fsdp": hosts.DEVICES}, train={"max_steps": 8}
    )
    path = tiny.write_config(config, tmp_path / "config.yaml")
    commands = hosts.together(2, "-c", STOPPED_EARLY, "train", path, *PATIENT)
    with hosts.running(commands, tmp_path, compile_cache) as both:
        assert hosts.wait_for_all(both) == [PREEMPTED] * 2, both[0].said + both[1].said
    assert tiny.stored_steps(tmp_path / "run") == [1]
    assert "SIGTERM: saved step 1 of 8" in both[0].said and "SIGTERM: saved step 1 of 8" in both[1].said


def stopped(count, stopping, signals, config, folder, cache):
    """Trains in so many processes until three more steps are logged, then signals one of them; the step saved."""
    path = tiny.write_config(config, folder / "config.yaml")
    before = len(tiny.logged(config.out)) if (folder / "run/metrics.jsonl").is_file() else 0
    commands = hosts.together(count, "-m", "jaxpref.cli", "train", path, *PATIENT)
    with hosts.running(commands, folder, cache) as all_hosts:
        end = time.monotonic() + hosts.LIMIT
        metrics = folder / "run/metrics.jsonl"
        while not metrics.is_file() or metrics.read_text().count("\n") < before + 3:
            assert time.monotonic() < end and all_hosts[0].process.poll() is None, all_hosts[0].said
            time.sleep(0.01)
        for _ in range(signals):
            all_hosts[stopping].process.send_signal(signal.SIGTERM)
        assert hosts.wait_for_all(all_hosts) == [PREEMPTED] * count, all_hosts[0].said
    (message,) = {next(line for line in host.said.splitlines() if "SIGTERM: saved" in line) for host in all_hosts}
    step = tiny.stored_steps(config.out)[-1]
    assert f"SIGTERM: saved step {step} of" in message
    return step


@pytest.mark.slow
def test_a_run_goes_on_in_other_numbers_of_processes_and_on_other_meshes(tiny_files, tmp_path, compile_cache):
    """2 -> 4 -> 1; the first is told twice to stop."""
    make = lambda out, mesh: tiny.long_config(
        tmp_path / out, tiny_files, mesh=mesh, train={"epochs": 12, "eval_every": None}
    )
    whole = tiny.run(make("whole", {}))
    first = stopped(2, 1, 2, make("run", {"fsdp": 4}), tmp_path, compile_cache)
    second = stopped(4, 0, 1, make("run", {"data": 2, "tensor": 2}), tmp_path, compile_cache)
    rest = tiny.run(make("run", {}))
    assert 3 <= first < second < len(whole.losses) and list(rest.steps)[0] == second + 1

    ours, theirs = tiny.logged(tmp_path / "run"), tiny.logged(tmp_path / "whole")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for name in ("loss", "num_tokens", "epoch"):
        values = [[line[name] for line in lines if name in line] for lines in (ours, theirs)]
        np.testing.assert_allclose(*values, rtol=RESUMED_TOLERANCE, err_msg=name)
    assert len(set(whole.losses)) > 50
