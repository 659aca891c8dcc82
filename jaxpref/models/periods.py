"""Layers of several kinds: a scan over the periods of the pattern in which they alternate.

A leaf of the parameter tree is stacked over the layers that have it, so the tree is the same for
every pattern.  Each period takes its part of every stack, and runs its layers one by one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpref.models.parameters import flatten, nest, one_layer
from jaxpref.models.spec import Mixer

MakeBlock = Callable[[Mixer], Any]
"""Kind of layer -> an unbound `blocks.Block`."""


class Stacks(NamedTuple):
    """What differs from layer to layer."""

    variables: dict[str, Any]
    """Linen's collections of the layers, every leaf stacked over the layers that have it."""
    numbers: dict[str, jax.Array]
    """[Y] each."""
    keys: jax.Array | None
    """[Y] keys for dropout."""


def run(
    make_block: MakeBlock,
    mixers: Sequence[Mixer],
    stacks: Stacks,
    carry,
    shared,
    *,
    checkpoint: Callable[[Callable], Callable],
    unroll: bool,
):
    """All layers, one after another.

    Args:
        mixers: one per layer.
        carry, shared: as a Block takes them.
        checkpoint: wraps a layer, for the backward pass.
        unroll: no loop is compiled, but every layer.
    Returns: the carry behind the last layer.
    """
    pattern = _shortest_period(mixers)
    periods = len(mixers) // len(pattern)

    def run_layer(mixer: Mixer):
        def run(carry, shared, layer: Stacks):
            rngs = {} if layer.keys is None else {"dropout": layer.keys}
            block = make_block(mixer)
            return block.apply(layer.variables, carry, shared, layer.numbers, rngs=rngs)[0]

        return checkpoint(run)

    def run_period(carry, period: Stacks):
        for y, mixer in enumerate(pattern):
            variables = {
                name: one_layer(stack, y, pattern) for name, stack in period.variables.items()
            }
            numbers, keys = jax.tree.map(lambda x, y=y: x[y], (period.numbers, period.keys))
            carry = run_layer(mixer)(carry, shared, Stacks(variables, numbers, keys))
        return carry, None

    by_period = jax.tree.map(lambda x: x.reshape(periods, -1, *x.shape[1:]), stacks)
    return lax.scan(run_period, carry, by_period, unroll=periods if unroll else 1)[0]


def _shortest_period(mixers: Sequence[Mixer]) -> tuple[Mixer, ...]:
    """The shortest sequence that gives all layers when it is repeated."""
    whole = tuple(mixers)
    lengths = (n for n in range(1, len(whole) + 1) if len(whole) % n == 0)
    return next(whole[:n] for n in lengths if whole[:n] * (len(whole) // n) == whole)


def init(key, make_block: MakeBlock, mixers: Sequence[Mixer], carry, shared, numbers):
    """New parameters of all layers: `Stacks.variables["params"]`.

    Args:
        numbers: of any layer.
    """
    parts: dict[str, list[jax.Array]] = {}
    for mixer in dict.fromkeys(mixers):
        key, own = jax.random.split(key)

        def init_one(key, mixer=mixer):
            return make_block(mixer).init(key, carry, shared, numbers)["params"]

        of_kind = jax.vmap(init_one)(jax.random.split(own, mixers.count(mixer)))
        for path, leaf in flatten(of_kind).items():
            parts.setdefault(path, []).append(leaf)
    return nest({path: jnp.concatenate(leaves) for path, leaves in parts.items()})
