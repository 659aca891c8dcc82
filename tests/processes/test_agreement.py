"""Hosts with other programs or devices are refused when they join, with both values."""

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
