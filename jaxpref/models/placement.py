"""How the parameters lie on the mesh, leaf by leaf, as the table of parameters.py says."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.errors import InputError
from jaxpref.models.parameters import LEAVES, find_leaf, leaf_path
from jaxpref.sharding import logical_spec

Axes = Mapping[str, tuple[str | None, ...]] | None
"""As of `Model.axes`."""


def param_specs(params: Any, axes: Axes = None) -> Any:
    """PartitionSpec of every leaf of a parameter tree.

    Errors: InputError naming every leaf that the table lacks.
    """
    problems: list[str] = []

    def spec(path, leaf):
        name, rank = leaf_path(path), len(leaf.shape)
        if axes is not None and name in axes:
            return logical_spec(axes[name])
        line = find_leaf(name, rank)
        if line is None:
            known = [line.letters for line in LEAVES if line.path == name]
            told = f", in the table as {' or '.join(known)}" if known else ""
            problems.append(f"{name} {tuple(leaf.shape)}{told}")
            return P()
        return logical_spec(line.axes)

    specs = jax.tree_util.tree_map_with_path(spec, params)
    if problems:
        raise InputError(
            "a parameter tree whose every leaf has a line in models/parameters.py: LEAVES",
            f"no line for {'; '.join(problems)}",
            "add a line with the logical axes of each of these leaves",
        )
    return specs


def param_shardings(params: Any, mesh: Mesh, own_axes: Axes = None) -> Any:
    """NamedSharding of every leaf; `params` may hold arrays or ShapeDtypeStructs.

    Errors: InputError listing every dimension that its mesh axes do not divide.
    """
    specs = param_specs(params, own_axes)
    problems: list[str] = []

    def check(path, leaf, spec):
        for size, axes in zip(leaf.shape, spec, strict=True):
            names = (axes,) if isinstance(axes, str) else axes or ()
            ways = math.prod(mesh.shape[name] for name in names)
            if size % ways:
                problems.append(f"{leaf_path(path)}: {size} over {'*'.join(names)}={ways}")
        return NamedSharding(mesh, spec)

    shardings = jax.tree_util.tree_map_with_path(check, params, specs)
    if problems:
        raise InputError(
            "mesh sizes that divide the model's dimensions",
            f"mesh {dict(mesh.shape)} does not divide: " + "; ".join(problems),
            "change mesh.fsdp, mesh.context or mesh.tensor to divisors of these sizes",
        )
    return shardings


def constrain_params(tree: Any, axes: Axes = None) -> Any:
    """Pins gradients or accumulators of the parameters' shape to the parameters' sharding."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, param_specs(tree, axes))
