"""Hosts with other programs, devices or files are refused, with both values."""

import json
import shutil
from pathlib import Path

import hosts
import pytest
import tiny

import jaxpref
from jaxpref.runs.same_files import _digest

ASKED = """
import sys
if sys.argv[-1] == "1":
    sys.path.insert(0, {folder!r})
from jaxpref import cli
sys.exit(cli.main())
"""


def refused(options, folder, cache):
    """What both of two processes say on standard error."""
    with hosts.running(options, folder, cache) as both:
        assert hosts.wait_for_all(both) == [2, 2], both[0].said + both[1].said
    one, other = (host.said.partition("bad input\n")[2] for host in both)
    assert one == other
    return one


def test_other_sources(tmp_path, compile_cache):
    """Of one version, but changed by hand on one host."""
    package = shutil.copytree(Path(jaxpref.__file__).parent, tmp_path / "copy/jaxpref")
    with (package / "errors.py").open("a") as file:
        file.write("# by hand\n")
    script = ASKED.format(folder=str(tmp_path / "copy"))
    said = refused(hosts.together(2, "-c", script, "train", "no.yaml"), tmp_path, compile_cache)
    assert "the same versions on every process" in said and "got: sources of jaxpref: '" in said
    assert "on process 0" in said and "on process 1" in said


@pytest.mark.slow
def test_other_options(tmp_path, compile_cache):
    """Two seeds would draw two texts in one batch."""
    command = ["-m", "jaxpref.cli", "generate", "no-model", "--prompts", "none.jsonl", "--seed"]
    commands = [[*command, number, *how] for number, how in enumerate(hosts.together(2))]
    said = refused(commands, tmp_path, compile_cache)
    assert "the same options on every process" in said and "got: seed: 0 on process 0, 1 on process 1" in said


# What only some commands read; each process has its own.
READS = """
import json, os, sys
import jaxpref
from jaxpref.evaluation import evaluate_answers, read_answers

folder, model, coordinator, number = sys.argv[1:]
jaxpref.join(coordinator, 2, int(number))
os.chdir(f"{folder}/{number}")
length = jaxpref.rewards.open_reward("rule:words")
def ask(source, prompts=("n",), *overrides, **given):
    jaxpref.generate(source, prompts, overrides=["mesh.fsdp=4", *overrides], max_new_tokens=1, **given)
refused = []
for read in (
    lambda: ask(model, "prompts.jsonl"),
    lambda: ask(model, ["n"], f"model.attention_block={8 << int(number)}"),
    lambda: ask("run", step="latest"),
    lambda: ask("run", step="2"),
    lambda: jaxpref.score_data(["rows.jsonl"], {"length": length}, "scored.jsonl"),
    lambda: evaluate_answers(read_answers("answers.jsonl"), [length]),
):
    try:
        read()
    except jaxpref.InputError as error:
        refused.append(str(error))
print(json.dumps(refused))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile", "any_mesh")
def test_other_prompts_checkpoints_rows_and_answers(tiny_files, tmp_path, compile_cache):
    train = {"max_steps": 3, "save_every": 2}
    run = tiny.run(tiny.config(tmp_path / "run", tiny_files.model, tiny_files.train, train=train)).out
    for number in range(2):
        here = tmp_path / str(number)
        here.mkdir()
        tiny.write_rows(here / "prompts.jsonl", [{"prompt": "n 1"}, {"prompt": f"n {number}"}])
        tiny.write_rows(here / "rows.jsonl", tiny.rows(4)[:: 1 - 2 * number])
        answers = [{"prompt": "n", "completion": "1"}, {"prompt": "n", "completion": f"{number}"}]
        tiny.write_rows(here / "answers.jsonl", answers)
        tiny.copy_run(run, here / "run")
    # Process 1 has not got the last checkpoint, and of the first another one.
    shutil.rmtree(tmp_path / "1/run/checkpoints/3")
    sums = tmp_path / "1/run/checkpoints/2/checksums/metadata"
    other = json.loads(sums.read_text())
    other["items"]["progress"] += 1
    sums.write_text(json.dumps(other))
    at = f"localhost:{hosts.free_port()}"
    commands = [["-c", READS, tmp_path, tiny_files.model, at, number] for number in range(2)]
    with hosts.running(commands, tmp_path, compile_cache) as both:
        assert hosts.wait_for_all(both) == [0, 0], both[0].said + both[1].said
        one, other = (json.loads(host.said.splitlines()[-1]) for host in both)
    assert one == other
    prompts, settings, latest, step, rows, answers = one
    assert "the same prompts, in the same order" in prompts and "prompts.jsonl, row 2" in prompts
    assert "model.attention_block: 8 on process 0, 16 on process 1" in settings
    assert "the same checkpoint of run" in latest and "step: 3 on process 0, 2 on process 1" in latest
    assert "the same checkpoint of run" in step and "got: digest: '" in step
    assert "the same rows, in the same order," in rows and "digest: '" in rows
    assert "the same answers of answers.jsonl" in answers and "digest: '" in answers


@pytest.mark.slow
def test_other_numbers_of_devices(tmp_path, compile_cache):
    commands = hosts.together(2, "-m", "jaxpref.cli", "train", "no.yaml")
    commands[1] = ["-c", FEWER, *commands[1][2:]]
    said = refused(commands, tmp_path, compile_cache)
    assert "the same devices on every process" in said and "of the process: 2 on process 0, 1 on process 1" in said


FEWER = """
import os, sys
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=1"
from jaxpref import cli
sys.exit(cli.main())
"""


def test_large_files_are_told_apart_by_pieces(tmp_path, monkeypatch):
    """Two checkpoints of one shape, which differ a little in one of the three weights of each MLP."""
    monkeypatch.setattr("jaxpref.runs.same_files._WHOLE", 1000)
    monkeypatch.setattr("jaxpref.runs.same_files._SAMPLE", 16)
    files = [tiny.write_model(tmp_path / str(scale), scale=scale) / "model.safetensors" for scale in (1.0, 1.0 + 1e-6)]
    again = shutil.copy(files[0], tmp_path / "again")
    assert files[0].stat().st_size == files[1].stat().st_size > 10 * 256 * 16
    assert _digest(files[0]) == _digest(Path(again)) != _digest(files[1])
