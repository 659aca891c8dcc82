"""From what the compiler says to seconds: how long each part takes, and which of them binds."""

from dataclasses import dataclass, field
from typing import Any

from jaxpref.plan.chips import Chip


@dataclass(frozen=True)
class Estimate:
    """Seconds of a step on one device, part by part."""

    compute: float
    """All FLOPs, recomputation included, at the peak."""
    hbm: float
    """All bytes from and to HBM at its rate."""
    core: float
    """What the device itself takes: by the compiler's cycles, or of the two above the longer."""
    ici: float
    """What it sends to its neighbours in the slice, at the rate of its links."""
    dcn: float
    """What it sends to other slices."""
    model_seconds: float
    """The model's FLOPs at the peak: what an MFU of 1 would take."""
    by_cycles: bool

    @property
    def fastest(self) -> float:
        """All traffic behind computation."""
        return max(self.core, self.ici, self.dcn)

    @property
    def slowest(self) -> float:
        """No traffic behind computation."""
        return self.core + self.ici + self.dcn

    @property
    def mfu(self) -> tuple[float, float]:
        """Model FLOPs utilisation, least and most."""
        return self.model_seconds / self.slowest, self.model_seconds / self.fastest

    @property
    def binds(self) -> str:
        """Which part takes longest."""
        parts = {"ICI": self.ici, "DCN": self.dcn}
        own = {"compute": self.compute, "HBM": self.hbm}
        longest = max(own, key=own.__getitem__)
        parts[longest if self.core <= 2 * own[longest] else "the device's own program"] = self.core
        return max(parts, key=parts.__getitem__)


def estimate(said: dict[str, Any], chip: Chip) -> Estimate:
    """The seconds of a step.

    Args:
        said: as `compiled.compile_and_read` gives it, of a program that fits.
    """
    compute = said["flops"] / chip.flops
    hbm = said["bytes_moved"] / chip.hbm_rate
    cycles = sum(said["cycles"].values())
    kernels = kernel_seconds(said["kernel_flops"], said["kernel_bytes"], chip)
    sent = said["collectives"]
    between = sum(one["bytes"] for one in sent if one["dcn"])
    return Estimate(
        compute=compute,
        hbm=hbm,
        core=cycles / chip.clock + kernels if cycles else max(compute, hbm),
        ici=sum(one["bytes"] for one in sent if not one["dcn"]) / chip.ici_rate,
        dcn=between / chip.dcn_rate if chip.dcn_rate else 0.0,
        model_seconds=said["model_flops_all"] / said["devices"] / chip.flops,
        by_cycles=bool(cycles),
    )


def kernel_seconds(flops: float, moved: float, chip: Chip) -> float:
    """Seconds in which no chip of this kind does so many FLOPs, or moves so many bytes, faster."""
    return max(flops / chip.flops, moved / chip.hbm_rate)


@dataclass(frozen=True)
class Memory:
    """Bytes of HBM on one device."""

    capacity: float
    parts: dict[str, float] = field(default_factory=dict)
    """Named parts of the arguments; what the program adds; in the order they are shown."""
    total: float = 0.0

    @property
    def fits(self) -> bool:
        return self.total <= self.capacity

    @property
    def share(self) -> float:
        """Of the capacity."""
        return self.total / self.capacity


def memory_of(said: dict[str, Any], chip: Chip) -> Memory:
    """The memory of a step; of a program that does not fit, what is known without it."""
    named = {name: float(size) for name, size in said["hbm"].items() if size}
    if "does_not_fit" in said:
        return Memory(chip.hbm, named, float("inf"))
    saved = min(said["saved"], said["temporaries"])
    parts = named | {
        "batch and padding": max(said["arguments"] - sum(named.values()), 0.0),
        "saved for the backward pass": saved,
        "other temporaries": said["temporaries"] - saved,
    }
    return Memory(chip.hbm, parts, float(said["arguments"] + said["temporaries"]))
