"""When steps ended and how much memory they took, measured alike by every side of peers.py.

Standard library only: each side runs in an environment of its own.
"""

import resource
import time


class StepTimes:
    """Wall and processor time from the end of a step to the end of the next one."""

    def __init__(self):
        self._ends, self._cpu, self._peak = [], [], 0

    def step_ended(self, peak_bytes: int | None = None) -> None:
        """Args: peak_bytes: of the device; None: the most that this process has held."""
        self._ends.append(time.perf_counter())
        self._cpu.append(time.process_time())
        if peak_bytes is None:
            peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._peak = peak_bytes

    def result(self, began: float) -> dict:
        """As JSON.  Args: began: `time.perf_counter()` before anything was imported."""
        return {
            "seconds": _differences(self._ends),
            "cpu_seconds": _differences(self._cpu),
            "first_step_done": self._ends[0] - began,
            "peak_bytes": self._peak,
        }


def _differences(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
