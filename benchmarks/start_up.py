"""How long a run needs until its step is compiled: reading, tokenising, planning, loading.

    python benchmarks/start_up.py hh-rlhf/*.train.jsonl.gz --pairs 60000

Repeats the rows, each with its number in the first words of its dialogs, so that no two are equal,
and starts a run of them in new processes.  A start ends where the loop would compile its step.
`rows` is the part from the first row to the last token id; the memory is the largest that the
process held, its workers not counted.
"""

import argparse
import gzip
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import add_argument, append, record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="+", type=Path, help="pairs, .jsonl or .jsonl.gz")
    parser.add_argument("--pairs", type=int, nargs="+", default=[60_000])
    parser.add_argument("--starts", type=int, default=2, help="the first is cold (default 2)")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    add_argument(parser)
    options = parser.parse_args()
    if options.child:
        return child(options.rows[0], options.child)
    print("| pairs | start | until the compile, s | rows, s | memory, MiB |\n|---|---|---|---|---|")
    for pairs in options.pairs:
        with tempfile.TemporaryDirectory() as scratch:
            write_pairs(options.rows, pairs, Path(scratch) / "train.jsonl")
            for start in range(options.starts):
                cells = started(Path(scratch))
                print(f"| {pairs:,} | {start + 1} | {cells} |", flush=True)
                names = ("until the compile, s", "rows, s", "memory, MiB")
                measured = dict(zip(names, map(float, cells.split(" | ")), strict=True))
                case = f"{pairs:,} pairs, start {start + 1}"
                append(options.record, [record("start_up", case, measured)])


def write_pairs(sources: list[Path], count: int, out: Path) -> None:
    rows = []
    for source in sources:
        opened = gzip.open if source.suffix == ".gz" else open
        with opened(source, "rt", encoding="utf-8") as file:
            rows += map(json.loads, file)
    with out.open("w", encoding="utf-8") as file:
        for number, row in enumerate(itertools.islice(itertools.cycle(rows), count)):
            human = f"\n\nHuman: ({number}) "
            sides = {key: row[key].replace("\n\nHuman: ", human, 1) for key in PAIR}
            file.write(json.dumps(sides) + "\n")


PAIR = ("chosen", "rejected")


def started(scratch: Path) -> str:
    """The last three cells of the table's row."""
    command = [sys.executable, __file__, str(scratch), "--child", str(time.time())]
    caches = os.environ | {"XDG_CACHE_HOME": str(scratch / "caches")}
    done = subprocess.run(command, env=caches, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def child(scratch: Path, began: float) -> None:
    from jaxpref.data import dataset
    from jaxpref.runs import feed
    from jaxpref.settings import make_config
    from jaxpref.training.prepare import prepare

    seconds = []

    def timed(*args, **kwargs):
        start = time.time()
        result = dataset.load_groups(*args, **kwargs)
        seconds.append(time.time() - start)
        return result

    feed.load_groups = timed
    data = {"train": [str(scratch / "train.jsonl")], "on_bad_row": "drop"}
    config = make_config(
        {"out": str(scratch / "run"), "data": data, "train": {"batch_size": 64, "resume": "never"}}
    )
    prepare(config)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{time.time() - began:.1f} | {sum(seconds):.1f} | {memory:.0f}")


if __name__ == "__main__":
    main()
