"""SmolLM3: layers without RoPE."""

from typing import Any

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
from jaxpref.models.families.qwen import read_window
from jaxpref.models.families.rope import read_rope, written_rope
from jaxpref.models.families.tensors import LLAMA, ROTARY_BUFFERS
from jaxpref.models.spec import LayerKind, ModelSpec

TENSORS = LLAMA
IGNORED_TENSORS = ROTARY_BUFFERS
DEFAULTS = {
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "num_key_value_heads": 4,
    "no_rope_layer_interval": 4,
    "tie_word_embeddings": True,
}


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of a Hugging Face config; arguments and errors as in `llama.from_hf`."""
    # Qwen's attribute, which SmolLM3-3B carries and transformers does not read.
    read = ConfigReader(config, "SmolLM3", where, defaults=DEFAULTS, ignored=["max_window_layers"])
    read.only("model_type", "smollm3")
    read.only("architectures", ["SmolLM3ForCausalLM"])
    read.only("hidden_act", "silu")
    read.only("attention_dropout", 0)
    read.only("mlp_bias", False)
    bias = read.flag("attention_bias")
    fields = read_sizes(read) | read_rope(read, theta=2_000_000.0)
    kinds = _read_kinds(read, fields["layers"])
    read.finish()
    return ModelSpec(family="smollm3", qkv_bias=bias, o_bias=bias, kinds=kinds, **fields)


def _read_kinds(read: ConfigReader, layers: int) -> tuple[LayerKind, ...]:
    """`no_rope_layers` holds 1 for a layer with RoPE and 0 for one without.

    By default every fourth layer has none.
    """
    interval, window = read.size("no_rope_layer_interval"), read_window(read)
    rotated = read.get(
        "no_rope_layers", [int((layer + 1) % interval != 0) for layer in range(layers)]
    )
    if len(rotated) < layers or any(value not in (0, 1) for value in rotated):
        read.problems.append(
            f"no_rope_layers = {rotated!r} is not a 0 or 1 for each of {layers} layers"
        )
        rotated = [1] * layers
    default = [
        SLIDING if window is not None and not rotated[layer] else FULL for layer in range(layers)
    ]
    ropes = ["global" if rotated[layer] else None for layer in range(layers)]
    return layer_kinds(read, read.layer_types(layers, default), window, ropes)


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    window = shared_window(spec)
    return {
        **written_sizes(spec, "SmolLM3ForCausalLM"),
        **written_rope(spec),
        "hidden_act": "silu",
        "attention_bias": spec.qkv_bias,
        "mlp_bias": False,
        "no_rope_layers": [int(kind.rope is not None) for kind in spec.kinds] or [1] * spec.layers,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": written_layer_types(spec),
    }
