"""Qwen2 and Qwen2.5: biases on queries, keys and values."""

from typing import Any

from jaxpref.models.families.hf_config import ConfigReader, read_sizes, written_sizes
from jaxpref.models.families.qwen import read_kinds, written_kinds
from jaxpref.models.families.rope import read_rope, written_rope
from jaxpref.models.families.tensors import LLAMA, ROTARY_BUFFERS, inside
from jaxpref.models.spec import ModelSpec

TENSORS = LLAMA
# Of Qwen2.5-VL's checkpoints, whose text part is read (`qwen2_5_vl.py`).
OTHER_FORMS = (inside(TENSORS, "language_model"),)
IGNORED_TENSORS = rf"{ROTARY_BUFFERS}|(model\.)?visual\..*"
DEFAULTS = {
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of a Hugging Face config; arguments and errors as in `llama.from_hf`."""
    read = ConfigReader(config, "Qwen2", where, defaults=DEFAULTS)
    read.only("model_type", "qwen2")
    read.only("architectures", ["Qwen2ForCausalLM"])
    read.only("hidden_act", "silu")
    read.only("attention_dropout", 0)
    fields = read_sizes(read) | read_rope(read)
    kinds = read_kinds(read, fields["layers"])
    read.finish()
    return ModelSpec(family="qwen2", qkv_bias=True, kinds=kinds, **fields)


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    return {
        **written_sizes(spec, "Qwen2ForCausalLM"),
        **written_rope(spec),
        **written_kinds(spec),
        "hidden_act": "silu",
    }
