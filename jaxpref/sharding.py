"""The mesh, and how logical axes of arrays lie on its axes.

Axes: `data` (rows, parameters replicated), `fsdp` (rows and parameters), `context` (the tokens of
a row, and parameters), `tensor` (heads, ffn, vocabulary).  The mesh is Auto (docs/design.md, "Mesh
mode"): XLA propagates, and `constrain` pins the activations that matter.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.config import MeshConfig
from jaxpref.errors import InputError
from jaxpref.fields import AUTO

AXES = ("data", "fsdp", "context", "tensor")
"""In the order of the mesh, those between whose devices most travels last."""

# Logical axis -> mesh axes.  `vocab` takes all parameter axes, so the LM head is never gathered: a
# token's logits are computed where the vocabulary lies and only the softmax's sums travel.  Nor is
# the embedding, except over `context`, where the tokens of whole rows would have to travel instead.
LOGICAL: dict[str, Any] = {
    "rows": ("data", "fsdp"),
    "rows_replicated_fsdp": "data",
    "tokens": "context",
    "vocab": ("fsdp", "context", "tensor"),
    "vocab_replicated_context": ("fsdp", "tensor"),
    "width": ("fsdp", "context"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "ffn": "tensor",
}


def make_mesh(config: MeshConfig, *, devices: list | None = None) -> Mesh:
    """The mesh of the config's section `mesh`.

    Args:
        devices: None: all that there are.
    Errors: InputError when the product of the sizes is not the number of devices, or the slices are
        not those of the devices or do not divide the axis `data`.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, len(devices))
    count = math.prod(sizes.values())
    if count != len(devices):
        raise InputError(
            f"a mesh of {len(devices)} devices ({' * '.join(AXES)})",
            " * ".join(f"mesh.{axis}={size}" for axis, size in sizes.items()) + f" = {count}",
            f"choose sizes whose product is {len(devices)}, for example mesh.fsdp={len(devices)}; "
            "mesh=auto takes all devices so",
        )
    _check_slices(config, devices)
    # One slice's part of the mesh, and how many of these lie along each axis.
    inside = tuple((sizes | {"data": config.data // config.slices}).values())
    between = tuple(config.slices if axis == "data" else 1 for axis in AXES)
    if config.slices == 1:
        array = mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
    else:
        array = mesh_utils.create_hybrid_device_mesh(
            inside,
            between,
            devices,
            process_is_granule=not _is_tpu(devices),
            allow_split_physical_axes=True,
        )
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def axis_sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """Axis -> size; `fsdp: auto` is what the other axes leave of the devices."""
    sizes = {axis: getattr(config, axis) for axis in AXES}
    if sizes["fsdp"] == AUTO:
        others = math.prod(size for axis, size in sizes.items() if axis != "fsdp")
        sizes["fsdp"] = max(devices // others, 1)
    return sizes


def named_axes(sizes: Mapping[str, int]) -> str:
    """`data 2 x fsdp 4`: the axes over which a mesh splits anything; empty for one device."""
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)


def _is_tpu(devices: Sequence[Any]) -> bool:
    return devices[0].platform == "tpu"


def _check_slices(config: MeshConfig, devices: Sequence[Any]) -> None:
    """Refuses slices that are not there, and a mesh that would reach over slices unasked."""
    if config.data % config.slices:
        raise InputError(
            "mesh.data as a multiple of mesh.slices: rows alone are split between slices",
            f"mesh.data={config.data} with mesh.slices={config.slices}",
            f"set mesh.data to a multiple of {config.slices}, or mesh.slices to a divisor of "
            f"{config.data}",
        )
    tpu = _is_tpu(devices)
    # CPUs have slice indices too, the same for all processes of a host.
    index = lambda device: getattr(device, "slice_index", 0) if tpu else device.process_index
    slices = {index(device) for device in devices}
    # Elsewhere one mesh over several hosts is usual, and their network good enough for any axis.
    if config.slices != len(slices) and (tpu or config.slices > 1):
        unit = "slice(s)" if tpu else "process(es), each taken as a slice"
        raise InputError(
            f"mesh.slices as there are: {len(devices)} devices of {len(slices)} {unit}",
            f"mesh.slices={config.slices}",
            f"set mesh.slices={len(slices)} and mesh.data to a multiple of it",
        )


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Pins `x` to its logical axes on the mesh in force (`jax.set_mesh`), if there is one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, logical_spec(logical))


def logical_spec(logical: tuple[str | None, ...]) -> P:
    """PartitionSpec of logical axis names."""
    return P(*(None if name is None else LOGICAL[name] for name in logical))


def vocab_ways(mesh: Mesh) -> int:
    """Devices over which the vocabulary lies.

    Embedding and LM head are padded with zeros to a multiple of it.  The rows behind the vocabulary
    stay zero: no token looks them up and no logit is made of them, so their gradient is zero, and
    with it every optimizer's update and decay.
    """
    return math.prod(mesh.shape[name] for name in LOGICAL["vocab"])


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Rows over `data` and `fsdp`, after `leading` unsharded dimensions (the micro-batches)."""
    return NamedSharding(mesh, P(*(None,) * leading, LOGICAL["rows"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


HOST_MEMORY = "pinned_host"


def has_host_memory(mesh: Mesh) -> bool:
    """Whether arrays on the mesh may lie in the hosts' memory."""
    memories = mesh.devices.flat[0].addressable_memories()
    return any(memory.kind == HOST_MEMORY for memory in memories)


def in_host_memory(sharding: NamedSharding) -> NamedSharding:
    """As `sharding`, in the memory of the hosts."""
    return sharding.with_memory_kind(HOST_MEMORY)


def on_devices(tree: Any) -> Any:
    """The tree with what lies in the hosts' memory brought to the devices, which compute."""

    def brought(x):
        if jax.typeof(x).memory_space == jax.memory.Space.Host:
            return jax.device_put(x, jax.memory.Space.Device)
        return x

    return jax.tree.map(brought, tree)


def place(x: Any, sharding: NamedSharding) -> jax.Array:
    """A host array onto the mesh, each process giving what its devices hold."""
    return jax.make_array_from_callback(
        np.shape(x), sharding, lambda index: np.asarray(x[index], order="C")
    )


def place_numbers(numbers: Any, mesh: Mesh) -> Any:
    """A tree of numbers as float32, whole on every device."""
    return jax.tree.map(lambda x: place(np.asarray(x, np.float32), replicated(mesh)), numbers)


def row_ways(mesh: Mesh) -> int:
    """How many ways the rows of a micro-batch are split."""
    return math.prod(mesh.shape[axis] for axis in LOGICAL["rows"])


def context_ways() -> int:
    """How many ways the tokens of a row are split on the mesh in force; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[LOGICAL["tokens"]]


def micro_rows(asked: int | str | None, mesh: Mesh) -> int:
    """Rows of a micro-batch as `train.micro_rows` asks for them, or the least that there are."""
    return asked if isinstance(asked, int) else row_ways(mesh)


def device_memory(mesh: Mesh) -> int | None:
    """Bytes of memory of a device, of the host for a CPU; None: it does not say."""
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (device.memory_stats() or {}).get("bytes_limit")
