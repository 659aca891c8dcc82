"""FLOPs of a traced program: products times the trips of the loops around them."""

import math
from collections.abc import Callable, Iterator
from typing import Any

Trips = Callable[[str], float]
"""Where a loop stands (its name stack) -> how often it runs, where data decide."""


def program_flops(jaxpr: Any, trips: Trips, kernels: float = 1.0, inside: str = "") -> float:
    """FLOPs of all products of a jaxpr, on all devices together; 2 per multiply-add.

    Recomputation counts; elementwise work does not.  Of a conditional the branch with the most
    counts.

    Args:
        jaxpr: closed or open, as `jax.make_jaxpr` or `jitted.trace(...).jaxpr` give it.
        kernels: share of their stated FLOPs that Pallas kernels do.
        inside: the name stack of the equation that holds it; those of its equations go on from it.
    """
    equations = getattr(jaxpr, "jaxpr", jaxpr).eqns
    return sum(_equation_flops(eqn, trips, kernels, inside) for eqn in equations)


def _equation_flops(eqn: Any, trips: Trips, kernels: float, inside: str) -> float:
    name, params = eqn.primitive.name, eqn.params
    inside = f"{inside}/{eqn.source_info.name_stack}"
    flops = lambda inner: program_flops(inner, trips, kernels, inside)
    if name == "dot_general":
        return _product_flops(eqn)
    if name == "ragged_dot_general":
        rows, inner = eqn.invars[0].aval.shape
        return 2.0 * rows * inner * eqn.outvars[0].aval.shape[-1]
    if name == "pallas_call":
        cost = params.get("cost_estimate")
        return kernels * cost.flops if cost is not None else 0.0
    if name == "scan":
        return params["length"] * flops(params["jaxpr"])
    if name == "while":
        return trips(inside) * flops(params["body_jaxpr"])
    if name == "cond":
        return max(map(flops, params["branches"]))
    if name == "shard_map":
        # Its jaxpr is that of one device.
        return math.prod(params["mesh"].shape.values()) * flops(params["jaxpr"])
    return sum(map(flops, inner_jaxprs(params)))


def _product_flops(eqn: Any) -> float:
    (left_summed, _), _ = eqn.params["dimension_numbers"]
    summed = math.prod(eqn.invars[0].aval.shape[i] for i in left_summed)
    return 2.0 * summed * math.prod(eqn.outvars[0].aval.shape)


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among an equation's parameters (jit, remat, custom gradients)."""
    for value in params.values():
        if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
            yield value


def equations(jaxpr: Any) -> Iterator[Any]:
    """Of a jaxpr and of those inside of its equations."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        for inner in (*inner_jaxprs(eqn.params), *eqn.params.get("branches", ())):
            yield from equations(inner)
