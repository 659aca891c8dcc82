"""Granite 3: Llama with factors of embedding, attention and residual, and a divisor of logits."""

from typing import Any

from jaxpref.models.families.hf_config import ConfigReader, read_sizes, written_sizes
from jaxpref.models.families.rope import read_rope, written_rope
from jaxpref.models.families.tensors import LLAMA, ROTARY_BUFFERS
from jaxpref.models.spec import ModelSpec

TENSORS = LLAMA
IGNORED_TENSORS = ROTARY_BUFFERS
DEFAULTS = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of a Hugging Face config; arguments and errors as in `llama.from_hf`."""
    read = ConfigReader(config, "Granite", where, defaults=DEFAULTS)
    read.only("model_type", "granite")
    read.only("architectures", ["GraniteForCausalLM"])
    read.only("hidden_act", "silu")
    read.only("mlp_bias", False)
    read.only("attention_dropout", 0)
    bias = read.flag("attention_bias")
    fields = read_sizes(read) | read_rope(read)
    fields |= dict(
        attention_scale=read.number("attention_multiplier"),
        embed_scale=_unless_one(read.number("embedding_multiplier")),
        residual_scale=_unless_one(read.number("residual_multiplier")),
        logit_divisor=_unless_one(read.number("logits_scaling")),
    )
    read.finish()
    return ModelSpec(family="granite", qkv_bias=bias, o_bias=bias, **fields)


def _unless_one(factor: float) -> float | None:
    return None if factor == 1.0 else factor


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    return {
        **written_sizes(spec, "GraniteForCausalLM"),
        **written_rope(spec),
        "hidden_act": "silu",
        "attention_bias": spec.qkv_bias,
        "mlp_bias": False,
        "attention_multiplier": spec.attention_scale,
        "embedding_multiplier": spec.embed_scale or 1.0,
        "residual_multiplier": spec.residual_scale or 1.0,
        "logits_scaling": spec.logit_divisor or 1.0,
    }
