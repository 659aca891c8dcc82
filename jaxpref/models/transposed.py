"""Weights transposed for decoding on a CPU: one row per output.

A step of decoding multiplies a few activations with every weight, so it cannot be faster than the
weights are read.  XLA's CPU product reads [outputs, inputs] times [inputs, few] at the speed of the
memory, and the usual form, [few, inputs] times [inputs, outputs], at about 0.6 of it (30 layers of
SmolLM2-135M's MLP, 8 activations, 2 cores: 9.9 and 5.7 GB/s on jax 0.10, 9.2 and 6.1 on 0.12).

In bfloat16 both forms first write the whole weight down in float32, at every token.  What does not
is [few, inputs] times [outputs, inputs], given two activations or more: the product then belongs to
a library that multiplies bfloat16 as it lies.  (The LM head of SmolLM2-135M, AVX512-BF16, processor
time: 8 activations 87 and 13 ms, float32 14; one activation 80 and 8 ms, float32 9.)
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


@partial(jax.tree_util.register_dataclass, data_fields=("rows",), meta_fields=("inputs", "outputs"))
@dataclass(frozen=True)
class Transposed:
    """A weight as rows [outputs, inputs], either side flattened."""

    rows: jax.Array
    inputs: tuple[int, ...]
    """Sizes of the axes that a product sums over."""
    outputs: tuple[int, ...]
    """Sizes of the output's axes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the rows: as the LM head's, [V, D]."""
        return self.rows.shape


def transposed(w: jax.Array, inputs: int) -> Transposed:
    """A weight [inputs..., outputs...], of which the first `inputs` axes are summed over."""
    return Transposed(
        w.reshape(math.prod(w.shape[:inputs]), -1).T, w.shape[:inputs], w.shape[inputs:]
    )


def in_rows(w: jax.Array) -> Transposed:
    """A weight that lies in rows already, [outputs, inputs], as the LM head does."""
    return Transposed(w, w.shape[1:], w.shape[:1])


def transposed_back(w: Transposed) -> jax.Array:
    """[inputs..., outputs...]."""
    return w.rows.T.reshape(*w.inputs, *w.outputs)


def product(x: jax.Array, w: Transposed, batch: int) -> jax.Array:
    """x [batch..., inputs...] times the weight, [batch..., outputs...] in float32.

    Args:
        batch: number of axes that the product keeps.
    """
    multiply = _product_in_bfloat16 if x.dtype == jnp.bfloat16 else _product_in_float32
    y = multiply(x.reshape(-1, w.rows.shape[1]), w.rows.astype(x.dtype))
    return y.reshape(*x.shape[:batch], *w.outputs)


def _product_in_float32(x: jax.Array, rows: jax.Array) -> jax.Array:
    # Without the barriers XLA moves the transposition of the activations into the product, and
    # transposes the weight back.
    x_by_input = lax.optimization_barrier(x.T)
    y = jnp.einsum("nk,km->nm", rows, x_by_input, preferred_element_type=jnp.float32)
    return lax.optimization_barrier(y).T


def _product_in_bfloat16(x: jax.Array, rows: jax.Array) -> jax.Array:
    few = len(x)
    if few == 1:
        x = jnp.pad(x, ((0, 1), (0, 0)))
    return jnp.einsum("mk,nk->mn", x, rows, preferred_element_type=jnp.float32)[:few]
