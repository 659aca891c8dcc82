"""Attention by tokamax's GPU kernels, and the choice between them and attention.py.

The mask goes to tokamax as booleans, [R, 1, L, L], one for all heads, beside its own causal one:
its kernels leave out the blocks above the diagonal, and no others.

`benchmarks/gpu.py --jobs attention` compares the kernels with attention.py, in values, gradients
and speed.
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
from jaxpref.sharding import logical_spec

# Compute capability of an NVIDIA GPU, before the point -> tokamax's kernels; of several, the first
# that takes the arguments.  For 10 there are `mosaic_gpu` kernels too; which are faster there has
# to be measured.
KERNELS = {8: ("triton",), 9: ("mosaic_gpu",), 10: ("triton",), 12: ("triton",)}

# Where they were faster than attention.py (benchmarks/README.md); elsewhere nobody has measured.
MEASURED = (9,)


class AttentionChoice(NamedTuple):
    """Which attention a model computes."""

    name: str
    """`xla` (attention.py) or `tokamax` (this file)."""
    why: str
    attend: Callable | None
    """`fused_attention` with its kernels; None: attention.py."""


def choose_attention(
    asked: str, device: Any, spec: ModelSpec, dtype: Any, context: int = 1
) -> AttentionChoice:
    """What `model.attention` means on this device.

    Args:
        asked: `xla`, `tokamax` or `auto`.
        device: one of those that compute.
        dtype: compute dtype.
        context: devices over which the tokens of a row lie.
    Errors: InputError when tokamax is asked for and cannot be used.
    """
    if asked == "xla":
        return AttentionChoice("xla", "as model.attention says", None)
    capability = _capability(device)
    kernels = KERNELS.get(capability)
    obstacles = list(_obstacles(device, kernels, spec, jnp.dtype(dtype)))
    if context > 1:
        obstacles.append("tokens lie over mesh.context, and the kernels take whole rows of queries")
    if asked == "auto" and kernels is not None and capability not in MEASURED:
        obstacles.insert(0, f"tokamax's kernels have not been measured on {device.device_kind}")
    if not obstacles:
        why = f"kernels {' or '.join(kernels)} on {device.device_kind}"
        return AttentionChoice("tokamax", why, partial(fused_attention, kernels=kernels))
    if asked == "tokamax":
        raise InputError(
            "a model and a device that tokamax's attention serves",
            f"model.attention=tokamax, but {'; '.join(obstacles)}",
            "set model.attention=xla",
        )
    return AttentionChoice("xla", obstacles[0], None)  # the others do not matter then


def _obstacles(
    device: Any, kernels: tuple[str, ...] | None, spec: ModelSpec, dtype: Any
) -> Iterator[str]:
    """Why tokamax's kernels cannot be used."""
    if kernels is None:
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


def _capability(device: Any) -> int | None:
    """Compute capability of an NVIDIA GPU, before the point; None for other devices."""
    try:
        return int(float(device.compute_capability))
    except (AttributeError, ValueError):  # CPUs and TPUs have none, and AMD names architectures
        return None


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
    """Softmax attention, as `attention.attention`.

    A kernel is opaque to XLA's partitioner, so under a mesh every device runs its own rows and
    heads.

    Args:
        kernels: tokamax's implementations, of which the first that takes the arguments runs; `xla`
            runs anywhere, in memory quadratic in L.
    Returns: [R, L, N, H] in the dtype of q; zeros where a query sees no key (padding).
    """
    run = partial(_on_one_device, scale=scale, softcap=softcap, kernels=kernels)
    if not jax.sharding.get_abstract_mesh().empty:
        rows = logical_spec(("rows", None))
        heads = logical_spec(("rows", None, "heads", None))
        kv_heads = logical_spec(("rows", None, "kv_heads", None))
        # Numbers of tokens lie as the rows do; the window is one number.
        masks = jax.tree.map(lambda x: rows if jnp.ndim(x) else P(), mask)
        run = jax.shard_map(
            run,
            in_specs=(heads, kv_heads, kv_heads, masks),
            out_specs=heads,
            check_vma=False,  # the kernels do not say over which axes their results vary
        )
    return run(q_RLNH, k_RLMH, v_RLMH, mask)


def _on_one_device(
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
