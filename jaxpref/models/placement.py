"""How the parameters lie on the mesh, leaf by leaf, as the table of parameters.py says."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.errors import InputError
from jaxpref.models.parameters import LEAVES, LORA, find_leaf, leaf_path
from jaxpref.sharding import LOGICAL, logical_spec

Axes = Mapping[str, tuple[str | None, ...]] | None
"""As of `Model.axes`."""


def param_specs(params: Any, mesh: Any, axes: Axes = None) -> Any:
    """PartitionSpec of every leaf of a parameter tree.

    Args:
        mesh: the mesh that the leaves lie on, or its shape alone (`AbstractMesh`).
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
        own = logical_spec(line.axes)
        is_factor = name.startswith(f"{LORA}/") and name.endswith(("/a", "/b"))
        return _spread(own, leaf.shape, mesh) if is_factor else own

    specs = jax.tree_util.tree_map_with_path(spec, params)
    if problems:
        raise InputError(
            "a parameter tree whose every leaf has a line in models/parameters.py: LEAVES",
            f"no line for {'; '.join(problems)}",
            "add a line with the logical axes of each of these leaves",
        )
    return specs


def _spread(spec: P, shape: tuple[int, ...], mesh: Any) -> P:
    """A factor of an adapter, over the mesh axes of the model's width if it is not yet.

    The factor between the rank and heads or ffn would otherwise lie whole on every device, with its
    optimizer state.  It takes the first axis behind the layers' that is divisible; where none is,
    it stays whole.
    """
    added = LOGICAL["width"]
    if added in spec:
        return spec
    for i in range(1, len(shape)):
        names = _names(spec[i]) + added
        if shape[i] % _ways(names, mesh) == 0:
            return P(*spec[:i], names, *spec[i + 1 :])
    return spec


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one dimension."""
    return (axes,) if isinstance(axes, str) else axes or ()


def _ways(names: tuple[str, ...], mesh: Any) -> int:
    return math.prod(mesh.shape[name] for name in names)


def param_shardings(params: Any, mesh: Mesh, own_axes: Axes = None) -> Any:
    """NamedSharding of every leaf; `params` may hold arrays or ShapeDtypeStructs.

    Errors: InputError listing every dimension that its mesh axes do not divide.
    """
    specs = param_specs(params, mesh, own_axes)
    problems: list[str] = []

    def check(path, leaf, spec):
        for size, axes in zip(leaf.shape, spec, strict=True):
            names = _names(axes)
            ways = _ways(names, mesh)
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
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, param_specs(tree, mesh, axes))
