"""Backward passes that leave out the gradients of frozen weights.

A gradient that nobody wants is dropped by the compiler where it stands alone, but not where a loop
carries it.  So the written-out gradients that loop (`jax.custom_vjp` with `symbolic_zeros=True`)
ask here what is trained.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

Arguments = TypeVar("Arguments")


def values_of(arguments: Arguments) -> Arguments:
    """The arrays of a forward rule's arguments."""
    return jax.tree.map(
        lambda x: x.value, arguments, is_leaf=lambda x: isinstance(x, CustomVJPPrimal)
    )


def trained_mark(argument: Any) -> tuple | None:
    """For the backward rule: () where an argument of the forward rule is trained, None otherwise.

    A residual must be a pytree of arrays, which () and None are; a bool would become an array.
    """
    leaves = jax.tree.leaves(argument, is_leaf=lambda x: isinstance(x, CustomVJPPrimal))
    return () if any(x.perturbed for x in leaves) else None


def without_symbols(cotangents: Any) -> Any:
    """Cotangents with zeros in place of symbols for them."""
    zeros = lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, SymbolicZero) else x
    return jax.tree.map(zeros, cotangents, is_leaf=lambda x: isinstance(x, SymbolicZero))
