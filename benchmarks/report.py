"""Makes benchmarks/report.md from the records in benchmarks/results/, and README's rows of figures.

    python benchmarks/report.py
    python benchmarks/report.py --results runs --out runs/report.md     # of one's own records

Tests hold both to the records.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from record import RESULTS, Record, read

ROOT = RESULTS.parents[1]
README = ROOT / "README.md"
INTRO = """# Report

Made by `python benchmarks/report.py` from the records in [results/](results).  How each benchmark
measures is in [README.md](README.md).  Cells are medians, with the lowest and the highest where
there are several measurements, and their number.
"""
SIDES = ("jaxpref", "trl", "tunix", "easydel")
"""Cases of peers.py in the order of README's table, which has one column for each."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--out", type=Path, default=RESULTS.parent / "report.md")
    args = parser.parse_args()
    records = all_records(args.results)
    args.out.write_text(page(records))
    if args.results == RESULTS:
        README.write_text(with_figures(README.read_text(), records))


def all_records(folder: Path) -> list[Record]:
    """The records of all files of a folder."""
    return [record for path in sorted(folder.glob("*.jsonl")) for record in read(path)]


# ---- the page


def page(records: list[Record]) -> str:
    """The whole of report.md."""
    levers = [record for record in records if record.predicted]
    others = [record for record in records if not record.predicted]
    parts = [INTRO]
    for name in sorted({record.benchmark for record in others}):
        parts.append(f"## {name}\n")
        runs: dict[tuple, list[Record]] = {}
        for record in others:
            if record.benchmark == name:
                runs.setdefault(_run_of(record), []).append(record)
        for run in runs.values():
            parts += _run(run)
    if levers:
        parts += ["## Levers\n", *_levers(levers)]
    return "\n".join(parts).rstrip() + "\n"


def _run_of(record: Record) -> tuple:
    machine = {name: value for name, value in record.machine.items() if name != "load"}
    return record.date, record.command, repr(machine)


def _run(run: list[Record]) -> Iterator[str]:
    """What one command measured: where, with what, and a table for each kind of case."""
    yield f"    {run[0].command}\n"
    yield f"{run[0].date}; {'; '.join(x for x in (_machine(run), _versions(run)) if x)}.\n"
    kinds: dict[tuple[str, ...], list[Record]] = {}
    for record in run:
        kinds.setdefault(tuple(record.measured), []).append(record)
    for quantities, records in kinds.items():
        if quantities:
            yield from _table(quantities, records)
            yield ""
    for note in dict.fromkeys(record.note for record in run if record.note):
        yield f"{note}\n"


def _table(quantities: tuple[str, ...], records: list[Record]) -> Iterator[str]:
    yield f"| | {' | '.join(quantities)} | |"
    yield "|---|" + "---|" * (len(quantities) + 1)
    for record in records:
        cells = [shown(record.measured[quantity]) for quantity in quantities]
        yield f"| {record.case} | {' | '.join(cells)} | {_times(record)} |"


def _machine(run: list[Record]) -> str:
    machine = run[0].machine
    loads = [record.machine["load"] for record in run if "load" in record.machine]
    parts = [machine.get("accelerator") or machine.get("processor", "")]
    if machine.get("units"):
        parts[0] += f" ({', '.join(machine['units'])})"
    if "cores" in machine:
        parts.append(f"{machine['cores']} cores, {machine['memory_gib']} GiB")
    if loads:
        low, high = min(loads), max(loads)
        parts.append(f"load {low:g}" if low == high else f"load {low:g} to {high:g}")
    return ", ".join(parts)


def _versions(run: list[Record]) -> str:
    versions = {name: version for record in run for name, version in record.versions.items()}
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _times(record: Record) -> str:
    count = max(map(len, record.measured.values()))
    return f"n = {record.settings.get('repeats', count)}" if count > 1 else ""


def shown(values: list[float]) -> str:
    """`3.1 (2.9-3.4)`."""
    middle = number(median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({number(min(values))}-{number(max(values))})"


def number(x: float) -> str:
    """Three digits, or all of them before the point."""
    if x == int(x) and abs(x) < 1e6:
        return f"{x:.0f}"
    if abs(x) >= 100:
        return f"{x:.0f}"
    return f"{x:.3g}"


def _levers(levers: list[Record]) -> Iterator[str]:
    yield "| change | quantity | predicted | before | after | what it did | |"
    yield "|---|---|---|---|---|---|---|"
    notes = []
    for lever in levers:
        for name in lever.measured:
            if not name.startswith("before, "):
                continue
            quantity = name.removeprefix("before, ")
            before, after = lever.measured[name], lever.measured[f"after, {quantity}"]
            ratio = median(before) / median(after)
            did = f"{ratio:.2f} times less" if ratio >= 1 else f"{1 / ratio:.2f} times more"
            yield (
                f"| {lever.case} | {quantity} | {lever.predicted} | {shown(before)} "
                f"| {shown(after)} | {did} | {_times(lever)} |"
            )
        where = f"{lever.date}, {_machine([lever])}.  {_versions([lever])}"
        notes.append(f"- {lever.case}: `{lever.command}`; {where}  {lever.note}".rstrip())
    yield ""
    yield from notes


# ---- README


def with_figures(readme: str, records: list[Record]) -> str:
    """README with its rows of figures as the records have them."""
    rows = "".join(f"{row}\n" for row in figures(records))
    changed, count = re.subn(r"(^\| DPO, 2 CPU cores.*\n)+", rows, readme, flags=re.MULTILINE)
    assert count == 1
    return changed


def figures(records: list[Record]) -> Iterator[str]:
    """README's rows: tokens/s and memory of each side, in the last run of so many pairs a step."""
    runs: dict[int, dict[str, Record]] = {}
    for record in records:
        if record.benchmark == "peers":
            runs.setdefault(record.settings["batch"], {})[record.case] = record
    for batch in sorted(runs, reverse=True):
        cells = [f"DPO, 2 CPU cores, {batch} {'pair' if batch == 1 else 'pairs'} a step"]
        for side in SIDES:
            if side not in runs[batch]:
                cells.append("not measured")
                continue
            measured = runs[batch][side].measured
            speed, peak = (median(measured[quantity]) for quantity in ("tokens/s", "peak, GiB"))
            cells.append(f"{number(speed)} tokens/s, {number(peak)} GiB")
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
