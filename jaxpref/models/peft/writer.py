"""PEFT adapter directories, written."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpref.errors import InputError
from jaxpref.files import check_destination, whole_directory
from jaxpref.models.finite import not_finite
from jaxpref.models.hf import foreign_files, write_safetensors
from jaxpref.models.leaf import axis_sizes
from jaxpref.models.lora import TARGETS, LoraSpec
from jaxpref.models.parameters import flatten
from jaxpref.models.peft.tensors import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterTensor,
    adapter_tensors,
    is_module,
    module_in_layer,
    module_pattern,
    stored_targets,
)
from jaxpref.models.spec import ModelSpec
from jaxpref.models.stored import StoredLeaf
from jaxpref.storage.paths import as_path

_OUR_FILES = (CONFIG_FILE, WEIGHTS_FILE, "README.md")


def save_adapter(
    directory: str | Path,
    tree: Mapping[str, Any],
    spec: LoraSpec,
    model: ModelSpec,
    *,
    base: str,
    model_card: str,
) -> None:
    """Writes a directory that `peft.PeftModel.from_pretrained` loads onto the base.

    Args:
        tree: what lies under `lora`; numpy, or arrays that this process holds whole.
        base: name or path of the base model, for whoever loads the adapter without naming one.
        model_card: text of README.md.
    Weights that are stored in one tensor share PEFT's factor A.  It gets their factors one below
    the other, and B is zero where the rows of one would meet the factor of another: the same
    function, with the sum of their ranks.

    Errors: InputError for DoRA on some of such weights, for weights of no module, and for a
        directory that holds anything but an adapter that was written so before.
    """
    directory = as_path(directory)
    together = _together(spec, model)
    _check_modules(spec, model)
    _check_lengths(spec, together, model)
    check_adapter_directory(directory)
    bad = not_finite(tree)
    if bad:
        raise InputError(
            "finite weights",
            f"NaN or infinite numbers in {', '.join(bad)}",
            "write an earlier checkpoint",
        )
    flat, sizes = flatten(tree), axis_sizes(model) | {"Z": spec.rank}
    modules: dict[str, list[np.ndarray]] = {}
    for tensor in adapter_tensors(model, spec):
        part = np.asarray(jax.device_get(flat[tensor.path][tensor.layer]), np.float32)
        modules.setdefault(tensor.stored.name, []).append(_in_module(tensor, part, sizes))
    tensors = {name: _joined(name, parts) for name, parts in modules.items()}
    config = _peft_config(spec, model, base)
    with whole_directory(directory, CONFIG_FILE) as partial:
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        write_safetensors(partial / WEIGHTS_FILE, shapes, np.dtype(np.float32), tensors.values())
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(model_card, encoding="utf-8")


def _together(spec: LoraSpec, model: ModelSpec) -> dict[str, list[str]]:
    """Module of a layer, as `_named` -> the adapted weights that it holds."""
    modules: dict[str, list[str]] = {}
    leaves = stored_targets(model)
    for target in spec.targets:
        modules.setdefault(_named(leaves[target], model), []).append(target)
    return modules


def _named(leaf: StoredLeaf, model: ModelSpec) -> str:
    """A module of every layer: inside the layer, or as a regular expression for its whole name.

    Modules of a tower may have the names of the decoder's.
    """
    return module_pattern(leaf) if model.vision else module_in_layer(leaf)


def _check_modules(spec: LoraSpec, model: ModelSpec) -> None:
    leaves = stored_targets(model)
    if others := [target for target in spec.targets if not is_module(leaves[target])]:
        raise InputError(
            "an adapter on weights of modules, which PEFT adapts",
            f"{', '.join(others)}, which {model.family} holds as {leaves[others[0]].name}",
            "write the merged model, or train without it (adapter.targets)",
        )


def _check_lengths(spec: LoraSpec, together: dict[str, list[str]], model: ModelSpec) -> None:
    parts = _together(replace(spec, targets=tuple(stored_targets(model))), model)
    partial = [targets for module, targets in together.items() if targets != parts[module]]
    if spec.dora and partial:
        raise InputError(
            "DoRA on all weights that checkpoints of this family hold in one tensor, or on none",
            f"{', '.join(sum(partial, []))} alone, which {model.family} holds fused with others",
            "export the merged model",
        )


def _in_module(tensor: AdapterTensor, part: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
    """A part of an adapter as its module has it: B with zeros for the module's other rows."""
    own = tensor.stored.stored(part)
    if tensor.part != "b":
        return own
    whole = np.zeros(tensor.stored.stored_shape(sizes), np.float32)
    first = tensor.stored.stored_axes[0].offset(sizes)
    whole[first : first + len(own)] = own
    return whole


def _joined(name: str, parts: list[np.ndarray]) -> np.ndarray:
    """The factors A of weights in one module one below the other, B side by side."""
    return np.concatenate(parts, axis=1 if name.endswith("lora_B.weight") else 0)


def check_adapter_directory(directory: str | Path, sources: Iterable[str | Path] = ()) -> None:
    """Errors: InputError unless an adapter may be written here, which replaces the whole directory.

    Args:
        sources: what must not be replaced, as `files.check_destination` takes them.
    """
    check_destination(
        directory,
        "a new or empty directory, or one with an adapter that an earlier export wrote",
        sources=sources,
        foreign=lambda path: foreign_files(path, _OUR_FILES),
    )


def _peft_config(spec: LoraSpec, model: ModelSpec, base: str) -> dict[str, Any]:
    leaves = stored_targets(model)
    example = spec.targets[0]
    name, revision = base, ""
    if not as_path(base).exists():
        name, _, revision = base.partition("@")
    ranks, alphas = {}, {}
    for module, targets in _together(spec, model).items():
        ranks[module] = len(targets) * spec.rank
        own = spec.on(targets[0])
        assert all(spec.on(target) == own for target in targets), "a module has one scale"
        alphas[module] = own.scale * (math.sqrt(ranks[module]) if own.rslora else ranks[module])
    alpha = spec.on(example).alpha
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision,
        "r": spec.rank,
        "lora_alpha": _whole(alpha),
        "rank_pattern": {m: rank for m, rank in ranks.items() if rank != spec.rank},
        "alpha_pattern": {m: _whole(own) for m, own in alphas.items() if not _close(own, alpha)},
        "lora_dropout": spec.dropout,
        "target_modules": _target_modules(spec, model),
        "use_rslora": spec.rslora,
        "use_dora": spec.dora,
        "bias": "none",
        # Of modules that keep their matrix as [in, out] (GPT-2's Conv1D).
        "fan_in_fan_out": leaves[example].stored_axes[0].letters == TARGETS[example][0],
        "init_lora_weights": True,
        "inference_mode": True,
    }
    if not revision:
        del config["revision"]
    return config


def _whole(alpha: float) -> float | int:
    return int(alpha) if alpha == int(alpha) else alpha


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-12)


def _target_modules(spec: LoraSpec, model: ModelSpec) -> list[str] | str:
    """The modules of the adapted weights, as short as PEFT understands them.

    PEFT adapts every module whose name ends so: the last part alone says enough where every module
    that ends with it is adapted.
    """
    modules = {target: _named(leaf, model) for target, leaf in stored_targets(model).items()}
    if model.vision:
        return "|".join(sorted({modules[target] for target in spec.targets}))
    adapted = {modules[target] for target in spec.targets}
    others = {_last_part(module) for module in modules.values() if module not in adapted}
    return sorted({m if _last_part(m) in others else _last_part(m) for m in adapted})


def _last_part(module: str) -> str:
    return module.rpartition(".")[2]
