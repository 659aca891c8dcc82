"""Two processes of two devices each, with collectives over localhost, against one process of four."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import numpy as np
import own_model
import pytest
import tiny

from jaxpref.sharding import make_mesh
from jaxpref.training.preemption import PREEMPTED

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

PROCESS_TOLERANCE = 1e-5
"""Relative: collectives between processes add up in another order than those inside one."""

ORDER_TOLERANCE = 1e-6
"""Relative, in float32: the same sums, in which terms may change places."""

# What every process begins with; then comes what it is to do with its arguments.
STARTED = """
import json, os, signal, sys, time
from dataclasses import replace

import jax

number, count, port = map(int, sys.argv[1:4])
jax.config.update("jax_numpy_rank_promotion", "raise")
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
if port:
    jax.distributed.initialize(f"localhost:{port}", count, number)
assert jax.process_count() == count and jax.device_count() == 4

from jaxpref.errors import InputError
from jaxpref.objectives import PAIRS, ObjectiveOutput, needs
from jaxpref.online.train import train
from jaxpref.runs import build, feed
from jaxpref.settings import load_config
from jaxpref.sharding import make_mesh
from jaxpref.training import prepare
from jaxpref.training.preemption import PREEMPTED, Preempted
"""

# Trains each config once it is there, and writes what it saw beside it.
TRAIN = """
order, *config_paths = sys.argv[4:]
ordered = [jax.devices()[i] for i in json.loads(order)]
build.make_mesh = lambda mesh: make_mesh(mesh, devices=ordered)
filled = []
batches = feed.batches
def watched(steps, mesh):
    for item, *arrays in batches(steps, mesh):
        filled.append(int((item.batch.row_id_RG >= 0).sum()))
        yield item, *arrays
feed.batches = watched

for path in config_paths:
    while not os.path.exists(path):
        time.sleep(0.05)
    config = load_config(path)
    # As on hosts with disks of their own.
    own = replace(config.reference, cache_dir=f"{config.reference.cache_dir}/{number}")
    losses = {}
    filled.clear()
    result = train(replace(config, reference=own), on_log=lambda step, _, values: losses.update({step: values["loss"]}))
    json.dump({"losses": losses, "last_eval": result.last_eval, "filled": filled}, open(f"{path}.new{number}", "w"))
    os.rename(f"{path}.new{number}", f"{path}.seen{number}")
"""

# Trains the configs one after another, each in its own folder, and writes how each was refused.
TRY_ALL = """
*config_paths, seen = sys.argv[4:]

@needs(groups=PAIRS)
def mine(policy, ref, *, beta: float = 0.1):
    margin_B = number * beta * (policy.sum - ref.sum) @ jax.numpy.array([1.0, -1.0])
    return ObjectiveOutput(-jax.nn.log_sigmoid(margin_B), jax.numpy.ones_like(margin_B), {})

refused = []
for path, objective in [(path, None) for path in config_paths] + [(config_paths[-1], [{"name": mine}])]:
    os.chdir(os.path.dirname(path))
    try:
        train(load_config(path), objective=objective)
    except InputError as error:
        refused.append(str(error))
json.dump(refused, open(seen, "w"))
"""

# Trains a model of the user's own, and writes what it saw beside the config.
OWN_MODEL = """
config_path, folder = sys.argv[4:]
sys.path.insert(0, folder)
from own_model import own_model

losses = {}
keep = lambda step, _, values: losses.update({step: values["loss"]})
result = train(load_config(config_path), model=own_model(128), on_log=keep)
json.dump({"losses": losses, "last_eval": result.last_eval}, open(f"{config_path}.seen{number}", "w"))
"""

# The last process gets SIGTERM while the run is loaded.
TERMINATED = """
config_path, = sys.argv[4:]
load = prepare.load_params
def interrupted(pieces):
    if number == count - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return load(pieces)
prepare.load_params = interrupted
try:
    train(load_config(config_path))
except Preempted:
    sys.exit(PREEMPTED)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@contextmanager
def started(script, arguments, cache, *, distributed=True):
    """Runs a script once for each list of arguments, each its own process, with 4 devices in all."""
    count = len(arguments)
    env = os.environ | {
        "XLA_FLAGS": tiny.xla_flags(4 // count),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    port = free_port() if distributed else 0
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", STARTED + script, str(number), str(count), str(port), *map(str, own)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number, own in enumerate(arguments)
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            worker.stdout.close()


def end(workers, code=0):
    """Waits for all of them."""
    said = [worker.communicate(timeout=600)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [code] * len(workers), "\n".join(said)


def processes(script, arguments, cache, *, distributed=True, code=0):
    with started(script, arguments, cache, distributed=distributed) as workers:
        end(workers, code)


def train_in(count, config, folder, cache, order=(0, 1, 2, 3)):
    """Runs the config in `count` processes, the mesh on the devices in this order; returns what each of them saw."""
    path = write_whole(config, folder / f"{Path(config.out).name}.yaml")
    processes(TRAIN, [(list(order), path)] * count, cache, distributed=count > 1)
    return seen_by(count, path)


def write_whole(config, path):
    """Writes it so that it is there at once."""
    return tiny.write_config(config, path.with_suffix(".new")).rename(path)


def seen_by(count, config_path):
    return [json.loads(Path(f"{config_path}.seen{number}").read_text()) for number in range(count)]


def wait_for(files, workers):
    until = time.monotonic() + 600
    while not all(file.exists() for file in files):
        ended = [worker.stdout.read() for worker in workers if worker.poll() is not None]
        assert not ended and time.monotonic() < until, "\n".join(ended)
        time.sleep(0.05)


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
    first, second = tmp_path / "two.yaml", tmp_path / "again.yaml"
    write_whole(tiny.long_config(tmp_path / "two", tiny_files, mesh=mesh, **settings), first)
    with started(TRAIN, [(list(range(4)), first, second)] * 2, compile_cache) as workers:
        wait_for([Path(f"{first}.seen{number}") for number in range(2)], workers)
        # Of what two processes saved, the last is damaged; they go on from the one before.
        shutil.copytree(tmp_path / "two", tmp_path / "whole")
        for file in tiny.array_files(tmp_path / "two", 6):
            tiny.flip_bit(file)
        tiny.copy_run(tmp_path / "two", tmp_path / "again")
        write_whole(tiny.long_config(tmp_path / "again", tiny_files, mesh=mesh, **settings), second)
        end(workers)
    two, again = seen_by(2, first), seen_by(2, second)
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
    for ours, theirs in zip(tiny.logged(tmp_path / "whole"), tiny.logged(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=PROCESS_TOLERANCE, abs=PROCESS_TOLERANCE)
    assert tiny.stored_steps(tmp_path / "whole") == [3, 6]

    for seen in again:
        assert list(seen["losses"]) == ["4", "5", "6"]
        np.testing.assert_array_equal(losses_of(seen), losses_of(two[0])[3:])
    assert (tmp_path / "again" / "checkpoints" / "damaged-6").is_dir()
    assert tiny.stored_steps(tmp_path / "again") == [3, 6]

    # One process on one device does so too.
    alone = tiny.run(tiny.long_config(tmp_path / "two", tiny_files, **settings))
    assert list(alone.steps) == [4, 5, 6]
    np.testing.assert_allclose(alone.losses, one.losses[3:], rtol=PROCESS_TOLERANCE)


# What must not depend on which device stands where: in one process, and where every process gets other rows for it.
WHERE = [
    pytest.param(1, {"fsdp": 4}, marks=pytest.mark.slow),
    pytest.param(1, {"data": 2, "tensor": 2}, marks=pytest.mark.slow),
    pytest.param(2, {"fsdp": 2, "tensor": 2}, marks=pytest.mark.slow),
    pytest.param(4, {"data": 2, "fsdp": 2}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("count", "mesh"), WHERE)
@pytest.mark.parametrize("adapter", [pytest.param({}, marks=pytest.mark.slow), {"rank": 4}], ids=["full", "lora"])
def test_losses_do_not_depend_on_the_order_of_devices(count, mesh, adapter, tiny_files, tmp_path, compile_cache):
    """The first step of Adam is nearly a sign: with adapters, which start at zero, it would show any difference."""
    losses, filled = [], []
    for name, order in {"as they are": (0, 1, 2, 3), "permuted": (2, 0, 3, 1)}.items():
        config = tiny.config(
            tmp_path / name, tiny_files.model, tiny_files.train, mesh=mesh, adapter=adapter, train={"max_steps": 5}
        )
        if count == 1:
            with pytest.MonkeyPatch.context() as patch:
                on_them = partial(make_mesh, devices=[jax.devices()[i] for i in order])
                patch.setattr("jaxpref.runs.build.make_mesh", on_them)
                losses.append(np.array(tiny.run(config).losses))
        else:
            seen = train_in(count, config, tmp_path, compile_cache, order)
            losses.append(losses_of(seen[0]))
            filled.append([one["filled"] for one in seen])
    np.testing.assert_allclose(losses[1], losses[0], rtol=ORDER_TOLERANCE)
    assert len(set(losses[0])) == 4, "the warm-up's step of 0 changes nothing, every other does"
    if count > 1:
        assert filled[0] != filled[1], "the processes build other rows"


@pytest.mark.slow
def test_two_processes_train_a_model_of_the_users_own_as_one(tiny_files, tmp_path, compile_cache):
    """Its heads and its width are split over both. About 40 s."""
    make = lambda name: tiny.config(
        tmp_path / name, tiny_files.model, tiny_files.train, tiny_files.held_out,
        mesh={"fsdp": 2, "tensor": 2}, train={"max_steps": 3},
    )  # fmt: skip
    path = write_whole(make("two"), tmp_path / "two.yaml")
    processes(OWN_MODEL, [(path, Path(own_model.__file__).parent)] * 2, compile_cache)
    two = seen_by(2, path)
    one = tiny.run(make("one"), model=own_model.own_model(128))
    np.testing.assert_array_equal(losses_of(two[0]), losses_of(two[1]))
    np.testing.assert_allclose(losses_of(two[0]), one.losses, rtol=PROCESS_TOLERANCE)
    assert two[0]["last_eval"] == pytest.approx(one.result.last_eval, rel=PROCESS_TOLERANCE, abs=PROCESS_TOLERANCE)
    assert len(set(one.losses)) > 1


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


def test_processes_that_differ_are_refused_by_name(tiny_files, tmp_path, compile_cache):
    rows = tiny.rows(8)
    longer = rows[:5] + [rows[5] | {"chosen": [{"role": "assistant", "content": "another"}]}] + rows[6:] + tiny.rows(1)
    data = {"same": rows, "reversed": rows[::-1], "longer": longer}
    # Hosts see one path, each its own file; process 0 has the first of the pair.
    here = [tmp_path / f"host_{number}" for number in range(2)]
    models = [tiny.write_model(tmp_path / f"model_{number}", scale=1.0 + 1e-3 * number) for number in range(2)]
    with (models[1] / "tokenizer.json").open("a") as file:
        file.write("\n")
    drawn = {"objective": [{"name": "rloo"}], "online": {"rewards": {"long": "rule:words"}, "max_new_tokens": 4}}
    pairs = {
        "weights": [{"model": {"path": "model"}}] * 2,
        "settings": [{"optim": {"learning_rate": 0.01}, "train": {"max_steps": 2, "save_every": 1}}, {}],
        "prompts": ["same", "reversed"],
        "held-out prompts": ["same", "longer"],
        "order": ["same", "reversed"],
        "rows": ["same", "longer"],
    }
    paths = [[], []]
    for name, pair in pairs.items():
        for number, own in enumerate(pair):
            file = here[number] / name / "rows.jsonl"
            file.parent.mkdir(parents=True)
            changes = own if isinstance(own, dict) else {}
            read = ["rows.jsonl"]
            tiny.write_rows(file, data[own] if isinstance(own, str) else rows)
            if name == "weights":
                shutil.copytree(models[number], file.parent / "model")
            if "prompts" in name:
                changes = drawn
            if name == "held-out prompts":
                tiny.write_rows(file.parent / "train.jsonl", rows)
                read = ["train.jsonl", "rows.jsonl"]
            config = tiny.config(tmp_path / name, tiny_files.model, *read, mesh={"fsdp": 4}, **changes)
            paths[number].append(tiny.write_config(config, file.parent / "config.yaml"))
    seen = [folder / "seen.json" for folder in here]
    processes(TRY_ALL, [(*own, file) for own, file in zip(paths, seen, strict=True)], compile_cache)
    one, other = (json.loads(file.read_text()) for file in seen)
    assert one == other and len(one) == 7
    weights, settings, prompts, held_out, order, longer, objective = one
    assert "the same prompts, in the same order" in prompts and "8 differ, from number 1 to number 8" in prompts
    assert "the same held-out prompts, in the same order" in held_out and "number 9 is" in held_out
    assert "model.path/model.safetensors: '" in weights and "model.path/tokenizer.json: '" in weights
    assert "model.path/config.json" not in weights
    assert "the same objective (digests of its code)" in objective and "got: mine: '" in objective
    for said in (
        "optim.learning_rate: 0.01 on process 0, 0.002 on process 1",
        "train.max_steps: 2 on process 0, None on process 1",
        "train.save_every: 1 on process 0, None on process 1",
    ):
        assert said in settings
    assert "8 differ, from number 1 to number 8" in order
    assert "number 1 is on process 0: rows.jsonl, row 1 (" in order and "on process 1: rows.jsonl, row 1 (" in order
    assert "2 differ, from number 6 to number 9; number 6 is" in longer


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_sigterm_while_a_resumed_run_loads_is_kept(count, tiny_files, tmp_path, compile_cache):
    config = tiny.config(
        tmp_path / "run", tiny_files.model, tiny_files.train, mesh={"fsdp": 4}, train={"max_steps": 6, "save_every": 2}
    )
    tiny.run(config, die_at=3)
    assert tiny.stored_steps(tmp_path / "run") == [2]
    path = tiny.write_config(config, tmp_path / "config.yaml")
    processes(TERMINATED, [(path,)] * count, compile_cache, code=PREEMPTED)
    assert tiny.stored_steps(tmp_path / "run") == [2, 3]
