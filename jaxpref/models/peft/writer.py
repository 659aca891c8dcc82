"""PEFT adapter directories, written."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from jaxpref.errors import InputError
from jaxpref.files import check_destination, whole_directory
from jaxpref.models.hf import METADATA, foreign_files
from jaxpref.models.lora import TARGETS, LoraSpec
from jaxpref.models.parameters import flatten
from jaxpref.models.peft.tensors import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    adapter_tensors,
    is_fused,
    module_in_layer,
    stored_targets,
)
from jaxpref.models.spec import ModelSpec

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
    Errors: InputError for weights that checkpoints hold fused with others, and for a directory that
        holds anything but an adapter that was written so before.
    """
    directory = Path(directory).expanduser()
    leaves = stored_targets(model)
    fused = [target for target in spec.targets if is_fused(leaves[target])]
    if fused:
        raise InputError(
            "adapted weights that checkpoints of this family hold apart, for a PEFT directory",
            f"{', '.join(fused)}, which {model.family} holds fused with others: PEFT's adapter "
            "would share a factor",
            "export the merged model",
        )
    check_adapter_directory(directory)
    flat, tensors = flatten(tree), {}
    for tensor in adapter_tensors(model, spec):
        part = np.asarray(jax.device_get(flat[tensor.path][tensor.layer]), np.float32)
        tensors[tensor.name] = np.ascontiguousarray(tensor.stored.stored(part))
    config = _peft_config(spec, model, base)
    with whole_directory(directory) as partial:
        save_file(tensors, partial / WEIGHTS_FILE, METADATA)
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(model_card, encoding="utf-8")


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
    if not Path(base).expanduser().exists():
        name, _, revision = base.partition("@")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision,
        "r": spec.rank,
        "lora_alpha": int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha,
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


def _target_modules(spec: LoraSpec, model: ModelSpec) -> list[str]:
    """The modules of the adapted weights, as short as PEFT understands them.

    PEFT adapts every module whose name ends so: the last part alone says enough where every module
    that ends with it is adapted.
    """
    modules = {target: module_in_layer(leaf) for target, leaf in stored_targets(model).items()}
    adapted = {modules[target] for target in spec.targets}
    others = {_last_part(module) for module in modules.values() if module not in adapted}
    return sorted({m if _last_part(m) in others else _last_part(m) for m in adapted})


def _last_part(module: str) -> str:
    return module.rpartition(".")[2]
