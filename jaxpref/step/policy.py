"""Which parameters of a model are trained and which stay frozen: the one place that decides it.

Without an adapter all weights are trained, and the reference is a copy.  With one, the weights are
frozen and shared: only the adapter (and scalar heads) is trained, and the reference is the same
weights without it, or with another adapter.  Either way policy and reference are the frozen base
with something laid over it, top level by top level.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxpref.models.parameters import LORA, SCALAR_HEADS
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
        """The reference's parameters, on the devices."""
        return None if self.reference is None else {**self.base, **on_devices(self.reference)}


def split(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A policy's parameters as (trained, frozen)."""
    if LORA not in params:
        return dict(params), {}
    trained = {name: tree for name, tree in params.items() if name in (LORA, SCALAR_HEADS)}
    return trained, {name: tree for name, tree in params.items() if name not in trained}
