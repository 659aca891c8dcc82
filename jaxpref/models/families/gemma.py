"""What Gemma 2 and 3 share."""

from typing import Any

from jaxpref.models.families.hf_config import (
    ConfigReader,
    read_sizes,
    shared_window,
    written_layer_types,
    written_sizes,
)
from jaxpref.models.spec import ModelSpec

_FIXED: dict[str, Any] = dict(activation="gelu_tanh", norm="rms_plus_one", norm_at="both")


def read_gemma(read: ConfigReader) -> dict[str, Any]:
    """Fields of `ModelSpec`, without RoPE and layer kinds."""
    # Not `hidden_act`, which the models do not look at and early configs have wrong.
    read.only("hidden_activation", "gelu_pytorch_tanh")
    read.only("attention_dropout", 0)
    read.only("use_bidirectional_attention", False)
    bias = read.flag("attention_bias")
    fields = read_sizes(read)
    return (
        fields
        | _FIXED
        | dict(
            qkv_bias=bias,
            o_bias=bias,
            attention_scale=read.size("query_pre_attn_scalar") ** -0.5,
            embed_scale=fields["width"] ** 0.5,
            logit_softcap=read.optional_number("final_logit_softcapping"),
        )
    )


def written_gemma(spec: ModelSpec, architecture: str) -> dict[str, Any]:
    """The inverse of `read_gemma`, and the layer kinds."""
    return {
        **written_sizes(spec, architecture),
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": spec.qkv_bias,
        "query_pre_attn_scalar": round(spec.attention_scale**-2),
        "final_logit_softcapping": spec.logit_softcap,
        "sliding_window": shared_window(spec),
        "layer_types": written_layer_types(spec),
    }
