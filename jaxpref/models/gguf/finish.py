"""How a GGUF file's metadata becomes the config of a family: what `Architecture.finish` is."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxpref.models.families.hf_config import FULL, SLIDING

Vectors = Mapping[str, np.ndarray]
"""The tensors of ROPE_TENSORS that the file has, float64."""


def decimal(value: Any) -> Any:
    """The decimal that a float32 was meant to be: 1e-05, and not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def rope(config: dict[str, Any], rest: dict[str, Any], vectors: Vectors) -> dict[str, Any]:
    """Heads and rescaled RoPE, of families that rotate whole heads."""
    more = _heads(config, rest)
    head_dim = more["head_dim"]
    if rest.get("rope.dimension_count") == head_dim:
        del rest["rope.dimension_count"]
    kind = rest.pop("rope.scaling.type", "none")
    if kind != "none":
        factor = decimal(rest.pop("rope.scaling.factor", None))
        more["rope_scaling"] = {"rope_type": kind, "factor": factor}
        length = rest.pop("rope.scaling.original_context_length", None)
        if length is not None:
            more["rope_scaling"]["original_max_position_embeddings"] = length
        for end in ("beta_fast", "beta_slow"):
            if f"rope.scaling.yarn_{end}" in rest:
                more["rope_scaling"][end] = decimal(rest.pop(f"rope.scaling.yarn_{end}"))
    elif "rope_freqs.weight" in vectors:
        divisors = vectors["rope_freqs.weight"]
        more["rope_scaling"] = _llama3(divisors, head_dim, more["rope_theta"])
    return more


def _heads(config: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp's defaults where the file says nothing: the families would take transformers'."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    if rest.get("attention.value_length") == head_dim:
        del rest["attention.value_length"]
    return {
        "head_dim": head_dim,
        "num_key_value_heads": config.get("num_key_value_heads", heads),
        "rope_theta": config.get("rope_theta", 10000.0),
    }


def _llama3(divisor: np.ndarray, head_dim: int, theta: float) -> dict[str, Any]:
    """Llama 3.1's rescaling from the per-frequency divisors that llama.cpp keeps instead of it.

    Every Llama 3 model has low 1, high 4 and length 8192, and differs in the factor only, which is
    the divisor of the lowest frequency; the others must follow from it.
    """
    factor, low, high, length = float(divisor.max(initial=1.0)), 1.0, 4.0, 8192
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = length / wavelength  # rotations within the length
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if divisor.shape != expected.shape or not np.allclose(divisor, expected, rtol=1e-4):
        # The family refuses this type.
        return {"rope_type": "divisors in rope_freqs.weight that are not Llama 3.1's"}
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }


def phi3(config: dict[str, Any], rest: dict[str, Any], vectors: Vectors) -> dict[str, Any]:
    """A part of each head may be rotated, and by LongRoPE; a window of 0 is none."""
    more = _heads(config, rest)
    head_dim = more["head_dim"]
    more["partial_rotary_factor"] = rest.pop("rope.dimension_count", head_dim) / head_dim
    more["sliding_window"] = rest.pop("attention.sliding_window", 0) or None
    longest = config.get("max_position_embeddings", 4096)
    length = rest.pop("rope.scaling.original_context_length", longest)
    more["original_max_position_embeddings"] = length
    factors = {}
    for name in ("short", "long"):
        tensor = f"rope_factors_{name}.weight"
        if tensor in vectors:
            factors[f"{name}_factor"] = [decimal(float(x)) for x in vectors[tensor]]
    if factors:
        more["rope_scaling"] = {"rope_type": "longrope", **factors}
        amplitude = rest.pop("rope.scaling.attn_factor", 1.0)
        # The family knows this rule.
        rule = math.sqrt(1 + math.log(max(1.0, longest / length)) / math.log(length))
        if not math.isclose(amplitude, rule, rel_tol=1e-5):
            more["rope_scaling"]["attention_factor"] = decimal(amplitude)
    return more


def gemma(largest: int) -> Callable[[dict[str, Any], dict[str, Any], Vectors], dict[str, Any]]:
    """How a Gemma is finished.

    Args:
        largest: number of layers of the one model whose attention logits are scaled by the width
            per head, and not by the size of a head.
    """

    def finish(config: dict[str, Any], rest: dict[str, Any], vectors: Vectors) -> dict[str, Any]:
        more = rope(config, rest, vectors)
        scalar = more["head_dim"]
        if config.get("num_hidden_layers") == largest:
            scalar = config["hidden_size"] // config["num_attention_heads"]
        keys = {
            "attention.sliding_window": "sliding_window",
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
            "rope.freq_base_swa": "rope_local_base_freq",
        }
        for theirs, key in keys.items():
            if theirs in rest:
                more[key] = decimal(rest.pop(theirs))
        return more | {"query_pre_attn_scalar": scalar}

    return finish


def olmo3(config: dict[str, Any], rest: dict[str, Any], vectors: Vectors) -> dict[str, Any]:
    """llama.cpp rotates sliding layers by the same theta, and does not rescale them."""
    more = rope(config, rest, vectors)
    more["sliding_window"] = rest.pop("attention.sliding_window")
    slides = rest.pop("attention.sliding_window_pattern", None)
    if isinstance(slides, list):
        more["layer_types"] = [SLIDING if slide else FULL for slide in slides]
    local = {"rope_type": "default", "rope_theta": more["rope_theta"]}
    return more | {"rope_parameters": {SLIDING: local}}


def gpt_oss(config: dict[str, Any], rest: dict[str, Any], vectors: Vectors) -> dict[str, Any]:
    """llama.cpp widens YaRN's band to whole frequencies; the model was trained with it as it is."""
    more = rope(config, rest, vectors)
    more["sliding_window"] = rest.pop("attention.sliding_window", None)
    scaling = more.get("rope_scaling", {"rope_type": "default"})
    return more | {"rope_scaling": scaling | {"truncate": False}}
