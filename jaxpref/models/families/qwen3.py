"""Qwen3: a norm over each head's queries and keys."""

from typing import Any

from jaxpref.models.families.hf_config import ConfigReader, read_sizes, written_sizes
from jaxpref.models.families.qwen import read_kinds, written_kinds
from jaxpref.models.families.rope import read_rope, written_rope
from jaxpref.models.families.tensors import (
    ATTENTION,
    ATTENTION_NORM,
    EMBED,
    HEAD_NORM,
    MLP,
    MLP_NORM,
    ROTARY_BUFFERS,
    TOP,
)
from jaxpref.models.spec import ModelSpec

TENSORS = {**EMBED, **ATTENTION_NORM, **ATTENTION, **HEAD_NORM, **MLP_NORM, **MLP, **TOP}
IGNORED_TENSORS = ROTARY_BUFFERS
DEFAULTS = {
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of a Hugging Face config; arguments and errors as in `llama.from_hf`."""
    read = ConfigReader(config, "Qwen3", where, defaults=DEFAULTS)
    read.only("model_type", "qwen3")
    read.only("architectures", ["Qwen3ForCausalLM"])
    read.only("use_qk_norm", True)
    read.only("hidden_act", "silu")
    read.only("attention_dropout", 0)
    bias = read.flag("attention_bias")
    fields = read_sizes(read) | read_rope(read)
    kinds = read_kinds(read, fields["layers"])
    read.finish()
    return ModelSpec(
        family="qwen3", qk_norm="head", qkv_bias=bias, o_bias=bias, kinds=kinds, **fields
    )


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    return {
        **written_sizes(spec, "Qwen3ForCausalLM"),
        **written_rope(spec),
        **written_kinds(spec),
        "hidden_act": "silu",
        "attention_bias": spec.qkv_bias,
    }
