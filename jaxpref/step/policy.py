"""Which parameters of a model are trained and which stay frozen: the one place that decides it.

Without an adapter all weights are trained, and the reference is a copy.  With one, the weights are
frozen and shared: only the adapter (and scalar heads) is trained, and the reference is the same
weights without it, or with another adapter.  Either way policy and reference are the frozen base
with something laid over it, top level by top level.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxpref.models.parameters import CAST_BY_PRODUCTS, LORA, SCALAR_HEADS, leaf_path
from jaxpref.sharding import on_devices


class Frozen(NamedTuple):
    """The parameters that a step reads and never changes."""

    base: Mapping[str, Any]
    """Weights below the trained ones; empty when all are trained."""
    reference: Mapping[str, Any] | None
    """What the reference lays over the base; None where no reference is run."""

    def policy(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The policy's parameters, `params` being the trained ones."""
        return {**self.base, **params}

    def reference_params(self) -> dict[str, Any] | None:
        """The reference's parameters, on the devices, but for what products bring there."""
        if self.reference is None:
            return None

        def brought(path, x):
            name = leaf_path(path)
            in_product = name in CAST_BY_PRODUCTS and name.startswith("layers/")
            return x if in_product else on_devices(x)

        return {**self.base, **jax.tree_util.tree_map_with_path(brought, self.reference)}


def split(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A policy's parameters as (trained, frozen)."""
    if LORA not in params:
        return dict(params), {}
    trained = {name: tree for name, tree in params.items() if name in (LORA, SCALAR_HEADS)}
    return trained, {name: tree for name, tree in params.items() if name not in trained}
