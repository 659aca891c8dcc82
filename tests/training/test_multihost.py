"""Two processes of two devices each, with collectives over localhost, against one process of four."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import tiny

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

PROCESS_TOLERANCE = 1e-5
"""Relative: collectives between processes add up in another order than those inside one."""

# One process: trains the config, and writes what it saw where it is told.
WORKER = """
import json, sys
from dataclasses import replace

import jax

config_path, number, count, port, seen = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
jax.config.update("jax_numpy_rank_promotion", "raise")
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, number)
assert jax.process_count() == count and jax.device_count() == 4

from jaxpref.settings import load_config
from jaxpref.training import loop
from jaxpref.training.run import train

filled = []
batches = loop.batches
def watched(steps, mesh):
    for item, *arrays in batches(steps, mesh):
        filled.append(int((item.batch.row_id_RG >= 0).sum()))
        yield item, *arrays
loop.batches = watched

losses = {}
config = load_config(config_path)
# As on hosts with disks of their own.
own = replace(config.reference, cache_dir=f"{config.reference.cache_dir}/{number}")
result = train(replace(config, reference=own), on_log=lambda step, _, values: losses.update({step: values["loss"]}))
json.dump({"losses": losses, "last_eval": result.last_eval, "filled": filled}, open(seen, "w"))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def train_in(count, config, folder, cache):
    """Runs the config in `count` processes with 4 devices in all; returns what each of them saw."""
    path, port = tiny.write_config(config, folder / "config.yaml"), free_port()
    env = os.environ | {
        "XLA_FLAGS": tiny.xla_flags(4 // count),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    seen = [folder / f"seen_{number}.json" for number in range(count)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path), str(number), str(count), str(port), str(seen[number])],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        for number in range(count)
    ]
    try:
        said = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0] * count, "\n".join(said)
    return [json.loads(file.read_text()) for file in seen]


def losses_of(seen):
    return np.array([seen["losses"][step] for step in sorted(seen["losses"], key=int)])


# The first splits rows and parameters over all four devices, so across the processes.
MESHES = [
    {"fsdp": 4},
    pytest.param({"data": 4}, marks=pytest.mark.slow),
    pytest.param({"fsdp": 2, "tensor": 2}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_two_processes_train_as_one(mesh, tiny_files, tmp_path, compile_cache):
    settings = dict(train={"save_every": 3, "eval_every": 6, "max_steps": 6})
    two = train_in(2, tiny.long_config(tmp_path / "two", tiny_files, mesh=mesh, **settings), tmp_path, compile_cache)
    config = tiny.long_config(tmp_path / "one", tiny_files, mesh=mesh, **settings)
    one = tiny.run(config)

    # Both processes see the same losses: those of one process.
    np.testing.assert_array_equal(losses_of(two[0]), losses_of(two[1]))
    np.testing.assert_allclose(losses_of(two[0]), one.losses, rtol=PROCESS_TOLERANCE)
    assert len(two[0]["losses"]) == 6 and len(set(one.losses)) > 4
    assert two[0]["last_eval"] == pytest.approx(one.result.last_eval, rel=PROCESS_TOLERANCE, abs=PROCESS_TOLERANCE)

    # Each built its own part of the rows: of five steps of 4 pairs and one of 2.
    assert 0 < sum(two[0]["filled"]) < sum(two[0]["filled"]) + sum(two[1]["filled"]) == 5 * 4 + 2

    # The files are written once, and the checkpoints are whole.
    for ours, theirs in zip(tiny.logged(tmp_path / "two"), tiny.logged(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=PROCESS_TOLERANCE, abs=PROCESS_TOLERANCE)
    assert tiny.stored_steps(tmp_path / "two") == [3, 6]

    # What two processes saved, one process on one device continues from.
    tiny.remove(tmp_path / "two" / "checkpoints" / "6")
    alone = tiny.run(tiny.long_config(tmp_path / "two", tiny_files, **settings))
    assert list(alone.steps) == [4, 5, 6]
    np.testing.assert_allclose(alone.losses, one.losses[3:], rtol=PROCESS_TOLERANCE)


@pytest.mark.slow
def test_each_process_has_a_cache_of_its_own_and_the_batch_is_coupled(tiny_files, tmp_path, compile_cache):
    """Only process 0 keeps cached log-probs, so on the second run it has all of them and the other has none."""
    settings = dict(
        objective=[{"name": "kto", "beta": 0.5}], train={"max_steps": 3},
        reference={"mode": "cache", "cache_dir": str(tmp_path / "cache")},
    )  # fmt: skip
    make = lambda name: tiny.config(tmp_path / name, tiny_files.model, tiny_files.train, mesh={"fsdp": 4}, **settings)
    runs = [train_in(2, make(name), tmp_path, compile_cache) for name in ("first", "second")]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["0"]
    one = tiny.run(make("one"))
    for seen in runs:
        np.testing.assert_array_equal(losses_of(seen[0]), losses_of(seen[1]))
        np.testing.assert_allclose(losses_of(seen[0]), one.losses, rtol=PROCESS_TOLERANCE)
