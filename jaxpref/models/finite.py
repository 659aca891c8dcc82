"""Finite weights: nothing that is computed from NaN or infinite ones means anything."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.models.parameters import leaf_path


def is_finite(array: np.ndarray) -> bool:
    """Whether an array on this host holds finite numbers only.

    The extremes are NaN where any element is, and need no array beside this one.
    """
    return not array.size or bool(np.isfinite(array.max()) and np.isfinite(array.min()))


def not_finite(tree: Any) -> list[str]:
    """Paths of the leaves with NaN or infinite numbers; of numpy, or jax arrays on any mesh."""
    leaves = {leaf_path(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    on_devices = {path: x for path, x in leaves.items() if isinstance(x, jax.Array)}
    finite = {path: is_finite(x) for path, x in leaves.items() if path not in on_devices}
    finite |= jax.device_get(_all_finite(on_devices))
    return [path for path in leaves if not finite[path]]


@jax.jit
def _all_finite(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: jnp.isfinite(jnp.max(jnp.abs(x), initial=0)) for path, x in leaves.items()}
