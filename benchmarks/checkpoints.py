"""What a checkpoint costs on a disk and in a bucket.

    python benchmarks/checkpoints.py /tmp/checkpoints              # a disk alone
    python benchmarks/checkpoints.py /tmp/checkpoints s3           # and moto's S3 on this machine
    python benchmarks/checkpoints.py /tmp/checkpoints gs://BUCKET/checkpoints

Saves the same state (parameters and AdamW's two moments, float32) several times in turn to each, as
a run does.  `save` is what training waits for, `whole` is until the checkpoint counts; the median
of all but the first, with the lowest and the highest.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from statistics import median

import jax
import jax.numpy as jnp
import optax
from record import add_argument, append, record

from jaxpref.runs.checkpoint import Checkpoints
from jaxpref.step.state import TrainState
from jaxpref.storage.paths import as_path

PORT = 5559


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directories", nargs="+")
    parser.add_argument("--megabytes", type=int, default=300, help="of the state (default 300)")
    parser.add_argument("--repeats", type=int, default=6, help="checkpoints of each (default 6)")
    add_argument(parser)
    options = parser.parse_args()
    state = state_of(options.megabytes)
    with contextlib.ExitStack() as stack:
        places = {}
        for name in options.directories:
            place = stack.enter_context(moto()) if name == "s3" else name
            path = as_path(place) / f"benchmark-{os.getpid()}"
            places[name] = stack.enter_context(Checkpoints(path, keep=1))
        times = {name: [] for name in places}
        for step in range(1, options.repeats + 1):
            for name, checkpoints in places.items():
                times[name].append(saved(checkpoints, step, state))
    print(f"{options.megabytes} MB, {options.repeats - 1} checkpoints each, load {load()}\n")
    print("| | save, s | whole, s |\n|---|---|---|")
    for name, pairs in times.items():
        save, whole = zip(*pairs[1:], strict=True)
        print(f"| {name} | {shown(save)} | {shown(whole)} |")
        measured = {"training waits, s": save, "until it counts, s": whole}
        settings = {"megabytes": options.megabytes}
        case = name.split("://")[0] if name == "s3" or "://" in name else "local disk"
        append(options.record, [record("checkpoints", case, measured, settings=settings)])


def state_of(megabytes: int) -> TrainState:
    rows = max(1, megabytes * 2**20 // (3 * 4 * 1024))
    params = {"layers": {"w": jax.random.normal(jax.random.key(0), (rows, 1024))}}
    optimizer = optax.adamw(1e-3)
    return TrainState(params, optimizer.init(params), jnp.int32(0), jax.random.key(1), {}, None)


def saved(checkpoints: Checkpoints, step: int, state: TrainState) -> tuple[float, float]:
    """Seconds that training waits, and until the checkpoint counts."""
    began = time.perf_counter()
    checkpoints.save(step, state, {}, {})
    waited = time.perf_counter() - began
    checkpoints.wait()
    return waited, time.perf_counter() - began


@contextlib.contextmanager
def moto():
    """moto's S3 on this machine -> a bucket."""
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(PORT)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                made = urllib.request.Request(f"http://127.0.0.1:{PORT}/store", method="PUT")
                urllib.request.urlopen(made).close()
                break
            except OSError:
                time.sleep(0.2)
        yield "s3://store"
    finally:
        server.kill()
        server.wait()


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def shown(seconds) -> str:
    return f"{median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


if __name__ == "__main__":
    main()
