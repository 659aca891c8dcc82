"""The process that compiles for `jaxpref plan`."""

import os
import subprocess
import sys
import time

from jaxpref.plan.child import CompilerCrashed, _failure, _run

PARENT = """
import os, sys
from jaxpref.plan.child import _run
child = "import os, time; from jaxpref.plan.child import end_with_parent; end_with_parent();"
child += "print(os.getpid(), file=open({file!r}, 'w'), flush=True); time.sleep(60)"
_run([sys.executable, "-c", child], dict(os.environ))
"""


def test_a_child_ends_with_its_parent_however_that_ended(tmp_path):
    file = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(file=str(file))])
    pid = within(30, lambda: file.is_file() and file.read_text())
    parent.kill()
    parent.wait()
    within(10, lambda: ended(int(pid)))


def test_a_compiler_that_ends_its_process_is_told_from_one_that_refuses():
    child = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    failure = _failure(_run([sys.executable, "-c", child], dict(os.environ)))
    assert isinstance(failure, CompilerCrashed)
    assert "signal 11" in str(failure) and "train.micro_rows" in str(failure)
    failure = _failure(_run([sys.executable, "-c", "raise SystemExit('why')"], dict(os.environ)))
    assert not isinstance(failure, CompilerCrashed) and "why" in str(failure)


def ended(pid: int) -> bool:
    """Whether a process is gone, or waits only for its parent to look."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return done.stdout.strip()[:1] in ("", "Z")


def within(seconds, condition):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found
