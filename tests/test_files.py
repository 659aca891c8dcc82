"""What is written whole, and what may be written over."""

import subprocess
import sys

import pytest

from jaxpref.conditioning.command import _no_statistics
from jaxpref.demo import synthetic
from jaxpref.errors import InputError
from jaxpref.files import check_destination, whole_directory, whole_file
from jaxpref.runs.directory import check_run_directory


def test_a_source_is_refused_under_every_name(tmp_path, monkeypatch):
    source = tmp_path / "models" / "base"
    source.mkdir(parents=True)
    (tmp_path / "link").symlink_to(source)
    monkeypatch.chdir(tmp_path / "models")
    monkeypatch.setenv("HOME", str(tmp_path))
    names = [source, "base", "../models/base", "~/models/base", tmp_path / "link", tmp_path / "models", "."]
    for name in names:
        with pytest.raises(InputError, match="would replace"):
            check_destination(name, "a place", sources=[source], foreign=lambda path: [])
    for name in (source / "inside", tmp_path / "models2", "bas"):
        check_destination(name, "a place", sources=[source, "pkg://some/model", "org/name"])


def test_what_is_foreign_is_named_and_only_what_exists_is_asked(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="a new file\n.*thesis.tex exists\n"):
        check_destination(tmp_path / "thesis.tex", "a new file")
    with pytest.raises(InputError, match="holds thesis.tex"):
        check_destination(tmp_path, "a place", foreign=lambda path: [file.name for file in path.iterdir()])
    new = check_destination(tmp_path / "new", "a place", foreign=lambda path: 1 / 0)
    assert new == tmp_path / "new" and not new.exists()


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_behind_a_symbolic_link_the_target_is_written(kind, tmp_path):
    target, link = tmp_path / "disk" / "target", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    for text in ("first", "second"):
        if kind == "file":
            with whole_file(link) as partial:
                partial.write_text(text)
        else:
            with whole_directory(link) as partial:
                (partial / "inside").write_text(text)
        assert (target if kind == "file" else target / "inside").read_text() == text
    assert link.is_symlink() and [path.name for path in target.parent.iterdir()] == ["target"]


def test_generated_rows_replace_only_themselves(tmp_path):
    for _ in range(2):
        synthetic.write(tmp_path, 60, 0)
    with pytest.raises(InputError, match="train.jsonl exists"):
        synthetic.write(tmp_path, 60, 1)
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "test.jsonl").write_text("mine")
    with pytest.raises(InputError, match="test.jsonl exists"):
        synthetic.write(tmp_path, 60, 0)
    assert not (tmp_path / "train.jsonl").exists()


def test_statistics_are_told_from_other_json(tmp_path):
    file = tmp_path / "x.statistics.json"
    for text in ("{", "[1]", '{"a": 1}', '{"a": {"b": 1}}'):
        file.write_text(text)
        assert _no_statistics(file) == [file.name]
    file.write_text('{"help": {"mean": 0, "std": 1, "low": -1, "high": 1}}')
    assert _no_statistics(file) == []


@pytest.mark.parametrize("file", ["config.yaml", "data.txt", "metrics.jsonl"])
def test_a_run_writes_over_no_file_of_others(file, tmp_path):
    check_run_directory(tmp_path / "new")
    (tmp_path / "log.txt").touch()  # as nohup writes it
    check_run_directory(tmp_path)
    (tmp_path / file).write_text("mine")
    with pytest.raises(InputError, match=f"{file} exists"):
        check_run_directory(tmp_path)


def test_two_that_write_one_file_at_once_leave_one_whole_file(tmp_path, monkeypatch):
    path = tmp_path / "cache.npz"
    with whole_file(path) as slow:
        slow.write_text("half")
        monkeypatch.setattr("os.getpid", lambda: -1)  # another process
        with whole_file(path) as fast:
            fast.write_text("of the other")
        assert path.read_text() == "of the other"
        slow.write_text("of the last one")
    assert path.read_text() == "of the last one" and list(tmp_path.iterdir()) == [path]


def test_a_directory_survives_a_kill_between_the_two_renamings(tmp_path):
    """Killed there, its name is free and the old one lies beside it: the next write, failed or not, brings it back."""
    path = tmp_path / "model"
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "weights").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_directory(path):
        raise KeyboardInterrupt
    assert (path / "weights").read_text() == "old" and list(tmp_path.iterdir()) == [path]


# ---- a disk that takes no more

WRITES = """
import resource, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from jaxpref.files import disk_problem, whole_directory, whole_file
to = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
def text():
    with whole_file(to / "text") as partial:
        partial.write_text("x" * 1000)
def tensors():
    with whole_directory(to / "model") as partial:
        save_file({"x": np.zeros(1000)}, partial / "model.safetensors")
def wrong():
    with whole_file(to / "wrong") as partial:
        raise ValueError("a value of 28")
for write in (text, tensors, wrong):
    try:
        write()
    except Exception as error:
        print(disk_problem(error))
print([path.name for path in to.iterdir()])
"""


def test_what_a_full_disk_kept_from_being_written_is_named_whoever_wrote_it(tmp_path):
    done = subprocess.run([sys.executable, "-c", WRITES, tmp_path], capture_output=True, text=True, check=True)
    text, tensors, wrong, left = done.stdout.splitlines()
    assert text == f"{tmp_path}/text: File too large" and tensors == f"{tmp_path}/model: File too large"
    assert wrong == "None" and left == "[]"
