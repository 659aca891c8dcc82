"""adapter_config.json: which modules PEFT adapts, with which rank and scale; what is refused."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpref.errors import InputError

_READ = {
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
}
# What is implemented; anything else would be another adapter.
_ONLY: dict[str, tuple] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    # The others (pissa, olora, corda, ...) change the base weights that their factors belong to.
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
}
# What changes neither the function nor its gradient.
_IGNORED = {
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "auto_mapping",
    "peft_version",
    "fan_in_fan_out",
    "runtime_config",
    "ephemeral_gpu_offload",
    "loftq_config",
    "megatron_core",
    "qalora_group_size",
}


def check_settings(config: Mapping[str, Any], file: Path) -> None:
    """Errors: InputError naming every setting that is missing, wrong or not implemented."""
    required = ("peft_type", "r", "lora_alpha")
    problems = [f"{key} is missing" for key in required if not config.get(key)]
    for key, value in config.items():
        if key in _ONLY:
            if value not in _ONLY[key]:
                problems.append(f"{key} = {value!r}, only {_ONLY[key][0]!r} is")
        elif value and key not in _READ | _IGNORED:
            problems.append(f"{key} = {value!r}")
    wrong = _wrong_values(config)
    if wrong:
        raise InputError(
            "settings of the adapter as PEFT writes them",
            f"{file}: {'; '.join(wrong)}",
            "write these values so, numbers without quotes",
        )
    if problems:
        raise InputError(
            "a LoRA adapter on weights that it leaves as they are",
            f"not implemented in {file}: {'; '.join(problems)}",
            "merge such an adapter into its base with PEFT, and train the result",
        )


def _wrong_values(config: Mapping[str, Any]) -> list[str]:
    """Values of the wrong kind: JSON takes "8" for 8, and "false" would be true."""
    wrong = []
    ranks = {"r": config.get("r"), **(config.get("rank_pattern") or {})}
    alphas = {"lora_alpha": config.get("lora_alpha"), **(config.get("alpha_pattern") or {})}
    for key, value in ranks.items():
        if value and (type(value) is not int or value < 1):
            wrong.append(f"{key} = {value!r}, not a rank of 1 or more")
    for key, value in alphas.items():
        if value and (type(value) not in (int, float) or not 0 < value < math.inf):
            wrong.append(f"{key} = {value!r}, not a number above 0")
    dropout = config.get("lora_dropout")
    if dropout and (type(dropout) not in (int, float) or not 0 < dropout < 1):
        wrong.append(f"lora_dropout = {dropout!r}, not a number from 0 and below 1")
    for key in ("use_rslora", "use_dora"):
        if not isinstance(config.get(key), bool | None):
            wrong.append(f"{key} = {config[key]!r}, neither true nor false")
    return wrong


def says_modules(config: Mapping[str, Any]) -> bool:
    """Whether the modules are named; otherwise they are those of which the file has tensors."""
    return config.get("target_modules") not in (None, "all-linear")


def adapts(config: Mapping[str, Any], module: str) -> bool:
    """Whether PEFT adapts a module, `model.layers.0.self_attn.q_proj`, by its own rules."""
    if names(config.get("exclude_modules") or (), module):
        return False
    if not says_modules(config):
        return _in_layers(config, module)
    wanted = config["target_modules"]
    if isinstance(wanted, str) or module in wanted:
        return names(wanted, module)
    return names(wanted, module) and _in_layers(config, module)


def names(patterns: str | Sequence[str], module: str) -> bool:
    """Whether patterns name a module: a regular expression, or a list of ends of names."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in patterns)


def _in_layers(config: Mapping[str, Any], module: str) -> bool:
    """Whether `layers_to_transform` has the module's layer."""
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern")
    if layers is None or layers == []:
        return True
    patterns = [patterns] if isinstance(patterns, str) else patterns or [r"[^.]*"]
    found = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module) for pattern in patterns)
    match = next(filter(None, found), None)
    return match is not None and int(match[1]) in ([layers] if isinstance(layers, int) else layers)


def rank_of(config: Mapping[str, Any], module: str) -> int:
    return _by_pattern(config.get("rank_pattern") or {}, module, config["r"])


def scale_of(config: Mapping[str, Any], module: str) -> float:
    """What PEFT multiplies the module's low-rank term with."""
    alpha = _by_pattern(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    rank = rank_of(config, module)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that the end of the module's name matches."""
    keys = (key for key in patterns if re.match(rf"(.*\.)?({key})$", module))
    key = next(keys, None)
    return default if key is None else patterns[key]
