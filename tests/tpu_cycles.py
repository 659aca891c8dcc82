"""Estimated cycles of a program compiled for a TPU: of attention's loops, of its Pallas kernels, and of all else.

The TPU compiler writes `estimated_cycles` beside every fusion.  They count arithmetic and memory; what travels between
chips has none.  A kernel has none either, but a number of operations and bytes: the chip's rates bound it from below.
"""

import re
from collections.abc import Iterator

RATES = {"v5e": (197e12, 819e9, 1.5e9), "v5p": (459e12, 2765e9, 1.75e9), "v6e": (918e12, 1640e9, 1.75e9)}
"""bfloat16 FLOP/s, bytes/s of memory and cycles/s of a chip (Google's data sheets; the cycles are peak / MXU size)."""

UNKNOWN = 1e15
"""What the compiler writes where it cannot estimate is above this."""


def cycles(program: str, chip: str, trips: int = 5, key_blocks: int = 5) -> dict[str, float]:
    """{"attention": cycles, "kernels": cycles, "other": cycles} of one run of the program.

    Args:
        program: text of the compiled program.
        chip: of RATES.
        trips: of loops whose count is decided by data, as chunks of loss tokens.
        key_blocks: the same inside attention: blocks of keys that a block of queries sees.
    """
    computations, entry = _computations(program)
    total = {"attention": 0.0, "kernels": 0.0, "other": 0.0}

    def add(name: str, times: float, where: str) -> None:
        for line in computations[name]:
            if (estimate := re.search(r'"estimated_cycles":"(\d+)"', line)) and int(estimate[1]) < UNKNOWN:
                total[where] += times * int(estimate[1])
            if 'custom_call_target="tpu_custom_call"' in line:
                total["kernels"] += times * _bound(line, chip)
            if loop := re.search(r" while\(.*condition=%([\w.-]+), body=%([\w.-]+)", line):
                inside = "attention" if re.search(r'op_name="[^"]*layers/attention/', line) else where
                by_data = key_blocks if inside == "attention" else trips
                add(loop[2], times * (_trips(computations, loop[1]) or by_data), inside)
            for called in _called(line):
                add(called, times, where)

    add(entry, 1.0, "other")
    return total


def _bound(kernel: str, chip: str) -> float:
    """Cycles in which no chip of this kind can do a kernel's operations, or move its bytes, any faster."""
    flops, moved = (int(re.search(rf'"{what}":"(\d+)"', kernel)[1]) for what in ("flops", "bytes_accessed"))
    flops_rate, memory_rate, clock = RATES[chip]
    return clock * max(flops / flops_rate, moved / memory_rate)


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """Name -> lines of every computation, and the name of the first to run."""
    computations: dict[str, list[str]] = {}
    name = entry = ""
    for line in program.splitlines():
        if opening := re.match(r"(ENTRY )?%([\w.-]+) .*\{$", line):
            name = opening[2]
            entry = name if opening[1] else entry
            computations[name] = []
        elif name:
            computations[name].append(line)
    return computations, entry


def _trips(computations: dict[str, list[str]], condition: str) -> int | None:
    """Times a loop runs: the constant its condition compares with; None: decided by data."""
    lines = list(computations[condition])
    for called in re.findall(r"calls=%([\w.-]+)", "\n".join(lines)):
        lines += computations[called]
    constants = re.findall(r"constant\((\d+)\)", "\n".join(lines))
    return max(map(int, constants), default=None)


def _called(line: str) -> Iterator[str]:
    """Computations that run once where this line runs; those of fusions are estimated with it."""
    if branches := re.search(r"branch_computations=\{([^}]*)\}", line):
        yield from re.findall(r"%([\w.-]+)", branches[1])
    yield from re.findall(r" (?:call|async-start)\(.*?(?:to_apply|calls)=%([\w.-]+)", line)
