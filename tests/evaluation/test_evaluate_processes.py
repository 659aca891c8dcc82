"""Evaluation and rewards in two processes of two devices each, against one process of one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny
from test_multihost import free_port

from jaxpref.evaluation import Bootstrap, evaluate_preferences
from jaxpref.rewards import open_reward

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

LAYOUT_TOLERANCE = 1e-4
"""In nats: sums over other meshes."""
WORKER = """
import json, sys

import jax

run, number, port, seen = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, number)
assert jax.process_count() == 2 and jax.device_count() == 4

from jaxpref.evaluation import Bootstrap, evaluate_preferences
from jaxpref.rewards import open_reward

found = evaluate_preferences(run, step="9", overrides=["mesh.fsdp=4"], bootstrap=Bootstrap(100))
prompts = [[{"role": "user", "content": f"n {i}"}] for i in range(5)]
rewards = open_reward(run, step="9", overrides=["mesh.fsdp=4"])(prompts, ["a", "bb", "c", "zz", "d"])
json.dump({"report": found.report.as_dict(), "groups": found.groups, "rewards": rewards.tolist()}, open(seen, "w"))
"""


@pytest.mark.slow
def test_two_processes_find_what_one_does(finished_run, tmp_path, compile_cache):
    port, seen = free_port(), [tmp_path / f"seen_{number}.json" for number in range(2)]
    env = os.environ | {
        "XLA_FLAGS": tiny.xla_flags(2),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(compile_cache),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(finished_run.out), str(number), str(port), str(file)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number, file in enumerate(seen)
    ]  # fmt: skip
    try:
        said = [worker.communicate(timeout=480)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(said)
    one, two = (json.loads(file.read_text()) for file in seen)
    assert one == two, "each process knows everything"

    alone = evaluate_preferences(finished_run.out, step="9", bootstrap=Bootstrap(100))
    assert one["report"]["metrics"] == pytest.approx(alone.report.metrics, rel=1e-3, abs=1e-4)
    for ours, theirs in zip(one["groups"], alone.groups, strict=True):
        assert ours["where"] == theirs["where"]
        assert ours["chosen"] == pytest.approx(theirs["chosen"], abs=LAYOUT_TOLERANCE)
    prompts = [[{"role": "user", "content": f"n {i}"}] for i in range(5)]
    rewards = open_reward(str(finished_run.out), step="9")(prompts, ["a", "bb", "c", "zz", "d"])
    np.testing.assert_allclose(one["rewards"], rewards, atol=LAYOUT_TOLERANCE)
    assert tiny.stored_steps(finished_run.out) == [9, 10]
