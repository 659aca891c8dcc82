"""How PEFT names and lays out the tensors of an adapter.

A weight that checkpoints hold fused with others (q, k and v of Phi-3 and GPT-2) has a low-rank term
of its own here, and one with the others in PEFT, so adapters on these are neither read nor written.
"""

from collections.abc import Iterator
from typing import NamedTuple

from jaxpref.models.families import FAMILIES
from jaxpref.models.lora import TARGETS, LoraSpec
from jaxpref.models.spec import ModelSpec
from jaxpref.models.stored import StoredLeaf, used_leaves

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


def target_names(model: ModelSpec) -> dict[str, tuple[str, ...]]:
    """Every weight that may be adapted -> its names.

    They are `q`, `attention/q`, `q_proj` and `self_attn.q_proj`, the latter two where its tensor is
    its own.
    """
    names: dict[str, tuple[str, ...]] = {}
    for target, leaf in stored_targets(model).items():
        names[target] = (target.rpartition("/")[2], target)
        if not is_fused(leaf):
            module = module_in_layer(leaf)
            names[target] += (module.rpartition(".")[2], module)
    return names


class AdapterTensor(NamedTuple):
    """One tensor of an adapter file: a layer's part of a leaf of the adapter."""

    name: str
    path: str
    """Of the leaf, below `lora`."""
    layer: int
    stored: StoredLeaf


def adapter_tensors(model: ModelSpec, spec: LoraSpec) -> Iterator[AdapterTensor]:
    """All tensors of an adapter's file."""
    leaves = stored_targets(model)
    for layer in range(model.layers):
        for target in spec.targets:
            inputs, outputs = TARGETS[target]
            parts = {
                "a": ("lora_A.weight", f"Z,{inputs} -> {inputs}Z"),
                "b": ("lora_B.weight", f"{outputs},Z -> Z{outputs}"),
            }
            if spec.dora:
                parts["m"] = ("lora_magnitude_vector", f"{outputs} -> {outputs}")
            module = module_prefix(leaves[target], layer)
            for part, (ending, layout) in parts.items():
                stored = StoredLeaf(module + ending, layout)
                yield AdapterTensor(stored.name, f"layers/{target}/{part}", layer, stored)


def stored_targets(model: ModelSpec) -> dict[str, StoredLeaf]:
    """Where the weights that may be adapted are stored, by target."""
    used = used_leaves(FAMILIES[model.family].TENSORS, model)
    return {target: used[f"layers/{target}"] for target in TARGETS if f"layers/{target}" in used}


def module_prefix(leaf: StoredLeaf, layer: int) -> str:
    """What the names of an adapter's tensors on this weight of one layer begin with."""
    return f"base_model.model.{_module(leaf).format(layer=layer)}."


def module_in_layer(leaf: StoredLeaf) -> str:
    """`self_attn.q_proj`."""
    return _module(leaf).partition("{layer}.")[2]


def is_fused(leaf: StoredLeaf) -> bool:
    """Whether a checkpoint's tensor holds other leaves too."""
    return any(axis.before or axis.after for axis in leaf.stored_axes)


def _module(leaf: StoredLeaf) -> str:
    return leaf.name.removesuffix(".weight")
