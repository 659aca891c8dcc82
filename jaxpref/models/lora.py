"""Low-rank adapters on the weights of the layers: LoRA, rsLoRA, DoRA, and those of conditioned.py.

An adapter is a tree beside the parameters, under the top-level key `lora`: at
`lora/layers/attention/q` lie the factors of what is added to `layers/attention/q`.  A model is the
adapted one for parameters with that key and the base for parameters without it, so policy and
reference are two calls on one copy of the weights.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxpref.config import AdapterKind
from jaxpref.errors import InputError
from jaxpref.models import conditioned
from jaxpref.models.layers import product
from jaxpref.models.parameters import ADAPTABLE, leaf_at, nest
from jaxpref.models.quantize import as_array

TARGETS: dict[str, tuple[str, str]] = {
    path.removeprefix("layers/"): (leaf.summed, leaf.outputs) for path, leaf in ADAPTABLE.items()
}
"""Weight that an adapter may be put on -> axes of inputs and outputs.

Weights go by their path, those of the decoder below `layers`.  The axes are those that its product
sums over, and those of the product's output.  The experts of a mixture are not among them.
"""


def path_of(target: str) -> str:
    """The path of a weight in the parameter tree."""
    return target if target in ADAPTABLE else f"layers/{target}"


@dataclass(frozen=True)
class LoraSpec:
    """LoRA (Hu et al., arXiv 2106.09685) on some weights W of every layer: x (W + scale * a b).

    The adapter's leaves, float32, stacked over the layers as the weights are, Z the rank (`o` as an
    example):

        a [Y, N, H, Z]    the axes that the product sums over, then the rank
        b [Y, Z, D]       the rank, then the axes of the output
        m [Y, D]          DoRA only: the length of every output's weights

    Other kinds have a middle between `a` and `b`, which the objective weights of a row fill
    (`conditioned.py`); Z is then `width`.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Keys of TARGETS, in its order."""
    dropout: float = 0.0
    """Share of the adapter's inputs that is dropped in training."""
    rslora: bool = False
    """scale = alpha / sqrt(rank) in place of alpha / rank (Kalajdzievski, arXiv 2312.03732)."""
    dora: bool = False
    """Lengths and directions are learned separately (Liu et al., arXiv 2402.09353)."""
    alphas: tuple[float, ...] = ()
    """One for each of `targets`, where they differ; empty: `alpha` for all."""
    kind: AdapterKind = "lora"
    objectives: int = 0
    """How many weights a row has; 0 for LoRA."""

    @property
    def width(self) -> int:
        """Columns of `a`: the rank of what is added to a weight."""
        return conditioned.width(self.kind, self.rank, self.objectives)

    @property
    def of_one_weight_vector(self) -> "LoraSpec":
        """What `conditioned.at_weights` makes of such an adapter: LoRA of the same scale."""
        alpha = self.scale * self.width
        return replace(self, kind="lora", objectives=0, rank=self.width, alpha=alpha)

    def on(self, target: str) -> "LoraSpec":
        """The same for one weight: `alpha` is its own."""
        own = dict(zip(self.targets, self.alphas, strict=False)).get(target, self.alpha)
        return replace(self, alpha=own, alphas=())

    @property
    def scale(self) -> float:
        """Of all weights, or of the one that `on` was asked for."""
        assert not self.alphas, "every weight has a scale of its own"
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def find_targets(
    patterns: Sequence[str] | None, names: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """The weights that any of the patterns names.

    Args:
        patterns: regular expressions, each of which must match a whole name; None: every weight
            but those of a tower.
        names: weight that can be adapted -> the names it goes by.
    Errors: InputError for patterns that match nothing, with all names.
    """
    chosen, unmatched = {name for name in names if not name.startswith("vision/")}, []
    if patterns is not None:
        matches = {pattern: _matches(pattern, names) for pattern in patterns}
        chosen = set().union(*matches.values())
        unmatched = [pattern for pattern, targets in matches.items() if not targets]
    if unmatched or not names:
        known = "; ".join(" or ".join(dict.fromkeys(known)) for known in names.values())
        raise InputError(
            f"adapter.targets among {known or 'no weight: no adapter may be put on this model'}",
            f"{unmatched}",
            "name weights as listed, or by a regular expression; those of experts cannot be named",
        )
    return tuple(target for target in TARGETS if target in chosen)


def _matches(pattern: str, names: Mapping[str, Sequence[str]]) -> set[str]:
    """The weights one of whose names the pattern matches whole."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(
            "adapter.targets as regular expressions",
            f"{pattern!r}: {error}",
            "write a regular expression, for example .*_proj for all names that end in _proj",
        ) from error
    return {target for target, known in names.items() if any(map(compiled.fullmatch, known))}


def init(key: jax.Array, base: Mapping[str, Any], spec: LoraSpec) -> dict[str, Any]:
    """A new adapter on a base's weights, which adds nothing to them yet, as PEFT's.

    `a` is torch's kaiming_uniform with a = sqrt(5), which is uniform within 1 / sqrt(inputs) of 0,
    `b` is zero, and `m` the weights' own lengths.

    Returns: the tree that goes under `lora`.
    """
    flat: dict[str, Any] = {}
    for number, (target, axes) in enumerate(TARGETS.items()):
        if target not in spec.targets:
            continue
        path = path_of(target)
        w = leaf_at(base, path)
        first_output = 1 + len(axes[0])
        count, inputs, outputs = w.shape[0], w.shape[1:first_output], w.shape[first_output:]
        bound = 1.0 / math.sqrt(math.prod(inputs))
        flat[f"{path}/a"] = jax.random.uniform(
            jax.random.fold_in(key, number),
            (count, *inputs, spec.width),
            minval=-bound,
            maxval=bound,
        )
        flat[f"{path}/b"] = jnp.zeros((count, spec.width, *outputs))
        of_middle = jax.random.fold_in(jax.random.fold_in(key, number), 1)
        middle = conditioned.init_middle(of_middle, spec.kind, count, spec.rank, spec.objectives)
        flat |= {f"{path}/{name}": leaf for name, leaf in middle.items()}
        if spec.dora:
            flat[f"{path}/m"] = jax.vmap(partial(_lengths_of, axes=axes))(w)
    return nest(flat)


def _lengths_of(w: Any, axes: tuple[str, str]) -> jax.Array:
    return _lengths(as_array(w, jnp.float32), axes)


def adapted(
    equation: str,
    x: jax.Array,
    w: Any,
    adapter: Mapping[str, jax.Array],
    spec: LoraSpec,
    key: jax.Array | None,
    weights_RLO: jax.Array | None = None,
) -> jax.Array:
    """x times the adapted weight, in float32: `layers.product` with an adapter.

    Products take operands in the activation's dtype and accumulate in float32, and so do their
    gradients.

    Args:
        equation: of the product with the weight, as `RLD,DNH->RLNH`; the output ends with the
            weight's own axes.
        w: the frozen weight of one layer, quantised or not.
        adapter: `a`, `b` and, for DoRA, `m` of this weight in this layer, or the leaves of a
            middle.
        key: of the dropout on the adapter's input, one per layer and weight; None: no dropout.
        weights_RLO: objective weights of every token, for an adapter with a middle.

    DoRA is (m / |W + scale a b|) (x W + scale x a b), where the length |.| of every output's
    weights is a constant to the gradient (section 4.3 of the paper).  With dropout PEFT's form is
    followed: x W itself sees the input as it is, all that is added to it sees it dropped.  A factor
    that differs from 1 as little as two ways of summing the same length may is 1, so that a new
    adapter is exactly the base.
    """
    inputs, y_axes = equation.split("->")
    x_axes, w_axes = inputs.split(",")
    axes = _axes(w_axes, y_axes)
    batch = y_axes.removesuffix(axes[1])
    dropped = x if key is None else _dropout(x, spec.dropout, key)
    low = product(f"{x_axes},{axes[0]}Z->{batch}Z", dropped, adapter["a"]).astype(x.dtype)
    if conditioned.has_middle(adapter):
        low = conditioned.through_middle(low, adapter, weights_RLO).astype(x.dtype)
    added = spec.scale * product(f"{batch}Z,Z{axes[1]}->{y_axes}", low, adapter["b"])
    base = product(equation, x, w)
    if "m" in adapter:
        length = jax.lax.stop_gradient(_lengths(_summed(w, adapter, axes, spec.scale), axes))
        ratio = _rounded_to_one(adapter["m"] / length)[(None,) * len(batch)]
        own = base if key is None else product(equation, dropped, w)
        added = (ratio - 1.0) * own + ratio * added
    return base + added


def merged(
    w: Any, adapter: Mapping[str, jax.Array], axes: tuple[str, str], scale: float
) -> jax.Array:
    """The weight of one layer that does alone what base and adapter do together, float32.

    Args:
        axes: as in TARGETS.
    """
    whole = _summed(w, adapter, axes, scale)
    if "m" not in adapter:
        return whole
    return whole * (adapter["m"] / _lengths(whole, axes))[(None,) * len(axes[0])]


def _rounded_to_one(ratio: jax.Array) -> jax.Array:
    close = jnp.abs(ratio - 1.0) < 16 * jnp.finfo(jnp.float32).eps
    return ratio + jax.lax.stop_gradient(jnp.where(close, 1.0 - ratio, 0.0))


def _axes(w_axes: str, y_axes: str) -> tuple[str, str]:
    """The letters of a weight that its product sums over, and those of the output."""
    inputs = "".join(axis for axis in w_axes if axis not in y_axes)
    outputs = "".join(axis for axis in w_axes if axis in y_axes)
    assert w_axes == inputs + outputs and y_axes.endswith(outputs), "a weight's axes are in -> out"
    return inputs, outputs


def _dropout(x: jax.Array, share: float, key: jax.Array) -> jax.Array:
    """Zeros in place of a share of `x`; what is left is scaled so that the mean stays."""
    kept = jax.random.bernoulli(key, 1.0 - share, x.shape)
    return jnp.where(kept, x / (1.0 - share), jnp.zeros((), x.dtype))


def _summed(
    w: Any, adapter: Mapping[str, jax.Array], axes: tuple[str, str], scale: float
) -> jax.Array:
    """W + scale a b of one layer.

    In float32, for an adapter is small beside its weight, and lengths are divided.
    """
    equation = f"{axes[0]}Z,Z{axes[1]}->{axes[0]}{axes[1]}"
    return as_array(w, jnp.float32) + scale * jnp.einsum(
        equation, adapter["a"], adapter["b"], precision="highest"
    )


def _lengths(w: jax.Array, axes: tuple[str, str]) -> jax.Array:
    """The length of every output's weights."""
    return jnp.sqrt(jnp.sum(jnp.square(w), axis=tuple(range(len(axes[0])))))
