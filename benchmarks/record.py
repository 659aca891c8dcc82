"""Records of benchmarks: one JSON line for every case, all of one form, which report.py reads.

Standard library only: the benchmarks' parent processes stay small.
"""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
"""Records that are kept, in *.jsonl; report.md is made from them."""

UNITS_OF_PROCESSORS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Flags of a processor that decide how fast it multiplies."""


@dataclass(frozen=True)
class Record:
    """One case of a benchmark, measured once or several times."""

    benchmark: str
    """Name of the script, without its ending."""
    case: str
    measured: Mapping[str, list[float]]
    """What was measured, with its unit -> all measurements, in the order in which they were made.

    Where only a median and its spread were kept: lowest, median, highest.
    """
    command: str
    machine: Mapping[str, Any]
    """As `machine` returns it."""
    versions: Mapping[str, str]
    date: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    predicted: str = ""
    """Of a change: what it was expected to gain, written down before it was made."""
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the benchmark keeps besides, for itself."""


def add_argument(parser: argparse.ArgumentParser) -> None:
    """--record FILE, for the benchmarks that have one table."""
    parser.add_argument(
        "--record",
        type=Path,
        default=Path("runs/benchmarks.jsonl"),
        metavar="FILE",
        help="append the records there (default runs/benchmarks.jsonl; a file in "
        "benchmarks/results/ to have them in the report)",
    )


def record(benchmark: str, case: str, measured: Mapping[str, Any], **other: Any) -> Record:
    """A record of this command, on this machine, today.

    Args:
        measured: single numbers may stand for lists of one.
        other: further fields of `Record`.
    """
    values = {
        name: [float(x) for x in (value if isinstance(value, list | tuple) else [value])]
        for name, value in measured.items()
        if value is not None
    }
    fields = {
        "command": command(),
        "machine": machine(),
        "versions": {},
        "date": date.today().isoformat(),
    }
    return Record(benchmark, case, values, **fields | other)


def append(path: Path, records: Iterable[Record]) -> None:
    """Adds records to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for item in records:
            file.write(json.dumps(asdict(item)) + "\n")


def read(path: Path) -> list[Record]:
    """The records of a file; a line of another form raises TypeError or ValueError."""
    return [Record(**json.loads(line)) for line in path.read_text().splitlines() if line.strip()]


def command() -> str:
    """The command line of this process, without --record and the folders of its files."""
    script, *arguments = sys.argv
    if "--record" in arguments:
        at = arguments.index("--record")
        del arguments[at : at + 2]
    shown = [Path(x).name if os.sep in x and Path(x).exists() else x for x in arguments]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *shown])


def machine() -> dict[str, Any]:
    """Processor, its units for products, cores that may be used, GiB of memory, load."""
    lines = _lines("/proc/cpuinfo")
    of = lambda name: next((x.split(":")[1].strip() for x in lines if x.startswith(name)), "")
    flags = of("flags").split()
    memory = next((x.split()[1] for x in _lines("/proc/meminfo") if x.startswith("MemTotal")), "0")
    return {
        "processor": of("model name") or platform.machine(),
        "units": [unit for unit in UNITS_OF_PROCESSORS if unit in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory) / 2**20),
        "load": round(os.getloadavg()[0], 1),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []
