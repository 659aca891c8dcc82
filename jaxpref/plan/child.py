"""Runs the compiler in a process of its own, with its environment, and keeps its answers."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxpref.config import Config
from jaxpref.errors import InputError, RunError
from jaxpref.files import whole_file
from jaxpref.models.source import open_checkpoint
from jaxpref.objectives import OBJECTIVES, TRANSFORMS, bind
from jaxpref.plan.chips import Slice
from jaxpref.plan.row_sizes import RowSizes
from jaxpref.runs.made_from import add_group, of_objective
from jaxpref.settings import save_config, to_dict
from jaxpref.storage.entries import cache_directory

CACHE = "auto"
"""jaxpref/plans among the user's caches."""


class CompilerCrashed(RunError):
    """The compiler did not refuse a program, it ended its process."""


def compile_in_child(
    configs: Sequence[Config],
    rows: RowSizes,
    target: Slice | None,
    cache: str | Path | None = CACHE,
) -> dict[str, Any]:
    """What `compiled.compile_and_read` says, from a child process or from the cache.

    Args:
        configs: as of `plan_step`.
        target: the slice; None: this machine's own devices.
        cache: directory of earlier answers; None: none.
    Errors: InputError where libtpu is missing, and what the child refuses; CompilerCrashed where a
        signal ends it, RunError where it dies otherwise.
    """
    if target is not None and importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "libtpu, which holds the TPU compiler",
            "no such package in this environment",
            'pip install "jaxpref[tpu]" (no TPU is needed)',
        )
    kept = None if cache is None else _kept(configs, rows, cache_directory(cache, "plans"), target)
    if kept is not None and kept.is_file():
        return json.loads(kept.read_text())
    said = _asked(configs, rows, target)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(kept) as partial:
            partial.write_text(json.dumps(said))
    return said


def _asked(configs: Sequence[Config], rows: RowSizes, target: Slice | None) -> dict[str, Any]:
    """What a child process says."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        order, answer = directory / "order.json", directory / "answer.json"
        files = [directory / f"{i}.yaml" for i in range(len(configs))]
        for config, file in zip(configs, files, strict=True):
            save_config(config, file)
        rows.save(directory / "rows.pickle")
        about = {
            "configs": [str(file) for file in files],
            "rows": str(directory / "rows.pickle"),
            "topology": None if target is None else target.name,
            "slices": 1 if target is None else target.slices,
        }
        order.write_text(json.dumps(about))
        command = [sys.executable, "-m", "jaxpref.plan.compiled", str(order), str(answer)]
        done = _run(command, _environment(target))
        if not answer.is_file():
            raise _failure(done)
        return json.loads(answer.read_text()) | {"rematerialised": _rematerialised(done.stderr)}


def _run(command: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Of a child that does not outlive this process (`end_with_parent`)."""
    read, held = os.pipe()
    try:
        return subprocess.run(
            command, env=environment, stdin=read, capture_output=True, text=True, check=False
        )
    finally:
        os.close(read)
        os.close(held)


def end_with_parent() -> None:
    """In the child: ends when the parent has, however that ended; compiling can take minutes.

    Standard input is a pipe that the parent holds open and never writes to.
    """

    def wait() -> None:
        os.read(0, 1)  # not by sys.stdin, whose lock a thread must not hold at the end
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _rematerialised(log: str) -> list[str]:
    """What the partitioner says it could only reshard by making it whole on every device."""
    return re.findall(r"Involuntary full rematerialization\.(.*)", log)


def _environment(target: Slice | None) -> dict[str, str]:
    """The child computes nothing: its JAX is the CPU's, and libtpu is told that there is no TPU."""
    if target is None:
        return dict(os.environ)
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5p-128",
        "TPU_WORKER_HOSTNAMES": "localhost",
        # Warnings of the partitioner are read from it (`_rematerialised`).
        "TPU_STDERR_LOG_LEVEL": "1",
        # Several plans may compile at once, beside a program that uses a TPU.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def _kept(configs: Sequence[Config], rows: RowSizes, cache: Path, target: Slice | None) -> Path:
    """The file of this answer: a digest of all that it depends on."""
    digest = hashlib.sha256(repr(target).encode())
    for config in configs:
        objective = of_objective(bind(config.objective, OBJECTIVES, TRANSFORMS))
        model = open_checkpoint(config.model.path, pictures=config.model.pictures).spec
        digest.update(f"{to_dict(config)} {objective} {model}".encode())
    for group in rows.groups:
        add_group(digest, group)
    digest.update(os.environ.get("LIBTPU_INIT_ARGS", "").encode())
    for package in ("jax", "jaxlib", "libtpu", "flax", "optax"):
        digest.update(_version(package).encode())
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(source.read_bytes())
    return cache / f"{digest.hexdigest()[:32]}.json"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _failure(done: subprocess.CompletedProcess) -> Exception:
    lines = done.stderr.strip().splitlines()
    if lines and lines[-1].startswith(_REFUSED):
        return InputError(*json.loads(lines[-1].removeprefix(_REFUSED)))
    if done.returncode < 0:
        return CompilerCrashed(
            f"the compiler's process was ended by signal {-done.returncode} "
            f"({signal.strsignal(-done.returncode)}; libtpu {_version('libtpu')}), and said no "
            "reason.  9 is what a machine without memory sends.  Any other is a fault of the "
            "compiler, at which a run with these settings ends too: half or twice as many rows "
            "(train.micro_rows) or another data.row_length may be compiled"
        )
    said = "\n".join(lines[-15:]) or "nothing"
    return RunError(f"the compiler's process ended with {done.returncode}; it said:\n{said}")


_REFUSED = "jaxpref.plan refused: "


def refusal(error: InputError) -> str:
    """An InputError as the line by which the child tells it to its parent."""
    return _REFUSED + json.dumps([error.expected, error.got, error.fix])
