"""The parameters of a run before its first step, on the mesh: the policy's and the reference's."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.errors import InputError
from jaxpref.models.parameters import (
    CAST_BY_PRODUCTS,
    LORA,
    SCALAR_HEADS,
    VOCAB_LEAVES,
    cast_for_products,
    leaf_path,
)
from jaxpref.models.placement import param_shardings
from jaxpref.models.quantize import is_quantisable, place_quantised
from jaxpref.models.source import Checkpoint, open_checkpoint
from jaxpref.models.stored import ReadSlice
from jaxpref.models.streaming import place_leaf, with_zero_rows
from jaxpref.runs.adapters import (
    BASE,
    quantisation,
    read_adapter,
    reference_adapter,
    start_adapter,
)
from jaxpref.runs.build import Pieces, param_shapes
from jaxpref.step.policy import Frozen, split


def load_params(pieces: Pieces, source: Checkpoint | None = None) -> Any:
    """The policy from which training starts; every process reads only what its devices hold.

    Weights are float32; scalar heads are zero.  Where an adapter is trained, the weights that
    products cast are in the compute dtype or quantised, and the adapter lies beside them.

    Args:
        source: another model of the same sizes, without an adapter.
    """
    shapes = param_shapes(pieces.model)
    shardings = param_shardings(shapes, pieces.mesh, pieces.model.axes)
    laid_out = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    leaves = {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(laid_out)}

    lora = pieces.lora if source is None else None
    quantised = None if lora is None else quantisation(pieces.config.adapter)

    def put(path: str, shape: tuple[int, ...], dtype: np.dtype, read: ReadSlice) -> Any:
        leaf = leaves[path]
        frozen = lora is not None and path in CAST_BY_PRODUCTS
        kept = np.dtype(pieces.dtype if frozen else np.float32)
        if path in VOCAB_LEAVES:
            read = with_zero_rows(read, shape[0], leaf.shape[0])
        if quantised and is_quantisable(path):
            return place_quantised(path, leaf.shape, leaf.sharding, read, quantised)

        def read_cast(index):
            return read(index).astype(kept, copy=False)

        return place_leaf(leaf.shape, kept, leaf.sharding, read_cast)

    params = (source or pieces.source).load_params(dtype=np.float32, put=put)
    if SCALAR_HEADS in shapes:
        params[SCALAR_HEADS] = jax.tree.map(
            lambda x, sharding: jax.device_put(np.zeros(x.shape, x.dtype), sharding),
            shapes[SCALAR_HEADS],
            shardings[SCALAR_HEADS],
        )
    return params if lora is None else with_adapter(pieces, params)


def with_adapter(pieces: Pieces, base: Mapping[str, Any]) -> dict[str, Any]:
    """The frozen weights, and beside them the adapter from which training starts."""
    config, spec = pieces.config, pieces.source.spec
    adapter = start_adapter(config.adapter, pieces.lora, spec, base, pieces.mesh, config.train.seed)
    return {**base, LORA: adapter}


def reference_source(pieces: Pieces) -> Checkpoint:
    """The checkpoint of the reference.

    Errors: InputError when it is not the same kind of model.
    """
    path, spec = pieces.config.reference.path, pieces.source.spec
    if path is None:
        return pieces.source
    source = open_checkpoint(path, pictures=pieces.config.model.pictures)
    if source.spec != spec:
        raise InputError(
            "a reference of the same sizes as the model",
            f"reference.path={path} is {source.spec}; the model is {spec}",
            "name a checkpoint of the same architecture and sizes, such as the model before SFT",
        )
    return source


def runs_reference(pieces: Pieces) -> bool:
    """Whether the reference runs beside the policy: it is needed, and not cached."""
    return pieces.needs_reference and pieces.config.reference.mode == "copy"


def reference_overlay(pieces: Pieces, params: Any) -> Any:
    """What the reference lays over the frozen base (`step.policy.Frozen`).

    Args:
        params: the policy from which training starts, as `load_params` gives it.
    """
    reference, lora = pieces.config.reference, pieces.lora
    if reference.path is not None:
        return frozen_copy(load_params(pieces, reference_source(pieces)), pieces.dtype)
    if lora is None:
        return frozen_copy(params, pieces.dtype)
    if pieces.moving:
        return frozen_copy(split(params)[0], pieces.dtype)
    path = reference_adapter(pieces.config)
    own = pieces.config.adapter.path == path
    if pieces.source.modules_of is not None and not own:
        raise InputError(
            "the adapter itself as reference, where it brings its own embedding or head",
            f"adapter.path={pieces.source.modules_of}, reference.adapter={path or BASE}",
            "merge the adapter into its base with PEFT, and name both models by their paths",
        )
    if path is None:
        return {}
    return {LORA: read_adapter(path, lora, pieces.source.spec, pieces.mesh, modules=own)}


def reference_params(pieces: Pieces, params: Any) -> Any:
    """The reference's parameters; arguments as of `reference_overlay`."""
    return Frozen(split(params)[1], reference_overlay(pieces, params)).reference_params()


def frozen_copy(params: Any, dtype: Any) -> Any:
    """A copy that shares no buffer with `params` (training donates those).

    Only what products cast anyway is in the compute dtype, so policy and reference start equal.
    """

    def copy(tree):
        return jax.tree.map(jnp.copy, cast_for_products(tree, dtype))

    return jax.jit(copy)(params)
