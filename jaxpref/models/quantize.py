"""Frozen weights in 8 or 4 bits (QLoRA, Dettmers et al., arXiv 2305.14314), through qwix.

A quantised leaf is a qwix `QArray`: a pytree of codes and scales with the weight's shape.
`as_array` is the one place where it becomes numbers again, inside the product that reads it, so no
whole matrix outlives its product.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.errors import InputError, optional_package
from jaxpref.models.parameters import ADAPTABLE
from jaxpref.models.transposed import Transposed, transposed_back
from jaxpref.sharding import on_devices


@dataclass(frozen=True)
class Quantisation:
    """How frozen weights are kept.  Symmetric: a code times the scale of its block."""

    kind: Literal["int8", "int4", "nf4"]
    """`nf4`: QLoRA's 16 quantiles of the normal distribution."""
    block: int | None
    """How many weights share a scale, along the last axis that the product sums over.

    None: all of an output.
    """

    def how(self, path: str, shape: tuple[int, ...]) -> dict[str, Any]:
        """qwix's arguments for the leaf at `path`.

        Errors: InputError when the block does not divide it.
        """
        summed = ADAPTABLE[path].summed_axes
        if self.block is None:
            return {"channelwise_axes": [i for i in range(len(shape)) if i not in summed]}
        tiled = summed[-1]
        size = min(self.block, shape[tiled])
        if shape[tiled] % size:
            raise InputError(
                f"adapter.quantize_block that divides {shape[tiled]}, the inputs of {path}",
                f"adapter.quantize_block={self.block}",
                "choose a divisor, or null for one scale per output",
            )
        return {
            "channelwise_axes": [i for i in range(len(shape)) if i != tiled],
            "tiled_axes": {tiled: size},
        }


def is_quantisable(path: str) -> bool:
    """Whether the leaf at this path of the parameter tree is one that `place_quantised` takes."""
    return path in ADAPTABLE and path.startswith("layers/")


def is_quantised(w: Any) -> bool:
    """Whether a leaf holds codes and scales in place of numbers."""
    return hasattr(w, "qvalue")


def as_array(w: Any, dtype: Any) -> jax.Array:
    """A weight as numbers of `dtype` on the devices: quantised, transposed, on the host, or not."""
    if isinstance(w, Transposed):
        return transposed_back(w).astype(dtype)
    if is_quantised(w):
        w = qwix().dequantize(w)
    return on_devices(w).astype(dtype)


def quantised(w: jax.Array | np.ndarray, path: str, quantisation: Quantisation) -> Any:
    """A float32 weight, stacked over layers, in codes and float32 scales."""
    kinds = {"int8": jnp.int8, "int4": jnp.int4, "nf4": "nf4"}
    return qwix().quantize(w, kinds[quantisation.kind], **quantisation.how(path, w.shape))


def place_quantised(
    path: str,
    shape: tuple[int, ...],
    sharding: NamedSharding,
    read_slice: Any,
    quantisation: Quantisation,
) -> Any:
    """The leaf at `path`, quantised; its codes lie as `sharding` says.

    One layer at a time is read and quantised, so a leaf is never in memory in float32.

    Args:
        read_slice: reads one contiguous slice per axis, float32 (`loading.load_tree`).
    Errors: InputError when qwix is missing, the block does not divide the weight, or a block would
        lie on two devices.
    """
    encode = partial(quantised, path=path, quantisation=quantisation)
    shapes = quantised_shapes(path, shape, sharding, quantisation)
    shardings = jax.tree.map(lambda x: x.sharding, shapes)

    def zeros():
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def with_layer(leaf, layer, y):
        put = lambda whole, part: lax.dynamic_update_slice_in_dim(whole, part, y, axis=0)
        return jax.tree.map(put, leaf, encode(layer))

    leaf = jax.jit(zeros, out_shardings=shardings)()
    write = jax.jit(with_layer, donate_argnums=0, out_shardings=shardings)
    for y in range(shape[0]):
        read_layer = lambda index, y=y: read_slice((slice(y, y + 1), *index[1:]))
        layer = jax.make_array_from_callback((1, *shape[1:]), sharding, read_layer)
        leaf = write(leaf, layer, np.int32(y))
        jax.block_until_ready(leaf)  # layers in flight would pile up on the host
    return leaf


def quantised_shapes(
    path: str, shape: tuple[int, ...], sharding: NamedSharding, quantisation: Quantisation
) -> Any:
    """ShapeDtypeStructs of what `place_quantised` gives; arguments and errors as there."""
    encode = partial(quantised, path=path, quantisation=quantisation)
    shapes = jax.eval_shape(encode, jax.ShapeDtypeStruct(shape, jnp.float32))

    def laid_out(part):
        part_sharding = _part_sharding(path, sharding, part)
        return jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=part_sharding)

    return jax.tree.map(laid_out, shapes)


def _part_sharding(path: str, sharding: NamedSharding, part: jax.ShapeDtypeStruct) -> NamedSharding:
    """Codes lie as the weight; scales too, but for axes along which one scale serves all."""
    axes = (*sharding.spec, *(None,) * (part.ndim - len(sharding.spec)))
    spec = P(*(axis if size > 1 else None for axis, size in zip(axes, part.shape, strict=True)))
    part_sharding = NamedSharding(sharding.mesh, spec)
    try:
        part_sharding.shard_shape(part.shape)
    except ValueError as error:
        raise InputError(
            "blocks of weights that lie on one device each",
            f"{path} has scales {part.shape}, and the mesh {dict(sharding.mesh.shape)} splits "
            f"them as {spec}",
            "lower adapter.quantize_block, or set it to null for one scale per output",
        ) from error
    return part_sharding


def qwix() -> Any:
    """The package that quantises.  Errors: InputError where it is not installed."""
    return optional_package("qwix", "adapter.quantize", "qlora")
