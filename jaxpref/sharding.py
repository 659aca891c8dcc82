"""The mesh, and the one table that says how every array lies on it.

Axes: `data` (rows, parameters replicated), `fsdp` (rows and parameters), `tensor` (heads, ffn,
vocabulary).  The mesh is Auto (docs/design.md, "Mesh mode"): XLA propagates, and `constrain` pins
the activations that matter.
"""

import dataclasses
import math
import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.config import MeshConfig
from jaxpref.errors import InputError

AXES = tuple(field.name for field in dataclasses.fields(MeshConfig))

# Logical axis -> mesh axes.  `vocab` takes both parameter axes, so neither the embedding nor the
# head is ever gathered: a token's logits are computed where the vocabulary lies and only the
# softmax's sums travel.
LOGICAL: dict[str, Any] = {
    "rows": ("data", "fsdp"),
    "rows_replicated_fsdp": "data",
    "vocab": ("fsdp", "tensor"),
    "width": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "ffn": "tensor",
}

# Parameter path -> logical axes.  Every leaf matches exactly one rule of its rank (`param_specs`),
# and every rule a leaf of some model (tests/models/test_families.py).
#
# Experts are not spread over devices: each lies like a dense MLP, its width over fsdp and its ffn
# over tensor.  So a device computes its part of every expert, the work is even whatever the router
# chooses, and no token travels.
PARAM_RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embed/table", ("vocab", None)),
    (r"embed/position", (None, None)),
    (r"layers/(attention|mlp)(_post)?_norm/(scale|bias)", (None, None)),
    (r"layers/attention/q", (None, "width", "heads", None)),
    (r"layers/attention/[kv]", (None, "width", "kv_heads", None)),
    (r"layers/attention/o", (None, "heads", None, "width")),
    (r"layers/attention/q_(bias|norm)", (None, "heads", None)),
    (r"layers/attention/([kv]_bias|k_norm)", (None, "kv_heads", None)),
    (r"layers/attention/[qk]_norm", (None, None)),  # one norm for all heads
    (r"layers/attention/o_bias", (None, None)),
    (r"layers/mlp/(gate|up)", (None, "width", "ffn")),
    (r"layers/mlp/down", (None, "ffn", "width")),
    (r"layers/mlp/up_bias", (None, "ffn")),
    (r"layers/mlp/down_bias", (None, None)),
    (r"layers/experts/router", (None, "width", None)),
    (r"layers/experts/(gate|up)", (None, None, "width", "ffn")),
    (r"layers/experts/down", (None, None, "ffn", "width")),
    (r"final_norm/(scale|bias)", (None,)),
    (r"head/kernel", ("vocab", None)),
    (r"scalar_heads/\w+", (None, None)),
    # An adapter lies as the weight it is put on; its rank is whole everywhere.
    (r"lora/layers/(attention/[qkv]|mlp/(gate|up))/a", (None, "width", None)),
    (r"lora/layers/attention/o/a", (None, "heads", None, None)),
    (r"lora/layers/mlp/down/a", (None, "ffn", None)),
    (r"lora/layers/attention/q/b", (None, None, "heads", None)),
    (r"lora/layers/attention/[kv]/b", (None, None, "kv_heads", None)),
    (r"lora/layers/mlp/(gate|up)/b", (None, None, "ffn")),
    (r"lora/layers/(attention/o|mlp/down)/b", (None, None, "width")),
    (r"lora/layers/attention/q/m", (None, "heads", None)),
    (r"lora/layers/attention/[kv]/m", (None, "kv_heads", None)),
    (r"lora/layers/mlp/(gate|up)/m", (None, "ffn")),
    (r"lora/layers/(attention/o|mlp/down)/m", (None, "width")),
)
VOCAB_LEAVES = tuple(rule for rule, axes in PARAM_RULES if axes[0] == "vocab")
"""Leaves whose rows are the vocabulary, and so may be padded (`vocab_ways`)."""


def make_mesh(config: MeshConfig, *, devices: list | None = None) -> Mesh:
    """The mesh of the config's section `mesh`, whose fields are the axes.

    Args:
        devices: None: all that there are.
    Errors: InputError when the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: getattr(config, axis) for axis in AXES}
    count = math.prod(sizes.values())
    if count != len(devices):
        raise InputError(
            f"a mesh of {len(devices)} devices ({' * '.join(AXES)})",
            " * ".join(f"mesh.{axis}={size}" for axis, size in sizes.items()) + f" = {count}",
            f"choose sizes whose product is {len(devices)}, for example mesh.data={len(devices)}",
        )
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Pin `x` to its logical axes on the mesh in force (`jax.set_mesh`); without one, `x` as it
    is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, logical_spec(logical))


def logical_spec(logical: tuple[str | None, ...]) -> P:
    """PartitionSpec of logical axis names."""
    return P(*(None if name is None else LOGICAL[name] for name in logical))


def vocab_ways(mesh: Mesh) -> int:
    """Devices over which the vocabulary lies; embedding and head are padded with zeros to a
    multiple of it.

    The rows behind the vocabulary stay zero: no token looks them up and no logit is made of them,
    so their gradient is zero, and with it every optimizer's update and decay.
    """
    return math.prod(mesh.shape[name] for name in LOGICAL["vocab"])


def leaf_path(path) -> str:
    """`layers/attention/q` of a tree path of a nested dict."""
    return "/".join(str(getattr(key, "key", key)) for key in path)


def matching_rules(path: str, rank: int) -> list[str]:
    """The rules of PARAM_RULES for a leaf of this path and number of axes."""
    return [rule for rule, axes in PARAM_RULES if re.fullmatch(rule, path) and len(axes) == rank]


def param_specs(params: Any) -> Any:
    """PartitionSpec of every leaf of a parameter tree.

    Errors: InputError naming every leaf that no rule or several rules match.
    """
    problems: list[str] = []

    def spec(path, leaf):
        name = leaf_path(path)
        found = matching_rules(name, len(leaf.shape))
        if len(found) != 1:
            problems.append(f"{name} {tuple(leaf.shape)}: {len(found)} rules")
            return P()
        return logical_spec(dict(PARAM_RULES)[found[0]])

    specs = jax.tree_util.tree_map_with_path(spec, params)
    if problems:
        raise InputError(
            "a parameter tree in which sharding.PARAM_RULES match every leaf exactly once",
            "; ".join(problems),
            "add or correct the rule for these leaves",
        )
    return specs


def param_shardings(params: Any, mesh: Mesh) -> Any:
    """NamedSharding of every leaf; `params` may hold arrays or ShapeDtypeStructs.

    Errors: InputError listing every dimension that its mesh axes do not divide.
    """
    specs = param_specs(params)
    problems: list[str] = []

    def check(path, leaf, spec):
        for size, axes in zip(leaf.shape, spec, strict=False):
            names = () if axes is None else (axes,) if isinstance(axes, str) else axes
            ways = math.prod(mesh.shape[name] for name in names)
            if size % ways:
                problems.append(f"{leaf_path(path)}: {size} over {'*'.join(names)}={ways}")
        return NamedSharding(mesh, spec)

    shardings = jax.tree_util.tree_map_with_path(check, params, specs)
    if problems:
        raise InputError(
            "mesh sizes that divide the model's dimensions",
            f"mesh {dict(mesh.shape)} does not divide: " + "; ".join(problems),
            "change mesh.fsdp or mesh.tensor to divisors of these sizes",
        )
    return shardings


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Rows over `data` and `fsdp`, after `leading` unsharded dimensions (the micro-batches)."""
    return NamedSharding(mesh, P(*(None,) * leading, LOGICAL["rows"]))


def row_ways(mesh: Mesh) -> int:
    """How many ways the rows of a micro-batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def constrain_params(tree: Any) -> Any:
    """Pin a tree of the parameters' shape (gradients, accumulators) to the parameters' own
    sharding."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, param_specs(tree))
