"""A compiled program, read from its text: what runs how often, what it moves and sends.

XLA's own cost analysis counts the body of a loop once.  Here every instruction is counted as often
as it runs.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

UNKNOWN_CYCLES = 1e15
"""What the TPU compiler writes where it cannot estimate is above this."""

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "while",
    "conditional",
    "call",
    "call-start",
    "async-start",
    "async-done",
    "async-update",
    "copy-done",
    "optimization-barrier",
}
"""Instructions that move nothing themselves."""
_CALLS = ("call", "call-start", "async-start")
"""Instructions that run another computation once; `call-start` those of a TPU's sparse cores."""


class Array(NamedTuple):
    """An array in a shape."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool
    """It lies in the chip's fast memory (VMEM, SMEM), not in HBM."""

    @property
    def bytes(self) -> int:
        return _bits(self.dtype) * math.prod(self.dims) // 8


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def arrays(self) -> tuple[Array, ...]:
        """What it gives: one array, or those of a tuple."""
        return arrays_of(self.shape)

    @property
    def op_name(self) -> str:
        """Where in the traced Python program it comes from; empty where that is not known."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    def called(self, *roles: str) -> list[str]:
        """Computations that it names as `role=%computation` or `role={%a, %b}`."""
        names = []
        for role in roles:
            for group in re.findall(rf"\b{role}=(\{{[^}}]*\}}|%[\w.-]+)", self.attributes):
                names += re.findall(r"%([\w.-]+)", group)
        return names


Trips = Callable[[Instruction], float]
"""How often the body of a loop runs whose count is decided by data."""


@dataclass(frozen=True)
class Program:
    """A compiled program: instructions by computation, in the order of its text."""

    computations: dict[str, list[Instruction]]
    entry: str
    _by_name: dict[str, dict[str, Instruction]] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        by_name = {
            name: {line.name: line for line in lines} for name, lines in self.computations.items()
        }
        object.__setattr__(self, "_by_name", by_name)

    @classmethod
    def parse(cls, text: str) -> "Program":
        """From `compiled.as_text()`."""
        computations: dict[str, list[Instruction]] = {}
        name = entry = ""
        for line in text.splitlines():
            if opening := re.match(r"(ENTRY )?%([\w.-]+) .*\{$", line):
                name = opening[2]
                entry = name if opening[1] else entry
                computations[name] = []
            elif name and (instruction := _instruction(line)):
                computations[name].append(instruction)
        return cls(computations, entry)

    def operand(self, computation: str, name: str) -> Instruction | None:
        """The instruction of that name in a computation."""
        return self._by_name[computation].get(name)

    def runs(self, trips: Trips) -> Iterator[tuple[str, Instruction, float]]:
        """Every instruction outside fusions: (its computation, the instruction, how often it runs).

        Of a conditional the branch that is last runs: the longest of a step's row lengths.
        """
        yield from self._runs(self.entry, 1.0, trips)

    def _runs(
        self, name: str, times: float, trips: Trips
    ) -> Iterator[tuple[str, Instruction, float]]:
        for line in self.computations[name]:
            yield name, line, times
            if line.opcode == "while":
                count = self.trip_count(line)
                inside = times * (trips(line) if count is None else count)
                for body in line.called("body"):
                    yield from self._runs(body, inside, trips)
            elif line.opcode == "conditional":
                branches = line.called("branch_computations", "true_computation")
                yield from self._runs(branches[-1], times, trips)
            elif line.opcode in _CALLS:
                for called in line.called("to_apply", "calls", "called_computations"):
                    yield from self._runs(called, times, trips)

    def trip_count(self, loop: Instruction) -> int | None:
        """Times that a loop runs; None: decided by data."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
            return int(known[1])
        (condition,) = loop.called("condition")
        lines = list(self.computations[condition])
        for line in self.computations[condition]:
            for called in line.called("calls"):
                lines += self.computations[called]
        constants = [
            int(value[1])
            for line in lines
            if line.opcode == "constant"
            if (value := re.match(r"\((\d+)\)", line.attributes))
        ]
        return max(constants, default=None)

    def cycles(self, trips: Trips) -> dict[str, float]:
        """The TPU compiler's own estimate: {"attention": cycles, "other": cycles}.

        It counts arithmetic and memory of fusions.  What travels between chips, and kernels of
        others (`kernels`), have none.
        """
        total = {"attention": 0.0, "other": 0.0}
        inside: set[str] = set()
        for computation, line, times in self.runs(trips):
            attention = computation in inside or is_attention(line)
            if line.opcode == "while" and attention:
                inside.update(line.called("body"))
            estimate = re.search(r'"estimated_cycles":"(\d+)"', line.attributes)
            if estimate and int(estimate[1]) < UNKNOWN_CYCLES:
                where = "attention" if computation in inside else "other"
                total[where] += times * int(estimate[1])
        return total

    def bytes_moved(self, trips: Trips) -> float:
        """Bytes read from and written to HBM (on a CPU: memory), by operands and results.

        What stays in fast memory is not counted, and of an array that an instruction slices, or
        writes a slice of, only the slice.
        """
        return sum(
            times * self._bytes(computation, line)
            for computation, line, times in self.runs(trips)
            if line.opcode not in _FREE and not line.opcode.endswith("-done")
        )

    def _bytes(self, computation: str, line: Instruction) -> int:
        if line.opcode == "dynamic-slice":
            return 2 * sum(_hbm_bytes(a) for a in line.arrays)
        if line.opcode == "dynamic-update-slice":
            return 2 * self._size(computation, line.operands[1])
        fused = line.called("calls") if line.opcode == "fusion" else []
        if not fused:
            read = sum(self._size(computation, name) for name in line.operands)
            return read + sum(_hbm_bytes(a) for a in line.arrays)
        return self._fusion_bytes(computation, line, fused[0])

    def _size(self, computation: str, name: str) -> int:
        """Bytes in HBM of an operand."""
        line = self.operand(computation, name)
        return 0 if line is None else sum(_hbm_bytes(a) for a in line.arrays)

    def _fusion_bytes(self, computation: str, line: Instruction, fused: str) -> int:
        sliced, written = self._sliced[fused]
        moved = 0
        for number, name in enumerate(line.operands):
            whole = self._size(computation, name)
            moved += min(whole, sliced[number]) if number in sliced else whole
        results = sum(_hbm_bytes(a) for a in line.arrays)
        return moved + (results if written is None else min(results, written))

    @cached_property
    def _sliced(self) -> dict[str, tuple[dict[int, int], int | None]]:
        """Of every fusion: {parameter: bytes of it that are read} where it is sliced only, and the
        bytes of its result that are written where it updates a slice (None: all)."""
        return {name: self._slices(name) for name in self.computations}

    def _slices(self, name: str) -> tuple[dict[int, int], int | None]:
        lines = self.computations[name]
        uses: dict[str, list[Instruction]] = {}
        for line in lines:
            for operand in line.operands:
                uses.setdefault(operand, []).append(line)
        sliced, written = {}, None
        for line in lines:
            if line.opcode == "parameter" and (number := re.match(r"\((\d+)\)", line.attributes)):
                read = [self._read(name, line, use) for use in _uses_through(line.name, uses)]
                if read and all(one is not None for one in read):
                    sliced[int(number[1])] = sum(one or 0 for one in read)
            if line.opcode == "dynamic-update-slice":
                update = self.operand(name, line.operands[1])
                size = 0 if update is None else sum(a.bytes for a in update.arrays)
                written = (written or 0) + size
        return sliced, written

    def _read(self, computation: str, source: Instruction, use: Instruction) -> int | None:
        """Bytes that a use reads of an array that it slices; None: it reads all."""
        if use.opcode in ("dynamic-slice", "slice", "gather"):
            return sum(a.bytes for a in use.arrays)
        if use.opcode == "dynamic-update-slice" and use.operands[0] != use.operands[1]:
            first = self.operand(computation, use.operands[0])
            whole = first is not None and first.arrays[:1] == source.arrays[:1]
            return 0 if whole else None
        return None

    def kernels(self, trips: Trips) -> tuple[float, float]:
        """(FLOPs, bytes) of kernels that are opaque to the compiler, as they state their cost."""
        flops = moved = 0.0
        for _, line, times in self.runs(trips):
            if line.opcode != "custom-call":
                continue
            flops += times * _stated(line, "flops")
            moved += times * _stated(line, "bytes_accessed")
        return flops, moved


def is_attention(line: Instruction) -> bool:
    """Whether an instruction is a loop of attention (models/attention.py)."""
    return line.opcode == "while" and "layers/attention/" in line.op_name


def arrays_of(shape: str) -> tuple[Array, ...]:
    """The arrays of a shape as it stands in a program's text."""
    return tuple(
        Array(dtype, tuple(int(n) for n in dims.split(",") if n), "S(" in (layout or ""))
        for dtype, dims, layout in _ARRAY.findall(shape)
    )


def _hbm_bytes(array: Array) -> int:
    return 0 if array.on_chip else array.bytes


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else 0


def _uses_through(name: str, uses: dict[str, list[Instruction]]) -> Iterator[Instruction]:
    """The uses of a value, through instructions that only rename it."""
    for use in uses.get(name, ()):
        if use.opcode == "bitcast":
            yield from _uses_through(use.name, uses)
        else:
            yield use


def _stated(line: Instruction, what: str) -> float:
    found = re.search(rf'"{what}":"?(\d+)', line.attributes)
    return float(found[1]) if found else 0.0


def _instruction(line: str) -> Instruction | None:
    opening = re.match(r"\s+(?:ROOT )?%([\w.-]+) = ", line)
    if opening is None:
        return None
    rest = line[opening.end() :]
    if rest.startswith("("):
        end = _closing(rest, 0) + 1
    else:
        end = rest.index(" ")
    shape, rest = rest[:end], rest[end + 1 :]
    called = re.match(r"[\w-]+", rest)
    if called is None:
        return None
    opcode, inside = called[0], called.end()
    end = _closing(rest, inside) if rest[inside : inside + 1] == "(" else inside
    operands = tuple(re.findall(r"%([\w.-]+)", rest[inside:end]))
    # Of a parameter and a constant, what stands in the parentheses is its number or value.
    kept = inside if opcode in ("parameter", "constant") else end + 1
    return Instruction(opening[1], shape, opcode, operands, rest[kept:])


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        if text[at] == "(":
            depth += 1
        elif text[at] == ")":
            depth -= 1
            if depth == 0:
                return at
    return len(text)
