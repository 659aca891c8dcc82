"""The largest arrays of a step that are known without its program: for one that does not fit."""

from collections.abc import Iterator
from typing import Any

import jax

from jaxpref.plan.array_bytes import bytes_of, shard_bytes
from jaxpref.plan.flops import equations
from jaxpref.plan.planned_step import PlannedStep
from jaxpref.sharding import row_ways


def largest_arrays(planned: PlannedStep, jaxpr: Any, count: int = 12) -> list[dict[str, Any]]:
    """[{"what", "shape", "bytes"}], most bytes on a device first.

    Args:
        jaxpr: of the traced step.
    """
    found = [*_given(planned), *_stacked(planned, jaxpr)]
    distinct = {(one["what"], one["shape"]): one for one in found}
    return sorted(distinct.values(), key=lambda one: -one["bytes"])[:count]


def _given(planned: PlannedStep) -> Iterator[dict[str, Any]]:
    """The step's own arguments."""
    state, frozen, *_ = planned.arguments
    names = {
        "parameters": state.params,
        "optimizer": state.opt_state,
        "reference": (frozen.reference, state.ref_params),
        "frozen": frozen.base,
    }
    for name, tree in names.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            yield _told(f"{name}: {where}", leaf, shard_bytes(leaf))


def _stacked(planned: PlannedStep, jaxpr: Any) -> Iterator[dict[str, Any]]:
    """What the loops over the layers give of every layer: kept activations, and gradients."""
    mesh = planned.pieces.mesh
    ways = row_ways(mesh) * mesh.shape["context"]
    for eqn in equations(jaxpr):
        if eqn.primitive.name != "scan":
            continue
        layers = eqn.params["length"]
        if layers != planned.pieces.source.spec.layers:
            continue
        is_backward = "transpose" in str(eqn.source_info.name_stack)
        what = "gradient" if is_backward else "kept for the backward pass"
        of_layer = eqn.params["jaxpr"].out_avals
        for out, one in zip(eqn.outvars, of_layer, strict=True):
            if out.aval.shape == (layers, *one.shape):  # and is not carried
                on_device = bytes_of(out.aval.dtype, out.aval.size // ways)
                yield _told(what, out.aval, on_device)


def _told(what: str, array: Any, on_device: int) -> dict[str, Any]:
    """`on_device`: bytes of one."""
    shape = f"{array.dtype.name}{list(array.shape)}"
    return {"what": what, "shape": shape, "bytes": on_device}
