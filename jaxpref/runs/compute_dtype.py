"""What `model.compute_dtype: auto` means on a device: bfloat16 where it is the faster one."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxpref.processes.together import first_does

_CPU_UNITS = ("amx_bf16", "avx512_bf16")
"""Instructions of x86 processors that XLA multiplies bfloat16 with.

Without them it converts the factors: a step then takes longer than in float32.  On 2 cores with
avx512_bf16 alone it took 0.68 times the processor time.  Other architectures were not measured.
"""


class DtypeChoice(NamedTuple):
    """A compute dtype, and why it is this one."""

    name: Literal["float32", "bfloat16"]
    why: str


def choose_compute_dtype(device: Any) -> DtypeChoice:
    """That of a device; of several processes the first one's, for all."""
    return DtypeChoice(*first_does(lambda: _on_device(device)))


def _on_device(device: Any) -> DtypeChoice:
    if device.platform == "tpu":
        return DtypeChoice("bfloat16", f"{device.device_kind} multiplies in it")
    if device.platform == "gpu":
        return _on_gpu(device)
    units = _instructions() & set(_CPU_UNITS)
    if units:
        return DtypeChoice("bfloat16", f"the processor has {' and '.join(sorted(units))}")
    return DtypeChoice("float32", f"the processor has none of {', '.join(_CPU_UNITS)}")


def _on_gpu(device: Any) -> DtypeChoice:
    """NVIDIA's from compute capability 8 on; AMD's, whose capabilities are names, all that jax runs
    on."""
    capability = getattr(device, "compute_capability", "")
    about = f"{device.device_kind}, compute capability {capability}"
    try:
        old = float(capability) < 8
    except ValueError:
        old = False
    return DtypeChoice("float32" if old else "bfloat16", about)


def _instructions(file: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Sets of instructions that Linux lists of the first processor; elsewhere none."""
    if not file.is_file():
        return set()
    for line in file.read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()
