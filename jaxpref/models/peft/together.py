"""Several adapters on one model as trees of one spec, which may be stacked or exchanged."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxpref.errors import InputError
from jaxpref.models.lora import TARGETS, LoraSpec, path_of
from jaxpref.models.parameters import ADAPTABLE, adapter_leaves, flatten, nest
from jaxpref.models.peft.reader import load_adapter
from jaxpref.models.spec import ModelSpec


def load_adapters(
    directories: Mapping[str, str | Path], model: ModelSpec
) -> tuple[LoraSpec, dict[str, Any]]:
    """Several PEFT adapters on one model, by name, as trees of one spec.

    So they may be stacked, or exchanged in a call.

    Smaller ranks are filled up with zeros, missing weights are zero, and the scales are in the
    factors `b`, so every adapter is the function that it was.

    Returns: the common spec, of scale 1, and {name: the tree that goes under `lora`}, float32 in
        numpy.
    Errors: InputError as of `load_adapter`, and for DoRA adapters on other weights than the rest.
    """
    loaded = {name: load_adapter(directory, model) for name, directory in directories.items()}
    specs = [spec for spec, _ in loaded.values()]
    rank, dora = max(spec.rank for spec in specs), any(spec.dora for spec in specs)
    targets = tuple(t for t in TARGETS if any(t in spec.targets for spec in specs))
    if dora and any(not spec.dora or spec.targets != targets for spec in specs):
        kinds = {name: _kind(spec) for name, (spec, _) in loaded.items()}
        raise InputError(
            "DoRA adapters together with others of the same kind on the same weights",
            f"{kinds}",
            "load these adapters one by one, or leave out those of the other kind",
        )
    common = LoraSpec(rank, float(rank), targets, max(spec.dropout for spec in specs), dora=dora)
    trees = {name: _widened(tree, spec, common, model) for name, (spec, tree) in loaded.items()}
    return common, trees


def rescaled(tree: Mapping[str, Any], own: LoraSpec, spec: LoraSpec) -> dict[str, Any]:
    """An adapter of the spec `own`, for a model that takes the scales of another spec."""
    flat = flatten(tree)
    for target in own.targets:
        factor = own.on(target).scale / spec.on(target).scale
        if factor != 1.0:
            b = f"{path_of(target)}/b"
            flat[b] = flat[b] * np.float32(factor)
    return nest(flat)


def _kind(spec: LoraSpec) -> str:
    return f"{'DoRA' if spec.dora else 'LoRA'} on {', '.join(spec.targets)}"


def _widened(
    tree: Mapping[str, Any], spec: LoraSpec, common: LoraSpec, model: ModelSpec
) -> dict[str, Any]:
    """The same function as an adapter of the common spec."""
    own, flat = flatten(tree), {}
    for target in common.targets:
        path = path_of(target)
        leaves = adapter_leaves(ADAPTABLE[path])
        a, b = (np.zeros(leaves[part].shape(model, common.rank), np.float32) for part in "ab")
        if target in spec.targets:
            a[..., : spec.rank] = own[f"{path}/a"]
            b[:, : spec.rank] = own[f"{path}/b"] * np.float32(spec.on(target).scale)
        flat |= {f"{path}/a": a, f"{path}/b": b}
        if common.dora:
            flat[f"{path}/m"] = own[f"{path}/m"]
    return nest(flat)
