"""`train.micro_rows: auto`: the most rows for which the compiled step fits the devices."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxpref.errors import InputError
from jaxpref.fields import AUTO
from jaxpref.processes.store import exchanged
from jaxpref.sharding import batch_sharding, device_memory, replicated, row_ways
from jaxpref.training.data import PlannedData
from jaxpref.training.prepare import Prepared

_log = logging.getLogger(__name__)

_SHARE = {"cpu": 0.5}
"""Of the memory that may be planned for; a host has other things to hold."""
SHARE_OF_DEVICE = 0.92
"""Of a device, whose memory does not come in one piece."""


def with_fitting_rows(
    prepared: Prepared, state: Any, compiled_step: Callable[[PlannedData], Callable]
) -> Prepared:
    """With the largest micro-batches that fit, where the config asks for `auto`.

    Twice as many rows are tried each time, up to those of the fullest step.

    Args:
        state: shapes and shardings of the train state.
        compiled_step: the step of such data, jitted, as training calls it.
    Errors: InputError where not even the smallest fits.
    """
    if prepared.config.train.micro_rows != AUTO:
        return prepared
    pieces = prepared.pieces
    if prepared.steps.planned_with is None:
        _log.info("micro_rows: %d (what a step holds is drawn in it)", _least(prepared))
        return prepared
    memory = device_memory(pieces.mesh)
    if memory is None:
        _log.info("micro_rows: %d (the device does not say what memory it has)", _least(prepared))
        return prepared
    room = _room(pieces.mesh, memory)
    fitting, tried = None, ""
    for planned in _plans(prepared):
        needed = _needed(prepared, state, planned, compiled_step(planned))
        tried = _said(needed, room)
        if needed is None or needed > room:
            break
        fitting = planned
        said = tried
    if fitting is None:
        raise InputError(
            f"a step that fits a device's {room / 2**30:.3g} GiB (train.micro_rows=auto)",
            f"with the fewest rows, {_least(prepared)}: {tried}",
            "lower data.max_length, train an adapter, or set mesh.fsdp over more devices",
        )
    rows = fitting.plan.micro_rows
    _log.info("micro_rows: %d (auto: the step takes %s)", rows, said)
    train = replace(pieces.config.train, micro_rows=rows)
    pieces = replace(pieces, config=replace(pieces.config, train=train))
    return dataclasses.replace(prepared, pieces=pieces, steps=fitting)


def _least(prepared: Prepared) -> int:
    return row_ways(prepared.pieces.mesh)


def _plans(prepared: Prepared) -> Iterator[PlannedData]:
    """Of ever more rows, up to a micro-batch that holds any step."""
    pieces, rows = prepared.pieces, _least(prepared)
    while True:
        train = replace(pieces.config.train, micro_rows=rows)
        config = replace(pieces.config, train=train)
        planned = prepared.steps.planned_with(replace(pieces, config=config))
        yield planned
        if planned.plan.micro_batches == 1:
            return
        rows *= 2


def _room(mesh: Any, memory: int) -> float:
    """Bytes that may be planned for on a device, the same on every process."""
    device = mesh.local_devices[0]
    share = _SHARE.get(device.platform, SHARE_OF_DEVICE)
    if device.platform == "cpu":  # whose memory all its virtual devices share
        memory //= len(mesh.local_devices)
    return share * min(int(each) for each in exchanged(str(memory).encode()))


def _needed(prepared: Prepared, state: Any, planned: PlannedData, step: Any) -> float | None:
    """Bytes of a device that the step takes; None: the compiler says that it does not fit."""
    mesh = prepared.pieces.mesh
    rows, whole = batch_sharding(mesh, leading=1), replicated(mesh)

    def shape(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=sharding)

    batch = jax.tree.map(lambda x: shape(x, rows), planned.first_batch())
    in_use = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    numbers = jax.tree.map(lambda x: shape(jnp.float32(x), whole), prepared.numbers)
    with jax.set_mesh(mesh):
        try:
            compiled = step.lower(state, prepared.frozen, batch, in_use, numbers).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return None
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return held + memory.temp_size_in_bytes - memory.alias_size_in_bytes


def _said(needed: float | None, room: float) -> str:
    if needed is None:
        return "more than a device has, says the compiler"
    return f"{needed / 2**30:.3g} of {room / 2**30:.3g} GiB that may be planned for"
