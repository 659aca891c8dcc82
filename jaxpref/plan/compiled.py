"""Compiles the planned step for a slice, and reads the program: what the child process does.

    python -m jaxpref.plan.compiled ORDER.json ANSWER.json

The TPU compiler reads its environment once and keeps it, so it runs in a process of its own
(`child.py`), and the user's own JAX stays as it is.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from jaxpref.config import Config
from jaxpref.errors import InputError
from jaxpref.fields import AUTO
from jaxpref.models.parameters import LORA
from jaxpref.plan.array_bytes import shard_bytes
from jaxpref.plan.child import end_with_parent, refusal
from jaxpref.plan.chips import Slice, parse_slice
from jaxpref.plan.collectives import Collective, collectives
from jaxpref.plan.flops import program_flops
from jaxpref.plan.largest import largest_arrays
from jaxpref.plan.loops import Loops, count_loops
from jaxpref.plan.planned_step import PlannedStep, plan_step
from jaxpref.plan.program import Instruction, Program
from jaxpref.plan.row_sizes import RowSizes
from jaxpref.settings import load_config
from jaxpref.sharding import AXES, HOST_MEMORY


def slice_devices(target: Slice) -> list[Any]:
    """The devices of TPU slices that need not exist."""
    more = {"num_slices": target.slices} if target.slices > 1 else {}
    described = topologies.get_topology_desc(
        platform="tpu",
        topology_name=target.topology,
        chips_per_host_bounds=target.host_bounds,
        **more,
    )
    return list(described.devices)


def compile_and_read(
    configs: Sequence[Config], rows: RowSizes, devices: list[Any]
) -> dict[str, Any]:
    """What the compiler and its program say of a step, as JSON.

    Args:
        configs: as of `plan_step`.

    Returns: sizes in bytes and FLOPs of one device, unless the name says otherwise;
        `does_not_fit`, the compiler's words, and `largest`, the largest arrays that are known
        without it, in place of what follows from the program.
    """
    planned = plan_step(configs, rows, devices)
    loops = count_loops(planned)
    mesh = planned.pieces.mesh
    with jax.set_mesh(mesh):
        traced = planned.jitted.trace(*planned.arguments)
        answer = step_facts(planned) | {
            "loops": loops.trips,
            "flops": program_flops(traced.jaxpr, loops.at, loops.kernels) / mesh.size,
        }
        began = time.perf_counter()
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            largest = largest_arrays(planned, traced.jaxpr)
            return answer | {"does_not_fit": str(error), "largest": largest}
        answer["compile_seconds"] = time.perf_counter() - began
    return answer | read_program(compiled, planned, loops)


def step_facts(planned: PlannedStep) -> dict[str, Any]:
    """What is known before the compiler runs."""
    params = dict(planned.state.params)
    adapter = params.pop(LORA, {})
    item, plan = planned.item, planned.loader.plan
    return {
        "mesh": dict(planned.pieces.mesh.shape),
        "devices": planned.pieces.mesh.size,
        "model_flops_all": planned.model_flops,
        "tokens_all": item.tokens,
        "groups_all": item.groups,
        "run_tokens_all": item.run_tokens,
        "row_length": plan.shape.length,
        "micro_rows": plan.micro_rows,
        "micro_batches": item.micro_batches,
        "points": planned.points,
        "rows_chosen_later": planned.pieces.config.train.micro_rows == AUTO,
        "on_policy": bool(planned.pieces.config.online.rewards),
        "hbm": {
            "parameters": _on_device(params) + _on_device(planned.frozen.base),
            "adapter": _on_device(adapter),
            "optimizer": _on_device(planned.state.opt_state),
            "reference": _on_device(planned.frozen.reference)
            + _on_device(planned.state.ref_params),
        },
        "on_host": _on_host(planned.state, planned.frozen),
        "replicated": _replicated(planned),
        "head_dim": planned.pieces.source.spec.head_dim,
        "vocabulary_padding": _padded_rows(planned),
    }


def _padded_rows(planned: PlannedStep) -> int:
    """Rows of zeros behind the vocabulary, for the mesh to divide it."""
    params = {**planned.frozen.base, **planned.state.params}
    return params["embed"]["table"].shape[-2] - planned.pieces.source.spec.vocab


def _on_device(tree: Any) -> int:
    """Bytes of arrays in the memory of one device."""
    return sum(shard_bytes(leaf) for leaf in jax.tree.leaves(tree) if not _is_on_host(leaf))


def _on_host(*trees: Any) -> int:
    """Bytes that one device has in the memory of its host."""
    return sum(shard_bytes(leaf) for leaf in jax.tree.leaves(trees) if _is_on_host(leaf))


def _is_on_host(leaf: Any) -> bool:
    return leaf.sharding.memory_kind == HOST_MEMORY


def _replicated(planned: PlannedStep) -> dict[str, int]:
    """{leaf: bytes} of large arrays that every device holds whole, though there are several."""
    if planned.pieces.mesh.size == 1:
        return {}
    trees = {"params": planned.state.params, "base": planned.frozen.base}
    trees["reference"] = planned.frozen.reference
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): shard_bytes(leaf)
        for path, leaf in leaves
        if leaf.sharding.is_fully_replicated and shard_bytes(leaf) > 2**20
    }


def read_program(compiled: Any, planned: PlannedStep, loops: Loops) -> dict[str, Any]:
    """What a compiled step holds, moves and sends, on one device."""
    trips = lambda line: loops.at(line.op_name)
    program = Program.parse(compiled.as_text())
    memory = compiled.memory_analysis()
    kernel_flops, kernel_bytes = program.kernels(trips)
    sent = collectives(program, trips, planned.pieces.mesh.devices, AXES)
    return {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "saved": saved_for_backward(program, planned.pieces.source.spec.layers, planned),
        "cycles": program.cycles(trips),
        "bytes_moved": program.bytes_moved(trips),
        "kernel_flops": loops.kernels * kernel_flops,
        "kernel_bytes": kernel_bytes,
        "collectives": [vars(one) for one in sent],
        "gathered_activations": gathered_activations(sent, planned),
    }


def gathered_activations(sent: list[Collective], planned: PlannedStep) -> float:
    """Bytes that a device sends so that others have whole what is no weight, within the layers.

    Keys and values are gathered over `context` by intent, and not counted.
    """
    frozen = jax.tree.leaves((planned.frozen.base, planned.frozen.reference))
    weights = {_sides(leaf.shape[1:]) for leaf in frozen}
    for leaf in jax.tree.leaves(planned.state.params):
        points = leaf.shape[: planned.points > 1]  # the axis before that of the layers
        weights.add(_sides(points + leaf.shape[len(points) + 1 :]))
    return sum(
        one.bytes
        for one in sent
        if one.kind == "all-gather" and "/layers/" in one.where and one.axes != ("context",)
        if not all(_sides(sizes) in weights for sizes in one.sizes)
    )


def _sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without those of 1, and in an order that does not depend on how an array lies in memory."""
    return tuple(sorted(side for side in shape if side > 1))


def saved_for_backward(program: Program, layers: int, planned: PlannedStep) -> int:
    """Bytes of what the forward pass keeps of every layer: stacks that a layers' loop fills."""
    params = planned.state.params, planned.frozen.base, planned.frozen.reference
    known = {leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(params)}
    most = 0
    for lines in program.computations.values():
        for line in lines:
            if line.opcode == "while" and _is_layers_forward(line):
                stacks = [
                    array.bytes
                    for array in line.arrays
                    if array.dims[:1] == (layers,) and array.dims not in known
                ]
                most = max(most, sum(stacks))
    return most


def _is_layers_forward(line: Instruction) -> bool:
    return line.op_name.endswith("_scanned/while") and "jvp(" in line.op_name


def main(order_path: str, answer_path: str) -> None:
    """Does what an order says, and writes the answer."""
    end_with_parent()
    order = json.loads(Path(order_path).read_text())
    configs = [load_config(path) for path in order["configs"]]
    rows = RowSizes.load(Path(order["rows"]))
    if order["topology"] is None:
        devices = jax.devices()
    else:
        devices = slice_devices(parse_slice(order["topology"], order["slices"]))
    try:
        answer = compile_and_read(configs, rows, devices)
    except InputError as error:
        sys.exit(refusal(error))
    Path(answer_path).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
