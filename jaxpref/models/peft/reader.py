"""PEFT adapter directories, read: adapter_config.json and adapter_model.safetensors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  before safetensors reads: its numpy side knows bfloat16 only then
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxpref.errors import InputError
from jaxpref.models.hf.reader import read_json
from jaxpref.models.leaf import axis_sizes, layers_with
from jaxpref.models.loading import check_finite, check_shapes
from jaxpref.models.lora import LoraSpec, path_of
from jaxpref.models.parameters import nest
from jaxpref.models.peft.settings import (
    adapts,
    check_settings,
    names,
    rank_of,
    says_modules,
    scale_of,
)
from jaxpref.models.peft.tensors import (
    CONFIG_FILE,
    PREFIX,
    WEIGHTS_FILE,
    AdapterTensor,
    adapter_tensors,
    module_of,
    saved_leaves,
    stored_targets,
)
from jaxpref.models.spec import ModelSpec
from jaxpref.models.stored import StoredLeaf
from jaxpref.storage.local_copies import local_file
from jaxpref.storage.paths import as_path


def is_adapter(path: str | Path) -> bool:
    """Whether a directory is a PEFT adapter's."""
    return (as_path(path) / CONFIG_FILE).is_file()


def base_of(directory: str | Path) -> str:
    """The model that a PEFT adapter says it lies on, as `model.path` takes it.

    Errors: InputError for an adapter that names none.
    """
    file = as_path(directory) / CONFIG_FILE
    config = read_json(file)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not name:
        raise InputError(
            "an adapter that names its base",
            f"{file}: no base_model_name_or_path",
            "write the base model there, or set model.path",
        )
    is_local = as_path(name).exists()
    return f"{name}@{revision}" if revision and not is_local else name


def read_spec(directory: str | Path, model: ModelSpec, *, modules: bool = False) -> LoraSpec:
    """What the adapter in a PEFT directory is; arguments and errors as of `load_adapter`."""
    return _without_modules(_read(as_path(directory), model), directory, modules).spec


def load_adapter(
    directory: str | Path, model: ModelSpec, *, modules: bool = False
) -> tuple[LoraSpec, dict[str, Any]]:
    """A PEFT adapter on this model.

    Args:
        modules: the adapter may bring an embedding or a head, for the caller has put them in place
            (`saved_modules`).
    Returns: what it is, and the tree that goes under `lora`, float32 in numpy.
    Errors: InputError for a directory that holds none; one that names every setting that is not
        implemented; one that lists all missing, extra and misshaped tensors.
    """
    read = _without_modules(_read(as_path(directory), model), directory, modules)
    sizes, flat = axis_sizes(model), {}
    for tensor, rank in read.parts:
        stored = tensor.stored
        leaf_shape = stored.leaf_shape(sizes | {"Z": read.spec.rank})
        if tensor.path not in flat:  # zero where a layer is not adapted, or with a smaller rank
            layers = len(layers_with(tensor.path, model))
            flat[tensor.path] = np.zeros((layers, *leaf_shape), np.float32)
        part = _whole(stored, sizes | {"Z": rank}, read.tensors)
        flat[tensor.path][tensor.layer][tuple(slice(size) for size in part.shape)] = part
    return read.spec, nest(flat)


def saved_modules(directory: str | Path, model: ModelSpec) -> dict[str, np.ndarray]:
    """The embedding and head that an adapter brings whole, by the path of the leaf."""
    read = _read(as_path(directory), model)
    sizes = axis_sizes(model)
    return {path: _whole(leaf, sizes, read.tensors) for path, leaf in read.modules.items()}


def _whole(
    leaf: StoredLeaf, sizes: Mapping[str, int], tensors: Mapping[str, np.ndarray]
) -> np.ndarray:
    index = (slice(None),) * len(leaf.leaf_axes)
    return leaf.read(sizes, index, tensors[leaf.name].__getitem__)


class _Part(NamedTuple):
    """A part of the adapter that the file has, with its module's rank."""

    tensor: AdapterTensor
    rank: int


class _Adapter(NamedTuple):
    """A PEFT directory, read and checked."""

    spec: LoraSpec
    parts: list[_Part]
    modules: dict[str, StoredLeaf]
    """Leaves of the model that the adapter brings whole."""
    tensors: dict[str, np.ndarray]


def _without_modules(read: _Adapter, directory: str | Path, allowed: bool) -> _Adapter:
    if read.modules and not allowed:
        raise InputError(
            "an adapter that leaves embedding and head as they are, where it is laid over weights "
            "that others share",
            f"{directory} brings its own {', '.join(read.modules)} (modules_to_save)",
            "merge it into its base with PEFT, and name the result as a model",
        )
    return read


def _read(directory: Path, model: ModelSpec) -> _Adapter:
    config_file, weights_file = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    missing = [file.name for file in (config_file, weights_file) if not file.is_file()]
    if missing:
        raise InputError(
            f"a PEFT adapter: {CONFIG_FILE} and {WEIGHTS_FILE}",
            f"no {missing} in {directory}",
            "correct the path; convert an adapter_model.bin: load it with PEFT and save it again",
        )
    config = read_json(config_file)
    check_settings(config, config_file)
    try:
        with safe_open(local_file(weights_file), framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise InputError(
            "a complete safetensors file", f"{weights_file}: {error}", "copy the file again"
        ) from error
    spec = LoraSpec(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        targets=_targets_of(config, tensors, model),
        dropout=float(config.get("lora_dropout") or 0.0),
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
    )
    parts = [
        _Part(tensor, rank_of(config, tensor.module))
        for tensor in adapter_tensors(model, spec)
        if adapts(config, tensor.module)
    ]
    modules, sizes = _modules_of(config, tensors, model, config_file), axis_sizes(model)
    check_shapes(
        {name: x.shape for name, x in tensors.items()},
        {
            tensor.stored.name: tensor.stored.stored_shape(sizes | {"Z": rank})
            for tensor, rank in parts
        }
        | {leaf.name: leaf.stored_shape(sizes) for leaf in modules.values()},
        where=str(directory),
        fix="use an adapter of this model, on the attention and MLP weights of its layers",
    )
    for name, x in tensors.items():
        check_finite(x, name, str(directory))
    spec = _common_spec(spec, config, parts, model, config_file)
    return _Adapter(spec, parts, modules, tensors)


def _modules_of(
    config: Mapping[str, Any], tensors: Mapping[str, Any], model: ModelSpec, file: Path
) -> dict[str, StoredLeaf]:
    """The weights that the adapter brings whole: asked for, or saved with a resized vocabulary.

    Errors: InputError for other modules, and where embedding and head are one: PEFT unties them.
    """
    known, asked = saved_leaves(model), config.get("modules_to_save") or []
    modules = {path: _module(leaf) for path, leaf in known.items()}
    others = [name for name in asked if not any(names([name], m) for m in modules.values())]
    found = {
        path: leaf
        for path, leaf in known.items()
        if leaf.name in tensors or names(asked, modules[path])
    }
    if others or (found and model.tied):
        raise InputError(
            "modules_to_save among the embedding and the head, of a model that does not tie them",
            f"{file}: {', '.join(others or found)}"
            + (", of a tied model" if found and model.tied else ""),
            "merge such an adapter into its base with PEFT, and train the result",
        )
    return found


def _module(leaf: StoredLeaf) -> str:
    return leaf.name.removeprefix(PREFIX).removesuffix(".weight")


def _targets_of(
    config: Mapping[str, Any], tensors: Mapping[str, Any], model: ModelSpec
) -> tuple[str, ...]:
    """The weights that are adapted in some layer, in the order of TARGETS."""

    def is_adapted(target: str, leaf: StoredLeaf) -> bool:
        layers = layers_with(path_of(target), model)
        modules = [module_of(leaf, layer) for layer in layers]
        if says_modules(config):
            return any(adapts(config, module) for module in modules)
        return any(name.startswith(f"{PREFIX}{module}.") for module in modules for name in tensors)

    stored = stored_targets(model)
    return tuple(target for target, leaf in stored.items() if is_adapted(target, leaf))


def _common_spec(
    spec: LoraSpec, config: Mapping[str, Any], parts: Sequence[_Part], model: ModelSpec, file: Path
) -> LoraSpec:
    """The spec with one rank for all: smaller ones are filled up with zeros, which stay zeros.

    A weight has one scale in all layers, as `alpha` of the common rank.

    Errors: InputError for a weight whose scale differs between layers, and for DoRA on some layers
        only: in the others it would have to know the lengths of their weights.
    """
    scales: dict[str, set[float]] = {}
    for tensor, _ in parts:
        scales.setdefault(tensor.target, set()).add(scale_of(config, tensor.module))
    problems = [
        f"{target} has another scale in each layer"
        for target, own in scales.items()
        if len(own) > 1
    ]
    everywhere = len(list(adapter_tensors(model, spec)))
    if spec.dora and len(parts) != everywhere:
        problems.append("use_dora, on some layers only")
    if problems or not parts:
        raise InputError(
            "an adapter on weights of the layers, each with one scale in all of them",
            f"not implemented in {file}: {'; '.join(problems) or 'no weight is adapted'}",
            "merge such an adapter into its base with PEFT, and train the result",
        )
    rank = max(part.rank for part in parts)
    divisor = math.sqrt(rank) if spec.rslora else rank
    alphas = tuple(min(scales[target]) * divisor for target in spec.targets)
    if len(set(alphas)) > 1:
        return replace(spec, rank=rank, alphas=alphas)
    unpatterned = rank == config["r"] and not config.get("alpha_pattern")
    return replace(spec, rank=rank, alpha=spec.alpha if unpatterned else alphas[0])
