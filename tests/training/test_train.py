"""Whole runs: TRL's logs, interruption and continuation, one compile, and the ways in which a run ends early."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from jaxpref.errors import InputError
from jaxpref.objectives import ObjectiveOutput
from jaxpref.runs.checkpoint import Checkpoints
from jaxpref.runs.metrics import read_jsonl
from jaxpref.settings import make_config
from jaxpref.training.loop import NotFiniteError
from jaxpref.training.preemption import INTERRUPTED, PREEMPTED
from jaxpref.training.run import train

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

TRL_TOLERANCE = 1e-3
"""Relative: the issue's."""
TRL_FLOOR = 1e-2
"""Values smaller than this are compared as if they were as large: a margin of 1e-6 is rounding on both sides."""
MESH_TOLERANCE = 1e-6
"""Relative: sums over devices are added up in another order."""

# ---- TRL's own runs

GOLDEN = Path(__file__).parents[1] / "golden" / "trl_run_small"
FIVE = ["dpo_constant", "dpo_recipe", "ipo", "dpo_plus_sft", "dpo_truncated"]
SHARED_RECIPES = [
    f"{form}/{recipe}"
    for form, recipes in (("standard", FIVE), ("conversational", FIVE[:4]))
    for recipe in recipes
    if (form, recipe) != ("standard", "dpo_recipe")  # the one that is committed
]


def trl_config(folder: Path, name: str, theirs: dict, out: Path):
    """The settings of TRL's DPOConfig under our names."""
    losses = zip(theirs.get("loss_type", ["sigmoid"]), theirs.get("loss_weights", [1.0, 1.0]), strict=False)
    beta = {"beta": theirs["beta"]}
    objective = [
        {"name": {"sigmoid": "dpo"}.get(loss, loss), "weight": weight} | (beta if loss != "sft" else {})
        for loss, weight in losses
    ]
    changes = {
        "data": {"max_length": theirs["max_length"], "shuffle": False},
        "objective": objective,
        "optim": {
            "learning_rate": theirs["learning_rate"],
            "schedule": theirs["lr_scheduler_type"],
            "warmup_steps": theirs.get("warmup_steps", 0),
            "weight_decay": theirs.get("weight_decay", 0.0),
            "clip_norm": theirs.get("max_grad_norm", 1.0),
        },
        "train": {
            "batch_size": theirs["per_device_train_batch_size"] * theirs.get("gradient_accumulation_steps", 1),
            "max_steps": theirs["max_steps"],
            "log_every": 1,
        },
    }
    rows = folder / f"rows_{name.split('/')[0]}.jsonl"
    changes["model"] = {"attention_block": 64, "logprob_chunk": 64}
    return tiny.config(out, folder / "model", rows, **changes)


def assert_matches_trl(folder: Path, name: str, out: Path) -> None:
    theirs = json.loads((folder / "trl_runs.json").read_text())["runs"][name]
    train(trl_config(folder, name, theirs["config"], out))
    ours = read_jsonl(out / "metrics.jsonl")
    assert len(ours) == len(theirs["log"]) == 10
    must = {"loss", "grad_norm", "learning_rate", "num_tokens", "entropy", "mean_token_accuracy"}
    must |= {f"logps/{side}" for side in ("chosen", "rejected")}
    must |= {f"rewards/{kind}" for kind in ("chosen", "rejected", "margins", "accuracies")}
    far = []
    for mine, trl in zip(ours, theirs["log"], strict=True):
        assert must <= mine.keys() & trl.keys()
        for key in must:
            error = abs(mine[key] - trl[key]) / max(abs(trl[key]), TRL_FLOOR)
            if not error <= TRL_TOLERANCE:
                far.append(f"step {trl['step']} {key}: {mine[key]} != {trl[key]}")
    assert not far
    # The run moved: a comparison of ten equal steps would show nothing.
    assert abs(theirs["log"][-1]["rewards/margins"]) > 100 * TRL_FLOOR * TRL_TOLERANCE


def test_log_matches_trl_with_warmup_clipping_decay_and_accumulation(tmp_path):
    assert_matches_trl(GOLDEN, "standard/dpo_recipe", tmp_path / "run")


@pytest.mark.parametrize(
    "name", [SHARED_RECIPES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in SHARED_RECIPES[1:])]
)
def test_log_matches_trl(name, shared_dir, tmp_path):
    assert_matches_trl(shared_dir / "golden" / "trl_run", name, tmp_path / "run")


# ---- interruption


def assert_equal_trees(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(tiny.numpy(a), tiny.numpy(b), err_msg=jax.tree_util.keystr(path))


def test_killed_run_continues_bit_for_bit(finished_run, tiny_files, tmp_path):
    config = tiny.long_config(tmp_path / "run", tiny_files)
    first = tiny.run(config, die_at=8)
    assert first.result is None and max(first.steps) == 8
    assert [line["step"] for line in tiny.logged(config.out)][-1] >= 7  # it had come further than its checkpoint
    second = tiny.run(config)
    assert min(second.steps) == 7  # after the checkpoint of step 6
    assert {**first.steps, **second.steps}.keys() == finished_run.steps.keys()
    for step, values in second.steps.items():
        expected = finished_run.steps[step]
        assert {k: v for k, v in values.items() if k != "tokens_per_second"} == {
            k: v for k, v in expected.items() if k != "tokens_per_second"
        }, f"step {step}"
    assert tiny.logged(config.out) == tiny.logged(finished_run.out)
    assert len(set(finished_run.losses)) > 5  # equal numbers would say nothing about the order of the data
    assert_equal_trees(tiny.stored_state(config.out, 10), tiny.stored_state(finished_run.out, 10))
    assert second.result.first_eval == finished_run.result.first_eval
    assert second.result.last_eval == finished_run.result.last_eval


def test_run_goes_on_from_the_newest_whole_checkpoint(finished_run, tiny_files, tmp_path):
    """Step 10 is damaged: it is trained again, and its lines in the log are written again."""
    config = tiny.long_config(tmp_path / "run", tiny_files)
    tiny.copy_run(finished_run.out, config.out)
    assert tiny.stored_steps(config.out) == [9, 10]
    for file in tiny.array_files(config.out, 10):
        tiny.flip_bit(file)
    again = tiny.run(config)
    assert list(again.steps) == [10]
    assert tiny.logged(config.out) == tiny.logged(finished_run.out)
    assert_equal_trees(tiny.stored_state(config.out, 10), tiny.stored_state(finished_run.out, 10))
    assert (tmp_path / "run" / "checkpoints" / "damaged-10").is_dir()


def test_finished_run_says_so_and_returns_its_results(finished_run, tiny_files, tmp_path, caplog):
    config = tiny.long_config(tmp_path / "run", tiny_files)
    tiny.copy_run(finished_run.out, config.out)
    before = tiny.logged(config.out)
    with caplog.at_level("WARNING"):
        again = tiny.run(config)
    assert again.steps == {} and tiny.logged(config.out) == before
    assert "is finished (step 10 of 10): nothing is trained" in caplog.text
    own = {"out": None, "seconds": None, "pieces": None}
    ours, theirs = (vars(run.result) | own for run in (again, finished_run))
    assert ours == theirs and ours["metrics"]["loss"] == finished_run.losses[-1] and ours["last_eval"]
    assert not any("step" in name for _, name in again.compiled)  # neither to train nor to evaluate


STEADY = {"schedule": "constant", "warmup_steps": 2}
"""A learning rate that does not depend on the number of steps."""


@pytest.mark.slow
def test_a_longer_run_goes_on_from_a_shorter_one_where_that_is_exact(tiny_files, tmp_path):
    # Rows are equally long, so that all runs have arrays of the same shape: another rounds otherwise.
    rows = [
        row | {"chosen": [{"role": "assistant", "content": f"a{i}"}]} for i, row in enumerate(tiny.rows(8, first=10))
    ]
    rows = [row | {"rejected": [{"role": "assistant", "content": f"b{i}"}]} for i, row in enumerate(rows)]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)

    def run(name, **length):
        config = tiny.config(tmp_path / name, tiny_files.model, data, tiny_files.held_out, optim=STEADY, train=length)
        return tiny.run(config)

    whole, runs = run("whole", epochs=3), [run("parts", max_steps=1), run("parts", epochs=2), run("parts", epochs=3)]
    assert [list(part.steps) for part in runs] == [[1], [2, 3, 4], [5, 6]]
    assert [loss for part in runs for loss in part.losses] == whole.losses
    assert_equal_trees(tiny.stored_state(runs[0].out, 6), tiny.stored_state(whole.out, 6))
    assert runs[-1].result.last_eval == whole.result.last_eval


def test_a_run_that_cannot_be_extended_exactly_says_how_to_go_on(finished_run, tiny_files, tmp_path):
    for optim in ({}, STEADY | {"warmup_steps": None, "warmup_ratio": 0.1}):
        config = tiny.long_config(tmp_path / f"run{len(optim)}", tiny_files, optim=optim)
        if not optim:
            tiny.copy_run(finished_run.out, config.out)
        else:
            train(config)
        with pytest.raises(InputError) as caught:
            train(tiny.long_config(config.out, tiny_files, optim=optim, train={"epochs": 3}))
        assert caught.value.got == "changed: train.epochs 2.0 -> 3.0"
        assert "the learning rate was planned for these steps" in caught.value.fix
        assert "start a new run from this one's policy" in caught.value.fix


@pytest.mark.slow
def test_a_run_is_not_cut_short_afterwards(tiny_files, tmp_path):
    config = tiny.config(tmp_path / "run", tiny_files.model, tiny_files.train, optim=STEADY)
    train(config)
    shorter = {"max_steps": 2, "batch_size": 4}
    with pytest.raises(InputError, match="at least the 5 steps that(.|\n)*max_steps=2: 2 steps"):
        train(tiny.config(config.out, tiny_files.model, tiny_files.train, optim=STEADY, train=shorter))


def test_another_process_may_not_train_into_the_directory_meanwhile(tiny_files, tmp_path, compile_cache):
    """The second is refused before it touches anything, and the first ends as if it had been alone."""
    config = tiny.long_config(tmp_path / "run", tiny_files)
    path = tiny.write_config(config, tmp_path / "config.yaml")
    said = []

    def second_starts(step: int, *_) -> None:
        if step == 4:
            second = start(path, compile_cache)
            said.append(second.communicate()[1])
            assert second.returncode == 2

    result = train(config, on_log=second_starts)
    assert f"in use by process {os.getpid()} on {socket.gethostname()}" in said[0] and "Traceback" not in said[0]
    assert [line["step"] for line in tiny.logged(config.out) if "loss" in line] == list(range(1, 11))
    assert result.steps == 10 and not (tmp_path / "run" / ".lock").exists()


@pytest.mark.slow
def test_continues_on_another_mesh(tiny_files, tmp_path):
    # A small learning rate keeps the loss at its size of 0.6: one of 0.02 is log-probs of tens of nats cancelled, and
    # float32 keeps fewer digits of it than this test asks for.
    gently = {"optim": {"learning_rate": 1e-4}}
    finished_run = tiny.run(tiny.long_config(tmp_path / "whole", tiny_files, **gently))
    config = tiny.long_config(tmp_path / "run", tiny_files, **gently)
    tiny.run(config, die_at=8)
    sharded = tiny.long_config(tmp_path / "run", tiny_files, mesh={"data": 2, "fsdp": 2, "tensor": 2}, **gently)
    assert sharded.mesh != config.mesh
    second = tiny.run(sharded)
    assert list(second.steps) == [7, 8, 9, 10]
    for step in second.steps:
        np.testing.assert_allclose(second.steps[step]["loss"], finished_run.steps[step]["loss"], rtol=MESH_TOLERANCE)
    assert [line["num_tokens"] for line in tiny.logged(config.out) if "num_tokens" in line] == [
        line["num_tokens"] for line in tiny.logged(finished_run.out) if "num_tokens" in line
    ]


# ---- the same through processes and signals

SLOW_TRAIN = """
import signal, sys, time
from jaxpref import cli
from jaxpref.runs.metrics import Writers
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background, where it is ignored
write = Writers.write
Writers.write = lambda self, *args: (time.sleep(0.2), write(self, *args))  # so that signals find it at work
sys.exit(cli.main(["train", *sys.argv[1:]]))
"""


LIMITED_TRAIN = """
import pathlib, resource, sys, time
from jaxpref import cli
from jaxpref.runs.metrics import Writers
write, limit = Writers.write, int(sys.argv.pop())
saved = pathlib.Path(sys.argv[1]).parent / "run" / "checkpoints" / "3"
def limited(self, step, values):
    if step == 5:  # no file may become larger from now on
        while not saved.is_dir():
            time.sleep(0.05)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    write(self, step, values)
Writers.write = limited
sys.exit(cli.main(["train", *sys.argv[1:]]))
"""


def start(path: Path, cache: Path, code: str = SLOW_TRAIN, *arguments: str) -> subprocess.Popen:
    env = os.environ | {
        "XLA_FLAGS": tiny.xla_flags(1),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [sys.executable, "-c", code, str(path), *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_until(condition, process: subprocess.Popen, seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_sigkill_sigterm_and_ctrl_c(finished_run, tiny_files, tmp_path, compile_cache):
    """One run, ended in each of these ways and started again each time."""
    config = tiny.long_config(tmp_path / "run", tiny_files)
    path = tiny.write_config(config, tmp_path / "config.yaml")
    checkpoints, metrics = tmp_path / "run" / "checkpoints", tmp_path / "run" / "metrics.jsonl"

    def has_logged(step, before):
        """Whether the process that goes on has: it first drops what was logged after its checkpoint."""
        return metrics.read_text() != before and any(line["step"] >= step for line in tiny.logged(config.out))

    killed = start(path, compile_cache)
    wait_until(lambda: (checkpoints / "3").is_dir(), killed)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL

    before = metrics.read_text()
    stopped = start(path, compile_cache)
    wait_until(lambda: has_logged(5, before), stopped)
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate()
    assert stopped.returncode == PREEMPTED == 75
    saved = max(tiny.stored_steps(config.out))
    assert f"saved step {saved}" in said and "Traceback" not in said
    assert 5 <= saved < 9

    before = metrics.read_text()
    interrupted = start(path, compile_cache)
    wait_until(lambda: has_logged(saved + 1, before), interrupted)
    interrupted.send_signal(signal.SIGINT)
    _, said = interrupted.communicate()
    assert interrupted.returncode == INTERRUPTED == 130 and "Traceback" not in said
    assert saved < max(tiny.stored_steps(config.out)) < 10
    saved = max(tiny.stored_steps(config.out))
    assert f"jaxpref train: Ctrl-C: saved step {saved} of 10 in {config.out}/checkpoints; start the same run" in said

    train(config)
    assert tiny.logged(config.out) == tiny.logged(finished_run.out)


@pytest.mark.parametrize(
    "limit, failed", [(20_000, "checkpoints/6"), pytest.param(2_000, "File too large", marks=pytest.mark.slow)]
)
def test_a_disk_that_takes_no_more_is_one_line_and_loses_nothing(
    limit, failed, finished_run, tiny_files, tmp_path, compile_cache
):
    """A limit on the size of files stands for a full disk: it meets the checkpoint, or the log before it."""
    config = tiny.long_config(tmp_path / "run", tiny_files)
    path = tiny.write_config(config, tmp_path / "config.yaml")
    process = start(path, compile_cache, LIMITED_TRAIN, str(limit))
    _, said = process.communicate()
    assert process.returncode == 1 and "Traceback" not in said
    (line,) = (line for line in said.splitlines() if line.startswith("jaxpref"))
    assert failed in line and "File too large; the checkpoint of step 3 is safe in" in line
    assert "start the same run again" in line
    assert tiny.stored_steps(config.out) == [3]
    assert train(config).last_eval == finished_run.result.last_eval
    assert tiny.logged(config.out) == tiny.logged(finished_run.out)


# ---- what `train.resume` allows


def test_resume_never_refuses_a_used_directory(finished_run, tiny_files):
    with pytest.raises(InputError, match="has step 10"):
        train(tiny.long_config(finished_run.out, tiny_files, train={"resume": "never"}))


def test_resume_must_needs_a_checkpoint(tiny_files, tmp_path):
    with pytest.raises(InputError, match="a checkpoint to resume from"):
        train(tiny.long_config(tmp_path / "run", tiny_files, train={"resume": "must"}))


def test_changed_settings_are_refused_and_listed(finished_run, tiny_files):
    changed = tiny.long_config(
        finished_run.out,
        tiny_files,
        train={"seed": 1, "log_every": 7},
        optim={"learning_rate": 1e-4},
        objective=[{"name": "dpo", "beta": 0.2}],
        mesh={"data": 2},
    )
    with pytest.raises(InputError) as caught:
        train(changed)
    assert caught.value.got == "changed: objective, optim.learning_rate 0.002 -> 0.0001, train.seed 0 -> 1"


def scaled(rate: float):
    """An objective of a user's own, made in Python."""

    def mine(policy):
        return ObjectiveOutput(rate * policy.sum[:, 0], (policy.count[:, 0] > 0).astype("float32"), {})

    return mine


def test_a_run_goes_on_with_the_data_weights_and_objective_of_its_start_alone(tiny_files, tmp_path):
    """Whatever lies under the same path by now, the old policy is not taken for the new one's."""
    rows, held_out = tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows(8)), tmp_path / "held_out.jsonl"
    tiny.write_rows(held_out, tiny.rows(4, first=100))
    model, reference = (tiny.write_model(tmp_path / name) for name in ("model", "reference"))
    settings = {"reference": {"path": str(reference)}, "objective": [{"name": "dpo"}]}
    own = tiny.config(tmp_path / "own", model, rows)
    dpo = tiny.config(tmp_path / "dpo", model, rows, held_out, **settings)
    first = train(own, objective=[scaled(1.0)])
    train(dpo)

    def refused(match, config=dpo, **objective):
        with pytest.raises(InputError, match=match):
            train(config, **objective)

    refused("objective: the code or the settings of mine", own, objective=[scaled(2.0)])
    refused("objective: mine then, sft now", own, objective=[{"name": "sft"}])
    refused("objective: mine then, dpo now", own)
    refused("objective: the code or the settings of mine", own, objective=[{"name": scaled(1.0), "weight": 0.5}])
    assert json.loads((tmp_path / "own" / "objective.json").read_text()) == ["mine"]
    again = train(own, objective=[scaled(1.0)])  # the same one, made anew
    assert again.metrics == first.metrics and again.steps == 2

    for count in (7, 9):
        tiny.write_rows(rows, tiny.rows(count))
        refused(f"data.train: {rows} gave 8 groups then, {count} now")
    tiny.write_rows(rows, tiny.rows(8))
    tiny.write_rows(held_out, tiny.rows(4, first=101))
    refused(f"data.eval: {held_out} gave 4 groups then as now, but of other tokens")
    tiny.write_rows(held_out, tiny.rows(4, first=100))
    tiny.write_model(model, scale=1.01)
    refused("the weights of model.path")
    tiny.write_model(model)
    tiny.write_model(reference, scale=1.01)
    refused("the weights of reference")
    tiny.write_model(reference)
    assert train(dpo).steps == 2


@pytest.mark.slow
def test_references_that_are_cached_must_stay_too(tiny_files, tmp_path):
    reference = tiny.write_model(tmp_path / "reference")
    cached = {"mode": "cache", "path": str(reference), "extra": [str(reference)], "cache_dir": str(tmp_path / "cache")}
    objective = [{"name": "mrpo"}]
    settings = {"reference": cached, "objective": objective, "train": {"max_steps": 1}}
    config = tiny.config(tmp_path / "run", tiny_files.model, tiny_files.train, **settings)
    train(config)
    tiny.write_model(reference, scale=1.01)
    with pytest.raises(InputError, match=r"the weights of reference; the weights of reference.extra\[0\]"):
        train(config)


# ---- one compile


def test_one_compile_per_run(finished_run, tiny_files):
    assert [name for _, name in finished_run.compiled].count("jit(train_step)") == 1
    # After the first step nothing at all: not for steps of another fill, evaluations or checkpoints.
    assert [name for seen, name in finished_run.compiled if seen > 0] == []
    fills = {item.micro_batches for item in tiny.loader_of(finished_run.config).iterate()}
    assert len(fills) > 1


# ---- numbers that are not finite


def overflowing(policy, margin):
    """An objective of a user's own; a margin of 1e38 makes it infinite and its gradient NaN."""
    return ObjectiveOutput(policy.sum[:, 0] * margin, (policy.count[:, 0] > 0).astype("float32"), {})


def test_non_finite_stops_with_step_and_rows_and_saves_nothing(tiny_files, tmp_path):
    rows = [row | {"margin": 1e-3} for row in tiny.rows(16)]
    for row in rows[12:]:
        row["margin"] = 1e38
    data = tiny.write_rows(tmp_path / "margins.jsonl", rows)
    config = tiny.config(
        tmp_path / "run",
        tiny_files.model,
        data,
        data={"shuffle": False},
        objective=[{"name": f"{__name__}:overflowing"}],
        train={"save_every": 2, "micro_rows": 4},
    )
    with pytest.raises(NotFiniteError) as caught:
        tiny.run(config)
    message = str(caught.value)
    assert message.startswith("step 4: grad_norm=nan, loss=-inf, param_norm=nan; rows of the batch: ")
    assert all(f"{data}, row {number}" in message for number in (13, 14, 15, 16))
    assert f"{data}, row 12" not in message
    assert tiny.stored_steps(config.out) == [2]  # step 4 would have been saved
    state = tiny.stored_state(config.out, 2)
    assert int(state["step"]) == 2
    norm = np.sqrt(sum(np.square(np.asarray(leaf, float)).sum() for leaf in jax.tree.leaves(state["params"])))
    assert tiny.logged(config.out)[1]["param_norm"] == pytest.approx(norm, rel=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state["params"]))
    assert [line["step"] for line in tiny.logged(config.out)] == [1, 2, 3]


def test_an_update_to_infinite_weights_is_not_saved_even_by_the_last_step(tiny_files, tmp_path):
    """Loss and gradient are those before it, and finite."""
    optim = {"weight_decay": 3e38, "decay_mask": "all", "warmup_steps": 0, "learning_rate": 100.0}
    config = tiny.config(tmp_path / "run", tiny_files.model, tiny_files.train, optim=optim, train={"max_steps": 1})
    with pytest.raises(NotFiniteError, match="step 1: param_norm=(inf|nan); rows of the batch"):
        tiny.run(config)
    assert tiny.stored_steps(config.out) == []


def test_python_api_takes_a_plain_mapping(tiny_files, tmp_path):
    """Config from a notebook; logging less often than every step averages over the steps."""
    raw = tiny.settings(tmp_path / "run", tiny_files.model, tiny_files.train, train={"max_steps": 5, "log_every": 2})
    seen = tiny.run(make_config(raw))
    lines = tiny.logged(tmp_path / "run")
    assert [line["step"] for line in lines] == [2, 4, 5]
    mean = np.mean([seen.steps[3]["loss"], seen.steps[4]["loss"]])
    assert lines[1]["loss"] == pytest.approx(mean, rel=1e-12)
    assert seen.result.first_eval == seen.result.last_eval == {}
    assert Checkpoints(tmp_path / "run" / "checkpoints").latest() == 5
