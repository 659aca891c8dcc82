"""OLMo 3: OLMo 2 with three layers of a sliding window to a full one."""

from typing import Any

from jaxpref.models.families import olmo2
from jaxpref.models.families.hf_config import (
    FULL,
    SLIDING,
    ConfigReader,
    layer_kinds,
    read_sizes,
    shared_window,
    written_layer_types,
    written_sizes,
)
from jaxpref.models.families.rope import TYPES, read_ropes, written_ropes
from jaxpref.models.spec import ModelSpec

TENSORS = olmo2.TENSORS
IGNORED_TENSORS = olmo2.IGNORED_TENSORS
_THETA = 500_000.0
DEFAULTS = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
}


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of a Hugging Face config; arguments and errors as in `llama.from_hf`."""
    read = ConfigReader(config, "OLMo 3", where, defaults=DEFAULTS)
    read.only("model_type", "olmo3")
    read.only("architectures", ["Olmo3ForCausalLM"])
    read.only("hidden_act", "silu")
    read.only("attention_dropout", 0)
    bias = read.flag("attention_bias")
    fields = read_sizes(read) | _read_ropes(read)
    layers = fields["layers"]
    every = [FULL if (layer + 1) % 4 == 0 else SLIDING for layer in range(layers)]
    layer_types = read.layer_types(layers, every)
    ropes = ["local" if kind == SLIDING else "global" for kind in layer_types]
    kinds = layer_kinds(read, layer_types, read.optional_size("sliding_window"), ropes)
    read.finish()
    return ModelSpec(
        family="olmo3",
        norm_at="post",
        qk_norm="whole",
        qkv_bias=bias,
        o_bias=bias,
        kinds=kinds,
        **fields,
    )


def _read_ropes(read: ConfigReader) -> dict[str, Any]:
    """Of older configs the theta must be the default.

    transformers 4 took `rope_theta` for all layers; 5 takes it for the full ones, and the default
    for the others.
    """
    thetas = {FULL: ("rope_theta", _THETA), SLIDING: (None, _THETA)}
    fields = read_ropes(read, thetas, types=TYPES)
    sliding = read.mapping("rope_parameters").get(SLIDING) or {}
    if "rope_theta" not in sliding and fields["rope_theta"] != _THETA:
        read.problems.append(
            f"rope_theta = {fields['rope_theta']} without that of {SLIDING} in rope_parameters, "
            "where transformers 4 and 5 differ"
        )
    return fields


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    return {
        **written_sizes(spec, "Olmo3ForCausalLM"),
        **written_ropes(spec),
        "hidden_act": "silu",
        "attention_bias": spec.qkv_bias,
        "sliding_window": shared_window(spec),
        "layer_types": written_layer_types(spec),
    }
