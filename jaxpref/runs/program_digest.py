"""Digests of what jax makes of a function: of models, optimizers and schedules given in Python.

Functions that libraries made for the user look alike but for what they close over; the program that
they trace to has every constant in it.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def program_digest(function: Callable, *arguments: Any) -> list[str]:
    """[digest, version of jax, in whose words the program is written].

    Args:
        arguments: arrays or ShapeDtypeStructs.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr)).encode())
    for constant in closed.consts:
        digest.update(np.asarray(constant).tobytes())
    return [digest.hexdigest()[:32], jax.__version__]
