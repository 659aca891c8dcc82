"""PEFT adapter directories in and out: adapter_config.json and adapter_model.safetensors.

A weight that checkpoints hold fused with others (q, k and v of Phi-3 and GPT-2) has a low-rank term
of its own here, and one with the others in PEFT, so adapters on these are neither read nor written.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes  # noqa: F401  before safetensors reads: its numpy side knows bfloat16 only then
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxpref.errors import InputError
from jaxpref.files import whole_directory
from jaxpref.models.families import FAMILIES
from jaxpref.models.hf import read_json
from jaxpref.models.lora import TARGETS, LoraSpec
from jaxpref.models.spec import ModelSpec
from jaxpref.models.weights import Weight, axis_sizes, check_shapes, nest, used_weights

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(path: str | Path) -> bool:
    """Whether a directory is a PEFT adapter's."""
    return (Path(path) / CONFIG_FILE).is_file()


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


def target_names(model: ModelSpec) -> dict[str, tuple[str, ...]]:
    """Every weight that may be adapted -> the names it goes by: `q`, `attention/q`, `q_proj`,
    `self_attn.q_proj`."""
    names = {}
    for target, weight in _weights(model).items():
        module = _module(weight).partition("{layer}.")[2]
        stored = () if _fused(weight) else (module.rpartition(".")[2], module)
        names[target] = (target.rpartition("/")[2], target, *stored)
    return names


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
            "write it there, or set model.path",
        )
    return f"{name}@{revision}" if revision and not Path(name).expanduser().exists() else name


def read_spec(directory: str | Path, model: ModelSpec) -> LoraSpec:
    """What the adapter in a PEFT directory is; errors as of `load_adapter`."""
    return _read(Path(directory), model)[0]


def load_adapter(directory: str | Path, model: ModelSpec) -> tuple[LoraSpec, dict[str, Any]]:
    """A PEFT adapter on this model: what it is, and the tree that goes under `lora`, float32 in
    numpy.

    Errors: InputError for a directory that holds none; one that names every setting that is not
        implemented; one that lists all missing, extra and misshaped tensors.
    """
    spec, tensors = _read(Path(directory), model)
    sizes, flat = axis_sizes(model) | {"Z": spec.rank}, {}
    for tensor in _stored(model, spec):
        whole = (slice(None),) * len(tensor.weight.leaf_axes)
        part = tensor.weight.read(sizes, whole, tensors[tensor.name].__getitem__)
        leaf = flat.setdefault(tensor.path, np.empty((model.layers, *part.shape), np.float32))
        leaf[tensor.layer] = part
    return spec, nest(flat)


def load_adapters(
    directories: Mapping[str, str | Path], model: ModelSpec
) -> tuple[LoraSpec, dict[str, Any]]:
    """Several PEFT adapters on one model, by name, as trees of one spec: they may be stacked, or
    exchanged in a call.

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
        kinds = {
            name: f"{'DoRA' if s.dora else 'LoRA'} on {', '.join(s.targets)}"
            for name, (s, _) in loaded.items()
        }
        raise InputError(
            "DoRA adapters together with others of the same kind on the same weights",
            f"{kinds}",
            "load them one by one",
        )
    common = LoraSpec(rank, float(rank), targets, max(spec.dropout for spec in specs), dora=dora)
    return common, {
        name: _widened(tree, spec, common, model) for name, (spec, tree) in loaded.items()
    }


def rescaled(tree: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """An adapter whose low-rank term counts `factor` times as much."""
    scale = lambda path, leaf: leaf * np.float32(factor) if path[-1].key == "b" else leaf
    return jax.tree_util.tree_map_with_path(scale, dict(tree))


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
        holds anything but an adapter.
    """
    directory = Path(directory).absolute()
    weights = _weights(model)
    if fused := [target for target in spec.targets if _fused(weights[target])]:
        raise InputError(
            "adapted weights that checkpoints of this family hold apart, for a PEFT directory",
            f"{', '.join(fused)}, which {model.family} holds fused with others: PEFT's adapter would share a factor",
            "export the merged model",
        )
    found = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    if directory.is_file() or (found and CONFIG_FILE not in found):
        raise InputError(
            "a new or empty directory, or one with an adapter",
            f"{directory}: {found or 'a file'}",
            "choose a new one",
        )
    tensors = {}
    for tensor in _stored(model, spec):
        leaf = tree
        for key in tensor.path.split("/"):
            leaf = leaf[key]
        part = np.asarray(jax.device_get(leaf[tensor.layer]), np.float32)
        tensors[tensor.name] = np.ascontiguousarray(tensor.weight.stored(part))
    config = _peft_config(spec, model, base)
    with whole_directory(directory) as partial:
        save_file(tensors, partial / WEIGHTS_FILE, {"format": "pt"})
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(model_card, encoding="utf-8")


def _peft_config(spec: LoraSpec, model: ModelSpec, base: str) -> dict[str, Any]:
    weights = _weights(model)
    modules = {
        target: _module(weight).partition("{layer}.")[2] for target, weight in weights.items()
    }
    last = lambda module: module.rpartition(".")[2]
    # PEFT adapts every module whose name ends so: the last part alone where that means no other
    #     module.
    chosen = {modules[target] for target in spec.targets}
    clear = {m for m in chosen if all(o in chosen for o in modules.values() if last(o) == last(m))}
    example = weights[spec.targets[0]]
    name, _, revision = (base, "", "") if Path(base).expanduser().exists() else base.partition("@")
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        **({"revision": revision} if revision else {}),
        "r": spec.rank,
        "lora_alpha": int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha,
        "lora_dropout": spec.dropout,
        "target_modules": sorted({last(m) if m in clear else m for m in chosen}),
        "use_rslora": spec.rslora,
        "use_dora": spec.dora,
        "bias": "none",
        # Of modules that keep their matrix as [in, out] (GPT-2's Conv1D).
        "fan_in_fan_out": example.stored_axes[0].letters == TARGETS[spec.targets[0]][0],
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _read(directory: Path, model: ModelSpec) -> tuple[LoraSpec, dict[str, np.ndarray]]:
    files = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    if missing := [file.name for file in files if not file.is_file()]:
        fix = "correct the path; an adapter_model.bin is converted by loading it with PEFT and saving it again"
        raise InputError(
            f"a PEFT adapter: {CONFIG_FILE} and {WEIGHTS_FILE}", f"no {missing} in {directory}", fix
        )
    config = read_json(files[0])
    problems = [
        f"{key} is missing" for key in ("peft_type", "r", "lora_alpha") if not config.get(key)
    ]
    problems += [
        f"{k} = {v!r}, only {_ONLY[k][0]!r} is"
        for k, v in config.items()
        if k in _ONLY and v not in _ONLY[k]
    ]
    known = _READ | _IGNORED | _ONLY.keys()
    problems += [
        f"{key} = {value!r}" for key, value in config.items() if key not in known and value
    ]
    if problems:
        raise InputError(
            "a LoRA adapter with one rank and alpha, on weights that it leaves as they are",
            f"not implemented in {files[0]}: {'; '.join(problems)}",
            "merge such an adapter into its base with PEFT, and train the result",
        )
    try:
        with safe_open(files[1], framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise InputError(
            "a complete safetensors file", f"{files[1]}: {error}", "copy it again"
        ) from error
    modules = {
        _tensor_name(weight, 0, ""): target
        for target, weight in _weights(model).items()
        if not _fused(weight)
    }
    present = {
        target
        for module, target in modules.items()
        if any(name.startswith(module) for name in tensors)
    }
    spec = LoraSpec(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        targets=tuple(target for target in TARGETS if target in present),
        dropout=float(config.get("lora_dropout") or 0.0),
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
    )
    sizes = axis_sizes(model) | {"Z": spec.rank}
    check_shapes(
        {name: x.shape for name, x in tensors.items()},
        {tensor.name: tensor.weight.stored_shape(sizes) for tensor in _stored(model, spec)},
        where=str(directory),
        fix="use an adapter of this model, on weights that its checkpoint holds apart, the same ones in every layer",
    )
    return spec, tensors


class _Stored(NamedTuple):
    """One tensor of an adapter file: a layer's part of the leaf at `path`."""

    name: str
    path: str
    layer: int
    weight: Weight


def _stored(model: ModelSpec, spec: LoraSpec) -> Iterator[_Stored]:
    weights = _weights(model)
    for layer in range(model.layers):
        for target in spec.targets:
            inputs, outputs = TARGETS[target]
            parts = {
                "a": ("lora_A.weight", f"Z,{inputs} -> {inputs}Z"),
                "b": ("lora_B.weight", f"{outputs},Z -> Z{outputs}"),
            }
            parts |= (
                {"m": ("lora_magnitude_vector", f"{outputs} -> {outputs}")} if spec.dora else {}
            )
            for leaf, (ending, layout) in parts.items():
                name = _tensor_name(weights[target], layer, ending)
                yield _Stored(name, f"layers/{target}/{leaf}", layer, Weight(name, layout))


def _tensor_name(weight: Weight, layer: int, ending: str) -> str:
    return f"base_model.model.{_module(weight).format(layer=layer)}.{ending}"


def _weights(model: ModelSpec) -> dict[str, Weight]:
    """Where the weights that may be adapted are stored, by target."""
    used = used_weights(FAMILIES[model.family].WEIGHTS, model)
    return {target: used[f"layers/{target}"] for target in TARGETS if f"layers/{target}" in used}


def _module(weight: Weight) -> str:
    return weight.name.removesuffix(".weight")


def _fused(weight: Weight) -> bool:
    return any(axis.before or axis.after for axis in weight.stored_axes)


def _widened(
    tree: Mapping[str, Any], spec: LoraSpec, common: LoraSpec, model: ModelSpec
) -> dict[str, Any]:
    """The same function as an adapter of the common spec."""
    sizes = axis_sizes(model) | {"Z": common.rank}
    shape = lambda axes: (model.layers, *(sizes[axis] for axis in axes))
    groups: dict[str, Any] = {}
    for target in common.targets:
        group, name = target.split("/")
        inputs, outputs = TARGETS[target]
        a, b = np.zeros(shape(f"{inputs}Z"), np.float32), np.zeros(shape(f"Z{outputs}"), np.float32)
        own = tree["layers"].get(group, {}).get(name)
        if own is not None:
            a[..., : spec.rank], b[:, : spec.rank] = own["a"], own["b"] * np.float32(spec.scale)
        groups.setdefault(group, {})[name] = {"a": a, "b": b} | (
            {"m": own["m"]} if common.dora else {}
        )
    return {"layers": groups}
