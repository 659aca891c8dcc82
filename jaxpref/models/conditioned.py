"""Adapters that objective weights w change: a middle M(w) between the factors a and b of LoRA.

A weight W becomes W + scale a M(w) b.  One such adapter serves all w; for a given one, a M(w) is
the factor `a` of an ordinary adapter (`at_weights`).  Leaves beside `a` and `b`, stacked over the
layers Y:

    Panacea (Zhong et al., arXiv 2402.02030), M diagonal, of size r + O:
        singular [Y, r]   the first r entries
        gain [Y]          the others are gain * w
    PBLoRA (PARM, Lin et al., arXiv 2505.06274, and its code), M of two blocks of size r:
        common [Y, r, r]            the first
        by_objective [Y, O, r, r]   the second is sum_k w_k by_objective_k

No gradient flows to w.  The scale is alpha / r in both.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxpref.config import AdapterKind
from jaxpref.errors import InputError
from jaxpref.models.layers import product

_SINGULAR_STD = 0.02


def width(kind: AdapterKind, rank: int, objectives: int) -> int:
    """The size of the middle: the rank of the adapter at any weights."""
    return {"lora": rank, "panacea": rank + objectives, "pblora": 2 * rank}[kind]


def init_middle(
    key: jax.Array, kind: AdapterKind, layers: int, rank: int, objectives: int
) -> dict[str, jax.Array]:
    """New leaves of a middle.

    Panacea's singular values are normal with standard deviation 0.02; how its gain begins is not
    said in what could be read of the paper, and is 1 here.  PBLoRA's are torch's kaiming_uniform
    with a = sqrt(5) of the shapes [r, r] and [O, r * r], as in its code.
    """
    if kind == "panacea":
        singular = _SINGULAR_STD * jax.random.normal(key, (layers, rank))
        return {"singular": singular, "gain": jnp.ones((layers,))}
    if kind == "pblora":
        of_common, of_objectives = jax.random.split(key)
        matrix = (rank, rank)
        return {
            "common": _uniform(of_common, (layers, *matrix), rank),
            "by_objective": _uniform(of_objectives, (layers, objectives, *matrix), rank**2),
        }
    return {}


def _uniform(key: jax.Array, shape: tuple[int, ...], inputs: int) -> jax.Array:
    bound = 1.0 / math.sqrt(inputs)
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def has_middle(adapter: Mapping[str, Any]) -> bool:
    """Whether the adapter of a weight still depends on objective weights."""
    return "gain" in adapter or "common" in adapter


def through_middle(
    low: jax.Array, adapter: Mapping[str, jax.Array], weights_RLO: jax.Array | None
) -> jax.Array:
    """x a -> x a M(w), with the weights of every token.

    Args:
        low: [R, L, Z] the product of activations and `a`.
        adapter: of one layer.
    Errors: InputError without weights.
    """
    if weights_RLO is None:
        raise InputError(
            "objective weights, for an adapter that serves all of them (adapter.kind)",
            "rows without weights",
            "export the adapter at the weights that you want, `jaxpref export RUN --to DIR "
            "--adapter --weights 0.3,0.7`, and use that; data need adapter.weight_columns",
        )
    weights_RLO = jax.lax.stop_gradient(weights_RLO)
    if "gain" in adapter:
        singular_RLZ = jnp.broadcast_to(
            adapter["singular"], (*low.shape[:-1], len(adapter["singular"]))
        )
        return low * jnp.concatenate([singular_RLZ, adapter["gain"] * weights_RLO], axis=-1)
    rank = adapter["common"].shape[-1]
    common_RLZ = product("RLz,zZ->RLZ", low[..., :rank], adapter["common"])
    # The sum over objectives is a part of the product's.
    each_RLOz = (weights_RLO[..., None] * low[..., None, rank:]).astype(low.dtype)
    mixed_RLZ = product("RLOz,OzZ->RLZ", each_RLOz, adapter["by_objective"])
    return jnp.concatenate([common_RLZ, mixed_RLZ], axis=-1)


def at_weights(adapter: Mapping[str, Any], weights_O: Any) -> dict[str, jax.Array]:
    """The adapter of one weight in all layers for some objective weights, without a middle."""
    a, middle_YZZ = adapter["a"], _middle(adapter, jnp.asarray(weights_O, jnp.float32))
    # "highest", for this is done once, and a TPU would round the operands to bfloat16.
    a = jnp.einsum("Y...z,YzZ->Y...Z", a, middle_YZZ, precision="highest")
    return {"a": a, "b": adapter["b"]}


def _middle(adapter: Mapping[str, Any], weights_O: jax.Array) -> jax.Array:
    """M(w) of every layer."""
    if "gain" in adapter:
        of_weights_YO = jnp.outer(adapter["gain"], weights_O)
        diagonal_YZ = jnp.concatenate([adapter["singular"], of_weights_YO], axis=-1)
        return jax.vmap(jnp.diag)(diagonal_YZ)
    mixed_YZZ = jnp.einsum("O,YOzZ->YzZ", weights_O, adapter["by_objective"], precision="highest")
    return jax.vmap(jax.scipy.linalg.block_diag)(adapter["common"], mixed_YZZ)
