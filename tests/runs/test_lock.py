"""The lock on a directory: held by one process, refused to others, taken over from one that is gone."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from jaxpref.errors import InputError
from jaxpref.runs import lock
from jaxpref.runs.lock import LOCK_FILE, sole_writer

HOLD = """
import sys, time
from jaxpref.runs.lock import sole_writer
with sole_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `run`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_with_the_first_ones_name(holder, tmp_path):
    with pytest.raises(InputError, match=f"run is in use by process {holder.pid} on {socket.gethostname()}"):
        with sole_writer(tmp_path / "run"):
            pass
    with sole_writer(tmp_path / "other"):
        pass


def test_the_lock_of_a_killed_process_is_taken_over_and_that_is_said(holder, tmp_path, caplog):
    holder.kill()
    holder.wait()
    assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == holder.pid
    with caplog.at_level(logging.WARNING), sole_writer(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert f"taken over from process {holder.pid} on {socket.gethostname()}, which is gone" in caplog.text


def test_it_is_given_up_whatever_happens_and_one_process_holds_it_once(tmp_path, caplog):
    (tmp_path / "kept").mkdir()
    for name, stays in (("kept", True), ("new/run", False)):
        with pytest.raises(ZeroDivisionError), sole_writer(tmp_path / name):
            with pytest.raises(InputError, match=f"process {os.getpid()} on"), sole_writer(tmp_path / name):
                pass
            assert (tmp_path / name / LOCK_FILE).is_file()
            raise ZeroDivisionError
        assert (tmp_path / name).exists() == stays and not (tmp_path / name / LOCK_FILE).exists()
    assert not caplog.records


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A lock file that names a process of another host, whose locks the kernel here knows nothing of."""
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(lock, "SILENCE", 1.0)
    (tmp_path / LOCK_FILE).write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    return tmp_path / LOCK_FILE


def test_one_of_another_host_that_shows_life_is_respected(foreign):
    stop = threading.Event()

    def live():
        while not stop.wait(0.05):
            os.utime(foreign)

    threading.Thread(target=live).start()
    try:
        with pytest.raises(InputError, match="in use by process 7 on elsewhere"), sole_writer(foreign.parent):
            pass
    finally:
        stop.set()
    assert json.loads(foreign.read_text())["host"] == "elsewhere"


def test_one_of_another_host_that_is_silent_is_taken_over(foreign, caplog):
    began = time.monotonic()
    with caplog.at_level(logging.WARNING), sole_writer(foreign.parent):
        assert time.monotonic() - began >= lock.SILENCE
        assert json.loads(foreign.read_text())["pid"] == os.getpid()
        first = foreign.stat().st_mtime_ns
        time.sleep(0.5)
        assert foreign.stat().st_mtime_ns > first  # ours shows life too
    assert "waiting whether process 7 on elsewhere shows life" in caplog.text
    assert "taken over from process 7 on elsewhere" in caplog.text


def test_without_locks_of_the_kernel_the_process_itself_is_looked_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "fcntl", None)
    file = tmp_path / LOCK_FILE
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        file.write_text(json.dumps({"host": socket.gethostname(), "pid": process.pid}))
        with pytest.raises(InputError, match=f"process {process.pid} on"), sole_writer(tmp_path):
            pass
        process.communicate(b"\n")
    with sole_writer(tmp_path):
        assert json.loads(file.read_text())["pid"] == os.getpid()


def test_a_torn_lock_file_names_nobody(tmp_path):
    (tmp_path / LOCK_FILE).write_text('{"host": "els')
    with sole_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_to_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run: .*/file is a file(.|\n)*choose another `out`"):
        with sole_writer(tmp_path / "file" / "run"):
            pass
