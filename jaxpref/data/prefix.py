"""What sequences have in common at their start."""

from collections.abc import Sequence
from typing import Any


def common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Length of the longest common start of two texts or two lists."""
    shorter = min(len(first), len(second))
    # One is nearly always the start of the other; comparing them whole is much faster.
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(i for i in range(shorter) if first[i] != second[i])
