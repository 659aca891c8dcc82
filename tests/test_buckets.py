"""Buckets, at servers on this machine: what is read and written there, killed and resumed; `make test-buckets`."""

import gzip
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import bucket_servers
import hosts
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file
from test_gguf import write as write_gguf

from jaxpref.data.sources import read_rows
from jaxpref.errors import InputError
from jaxpref.runs.cached_reference import cached_logps
from jaxpref.runs.damage import COMMITTED, steps_in
from jaxpref.runs.lock import sole_writer
from jaxpref.runs.metrics import read_jsonl
from jaxpref.settings import make_config
from jaxpref.storage import local_copies
from jaxpref.storage.paths import as_path, file_system, key_of
from jaxpref.training.preemption import PREEMPTED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_compile", "any_mesh"),
    # Connections that the libraries keep until the end of the process.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

RESUMED_TOLERANCE = 1e-6
"""Relative: a run that goes on, or reads its files elsewhere, does the same arithmetic."""
TWO_PROCESSES_TOLERANCE = 1e-5
"""Relative: collectives between processes add up in another order, and Adam takes it along."""


@pytest.fixture(scope="module", params=["s3", "gs"])
def store(request, tmp_path_factory):
    """A bucket, with files of the tiny run in it: `model`, `train.jsonl`, `held_out.jsonl`."""
    start = {"s3": bucket_servers.s3_server, "gs": bucket_servers.gcs_server}[request.param]
    with pytest.MonkeyPatch.context() as monkeypatch, start(monkeypatch) as bucket:
        monkeypatch.setenv("JAXPREF_CACHE_DIR", str(tmp_path_factory.mktemp("copies")))
        yield bucket


@pytest.fixture(scope="module")
def files(store, tiny_files) -> tiny.Files:
    """The files of the tiny run, in the bucket."""
    names = {"model": tiny_files.model, "train.jsonl": tiny_files.train, "held_out.jsonl": tiny_files.held_out}
    for name, source in names.items():
        bucket_servers.upload(source, as_path(f"{store}/{name}"))
    return tiny.Files(*(f"{store}/{name}" for name in names))


DIE = """
import os, signal, sys
from jaxpref.settings import load_config
from jaxpref.training.run import train

def on_log(step, steps, values):
    if step == 7:
        os.kill(os.getpid(), signal.SIGKILL)

train(load_config(sys.argv[1]), on_log=on_log)
"""


def assert_same_lines(found: list[dict], expected: list[dict], tolerance: float = RESUMED_TOLERANCE) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=tolerance, atol=tolerance / 10, err_msg=name)


def lines_of(path) -> list[dict]:
    clock = ("tokens_per_second", "model_flops_per_second", "mfu", "host_memory_bytes")
    lines = [json.loads(line) for line in as_path(str(path)).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


@pytest.fixture(scope="module")
def run_in_bucket(store, files, tmp_path_factory, compile_cache, finished_run):
    """A run from the bucket into the bucket, killed at step 7 and started again; and where it stood when killed."""
    folder, out = tmp_path_factory.mktemp("killed"), f"{store}/run"
    config = tiny.write_config(tiny.long_config(out, files), folder / "config.yaml")
    environment = bucket_servers.environment(folder / "copies", compile_cache)
    environment["XLA_FLAGS"] = tiny.xla_flags(1)
    killed = subprocess.run([sys.executable, "-c", DIE, str(config)], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    after_kill = {"lines": lines_of(f"{out}/metrics.jsonl"), "steps": steps_in(as_path(f"{out}/checkpoints"))}
    again = subprocess.run(
        [sys.executable, "-m", "jaxpref.cli", "train", str(config)], env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stdout + again.stderr
    return out, after_kill, again.stdout


def test_a_killed_run_goes_on_and_ends_as_one_on_a_local_disk(run_in_bucket, finished_run):
    out, after_kill, said = run_in_bucket
    expected = tiny.logged(finished_run.out)
    # Killed in step 7, at most the line of that step is lost.
    logged = [line["step"] for line in after_kill["lines"]]
    assert logged in ([0, 1, 2, 3, 4, 5, 5, 6], [0, 1, 2, 3, 4, 5, 5, 6, 7])
    assert_same_lines(after_kill["lines"], expected[: len(logged)])
    assert set(after_kill["steps"]) in ({3}, {3, 6})
    assert f"goes on from step {max(after_kill['steps'])} of 10" in said
    assert "is gone" in said and "taken over" in said
    assert_same_lines(lines_of(f"{out}/metrics.jsonl"), expected)
    assert steps_in(as_path(f"{out}/checkpoints")) == tiny.stored_steps(finished_run.out)
    assert not as_path(f"{out}/.lock").exists()


def test_it_is_evaluated_answered_with_and_exported_there(run_in_bucket, finished_run, store, files, call, tmp_path):
    out, _, _ = run_in_bucket
    prompts = as_path(f"{store}/prompts.jsonl")
    prompts.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in tiny.rows(3)))
    for run, where in ((out, f"{store}/results"), (finished_run.out, str(tmp_path))):
        assert call("eval", run, "--out", f"{where}/eval.json", "--resamples", 100)[0] == 0
        code, _, error = call(
            "generate", run, "--prompts", prompts, "--out", f"{where}/answers.jsonl", "--max-new-tokens", 8
        )
        assert code == 0, error
        for _ in range(2):  # the second in place of the first
            assert call("export", run, "--to", f"{where}/exported")[0] == 0
    for name in ("eval.jsonl", "answers.jsonl"):
        here, there = (tmp_path / name).read_text(), as_path(f"{store}/results/{name}").read_text()
        assert len(here.splitlines()) > 2 and here.count("\n") == there.count("\n")
    ours, theirs = (
        [json.loads(line)["completion"] for line in as_path(path).read_text().splitlines()]
        for path in (f"{store}/results/answers.jsonl", str(tmp_path / "answers.jsonl"))
    )
    assert ours == theirs
    # What was exported to the bucket is a model again.
    code, printed, error = call("generate", f"{store}/results/exported", "--prompts", prompts, "--max-new-tokens", 8)
    assert code == 0, error
    assert [json.loads(line)["completion"] for line in printed.splitlines()] == ours
    for command in (("eval", out, "--out", f"{store}/train.jsonl"), ("export", out, "--to", files.model)):
        assert call(*command)[0] == 2, "what is not ours is not replaced"


def test_two_processes_stop_and_go_on_there(store, files, call, tmp_path, compile_cache):
    """SIGTERM to one of them: both save one checkpoint in the bucket, and two go on from it, as one process would."""
    out, settings = f"{store}/two", dict(mesh={"fsdp": 4}, train={"eval_every": None})
    whole = tiny.run(tiny.long_config(tmp_path / "whole", files, **settings))
    config = tiny.write_config(tiny.long_config(out, files, **settings), tmp_path / "config.yaml")
    metrics, train = as_path(f"{out}/metrics.jsonl"), ("-m", "jaxpref.cli", "train", config)
    with hosts.running(hosts.together(2, *train), tmp_path, compile_cache) as both:
        while not metrics.is_file() or len(read_jsonl(metrics)) < 2:
            assert both[0].process.poll() is None, both[0].said
            time.sleep(0.05)
        both[1].process.send_signal(signal.SIGTERM)
        assert hosts.wait_for_all(both) == [PREEMPTED] * 2, both[0].said
    [*_, stopped] = steps_in(as_path(f"{out}/checkpoints"))
    assert 2 <= stopped < 10
    with hosts.running(hosts.together(2, *train), tmp_path, compile_cache) as both:
        assert hosts.wait_for_all(both) == [0, 0], both[0].said
        assert f"goes on from step {stopped} of 10" in both[0].said
        assert "goes on" not in both[1].said
    assert_same_lines(lines_of(metrics), tiny.logged(whole.out), TWO_PROCESSES_TOLERANCE)
    assert steps_in(as_path(f"{out}/checkpoints")) == tiny.stored_steps(whole.out)
    for run, to in ((out, tmp_path / "there"), (whole.out, tmp_path / "here")):
        assert call("export", run, "--to", to)[0] == 0
    there, here = (load_file(tmp_path / name / "model.safetensors") for name in ("there", "here"))
    for name, tensor in here.items():
        np.testing.assert_allclose(there[name], tensor, atol=TWO_PROCESSES_TOLERANCE, err_msg=name)


def test_half_a_checkpoint_does_not_count(run_in_bucket, store):
    checkpoints = as_path(f"{run_in_bucket[0]}/checkpoints")
    half = as_path(f"{store}/half/checkpoints")
    last = steps_in(checkpoints)[-1]
    for key in file_system(checkpoints).find(key_of(checkpoints / str(last))):
        name = key.removeprefix(key_of(checkpoints / str(last)) + "/")
        if name != COMMITTED:
            (half / str(last) / name).write_bytes((checkpoints / str(last) / name).read_bytes())
    assert steps_in(half) == []
    (half / str(last) / COMMITTED).write_text("")
    assert steps_in(half) == [last]


def test_one_writer_at_a_time(store):
    out = f"{store}/locked"
    with sole_writer(out):
        with pytest.raises(InputError, match="in use by process"), sole_writer(out):
            pass
        assert as_path(f"{out}/.lock").is_file()
    assert not as_path(f"{out}/.lock").exists()
    with sole_writer(out):
        pass


def test_mistakes_are_told_in_one_error(store, files, call, tmp_path, monkeypatch):
    for changes, told in (
        ({"out": store.replace("store", "nowhere") + "/run"}, "there is no bucket nowhere"),
        ({"data": {"train": [f"{store}/nothing.jsonl"]}}, "nothing.jsonl"),
        ({"model": {"path": f"{store}/no-model"}}, "no-model"),
    ):
        config = tiny.long_config(changes.pop("out", f"{store}/new"), files, **changes)
        code, _, error = call("train", tiny.write_config(config, tmp_path / "config.yaml"))
        assert code == 2 and told in error and "Traceback" not in error, error
    make_config({})  # nothing above has spoiled the defaults


def test_no_credentials_and_no_permission(tmp_path, monkeypatch):
    monkeypatch.setenv("INITIAL_NO_AUTH_ACTION_COUNT", "1")  # of moto: after that, keys are looked at
    with bucket_servers.s3_server(monkeypatch) as bucket:
        with pytest.raises(InputError, match="exists and may be read") as unknown:
            as_path(f"{bucket}/a")
        assert "AWS_PROFILE" in unknown.value.fix and f"{bucket}/a: " in unknown.value.got
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))
        file_system_class = type(__import__("s3fs").S3FileSystem())
        file_system_class.clear_instance_cache()
        with pytest.raises(InputError, match="NoCredentialsError") as none:
            as_path(f"{bucket}/b")
        assert "AWS_ACCESS_KEY_ID" in none.value.fix
        file_system_class.clear_instance_cache()


# ---- weights by ranges of bytes

LOAD = """
import logging, sys
import jax
number, port = map(int, sys.argv[1:3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, number)
logging.basicConfig(level=logging.INFO, format="%(message)s")
from jaxpref.config import MeshConfig
from jaxpref.models.hf import ranges
from jaxpref.models.placement import param_shardings
from jaxpref.models.source import open_checkpoint
from jaxpref.models.streaming import place_leaf
from jaxpref.models.parameters import flatten, model_shapes, nest
from jaxpref.sharding import make_mesh
import numpy as np

ranges.GAP = int(sys.argv[4])
checkpoint = open_checkpoint(sys.argv[3])
mesh = make_mesh(MeshConfig(fsdp=2))
shapes = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in model_shapes(checkpoint.spec).items()}
shardings = flatten(param_shardings(nest(shapes), mesh))
put = lambda path, shape, dtype, read: place_leaf(shape, dtype, shardings[path], read)
params = flatten(checkpoint.load_params(put=put))
held = sum(x.addressable_shards[0].data.nbytes for x in params.values())
print("held", held, "of", sum(x.nbytes for x in params.values()), flush=True)
"""


def test_each_process_reads_the_bytes_that_its_devices_hold(store, files, tiny_files, tmp_path):
    """With no gap read along, to the byte; the header is read besides, and the file says how long it is."""
    weights = tiny_files.model / "model.safetensors"
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    environment = bucket_servers.environment(tmp_path / "copies", tmp_path / "compiled")
    environment["XLA_FLAGS"] = tiny.xla_flags(1)
    port = bucket_servers.free_port()
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD, str(number), str(port), files.model, "0"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for worker in workers:
        out, err = worker.communicate(timeout=900)
        assert worker.returncode == 0, err
        [held, whole] = map(int, out.split("held ")[1].split()[::2])
        [read] = [int(line.split(": ")[1].split()[0]) for line in err.splitlines() if "bytes read" in line]
        assert held < 0.6 * whole
        assert read == header + held


def test_any_part_of_a_tensor_is_that_of_the_file(store, files, tiny_files, monkeypatch):
    from jaxpref.models.hf import ranges

    opened = ranges.RangedFile(as_path(f"{files.model}/model.safetensors"))
    whole, remote, rng = load_file(tiny_files.model / "model.safetensors"), opened.slices(), np.random.default_rng(0)
    assert whole.keys() == remote.keys()
    for gap in (0, 64, ranges.GAP):
        monkeypatch.setattr(ranges, "GAP", gap)
        for name, tensor in whole.items():
            ends = [sorted(rng.integers(0, size + 1, 2).tolist()) for size in tensor.shape]
            index = tuple(slice(*pair) for pair in ends)
            np.testing.assert_array_equal(remote[name][index], tensor[index])
    damaged = as_path(f"{store}/damaged.safetensors")
    damaged.write_bytes(as_path(f"{files.model}/model.safetensors").read_bytes()[:-1])
    with pytest.raises(InputError, match="a complete safetensors file"):
        ranges.RangedFile(damaged)


# ---- copies on this host


def test_copies_are_made_once_and_the_oldest_goes(store, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(local_copies.DIRECTORY, str(tmp_path))
    monkeypatch.setenv(local_copies.LIMIT, "0.000003")  # 3,000 bytes
    paths = [as_path(f"{store}/copies/{name}") for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode() * 1200)
    with ThreadPoolExecutor(4) as pool:  # as processes of one host: one downloads, the others wait
        at_once = list(pool.map(local_copies.local_file, paths[:1] * 4))
    assert len({copy.stat().st_ino for copy in at_once}) == 1
    copies = [local_copies.local_file(path) for path in paths[:2]]
    assert [copy.read_bytes() for copy in copies] == [b"a" * 1200, b"b" * 1200]
    inode = copies[0].stat().st_ino
    assert local_copies.local_file(paths[0]).stat().st_ino == inode, "not downloaded again, and used last now"
    with caplog.at_level("INFO", "jaxpref"):
        local_copies.local_file(paths[2])
    assert copies[0].exists() and not copies[1].exists()
    assert "removed the copy of b" in caplog.text and local_copies.LIMIT in caplog.text
    paths[0].write_bytes(b"new" * 100)
    assert local_copies.local_file(paths[0]).read_bytes() == b"new" * 100, "another version is another copy"


def test_every_form_of_data_is_read_as_from_a_local_disk(store, tmp_path):
    import datasets

    rows = [{"prompt": f"n {i}", "chosen": "n 1", "rejected": "n 2"} for i in range(4)]
    for name in ("train.jsonl", "train.json"):
        tiny.write_rows(tmp_path / name, rows)
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(tmp_path / "train.parquet")
    table.save_to_disk(tmp_path / "saved")
    (tmp_path / "folder").mkdir()
    tiny.write_rows(tmp_path / "folder/train.jsonl", rows)
    tiny.write_rows(tmp_path / "folder/test.jsonl", rows[:1])
    bucket_servers.upload(tmp_path, as_path(f"{store}/data"))
    for name, split in (
        ("train.jsonl", None),
        ("train.json", None),
        ("train.jsonl.gz", None),
        ("train.parquet", None),
        ("saved", None),
        ("folder", "test"),
        ("folder", "train"),
    ):
        here = list(read_rows(f"{tmp_path}/{name}", split))
        there = list(read_rows(f"{store}/data/{name}", split))
        assert there == [(row, where.replace(str(tmp_path), f"{store}/data")) for row, where in here]
        assert len(there) == (1 if split == "test" else 4)
    with pytest.raises(InputError, match=r"did you mean train\.jsonl"):
        list(read_rows(f"{store}/data/trian.jsonl"))


def test_scores_and_the_cache_of_reference_log_probs_lie_there(store, tmp_path, call, files, tiny_files):
    rows = [{"prompt": f"n {i}", "chosen": "n 1 2", "rejected": "n 2"} for i in range(3)]
    local = tiny.write_rows(tmp_path / "pairs.jsonl", rows)
    bucket_servers.upload(local, as_path(f"{store}/pairs.jsonl"))
    for path, out in ((f"{store}/pairs.jsonl", f"{store}/scored.jsonl"), (local, tmp_path / "scored.jsonl")):
        code, _, error = call("score", path, "--reward", "brief=rule:words", "--out", out, "--cache", "none")
        assert code == 0, error
    assert as_path(f"{store}/scored.jsonl").read_text() == (tmp_path / "scored.jsonl").read_text()
    code, _, error = call("score", local, "--reward", "brief=rule:words", "--out", tmp_path / "b", "--cache", store)
    assert code == 2
    file, group = as_path(f"{store}/cache/key.npz"), tiny.groups_of(tiny.long_config(tmp_path / "run", tiny_files))[0]
    computed = []

    def compute(missing):
        computed.append(len(missing))
        return {g.row_id: np.arange(len(g.completion_ids), dtype=np.float32) for g in missing}

    first, again = (cached_logps([group], lambda: file, compute) for _ in range(2))
    assert computed == [1] and first[0] == again[0] and file.is_file()


# ---- the other commands, with all that they read and write in the bucket


def lines(path) -> list[dict]:
    return [json.loads(line) for line in as_path(str(path)).read_text().splitlines()]


def succeed(call, *commands) -> str:
    """What the last of them prints."""
    for command in commands:
        code, printed, error = call(*command)
        assert code == 0, f"{command}: {error}"
    return printed


def test_adapters_and_merges_lie_there(store, files, call, tmp_path):
    """An adapter is trained, exported, trained on, evaluated and merged."""

    def config(name, **changes):
        train = {"max_steps": 2, "save_every": 2}
        written = tiny.config(f"{store}/{name}", *vars(files).values(), train=train, **changes)
        return tiny.write_config(written, tmp_path / f"{name}.yaml")

    succeed(
        call,
        ("train", config("lora", adapter={"rank": 2, "alpha": 8.0})),
        ("export", f"{store}/lora", "--adapter", "--to", f"{store}/peft"),
        ("train", config("more", adapter={"path": f"{store}/peft"})),
        ("eval", f"{store}/more", "--out", f"{store}/more.json", "--resamples", 100),
        ("export", f"{store}/lora", "--adapter", "--to", tmp_path / "peft"),
    )
    assert lines(f"{store}/more.jsonl")
    for how, other in (("weights", files.model), ("deltas", f"{store}/peft"), ("factors", f"{store}/more")):
        for to in (f"{store}/soup-{how}", tmp_path / how):
            succeed(call, ("merge", f"{store}/lora:0.5", f"{other}:0.5", "--how", how, "--to", to))
        written = sorted(path.name for path in (tmp_path / how).iterdir() if path.suffix in (".safetensors", ".json"))
        assert written
        for name in written:
            there, here = as_path(f"{store}/soup-{how}/{name}"), tmp_path / how / name
            assert there.read_bytes() == here.read_bytes(), name


def test_gguf_files_are_read_there(store, call, tmp_path):
    write_gguf(tmp_path / "model.gguf")
    bucket_servers.upload(tmp_path / "model.gguf", as_path(f"{store}/model.gguf"))
    tiny.write_rows(tmp_path / "prompts.jsonl", [{"prompt": "the 1"}, {"prompt": "the 2 2"}])
    here, there = (
        succeed(call, ("generate", model, "--prompts", tmp_path / "prompts.jsonl", "--max-new-tokens", 6))
        for model in (tmp_path / "model.gguf", f"{store}/model.gguf")
    )
    assert here == there and len(here.splitlines()) == 2


def test_scores_and_conditions_lie_there(store, call, tmp_path):
    rows = [{"prompt": f"n {i}", "chosen": "n n" + " n" * i, "rejected": "n"} for i in range(6)]
    pairs = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    bucket_servers.upload(pairs, as_path(f"{store}/rows.jsonl"))
    for folder in (str(tmp_path), store):
        scored = f"{folder}/scored-rows.jsonl"
        succeed(
            call,
            ("score", f"{folder}/rows.jsonl", "--reward", "brief=rule:words", "--out", scored, "--cache", "none"),
            ("condition", scored, "--as", "ric", "--scores", "brief", "--out", f"{folder}/ric.jsonl"),
        )
    for name in ("scored-rows.jsonl", "ric.jsonl", "ric.statistics.json"):
        assert as_path(f"{store}/{name}").read_text() == (tmp_path / name).read_text()


def test_a_front_lies_there(store, files, call, tmp_path):
    """Trained, answered, measured and shown; a second call finds all of it."""
    (tmp_path / "judge.py").write_text("def long(prompt, answer):\n    return float(len(answer))\n")
    raw = tiny.settings(f"{store}/front", *vars(files).values(), adapter={"rank": 2, "alpha": 8.0})
    raw["train"] |= {"max_steps": 2, "save_every": 2}
    raw["pareto"] = {
        "objectives": [
            {"name": "likes", "train": [files.train], "eval": [files.held_out]},
            {"name": "long", "reward": f"{tmp_path / 'judge.py'}:long", "temperature": 4.0},
        ],
        "weights": [[0.2, 0.8]],
        "methods": ["dpo", "modpo", "mod", "soup_deltas"],
        "answers": {"count": 2, "max_new_tokens": 4, "samples": 2},
    }
    (tmp_path / "front.yaml").write_text(json.dumps(raw))  # JSON is YAML
    succeed(call, ("pareto", tmp_path / "front.yaml"))
    found = json.loads(as_path(f"{store}/front/front.json").read_text())
    names = [point["name"] for point in found["front"]["points"]]
    assert names == ["reference", "dpo_likes", "dpo_long", "modpo_0.2_0.8", "mod_0.2_0.8", "soup_deltas_0.2_0.8"]
    succeed(call, ("pareto", tmp_path / "front.yaml"), ("pareto", f"{store}/front"))
    assert json.loads(as_path(f"{store}/front/front.json").read_text()) == found
