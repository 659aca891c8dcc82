"""What the devices of a compiled program send each other: bytes, times, over which mesh axes."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpref.plan.program import Instruction, Program, Trips

_BETWEEN_SLICES = "_xla_megascale_transfer_type"
"""Attribute of what the TPU compiler sends between slices."""
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")


@dataclass(frozen=True)
class Collective:
    """One collective of the program, with all of its runs in a step."""

    kind: str
    axes: tuple[str, ...]
    """Mesh axes along which its groups lie; empty: none that the mesh has a name for."""
    devices: int
    """In a group."""
    bytes: float
    """That a device sends in all runs of a step, as a ring sends them."""
    times: float
    """Runs in a step."""
    shape: str
    """What it gives, as the program writes it."""
    sizes: tuple[tuple[int, ...], ...]
    """Of the arrays that it gives."""
    dcn: bool
    """Its groups reach over slices."""
    where: str
    """In the traced program."""


def collectives(program: Program, trips: Trips, devices: np.ndarray, axes: tuple[str, ...]) -> Any:
    """All collectives of a program, each once.

    The compiler cuts some into steps that ride in several fusions; they share a channel.

    Args:
        devices: [axis sizes] the mesh's devices, in the order of the program's partitions.
        axes: names of its axes.
    Returns: list of `Collective`, most bytes first.
    """
    found: dict[tuple, Collective] = {}
    for computation, line, times in _everywhere(program, trips):
        if between := re.search(rf'{_BETWEEN_SLICES}="(\w+)"', line.attributes):
            if line.opcode == "send":
                kind = between[1].lower().replace("_", "-")
                one = _between_slices(kind, line, times, devices, axes)
                found[computation, line.name] = one
            continue
        kind = line.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        groups = replica_groups(line.attributes, devices.size)
        size = groups.shape[1]
        if size == 1:
            continue
        channel = re.search(r"channel_id=(\d+)", line.attributes)
        key = (kind, channel[1]) if channel else (computation, line.name)
        one = Collective(
            kind=kind,
            axes=_axes_of(groups, devices.shape, axes),
            devices=size,
            bytes=times * _sent(kind, sum(array.bytes for array in _given(line)), size),
            times=times,
            shape=_written(_given(line)),
            sizes=tuple(array.dims for array in _given(line)),
            dcn=_crosses(groups, devices),
            where=line.op_name,
        )
        if key not in found or found[key].bytes < one.bytes:
            found[key] = one
    return sorted(found.values(), key=lambda one: -one.bytes)


def _between_slices(
    kind: str, line: Instruction, times: float, devices: np.ndarray, axes: tuple[str, ...]
) -> Collective:
    """What the program of one slice sends to the others: there a collective is a send."""
    slices = _slices_of(devices).reshape(devices.shape)
    count = len(np.unique(slices))
    given = line.arrays[:1]
    return Collective(
        kind=kind,
        axes=tuple(
            axis for i, axis in enumerate(axes) if (slices != slices.take([0], axis=i)).any()
        ),
        devices=count,
        bytes=times * _sent(kind, sum(array.bytes for array in given), count),
        times=times,
        shape=_written(given),
        sizes=tuple(array.dims for array in given),
        dcn=True,
        where=line.op_name,
    )


def _slices_of(devices: np.ndarray) -> np.ndarray:
    return np.array([getattr(d, "slice_index", None) or 0 for d in devices.flat])


def _written(arrays: tuple) -> str:
    return ", ".join(f"{a.dtype}{list(a.dims)}" for a in arrays)


def _everywhere(program: Program, trips: Trips) -> Iterator[tuple[str, Instruction, float]]:
    """As `Program.runs`, and inside of fusions."""
    for computation, line, times in program.runs(trips):
        yield computation, line, times
        if line.opcode == "fusion":
            for fused in line.called("calls"):
                yield from _inside(program, fused, times)


def _inside(program: Program, name: str, times: float) -> Iterator[tuple[str, Instruction, float]]:
    for line in program.computations[name]:
        yield name, line, times
        for called in line.called("calls", "to_apply") if line.opcode == "fusion" else ():
            yield from _inside(program, called, times)


def replica_groups(attributes: str, devices: int) -> np.ndarray:
    """[groups, devices of a group] partition numbers, in any of the three notations of XLA."""
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}", attributes):
        return _linked(re.findall(r"\{(\d+),(\d+)\}", pairs[1]))
    if listed := re.search(r"replica_groups=\{((?:\{[\d,]+\},?)+)\}", attributes):
        return np.array(
            [list(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", listed[1])]
        )
    if iota := re.search(rf"replica_groups=\[(\d+),(\d+)\]<={_IOTA}", attributes):
        return _iota(iota[3], iota[4]).reshape(int(iota[1]), int(iota[2]))
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^()]*(?:\([^()]*\))?)\))?"
        r"(?: \{([^}]*)\})?",
        attributes,
    )
    if mesh:
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        numbers = np.arange(math.prod(sizes.values()))
        if mesh[2]:
            order = re.match(_IOTA, mesh[2])
            numbers = _iota(order[1], order[2]) if order else np.array(_integers(mesh[2]))
        chosen = re.findall(r"'(\w+)'", mesh[3] or "") or list(sizes)
        return _along(numbers.reshape(tuple(sizes.values())), list(sizes), chosen)
    return np.arange(devices)[None]


_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


def _iota(sizes: str, order: str | None) -> np.ndarray:
    """0, 1, ... in an array of these sizes, its axes then put into this order; flat."""
    shape = _integers(sizes)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return (numbers.transpose(_integers(order)) if order else numbers).reshape(-1)


def _integers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _along(numbers: np.ndarray, names: list[str], chosen: list[str]) -> np.ndarray:
    """Groups along the chosen axes."""
    last = [names.index(name) for name in chosen]
    rest = [i for i in range(len(names)) if i not in last]
    size = math.prod(numbers.shape[i] for i in last)
    return numbers.transpose(rest + last).reshape(-1, size)


def _linked(pairs: list[tuple[str, str]]) -> np.ndarray:
    """Groups of devices that send to each other, by pairs; of unequal ones the largest."""
    group: dict[int, set[int]] = {}
    for a, b in ((int(a), int(b)) for a, b in pairs):
        joined = group.get(a, {a}) | group.get(b, {b})
        for member in joined:
            group[member] = joined
    distinct = {tuple(sorted(members)) for members in group.values()}
    size = max(map(len, distinct))
    return np.array(sorted(members for members in distinct if len(members) == size))


def _axes_of(groups: np.ndarray, shape: tuple[int, ...], axes: tuple[str, ...]) -> tuple[str, ...]:
    """The mesh axes along which the members of a group differ."""
    places = np.stack(np.unravel_index(groups[0], shape))
    return tuple(
        axis for axis, along in zip(axes, places, strict=True) if len(np.unique(along)) > 1
    )


def _crosses(groups: np.ndarray, devices: np.ndarray) -> bool:
    """Whether members of a group are on different slices."""
    slices = _slices_of(devices)
    return bool((slices[groups] != slices[groups][:, :1]).any())


def _given(line: Instruction) -> tuple:
    """The arrays that a collective gives; of one that was only started, without its operands."""
    arrays = line.arrays
    if not line.opcode.endswith("-start") or len(arrays) < 2:
        return arrays
    if line.opcode.startswith("collective-permute"):
        return arrays[1:2]
    return (
        arrays[len(line.operands) : 2 * len(line.operands)]
        if line.shape.startswith("((")
        else arrays
    )


def _sent(kind: str, given: int, devices: int) -> float:
    """Bytes that a device sends in one run, on a ring of its group.

    Args:
        given: bytes of the collective's result on a device.
    """
    others = devices - 1
    if kind == "all-reduce":
        return 2 * given * others / devices
    if kind == "reduce-scatter":
        return given * others
    if kind == "collective-permute":
        return given
    return given * others / devices
