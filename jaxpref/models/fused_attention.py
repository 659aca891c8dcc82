"""Attention by kernels, and the choice between them and attention.py.

NVIDIA GPUs take tokamax's kernels.  The mask goes to them as booleans, [R, 1, L, L], one for all
heads, beside tokamax's own causal one: the kernels leave out the blocks above the diagonal, and no
others.  TPUs take those of tpu_attention.py.

`benchmarks/gpu.py --jobs attention` compares tokamax's kernels with attention.py, in values,
gradients and speed.
"""

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxpref.errors import InputError
from jaxpref.models.attention import Mask
from jaxpref.models.spec import ModelSpec
from jaxpref.models.tpu_attention import tpu_attention
from jaxpref.sharding import logical_spec

# Compute capability of an NVIDIA GPU, before the point -> tokamax's kernels; of several, the first
# that takes the arguments.  For 10 there are `mosaic_gpu` kernels too; which are faster there has
# to be measured.
KERNELS = {8: ("triton",), 9: ("mosaic_gpu",), 10: ("triton",), 12: ("triton",)}

# Where they were faster than attention.py (benchmarks/README.md); elsewhere nobody has measured.
MEASURED = (9,)

# TPUs for which the Pallas kernels were compiled and their cycles estimated (docs/results.md), by
# jax's device_kind.  TPU v4 has too little vector memory.
COMPILED = ("TPU v5 lite", "TPU v5e", "TPU v5", "TPU v5p", "TPU v6 lite", "TPU v6e")

# Head sizes for which they were.
HEAD_SIZES = range(64, 257, 8)


class AttentionChoice(NamedTuple):
    """Which attention a model computes."""

    name: str
    """`xla` (attention.py), `tokamax` or `pallas`."""
    why: str
    attend: Callable | None
    """`fused_attention` with its kernels, or `pallas_attention`; None: attention.py."""


class _Kernels(NamedTuple):
    """Kernels that could be chosen."""

    title: str
    attend: Callable | None
    why: str
    obstacles: list[str]
    """Why they cannot be used."""
    doubts: list[str]
    """Why they are used only when asked for."""


def choose_attention(
    asked: str, device: Any, spec: ModelSpec, dtype: Any, context: int = 1
) -> AttentionChoice:
    """What `model.attention` means on this device.

    Args:
        asked: `xla`, `tokamax`, `pallas` or `auto`.
        device: one of those that compute.
        dtype: compute dtype.
        context: devices over which the tokens of a row lie.
    Errors: InputError when kernels are asked for and cannot be used.
    """
    if asked == "xla":
        return AttentionChoice("xla", "as model.attention says", None)
    if spec.vision is not None and spec.vision.mutual:
        why = "tokens of a picture see each other"
        if asked == "auto":
            return AttentionChoice("xla", why, None)
        raise InputError(
            "a model whose tokens see earlier ones alone, for kernels of attention",
            f"model.attention={asked}, but {why}",
            "set model.attention=xla",
        )
    name = asked
    if asked == "auto":
        name = "pallas" if device.platform == "tpu" else "tokamax"
    find = {"tokamax": _tokamax_kernels, "pallas": _pallas_kernels}[name]
    kernels = find(device, spec, jnp.dtype(dtype), context)
    if asked == "auto" and (reasons := kernels.doubts + kernels.obstacles):
        return AttentionChoice("xla", reasons[0], None)  # the others do not matter then
    if kernels.obstacles:
        raise InputError(
            f"a model and a device that {kernels.title} serves",
            f"model.attention={name}, but {'; '.join(kernels.obstacles)}",
            "set model.attention=xla",
        )
    return AttentionChoice(name, kernels.why, kernels.attend)


def _tokamax_kernels(device: Any, spec: ModelSpec, dtype: Any, context: int) -> _Kernels:
    capability = _capability(device)
    names = KERNELS.get(capability, ())
    measured = capability in MEASURED or not names
    doubt = f"tokamax's kernels have not been measured on {device.device_kind}"
    return _Kernels(
        "tokamax's attention",
        partial(fused_attention, kernels=names),
        f"kernels {' or '.join(names)} on {device.device_kind}",
        list(_tokamax_obstacles(device, names, spec, dtype, context)),
        [] if measured else [doubt],
    )


def _tokamax_obstacles(
    device: Any, kernels: tuple[str, ...], spec: ModelSpec, dtype: Any, context: int
) -> Iterator[str]:
    if not kernels:
        yield (
            f"the device is {device.device_kind}, and the kernels are for NVIDIA GPUs of compute "
            "capability 8 or more"
        )
    if dtype != jnp.bfloat16:
        yield f"the compute dtype is {dtype}, and the kernels multiply in bfloat16"
    if spec.attention_softcap is not None:
        yield "the model caps its attention logits, which the kernels' backward pass does not"
    if spec.attention_sinks:
        yield "the model has attention sinks, which the kernels have not"
    if importlib.util.find_spec("tokamax") is None:
        yield "tokamax is not installed (pip install jaxpref[cuda], with Python 3.12 or later)"
    if context > 1:
        yield "tokens lie over mesh.context, and the kernels take whole rows of queries"


def _capability(device: Any) -> int | None:
    """Compute capability of an NVIDIA GPU, before the point; None for other devices."""
    try:
        return int(float(device.compute_capability))
    except (AttributeError, ValueError):  # CPUs and TPUs have none, and AMD names architectures
        return None


def _pallas_kernels(device: Any, spec: ModelSpec, dtype: Any, context: int) -> _Kernels:
    """Any dtype will do, and any context."""
    kind, obstacles, doubts = device.device_kind, [], []
    if device.platform != "tpu":
        obstacles.append(f"the device is {kind}, and the kernels are for TPUs")
    elif kind not in COMPILED:
        doubts.append(f"the Pallas kernels have not been compiled for {kind}")
    if spec.head_dim not in HEAD_SIZES:
        obstacles.append(
            f"the head size is {spec.head_dim}, and the kernels take 64 to 256, multiples of 8"
        )
    why = f"Pallas kernels on {kind}"
    return _Kernels("the Pallas attention", pallas_attention, why, obstacles, doubts)


def pallas_attention(
    q_RLNH: jax.Array,
    k_RLMH: jax.Array,
    v_RLMH: jax.Array,
    mask: Mask,
    *,
    scale: float,
    softcap: float | None = None,
    sink_N: jax.Array | None = None,
    q_start: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Softmax attention, as `attention.attention`, by the kernels of tpu_attention.py.

    Args:
        q_start: index along the row of the first query, on a device that has a part of the queries
            (`context.py`); None: every device has whole rows.
    """
    run = partial(tpu_attention, scale=scale, softcap=softcap, interpret=interpret)
    if q_start is not None:
        return run(q_RLNH, k_RLMH, v_RLMH, mask, sink_N=sink_N, q_start=q_start)
    return _on_each_device(run, q_RLNH, k_RLMH, v_RLMH, mask, sink_N)


def fused_attention(
    q_RLNH: jax.Array,
    k_RLMH: jax.Array,
    v_RLMH: jax.Array,
    mask: Mask,
    *,
    scale: float,
    softcap: float | None = None,
    kernels: tuple[str, ...],
) -> jax.Array:
    """Softmax attention, as `attention.attention`, by tokamax.

    Args:
        kernels: tokamax's implementations, of which the first that takes the arguments runs; `xla`
            runs anywhere, in memory quadratic in L.
    Returns: [R, L, N, H] in the dtype of q; zeros where a query sees no key (padding).
    """
    run = partial(_by_tokamax, scale=scale, softcap=softcap, kernels=kernels)
    return _on_each_device(run, q_RLNH, k_RLMH, v_RLMH, mask)


def _on_each_device(
    attend: Callable,
    q_RLNH: jax.Array,
    k_RLMH: jax.Array,
    v_RLMH: jax.Array,
    mask: Mask,
    sink_N: jax.Array | None = None,
) -> jax.Array:
    """`attend`, under a mesh on every device's own rows and heads.

    A kernel is opaque to XLA's partitioner.
    """

    def run(q_RLNH, k_RLMH, v_RLMH, mask, sink_N):
        sinks = {} if sink_N is None else {"sink_N": sink_N}
        return attend(q_RLNH, k_RLMH, v_RLMH, mask, **sinks)

    if not jax.sharding.get_abstract_mesh().empty:
        rows = logical_spec(("rows", None))
        heads = logical_spec(("rows", None, "heads", None))
        kv_heads = logical_spec(("rows", None, "kv_heads", None))
        # Numbers of tokens lie as the rows do; the window is one number.
        masks = jax.tree.map(lambda x: rows if jnp.ndim(x) else P(), mask)
        run = jax.shard_map(
            run,
            in_specs=(heads, kv_heads, kv_heads, masks, logical_spec(("heads",))),
            out_specs=heads,
            check_vma=False,  # the kernels do not say over which axes their results vary
        )
    return run(q_RLNH, k_RLMH, v_RLMH, mask, sink_N)


def _by_tokamax(
    q_RLNH: jax.Array,
    k_RLMH: jax.Array,
    v_RLMH: jax.Array,
    mask: Mask,
    *,
    scale: float,
    softcap: float | None,
    kernels: tuple[str, ...],
) -> jax.Array:
    import tokamax

    out_RLNH = tokamax.dot_product_attention(
        q_RLNH,
        k_RLMH,
        v_RLMH,
        mask=_visible(mask),
        is_causal=True,
        scale=scale,
        logits_soft_cap=softcap,
        implementation=kernels,
    )
    # A query that sees nothing gets the mean of all values from the kernels.
    real_RL11 = (mask.expiry_RL > 0)[:, :, None, None]
    return jnp.where(real_RL11, out_RLNH, jnp.zeros((), out_RLNH.dtype))


def _visible(mask: Mask) -> jax.Array:
    """[R, 1, L, L] whether the query lies before the key's expiry, and inside the window."""
    index_L = jnp.arange(mask.expiry_RL.shape[1])
    visible_RLL = index_L[None, :, None] < mask.expiry_RL[:, None, :]
    if mask.window is not None:
        distance_RLL = mask.position_RL[:, :, None] - mask.position_RL[:, None, :]
        visible_RLL &= distance_RLL < mask.window
    return visible_RLL[:, None]
