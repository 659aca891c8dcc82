"""Mistral: a sliding window in every layer, or none."""

from typing import Any

from jaxpref.models.families.hf_config import (
    ConfigReader,
    read_sizes,
    shared_window,
    window_everywhere,
    written_sizes,
)
from jaxpref.models.families.rope import read_rope, written_rope
from jaxpref.models.families.tensors import LLAMA, ROTARY_BUFFERS
from jaxpref.models.spec import ModelSpec

TENSORS = LLAMA
IGNORED_TENSORS = ROTARY_BUFFERS
DEFAULTS = {
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-06,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
}


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of a Hugging Face config; arguments and errors as in `llama.from_hf`."""
    read = ConfigReader(config, "Mistral", where, defaults=DEFAULTS)
    read.only("model_type", "mistral")
    read.only("architectures", ["MistralForCausalLM"])
    read.only("hidden_act", "silu")
    read.only("attention_dropout", 0)
    fields = read_sizes(read) | read_rope(read)
    kinds = window_everywhere(fields["layers"], read.optional_size("sliding_window"))
    read.finish()
    return ModelSpec(family="mistral", kinds=kinds, **fields)


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    return {
        **written_sizes(spec, "MistralForCausalLM"),
        **written_rope(spec),
        "hidden_act": "silu",
        "sliding_window": shared_window(spec),
    }
