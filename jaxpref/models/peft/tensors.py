"""How PEFT names and lays out the tensors of an adapter.

It goes by the modules of transformers' classes (`families.in_memory`).

Where a checkpoint holds several weights fused in one (q, k and v of Phi-3 and GPT-2), PEFT's factor
A is common to them, and each has its rows of B.  Here each has a factor `a` of its own.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from jaxpref.models.families import in_memory
from jaxpref.models.leaf import layers_with
from jaxpref.models.lora import TARGETS, LoraSpec, path_of
from jaxpref.models.parameters import ADAPTABLE, VOCAB_LEAVES
from jaxpref.models.spec import ModelSpec
from jaxpref.models.stored import StoredLeaf, used_leaves

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Of the names of all tensors."""


def target_names(model: ModelSpec) -> dict[str, tuple[str, ...]]:
    """Every weight that may be adapted -> its names.

    They are `q`, `attention/q`, `q_proj` and `self_attn.q_proj`; weights that are stored in one
    tensor share the latter two.  Those of a tower are `vision`, all together, and
    `vision/attention/q`; those of a connector `connector` and `connector/project`.
    """
    names: dict[str, tuple[str, ...]] = {}
    for target, leaf in stored_targets(model).items():
        part, _, rest = target.partition("/")
        if target in ADAPTABLE:  # outside of the decoder, whose weights have such names too
            names[target] = (part, target, f"{part}/{rest.removeprefix('layers/')}")
            continue
        module = module_in_layer(leaf)
        names[target] = (target.rpartition("/")[2], target, module.rpartition(".")[2], module)
    return names


class AdapterTensor(NamedTuple):
    """A layer's part of a leaf of the adapter, and where a file has it."""

    target: str
    part: str
    """`a`, `b` or `m`."""
    layer: int
    """Among those that have the leaf."""
    module: str
    """`model.layers.0.self_attn.q_proj`"""
    stored: StoredLeaf

    @property
    def path(self) -> str:
        """Of the leaf, below `lora`."""
        return f"{path_of(self.target)}/{self.part}"


def adapter_tensors(model: ModelSpec, spec: LoraSpec) -> Iterator[AdapterTensor]:
    """All parts of an adapter; those of fused weights name the same `lora_A`."""
    leaves = stored_targets(model)
    for layer in range(max(model.layers, model.vision.layers if model.vision else 0)):
        for target in spec.targets:
            (inputs, outputs), leaf = TARGETS[target], leaves[target]
            layers = layers_with(path_of(target), model)
            if layer not in layers:
                continue
            rows = _rows(leaf, outputs)
            parts = {
                "a": ("lora_A.weight", f"Z,{inputs} -> {inputs}Z"),
                "b": ("lora_B.weight", f"{rows},Z -> Z{outputs}"),
            }
            if spec.dora:
                parts["m"] = ("lora_magnitude_vector", f"{rows} -> {outputs}")
            module = module_of(leaf, layer)
            for part, (ending, layout) in parts.items():
                stored = StoredLeaf(f"{PREFIX}{module}.{ending}", layout)
                yield AdapterTensor(target, part, layers.index(layer), module, stored)


def _rows(leaf: StoredLeaf, outputs: str) -> str:
    """The outputs of the module that holds a weight, its own in brackets where there are others."""
    (axis,) = [axis for axis in leaf.stored_axes if axis.letters == outputs]
    if not (axis.before or axis.after):
        return outputs
    return "+".join((*axis.before, f"[{outputs}]", *axis.after))


def stored_targets(model: ModelSpec) -> dict[str, StoredLeaf]:
    """Where transformers has the weights that may be adapted, by target."""
    used = used_leaves(in_memory(model.family), model)
    return {target: used[path_of(target)] for target in TARGETS if path_of(target) in used}


def saved_leaves(model: ModelSpec) -> dict[str, StoredLeaf]:
    """The weights that an adapter may bring whole (`modules_to_save`): the embedding, the head."""
    used = used_leaves(in_memory(model.family), model)
    return {
        path: replace(used[path], name=PREFIX + used[path].name)
        for path in VOCAB_LEAVES
        if path in used
    }


def module_of(leaf: StoredLeaf, layer: int) -> str:
    """The module that holds a weight of one layer: `model.layers.0.self_attn.q_proj`."""
    return _module(leaf).format(layer=layer, block=layer)


def module_in_layer(leaf: StoredLeaf) -> str:
    """`self_attn.q_proj`."""
    return _module(leaf).partition("{layer}.")[2]


def module_pattern(leaf: StoredLeaf) -> str:
    """A regular expression for the modules that hold a weight of all layers."""
    pieces = re.split(r"\{(?:layer|block)\}", _module(leaf))
    return r"\d+".join(map(re.escape, pieces))


def is_module(leaf: StoredLeaf) -> bool:
    """Whether a weight is that of a module, for PEFT adapts no other (Gemma 3's connector)."""
    return leaf.name.endswith(".weight")


def _module(leaf: StoredLeaf) -> str:
    return leaf.name.removesuffix(".weight")
