"""Gemma 2: soft caps, every other layer local, norms of 1 + w on both sides, a scaled embedding."""

from typing import Any

from jaxpref.models.families.gemma import read_gemma, written_gemma
from jaxpref.models.families.hf_config import FULL, SLIDING, ConfigReader, layer_kinds
from jaxpref.models.families.rope import read_rope, written_rope
from jaxpref.models.families.tensors import (
    ATTENTION,
    ATTENTION_NORM,
    EMBED,
    MLP,
    ROTARY_BUFFERS,
    SANDWICH,
    TOP,
)
from jaxpref.models.spec import ModelSpec

TENSORS = {**EMBED, **ATTENTION_NORM, **ATTENTION, **SANDWICH, **MLP, **TOP}
IGNORED_TENSORS = ROTARY_BUFFERS
DEFAULTS = {
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-06,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of a Hugging Face config; arguments and errors as in `llama.from_hf`."""
    read = ConfigReader(config, "Gemma 2", where, defaults=DEFAULTS, ignored=["hidden_act"])
    read.only("model_type", "gemma2")
    read.only("architectures", ["Gemma2ForCausalLM"])
    fields = read_gemma(read) | read_rope(read)
    layers = fields["layers"]
    layer_types = read.layer_types(
        layers, [FULL if layer % 2 else SLIDING for layer in range(layers)]
    )
    kinds = layer_kinds(read, layer_types, read.optional_size("sliding_window"))
    softcap = read.optional_number("attn_logit_softcapping")
    read.finish()
    return ModelSpec(family="gemma2", attention_softcap=softcap, kinds=kinds, **fields)


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    return {
        **written_gemma(spec, "Gemma2ForCausalLM"),
        **written_rope(spec),
        "attn_logit_softcapping": spec.attention_softcap,
    }
