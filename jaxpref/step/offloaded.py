"""`optim.offload`: how moments in the hosts' memory come to the devices for an update."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxpref.models.parameters import flatten, nest
from jaxpref.sharding import on_devices

_LAYERS = "layers/"
"""Of leaves below it the first axis is that of the layers."""


def brought_whole(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """The rule, all of whose state comes to the devices at once."""

    def update(updates, state, params=None):
        return rule.update(updates, on_devices(state), params)

    return optax.GradientTransformation(rule.init, update)


def brought_by_layer(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """The rule, of whose state one layer at a time is on the devices, and what is no layer's.

    XLA brings back whole what is used whole, and in slices what a loop slices.

    Args:
        rule: one that treats every element of a parameter by itself, as Adam does.
    """

    def update(updates, state, params):
        given = [_map_dicts(flatten, tree) for tree in (updates, state, params)]
        stacks, others = _by_layers(given[0])
        updates, state, params = _picked(others, given)
        done = [rule.update(updates, on_devices(state), params)]
        done += [_in_a_loop(rule, *_picked(names, given)) for names in stacks]
        return tuple(_map_dicts(_nested, *parts) for parts in zip(*done, strict=True))

    return optax.GradientTransformation(rule.init, update)


def _in_a_loop(
    rule: optax.GradientTransformation, updates: dict[str, jax.Array], state: Any, params: Any
) -> tuple[dict[str, jax.Array], Any]:
    """The update of stacks of layers, written over what it is made from; counters stay."""

    def of_layer(i, changed):
        def layer(tree):
            return jax.tree.map(
                lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False) if x.ndim else x, tree
            )

        def written(old, new):
            if not old.ndim:
                return old
            new = jax.device_put(new, jax.typeof(old).memory_space)
            return jax.lax.dynamic_update_index_in_dim(old, new, i, 0)

        updates, state = changed
        new = rule.update(layer(updates), on_devices(layer(state)), layer(params))
        return jax.tree.map(written, changed, new)

    layers = next(iter(updates.values())).shape[0]
    return jax.lax.fori_loop(0, layers, of_layer, (updates, state))


def _by_layers(leaves: dict[str, jax.Array]) -> tuple[list[list[str]], list[str]]:
    """(leaves of each number of layers, all others), by name."""
    stacks: dict[int, list[str]] = {}
    others = []
    for name, leaf in leaves.items():
        if name.startswith(_LAYERS):
            stacks.setdefault(leaf.shape[0], []).append(name)
        else:
            others.append(name)
    return list(stacks.values()), others


def _picked(names: list[str], trees: list[Any]) -> list[Any]:
    return [_map_dicts(lambda leaves: {name: leaves[name] for name in names}, t) for t in trees]


def _nested(*parts: dict[str, Any]) -> dict[str, Any]:
    return nest({name: leaf for part in parts for name, leaf in part.items()})


def _map_dicts(fn: Callable[..., dict[str, Any]], *trees: Any) -> Any:
    """`fn` of the dicts of parameters, or of their moments, in trees; else the first tree's."""

    def mapped(first, *others):
        return fn(first, *others) if isinstance(first, dict) else first

    return jax.tree.map(mapped, *trees, is_leaf=lambda node: isinstance(node, dict))
