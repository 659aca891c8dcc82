"""TPU generations: what a chip computes, holds and sends."""

import math
import re
from dataclasses import dataclass

from jaxpref.errors import InputError
from jaxpref.runs.flops import PEAK_FLOPS

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """A generation, per device as JAX counts them."""

    name: str
    topology_name: str
    """What libtpu calls it."""
    flops: float
    """Dense bfloat16 peak, FLOP/s."""
    hbm: float
    """Bytes that a program may use."""
    hbm_rate: float
    """Bytes per second."""
    ici_rate: float
    """Bytes per second that it sends to its neighbours over all links together, one way."""
    dcn_rate: float | None
    """Bytes per second between slices, its share of a host's network, one way; None: slices of
    this generation are not joined."""
    clock: float
    """Hz, by which cycles become seconds: the peak over the FLOPs of the matrix units per cycle."""
    sides: int
    """Axes of the torus that its chips form: 2 or 3."""
    most: int
    """Chips of the largest slice."""
    per_chip: int = 1
    """Devices on one chip; the rates are a device's."""


CHIPS = {
    chip.name: chip
    for chip in (
        # v2 and v3: Jouppi et al., "A Domain-Specific Supercomputer for Training Deep Neural
        # Networks", CACM 63(7), 2020.
        Chip(
            "v2",
            "v2",
            flops=PEAK_FLOPS["TPU v2"],
            hbm=7.48 * GIB,
            hbm_rate=350e9,
            ici_rate=124e9,
            dcn_rate=None,
            clock=0.7e9,
            sides=2,
            most=256,
            per_chip=2,
        ),
        Chip(
            "v3",
            "v3",
            flops=PEAK_FLOPS["TPU v3"],
            hbm=15.48 * GIB,
            hbm_rate=450e9,
            ici_rate=164e9,
            dcn_rate=None,
            clock=0.94e9,
            sides=2,
            most=1024,
            per_chip=2,
        ),
        # The compiler's v4 has two devices on a chip.
        Chip(
            "v4",
            "v4",
            flops=PEAK_FLOPS["TPU v4"] / 2,
            hbm=15.25 * GIB,
            hbm_rate=614e9,
            ici_rate=75e9,
            dcn_rate=3.1e9,
            clock=1.05e9,
            sides=3,
            most=4096,
            per_chip=2,
        ),
        Chip(
            "v5e",
            "v5e",
            flops=PEAK_FLOPS["TPU v5 lite"],
            hbm=15.75 * GIB,
            hbm_rate=819e9,
            ici_rate=200e9,
            dcn_rate=3.1e9,
            clock=1.5e9,
            sides=2,
            most=256,
        ),
        Chip(
            "v5p",
            "v5p",
            flops=PEAK_FLOPS["TPU v5p"],
            hbm=95.74 * GIB,
            hbm_rate=2765e9,
            ici_rate=600e9,
            dcn_rate=6.25e9,
            clock=1.75e9,
            sides=3,
            most=6144,
        ),
        Chip(
            "v6e",
            "v6e",
            flops=PEAK_FLOPS["TPU v6 lite"],
            hbm=31.25 * GIB,
            hbm_rate=1638e9,
            ici_rate=400e9,
            dcn_rate=12.5e9,
            clock=1.75e9,
            sides=2,
            most=256,
        ),
        Chip(
            "v7x",
            "tpu7x",
            flops=PEAK_FLOPS["TPU7x"],
            hbm=94.75 * GIB,
            hbm_rate=3690e9,
            ici_rate=300e9,
            dcn_rate=6.25e9,
            clock=2.2e9,
            sides=3,
            most=9216,
            per_chip=2,
        ),
    )
}
"""By the name in `--topology`, all that the TPU compiler knows (libtpu 0.0.42).

Rates are from the maker's data sheets (November 2026), bytes of HBM from the compiler.
"""


@dataclass(frozen=True)
class Slice:
    """The devices of a plan."""

    chip: Chip
    shape: tuple[int, ...]
    """Chips along the axes of the torus."""
    slices: int = 1

    @property
    def devices(self) -> int:
        """In all slices together."""
        return self.slices * self.chip.per_chip * math.prod(self.shape)

    @property
    def name(self) -> str:
        """Of one slice, as in `--topology`."""
        return self._named(self.chip.name)

    @property
    def topology(self) -> str:
        """As libtpu wants it."""
        return self._named(self.chip.topology_name)

    @property
    def host_bounds(self) -> list[int]:
        """Chips of a host along the three axes: 2 x 2 x 1, fewer where the slice has fewer."""
        x, y = (math.gcd(2, side) for side in self.shape[:2])
        return [x, y, 1]

    def _named(self, generation: str) -> str:
        return f"{generation}:{'x'.join(map(str, self.shape))}"

    def __str__(self) -> str:
        return f"{self.slices} x {self.name}" if self.slices > 1 else self.name


def parse_slice(text: str, slices: int = 1) -> Slice:
    """`v5p:4x4x4` -> the slice.  Errors: InputError for anything else."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", text)
    chip = CHIPS.get(match[1]) if match else None
    if match is None or chip is None:
        raise InputError(
            "--topology GENERATION:SHAPE, the generation one of " + ", ".join(CHIPS),
            f"--topology {text}",
            "write for example v5e:2x4 (8 chips), v5p:2x2x4 (16) or v6e:4x4 (16)",
        )
    shape = tuple(int(n) for n in match[2].split("x"))
    if len(shape) != chip.sides or not 1 <= math.prod(shape) <= chip.most:
        raise InputError(
            f"a shape of {chip.name}: {chip.sides} sides, {chip.most:,} chips at most",
            f"--topology {text}: {len(shape)} sides, {math.prod(shape):,} chips",
            f"write for example {chip.name}:{'2x4' if chip.sides == 2 else '2x2x4'}; --slices N "
            "joins several",
        )
    if slices > 1 and chip.dcn_rate is None:
        raise InputError(
            f"one slice of {chip.name}, which are not joined to more",
            f"--slices {slices}",
            "plan for a larger slice, or for a later generation",
        )
    return Slice(chip, shape, slices)
