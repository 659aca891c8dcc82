"""PEFT adapter directories, read: adapter_config.json and adapter_model.safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  before safetensors reads: its numpy side knows bfloat16 only then
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxpref.errors import InputError
from jaxpref.models.hf.reader import read_json
from jaxpref.models.loading import check_shapes
from jaxpref.models.lora import LoraSpec
from jaxpref.models.parameters import axis_sizes, nest
from jaxpref.models.peft.tensors import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    adapter_tensors,
    is_fused,
    module_prefix,
    stored_targets,
)
from jaxpref.models.spec import ModelSpec

_READ = {"r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"}
# What is implemented; anything else would be another adapter.
_ONLY: dict[str, tuple] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    # The others (pissa, olora, corda, ...) change the base weights that their factors belong to.
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
}
# The tensors themselves say what is adapted; the rest changes neither the function nor its
# gradient.
_IGNORED = {
    "target_modules",
    "exclude_modules",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "auto_mapping",
    "peft_version",
    "fan_in_fan_out",
    "runtime_config",
    "ephemeral_gpu_offload",
    "loftq_config",
    "layers_pattern",
    "megatron_core",
    "qalora_group_size",
}


def is_adapter(path: str | Path) -> bool:
    """Whether a directory is a PEFT adapter's."""
    return (Path(path) / CONFIG_FILE).is_file()


def base_of(directory: str | Path) -> str:
    """The model that a PEFT adapter says it lies on, as `model.path` takes it.

    Errors: InputError for an adapter that names none.
    """
    file = Path(directory) / CONFIG_FILE
    config = read_json(file)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not name:
        raise InputError(
            "an adapter that names its base",
            f"{file}: no base_model_name_or_path",
            "write the base model there, or set model.path",
        )
    is_local = Path(name).expanduser().exists()
    return f"{name}@{revision}" if revision and not is_local else name


def read_spec(directory: str | Path, model: ModelSpec) -> LoraSpec:
    """What the adapter in a PEFT directory is; errors as of `load_adapter`."""
    return _read(Path(directory), model)[0]


def load_adapter(directory: str | Path, model: ModelSpec) -> tuple[LoraSpec, dict[str, Any]]:
    """A PEFT adapter on this model.

    Returns: what it is, and the tree that goes under `lora`, float32 in numpy.
    Errors: InputError for a directory that holds none; one that names every setting that is not
        implemented; one that lists all missing, extra and misshaped tensors.
    """
    spec, tensors = _read(Path(directory), model)
    sizes, flat = axis_sizes(model) | {"Z": spec.rank}, {}
    for tensor in adapter_tensors(model, spec):
        whole = (slice(None),) * len(tensor.stored.leaf_axes)
        part = tensor.stored.read(sizes, whole, tensors[tensor.name].__getitem__)
        leaf = flat.setdefault(tensor.path, np.empty((model.layers, *part.shape), np.float32))
        leaf[tensor.layer] = part
    return spec, nest(flat)


def _read(directory: Path, model: ModelSpec) -> tuple[LoraSpec, dict[str, np.ndarray]]:
    """What an adapter is, and its tensors by name, their shapes checked."""
    config_file, weights_file = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    missing = [file.name for file in (config_file, weights_file) if not file.is_file()]
    if missing:
        raise InputError(
            f"a PEFT adapter: {CONFIG_FILE} and {WEIGHTS_FILE}",
            f"no {missing} in {directory}",
            "correct the path; convert an adapter_model.bin: load it with PEFT and save it again",
        )
    config = read_json(config_file)
    _check_config(config, config_file)
    try:
        with safe_open(weights_file, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise InputError(
            "a complete safetensors file", f"{weights_file}: {error}", "copy the file again"
        ) from error
    spec = LoraSpec(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        targets=_targets_of(tensors, model),
        dropout=float(config.get("lora_dropout") or 0.0),
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
    )
    sizes = axis_sizes(model) | {"Z": spec.rank}
    check_shapes(
        {name: x.shape for name, x in tensors.items()},
        {tensor.name: tensor.stored.stored_shape(sizes) for tensor in adapter_tensors(model, spec)},
        where=str(directory),
        fix="use an adapter of this model, on weights that its checkpoint holds apart, the same "
        "ones in every layer",
    )
    return spec, tensors


def _check_config(config: Mapping[str, Any], file: Path) -> None:
    required = ("peft_type", "r", "lora_alpha")
    problems = [f"{key} is missing" for key in required if not config.get(key)]
    for key, value in config.items():
        if key in _ONLY:
            if value not in _ONLY[key]:
                problems.append(f"{key} = {value!r}, only {_ONLY[key][0]!r} is")
        elif value and key not in _READ | _IGNORED:
            problems.append(f"{key} = {value!r}")
    if problems:
        raise InputError(
            "a LoRA adapter with one rank and alpha, on weights that it leaves as they are",
            f"not implemented in {file}: {'; '.join(problems)}",
            "merge such an adapter into its base with PEFT, and train the result",
        )


def _targets_of(tensors: Mapping[str, Any], model: ModelSpec) -> tuple[str, ...]:
    """The weights on which the tensors of an adapter lie, in the order of TARGETS."""
    targets = []
    for target, leaf in stored_targets(model).items():
        prefix = module_prefix(leaf, 0)
        if not is_fused(leaf) and any(name.startswith(prefix) for name in tensors):
            targets.append(target)
    return tuple(targets)
