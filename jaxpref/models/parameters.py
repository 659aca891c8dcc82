"""The table of the parameter tree: one line per leaf, from which everything else about it follows.

A new weight of the decoder is one line in `LEAVES` and its use in blocks.py.  The line decides its
shape, how it lies on a mesh (placement.py), which models have it and their checkpoints must hold it
(stored.py), whether an adapter may lie on it (lora.py), whether it may be quantised (quantize.py),
whether weight decay pulls on it (step/optim.py) and whether a policy that is only read keeps it in
the compute dtype (generation/bases.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxpref.models import presence as has
from jaxpref.models.leaf import MIXERS, Leaf
from jaxpref.models.spec import ModelSpec
from jaxpref.models.tower_leaves import CONNECTOR, TOWER, TOWER_PARTS

LORA = "lora"
"""Top level of the parameter tree under which an adapter is kept; its tree mirrors the model's."""

SCALAR_HEADS = "scalar_heads"
"""Top level of the parameter tree for linear maps of the hidden state to one number."""

OWN = "own"
"""Top level of the parameter tree for all leaves of a model of the user's own (`own.py`)."""

# ---- the table


def _norm(path: str, letters: str, present: has.Present = has.always) -> tuple[Leaf, Leaf]:
    """The scale of a norm, and its bias where norms are LayerNorm."""

    def with_bias(spec: ModelSpec) -> bool:
        return spec.norm == "layer" and present(spec)

    whole = (None,) * len(letters)
    return (
        Leaf(f"{path}/scale", letters, whole, present, decay=False),
        Leaf(f"{path}/bias", letters, whole, with_bias, decay=False),
    )


_Q_GATE = (None, "width", "heads", None, None)

# The order of adaptable leaves decides the random numbers of a new adapter (`lora.init`).
#
# `embed/table` is a factor of a product where it is the LM head too.  Elsewhere its rows are cast
# after they are looked up, so it may be cast before as well.
#
# Experts are not spread over devices: each lies like a dense MLP, its width over fsdp and its ffn
# over tensor.  So a device computes its part of every expert, the work is even whatever the router
# chooses, and no token travels.
LEAVES: tuple[Leaf, ...] = (
    # path, letters, logical axes, present, summed, adaptable, decay
    Leaf("embed/table", "VD", ("vocab", None), summed="D"),
    Leaf("embed/position", "PD", (None, None), has.learned_positions),
    *_norm("layers/attention_norm", "YD", has.norm_before),
    *_norm("layers/attention_post_norm", "YD", has.norm_after),
    Leaf(
        "layers/attention/q",
        "YDNH",
        (None, "width", "heads", None),
        has.plain_queries,
        "D",
        True,
    ),
    Leaf("layers/attention/k", "YDMH", (None, "width", "kv_heads", None), has.always, "D", True),
    Leaf("layers/attention/v", "YDMH", (None, "width", "kv_heads", None), has.always, "D", True),
    Leaf("layers/attention/o", "YNHD", (None, "heads", None, "width"), has.always, "NH", True),
    Leaf("layers/attention/q_bias", "YNH", (None, "heads", None), has.qkv_bias, decay=False),
    Leaf("layers/attention/k_bias", "YMH", (None, "kv_heads", None), has.qkv_bias, decay=False),
    Leaf("layers/attention/v_bias", "YMH", (None, "kv_heads", None), has.qkv_bias, decay=False),
    Leaf("layers/attention/o_bias", "YD", (None, None), has.o_bias, decay=False),
    Leaf("layers/attention/q_norm", "YH", (None, None), has.head_norm, decay=False),
    Leaf("layers/attention/k_norm", "YH", (None, None), has.head_norm, decay=False),
    Leaf("layers/attention/q_norm", "YNH", (None, "heads", None), has.whole_norm, decay=False),
    Leaf("layers/attention/k_norm", "YMH", (None, "kv_heads", None), has.whole_norm, decay=False),
    Leaf("layers/attention/sinks", "YN", (None, "heads"), has.sinks),
    *_norm("layers/mlp_norm", "YD", has.norm_before),
    *_norm("layers/mlp_post_norm", "YD", has.norm_after),
    Leaf("layers/mlp/gate", "YDF", (None, "width", "ffn"), has.gated_mlp, "D", True),
    Leaf("layers/mlp/up", "YDF", (None, "width", "ffn"), has.mlp, "D", True),
    Leaf("layers/mlp/down", "YFD", (None, "ffn", "width"), has.mlp, "F", True),
    Leaf("layers/mlp/up_bias", "YF", (None, "ffn"), has.mlp_bias, decay=False),
    Leaf("layers/mlp/down_bias", "YD", (None, None), has.mlp_bias, decay=False),
    Leaf("layers/experts/router", "YDE", (None, "width", None), has.mixture, "D"),
    Leaf("layers/experts/gate", "YEDF", (None, None, "width", "ffn"), has.mixture, "D"),
    Leaf("layers/experts/up", "YEDF", (None, None, "width", "ffn"), has.mixture, "D"),
    Leaf("layers/experts/down", "YEFD", (None, None, "ffn", "width"), has.mixture, "F"),
    Leaf("layers/experts/router_bias", "YE", (None, None), has.expert_bias, decay=False),
    Leaf("layers/experts/gate_bias", "YEF", (None, None, "ffn"), has.expert_bias, decay=False),
    Leaf("layers/experts/up_bias", "YEF", (None, None, "ffn"), has.expert_bias, decay=False),
    Leaf("layers/experts/down_bias", "YED", (None, None, None), has.expert_bias, decay=False),
    *_norm("final_norm", "D"),
    Leaf("head/kernel", "VD", ("vocab", None), has.own_head, "D"),
    # The queries of every head, and behind them its gate.
    Leaf("layers/attention/q_gate", "YDNgH", _Q_GATE, has.gated_queries, "D", True),
    # Gated DeltaNet; its heads lie over tensor as those of attention do.
    Leaf("layers/delta/q", "YDmh", (None, "width", "kv_heads", None), has.delta, "D", True),
    Leaf("layers/delta/k", "YDmh", (None, "width", "kv_heads", None), has.delta, "D", True),
    Leaf("layers/delta/v", "YDnv", (None, "width", "heads", None), has.delta, "D", True),
    Leaf("layers/delta/z", "YDnv", (None, "width", "heads", None), has.delta, "D", True),
    Leaf("layers/delta/beta", "YDn", (None, "width", "heads"), has.delta, "D", True),
    Leaf("layers/delta/decay", "YDn", (None, "width", "heads"), has.delta, "D", True),
    Leaf("layers/delta/o", "YnvD", (None, "heads", None, "width"), has.delta, "nv", True),
    Leaf("layers/delta/q_taps", "Ymht", (None, "kv_heads", None, None), has.delta),
    Leaf("layers/delta/k_taps", "Ymht", (None, "kv_heads", None, None), has.delta),
    Leaf("layers/delta/v_taps", "Ynvt", (None, "heads", None, None), has.delta),
    # Hugging Face's Trainer decays this one, which its name does not except.
    Leaf("layers/delta/a_log", "Yn", (None, "heads"), has.delta),
    Leaf("layers/delta/dt_bias", "Yn", (None, "heads"), has.delta, decay=False),
    Leaf("layers/delta/norm", "Yv", (None, None), has.delta, decay=False),
    *TOWER,
    *CONNECTOR,
)
"""Every leaf of a decoder; of two lines with one path (`qk_norm`) a model has at most one."""

SCALAR_HEAD_LEAVES: tuple[Leaf, ...] = (
    # path, letters, logical axes, present, summed, adaptable
    Leaf(f"{SCALAR_HEADS}/reward", "1D", (None, None)),
    Leaf(f"{SCALAR_HEADS}/value", "1D", (None, None)),
)
"""Leaves that a model has when an objective asks for them."""


# ---- what follows from it


def adapter_leaves(leaf: Leaf) -> dict[str, Leaf]:
    """The leaves of an adapter on this leaf, of any kind (lora.py, conditioned.py).

    `a`, `b` and `m` lie as the leaf does; the rank Z is whole on every device.
    """
    axis = dict(zip(leaf.letters, leaf.axes, strict=True))

    def part(name: str, letters: str, summed: str = "") -> Leaf:
        axes = tuple(axis.get(letter) for letter in letters)
        return Leaf(f"{LORA}/{leaf.path}/{name}", letters, axes, summed=summed)

    return {
        "a": part("a", f"{leaf.stack}{leaf.summed}Z", leaf.summed),
        "b": part("b", f"{leaf.stack}Z{leaf.outputs}", "Z"),
        "m": part("m", f"{leaf.stack}{leaf.outputs}"),
        "singular": part("singular", f"{leaf.stack}Z"),
        "gain": part("gain", leaf.stack),
        "common": part("common", f"{leaf.stack}zZ", "z"),
        "by_objective": part("by_objective", f"{leaf.stack}OzZ", "z"),
    }


ADAPTABLE: dict[str, Leaf] = {leaf.path: leaf for leaf in LEAVES if leaf.adaptable}
"""Path -> leaf that an adapter may lie on."""

CAST_BY_PRODUCTS = frozenset(leaf.path for leaf in LEAVES if leaf.summed)
"""Leaves that every product with them casts to the compute dtype, so they may be cast once."""

LAYER_AXES: dict[str, str | None] = {
    letter: axis
    for leaf in LEAVES
    if leaf.summed and leaf.path.startswith(("layers/", *TOWER_PARTS))
    for letter, axis in zip(leaf.letters, leaf.axes, strict=True)
}
"""Letter -> logical axis, the same in every factor of a layer's products."""

UNDECAYED = frozenset(leaf.path for leaf in LEAVES if not leaf.decay)
"""Leaves that weight decay leaves alone: norm scales and biases."""

VOCAB_LEAVES = tuple(leaf.path for leaf in LEAVES if leaf.letters.startswith("V"))
"""Leaves whose rows are the vocabulary, and so may be padded (`sharding.vocab_ways`)."""

_ADAPTER_LEAVES = tuple(
    part for leaf in ADAPTABLE.values() for part in adapter_leaves(leaf).values()
)
_BY_PATH_AND_RANK = {
    (leaf.path, len(leaf.letters)): leaf
    for leaf in (*LEAVES, *SCALAR_HEAD_LEAVES, *_ADAPTER_LEAVES)
}


def model_leaves(spec: ModelSpec) -> dict[str, Leaf]:
    """Path -> leaf of a model, without scalar heads and adapter."""
    return {leaf.path: leaf for leaf in LEAVES if leaf.present(spec)}


def model_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every leaf of a model, without scalar heads and adapter."""
    return {path: leaf.shape(spec) for path, leaf in model_leaves(spec).items()}


def one_layer(layers: Mapping[str, Any], y: int, mixers: Sequence[str]) -> dict[str, Any]:
    """The leaves of layer y out of a stack of layers, or what lies in place of them.

    Args:
        layers: the tree below `layers`, of a model or an adapter.
        mixers: of the layers of the stack (`ModelSpec.mixers`).
    """
    number = {None: y, mixers[y]: mixers[:y].count(mixers[y])}
    groups = {name: name if name in MIXERS else None for name in layers}
    return {
        name: jax.tree.map(lambda x, at=number[group]: x[at], layers[name])
        for name, group in groups.items()
        if group in number
    }


def find_leaf(path: str, rank: int) -> Leaf | None:
    """The line for a leaf of this path and number of axes, of any model, scalar head or adapter."""
    return _BY_PATH_AND_RANK.get((path, rank))


# ---- paths of leaves


def cast_for_products(params: Any, dtype: Any) -> Any:
    """The leaves that products cast to the compute dtype, cast once; all others as they are.

    So a model computes the same with these parameters, to the bit: norm scales, for example, stay
    float32, in which norms are computed.
    """

    def cast(path, x):
        return x.astype(dtype) if leaf_path(path) in CAST_BY_PRODUCTS else x

    return jax.tree_util.tree_map_with_path(cast, params)


def leaf_path(path: Any) -> str:
    """`layers/attention/q` of a tree path; `opt_state/1/mu/layers/attention/q` of a state's."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_at(tree: Mapping[str, Any], path: str) -> Any:
    """What lies at a path of a nested dict."""
    for name in path.split("/"):
        tree = tree[name]
    return tree


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a/b": x}` -> `{"a": {"b": x}}`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def flatten(tree: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """`{"a": {"b": x}}` -> `{"a/b": x}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            inner = flatten(value, separator)
            flat |= {f"{key}{separator}{below}": leaf for below, leaf in inner.items()}
        else:
            flat[key] = value
    return flat
