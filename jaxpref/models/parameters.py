"""The table of the parameter tree: one line per leaf, from which everything else about it follows.

A new weight of the decoder is one line in `LEAVES` and its use in blocks.py.  The line decides its
shape, how it lies on a mesh (placement.py), which models have it and their checkpoints must hold it
(stored.py), whether an adapter may lie on it (lora.py), whether it may be quantised (quantize.py),
whether weight decay pulls on it (step/optim.py) and whether a policy that is only read keeps it in
the compute dtype (generation/bases.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxpref.models.spec import ModelSpec

LORA = "lora"
"""Top level of the parameter tree under which an adapter is kept; its tree mirrors the model's."""

SCALAR_HEADS = "scalar_heads"
"""Top level of the parameter tree for linear maps of the hidden state to one number."""

Present = Callable[[ModelSpec], bool]


# ---- which models have a leaf


def _always(spec: ModelSpec) -> bool:
    return True


def _norm_before(spec: ModelSpec) -> bool:
    return spec.norm_at in ("pre", "both")


def _norm_after(spec: ModelSpec) -> bool:
    return spec.norm_at in ("post", "both")


def _norm_per_head(spec: ModelSpec) -> bool:
    return spec.qk_norm == "head"


def _norm_over_heads(spec: ModelSpec) -> bool:
    return spec.qk_norm == "whole"


def _qkv_bias(spec: ModelSpec) -> bool:
    return spec.qkv_bias


def _o_bias(spec: ModelSpec) -> bool:
    return spec.o_bias


def _mlp(spec: ModelSpec) -> bool:
    return not spec.experts


def _gated_mlp(spec: ModelSpec) -> bool:
    return spec.gated and not spec.experts


def _mlp_bias(spec: ModelSpec) -> bool:
    return spec.mlp_bias and not spec.experts


def _sinks(spec: ModelSpec) -> bool:
    return spec.attention_sinks


def _expert_bias(spec: ModelSpec) -> bool:
    return spec.expert_bias


def _mixture(spec: ModelSpec) -> bool:
    return spec.experts > 0


def _learned_positions(spec: ModelSpec) -> bool:
    return spec.learned_positions


def _own_head(spec: ModelSpec) -> bool:
    return not spec.tied


# ---- the table


@dataclass(frozen=True)
class Leaf:
    """One leaf of the parameter tree."""

    path: str
    letters: str
    """Its axes, letters as in `jaxpref.types`; below `layers` leaves are stacked over layers, Y."""
    axes: tuple[str | None, ...]
    """The logical axis of every letter (`sharding.LOGICAL`); None: whole on every device."""
    present: Present = _always
    """Whether a model has this leaf."""
    summed: str = ""
    """Letters that its product with an activation sums over; empty: not a factor of a product."""
    adaptable: bool = False
    """Whether an adapter may lie on it and, frozen below one, it may be quantised.

    Its axes are then the layers', those summed over, and the output's, in this order.
    """
    decay: bool = True
    """Whether weight decay applies: not to norm scales and biases, as in Hugging Face's Trainer."""

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Args: sizes: of the letters (`axis_sizes`)."""
        return tuple(sizes[letter] for letter in self.letters)

    @property
    def outputs(self) -> str:
        """Letters of the output of an adaptable leaf's product."""
        return self.letters.removeprefix("Y" + self.summed)

    @property
    def summed_axes(self) -> tuple[int, ...]:
        """Numbers of the axes that its product sums over."""
        return tuple(self.letters.index(letter) for letter in self.summed)


def _norm(path: str, letters: str, present: Present = _always) -> tuple[Leaf, Leaf]:
    """The scale of a norm, and its bias where norms are LayerNorm."""

    def with_bias(spec: ModelSpec) -> bool:
        return spec.norm == "layer" and present(spec)

    whole = (None,) * len(letters)
    return (
        Leaf(f"{path}/scale", letters, whole, present, decay=False),
        Leaf(f"{path}/bias", letters, whole, with_bias, decay=False),
    )


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
    Leaf("embed/position", "PD", (None, None), _learned_positions),
    *_norm("layers/attention_norm", "YD", _norm_before),
    *_norm("layers/attention_post_norm", "YD", _norm_after),
    Leaf("layers/attention/q", "YDNH", (None, "width", "heads", None), _always, "D", True),
    Leaf("layers/attention/k", "YDMH", (None, "width", "kv_heads", None), _always, "D", True),
    Leaf("layers/attention/v", "YDMH", (None, "width", "kv_heads", None), _always, "D", True),
    Leaf("layers/attention/o", "YNHD", (None, "heads", None, "width"), _always, "NH", True),
    Leaf("layers/attention/q_bias", "YNH", (None, "heads", None), _qkv_bias, decay=False),
    Leaf("layers/attention/k_bias", "YMH", (None, "kv_heads", None), _qkv_bias, decay=False),
    Leaf("layers/attention/v_bias", "YMH", (None, "kv_heads", None), _qkv_bias, decay=False),
    Leaf("layers/attention/o_bias", "YD", (None, None), _o_bias, decay=False),
    Leaf("layers/attention/q_norm", "YH", (None, None), _norm_per_head, decay=False),
    Leaf("layers/attention/k_norm", "YH", (None, None), _norm_per_head, decay=False),
    Leaf("layers/attention/q_norm", "YNH", (None, "heads", None), _norm_over_heads, decay=False),
    Leaf("layers/attention/k_norm", "YMH", (None, "kv_heads", None), _norm_over_heads, decay=False),
    Leaf("layers/attention/sinks", "YN", (None, "heads"), _sinks),
    *_norm("layers/mlp_norm", "YD", _norm_before),
    *_norm("layers/mlp_post_norm", "YD", _norm_after),
    Leaf("layers/mlp/gate", "YDF", (None, "width", "ffn"), _gated_mlp, "D", True),
    Leaf("layers/mlp/up", "YDF", (None, "width", "ffn"), _mlp, "D", True),
    Leaf("layers/mlp/down", "YFD", (None, "ffn", "width"), _mlp, "F", True),
    Leaf("layers/mlp/up_bias", "YF", (None, "ffn"), _mlp_bias, decay=False),
    Leaf("layers/mlp/down_bias", "YD", (None, None), _mlp_bias, decay=False),
    Leaf("layers/experts/router", "YDE", (None, "width", None), _mixture, "D"),
    Leaf("layers/experts/gate", "YEDF", (None, None, "width", "ffn"), _mixture, "D"),
    Leaf("layers/experts/up", "YEDF", (None, None, "width", "ffn"), _mixture, "D"),
    Leaf("layers/experts/down", "YEFD", (None, None, "ffn", "width"), _mixture, "F"),
    Leaf("layers/experts/router_bias", "YE", (None, None), _expert_bias, decay=False),
    Leaf("layers/experts/gate_bias", "YEF", (None, None, "ffn"), _expert_bias, decay=False),
    Leaf("layers/experts/up_bias", "YEF", (None, None, "ffn"), _expert_bias, decay=False),
    Leaf("layers/experts/down_bias", "YED", (None, None, None), _expert_bias, decay=False),
    *_norm("final_norm", "D"),
    Leaf("head/kernel", "VD", ("vocab", None), _own_head, "D"),
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
    """The leaves `a`, `b` and `m` of an adapter on this leaf, which lie as the leaf does.

    The rank Z is whole on every device.
    """
    axis = dict(zip(leaf.letters, leaf.axes, strict=True))

    def part(name: str, letters: str) -> Leaf:
        axes = tuple(axis.get(letter) for letter in letters)
        return Leaf(f"{LORA}/{leaf.path}/{name}", letters, axes)

    return {
        "a": part("a", f"Y{leaf.summed}Z"),
        "b": part("b", f"YZ{leaf.outputs}"),
        "m": part("m", f"Y{leaf.outputs}"),
    }


ADAPTABLE: dict[str, Leaf] = {leaf.path: leaf for leaf in LEAVES if leaf.adaptable}
"""Path -> leaf that an adapter may lie on."""

CAST_BY_PRODUCTS = frozenset(leaf.path for leaf in LEAVES if leaf.summed)
"""Leaves that every product with them casts to the compute dtype, so they may be cast once."""

LAYER_AXES: dict[str, str | None] = {
    letter: axis
    for leaf in LEAVES
    if leaf.summed and leaf.path.startswith("layers/")
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


def axis_sizes(spec: ModelSpec) -> dict[str, int]:
    """Letter -> size, for the letters of `LEAVES`."""
    return {
        "1": 1,
        "D": spec.width,
        "F": spec.ffn,
        "V": spec.vocab,
        "P": spec.max_positions,
        "N": spec.heads,
        "M": spec.kv_heads,
        "H": spec.head_dim,
        "Y": spec.layers,
        "E": spec.experts,
    }


def model_leaves(spec: ModelSpec) -> dict[str, Leaf]:
    """Path -> leaf of a model, without scalar heads and adapter."""
    return {leaf.path: leaf for leaf in LEAVES if leaf.present(spec)}


def model_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every leaf of a model, without scalar heads and adapter."""
    sizes = axis_sizes(spec)
    return {path: leaf.shape(sizes) for path, leaf in model_leaves(spec).items()}


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
