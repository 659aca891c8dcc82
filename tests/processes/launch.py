"""Commands in several processes on localhost, of four devices in all, started as a user would start them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import tiny
from test_meeting import free_port

STARTS = "$ jaxpref"
"""Stands before what process 0 prints of each command."""
# The first command joins the processes, the others run on in them.
SCRIPT = """
import json, sys
import jax
from jaxpref import cli

jax.config.update("jax_numpy_rank_promotion", "raise")
join, commands, number, starts = json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
for command in commands:
    print(starts, *command, file=sys.stderr, flush=True)
    if number == 0:
        print(starts, *command, flush=True)
    code = cli.main([*command, *join])
    if code:
        sys.exit(code)
    join = []
"""


def run_commands(
    commands: Sequence[Sequence[str | Path]], count: int, cache: Path, folder: Path | Sequence[Path], code: int = 0
) -> list[str]:
    """Runs commands one after another in `count` processes.

    Args:
        folder: in which they start; or one for each.
        code: with which they end.
    Returns: what each of them printed; where they fail, their errors.
    """
    env = os.environ | {
        "XLA_FLAGS": tiny.xla_flags(4 // count),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    where = ["--coordinator", f"localhost:{free_port()}", "--processes", str(count)] if count > 1 else []
    texts = json.dumps([[str(word) for word in command] for command in commands])
    folders = [folder] * count if isinstance(folder, Path) else folder
    workers = []
    for number in range(count):
        join = [*where, "--process-id", str(number)] if where else []
        arguments = [sys.executable, "-c", SCRIPT, json.dumps(join), texts, str(number), STARTS]
        workers.append(
            subprocess.Popen(
                arguments, env=env, cwd=folders[number], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
    try:
        said = [worker.communicate(timeout=1800) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    errors = [f"process {number}\n{out}\n{err}" for number, (out, err) in enumerate(said)]
    assert [worker.returncode for worker in workers] == [code] * count, "\n".join(errors)
    return [err if code else out for out, err in said]
