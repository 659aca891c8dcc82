"""Every command in several processes, against one process on a mesh of the same shape.

`pytest -s -m slow tests/processes/test_commands.py -k as_one` prints the table of docs/results.md.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
from launch import STARTS, run_commands
from safetensors.numpy import load_file

TOLERANCE = 1e-5
"""Relative, of numbers below 1 absolute: collectives between processes add up in another order."""
CLOCK = {
    "seconds",
    "shared",
    "tokens_per_second",
    "model_flops_per_second",
    "mfu",
    "host_memory_bytes",
    "own",
    "all_shared",
    "cost",
    "versions",
}
"""Keys of what is measured by the clock, or counted beside it."""
ENLARGED = {"kl_k3": 70.0}
"""An exponential of a difference of log-probs, which are as large as this here: their relative error so many times."""
PRINTED_BY_DATA = "data.txt"
JUDGE = '''
from pathlib import Path

def long(prompt, answer):
    """Notes that it was called."""
    with Path("calls.txt").open("a") as file:
        file.write(answer + "\\\\n")
    return float(len(answer))
'''


def write_inputs(folder: Path, files: tiny.Files) -> None:
    (folder / "judge.py").write_text(JUDGE.replace("\\\\n", "\\n"))
    tiny.write_rows(folder / "prompts.jsonl", [{"prompt": row["prompt"]} for row in tiny.rows(5)])
    settings = dict(mesh={"fsdp": 4}, reference={"mode": "cache", "cache_dir": str(folder / "cache")})
    for name, seed in (("run", 0), ("other", 1)):
        train = {"epochs": 1, "save_every": 3, "eval_every": 3, "seed": seed}
        config = tiny.config(
            Path(name), files.model, files.train, files.held_out, train=train,
            adapter={"rank": 2, "alpha": 8.0}, **settings,
        )  # fmt: skip
        tiny.write_config(config, folder / f"{name}.yaml")
    write_front(folder, files)
    write_demo(folder, files)


def write_front(folder: Path, files: tiny.Files) -> None:
    """`likes` are the pairs as they are labelled; `long` relabels them by a function."""
    raw = tiny.settings(
        Path("front"), files.model, files.train, files.held_out, adapter={"rank": 2, "alpha": 8.0}, mesh={"fsdp": 4}
    )
    raw["train"] |= {"max_steps": 2, "save_every": 2}
    objectives = [
        {"name": "likes", "train": [str(files.train)], "eval": [str(files.held_out)]},
        {"name": "long", "reward": "judge.py:long", "temperature": 4.0},
    ]
    raw["pareto"] = {
        "objectives": objectives,
        "weights": [[0.2, 0.8], [0.6, 0.4]],
        "methods": ["dpo", "modpo", "mod", "soup_deltas"],
        "answers": {"count": 2, "max_new_tokens": 4, "samples": 2},
    }
    (folder / "front.yaml").write_text(json.dumps(raw))  # JSON is YAML


def write_demo(folder: Path, files: tiny.Files) -> None:
    """It makes its data itself; question and answer have up to 234 characters, a token each."""
    train, test = Path("demo/data/train.jsonl"), Path("demo/data/test.jsonl")
    config = tiny.settings(
        Path("demo"), files.model, train, test, mesh={"fsdp": 4},
        train={"max_steps": 2}, data={"row_length": 512, "max_length": 256},
    )  # fmt: skip
    (folder / "demo.yaml").write_text(json.dumps(config))


def commands(files: tiny.Files) -> dict[str, tuple[list, list[str]]]:
    """What is run -> its arguments, and the files that it writes."""
    mesh = "mesh.fsdp=4"
    ask = ["--prompts", "prompts.jsonl", "--max-new-tokens", "6", "--temperature", "1"]
    return {
        "train": (["train", "run.yaml"], ["run/metrics.jsonl"]),
        "train (cached reference)": (["train", "other.yaml"], ["other/metrics.jsonl"]),
        "data": (["data", "run.yaml"], [PRINTED_BY_DATA]),
        "eval": (["eval", "run", "--out", "held_out.json", mesh], ["held_out.json", "held_out.jsonl"]),
        "eval --reward": (
            ["eval", "run", *ask, "--samples", "2", "--reward", "judge.py:long", "--against", files.model,
             "--out", "answers.json", mesh],
            ["answers.json", "answers.jsonl"],
        ),
        "generate": (["generate", "run", *ask, "--out", "generated.jsonl", mesh], ["generated.jsonl"]),
        "score": (
            ["score", files.train, "--reward", "good=run", "--reward", "long=judge.py:long", "--cache", "scores",
             "--chunk", "8", "--out", "scored.jsonl", mesh],
            ["scored.jsonl"],
        ),
        "condition": (["condition", "scored.jsonl", "--as", "ric", "--scores", "good,long", "--out", "ric.jsonl"],
                      ["ric.jsonl", "ric.statistics.json"]),
        "export": (["export", "run", "--to", "exported"], ["exported/model.safetensors"]),
        "export --adapter": (["export", "other", "--adapter", "--to", "lora"], ["lora/adapter_model.safetensors"]),
        "pareto": (["pareto", "front.yaml"], ["front/front.json"]),
        "demo": (
            ["demo", "demo.yaml"],
            ["demo/data/train.jsonl", "demo/data/test.jsonl", "demo/metrics.jsonl", "demo/export/model.safetensors"],
        ),
        "merge --how deltas": (["merge", "run:0.5", "lora:0.5", "--how", "deltas", "--to", "soup"],
                               ["soup/model.safetensors"]),
    }  # fmt: skip


def contents(path: Path):
    """A file as nested numbers and texts."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".txt":
        return path.read_text()
    return json.loads(path.read_text())


def difference(ours, theirs, where: str) -> float:
    """The largest between their numbers; all else must be equal."""
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        own = [
            difference(ours[key], theirs[key], f"{where}, {key}") / ENLARGED.get(key.partition("/")[0], 1.0)
            for key in ours
            if key not in CLOCK
        ]
        return max(own, default=0.0)
    if isinstance(ours, list):
        assert len(ours) == len(theirs), where
        return max(
            [difference(*pair, f"{where}, {i}") for i, pair in enumerate(zip(ours, theirs, strict=True))], default=0.0
        )
    if isinstance(ours, np.ndarray):
        assert ours.shape == theirs.shape, where
        return float(np.max(np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs)), initial=0.0))
    if isinstance(ours, float) and not math.isnan(ours):
        return abs(ours - theirs) / max(1.0, abs(theirs))
    assert ours == theirs or (ours != ours and theirs != theirs), f"{where}: {ours} and {theirs}"
    return 0.0


def made_by(count: int, files: tiny.Files, folder: Path, cache: Path) -> Path:
    """The folder in which so many processes ran all commands."""
    folder.mkdir()
    write_inputs(folder, files)
    first, *others = run_commands([arguments for arguments, _ in commands(files).values()], count, cache, folder)
    assert "held-out reward accuracy" in first and "[Gloo]" not in first
    assert not any(others), others
    printed = dict(zip(commands(files), first.split(STARTS)[1:], strict=True))
    (folder / PRINTED_BY_DATA).write_text(printed["data"])
    return folder


def differences(many: Path, one: Path, files: tiny.Files) -> dict[str, float]:
    """Command -> the largest difference between what it wrote in two folders."""
    found = {}
    for name, (_, written) in commands(files).items():
        pairs = [(contents(many / file), contents(one / file), f"{name}: {file}") for file in written]
        found[name] = max([difference(*pair) for pair in pairs], default=0.0)
    calls = [(folder / "calls.txt").read_text() for folder in (many, one)]
    assert calls[0] == calls[1], "of several processes one asks the judge"
    return found


@pytest.mark.usefixtures("quick_compile", "any_mesh")
def test_two_processes_write_what_one_does(call, finished_run, tiny_files, tmp_path, compile_cache, monkeypatch):
    """Commands that compile nothing, in one pair of processes."""
    run = finished_run.out
    commands = [
        ["score", tiny_files.train, "--reward", "long=judge.py:long", "--cache", "scores", "--out", "scored.jsonl"],
        ["export", run, "--to", "exported"],
        ["merge", f"{run}:0.5", "exported:0.5", "--how", "weights", "--to", "soup"],
        ["condition", "scored.jsonl", "--as", "ric", "--scores", "long", "--out", "ric.jsonl"],
    ]
    folders = {count: tmp_path / str(count) for count in (1, 2)}
    for folder in folders.values():
        folder.mkdir()
        (folder / "judge.py").write_text(JUDGE)
    first, second = run_commands(commands, 2, compile_cache, folders[2])
    assert "[Gloo]" not in first, "what libraries print is no output"
    assert second == "", "process 0 alone prints"

    monkeypatch.chdir(folders[1])
    monkeypatch.syspath_prepend(folders[1])
    assert [call(*command)[0] for command in commands] == [0] * len(commands)
    for file in ("scored.jsonl", "exported/model.safetensors", "soup/model.safetensors", "ric.jsonl", "calls.txt"):
        ours, theirs = ((folders[count] / file).read_bytes() for count in (2, 1))
        assert ours == theirs, file


@pytest.mark.slow
def test_a_run_directory_that_hosts_do_not_share_is_refused(tiny_files, tmp_path, compile_cache):
    """Both see a path of one name, each on its own disk."""
    config = tiny.config(Path("run"), tiny_files.model, tiny_files.train, mesh={"fsdp": 4}, train={"max_steps": 1})
    path = tiny.write_config(config, tmp_path / "run.yaml")
    hosts = [tmp_path / f"host_{number}" for number in range(2)]
    for host in hosts:
        host.mkdir()
    said = run_commands([["train", path]], 2, compile_cache, hosts, code=2)
    for errors in said:
        assert "what process 0 writes there is not seen by process 1" in errors
    assert not any(list(host.iterdir()) for host in hosts)


@pytest.fixture(scope="module")
def made_by_one(tiny_files, tmp_path_factory, compile_cache) -> Path:
    return made_by(1, tiny_files, tmp_path_factory.mktemp("one") / "made", compile_cache)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_as_one(count, made_by_one, tiny_files, tmp_path, compile_cache):
    many = made_by(count, tiny_files, tmp_path / "many", compile_cache)
    found = differences(many, made_by_one, tiny_files)
    print(table(count, found))
    assert max(found.values()) <= TOLERANCE


def table(count: int, found: dict[str, float]) -> str:
    """Of each command the largest difference from one process."""
    lines = [f"\n| command | {count} processes |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {number:.0e} |" for name, number in found.items()])
