"""Qwen3-MoE: Qwen3 with a mixture of experts in every layer."""

from typing import Any

from jaxpref.models.families.hf_config import (
    ConfigReader,
    read_mixture,
    read_sizes,
    shared_window,
    window_everywhere,
    written_sizes,
)
from jaxpref.models.families.qwen import read_window
from jaxpref.models.families.rope import read_rope, written_rope
from jaxpref.models.families.tensors import (
    ATTENTION,
    ATTENTION_NORM,
    EMBED,
    FUSED_EXPERTS,
    HEAD_NORM,
    MLP_NORM,
    ROTARY_BUFFERS,
    TOP,
    experts,
)
from jaxpref.models.spec import ModelSpec

_OTHER = {**EMBED, **ATTENTION_NORM, **ATTENTION, **HEAD_NORM, **MLP_NORM, **TOP}
TENSORS = _OTHER | experts(
    router="mlp.gate.weight",
    gate="mlp.experts.{expert}.gate_proj.weight",
    up="mlp.experts.{expert}.up_proj.weight",
    down="mlp.experts.{expert}.down_proj.weight",
)
OTHER_FORMS = (_OTHER | FUSED_EXPERTS,)
IGNORED_TENSORS = ROTARY_BUFFERS
DEFAULTS = {
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "sliding_window": 4096,
}


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of a Hugging Face config; arguments and errors as in `llama.from_hf`.

    The attributes of the auxiliary loss are ignored: it is an objective of its own,
    `router_balance`.
    """
    read = ConfigReader(
        config,
        "Qwen3-MoE",
        where,
        defaults=DEFAULTS,
        # `intermediate_size` is that of dense layers, of which there are none; layers do not differ
        # in their window.
        ignored=[
            "intermediate_size",
            "max_window_layers",
            "output_router_logits",
            "router_aux_loss_coef",
        ],
    )
    read.only("model_type", "qwen3_moe")
    read.only("architectures", ["Qwen3MoeForCausalLM"])
    read.only("use_qk_norm", True)
    read.only("hidden_act", "silu")
    read.only("attention_dropout", 0)
    read.only("decoder_sparse_step", 1)
    read.only("mlp_only_layers", [])
    bias = read.flag("attention_bias")
    fields = read_sizes(read, ffn="moe_intermediate_size") | read_rope(read)
    kinds = window_everywhere(fields["layers"], read_window(read))
    fields |= read_mixture(read, "num_experts", "num_local_experts")
    norm_topk = read.flag("norm_topk_prob")
    read.finish()
    return ModelSpec(
        family="qwen3_moe",
        qk_norm="head",
        qkv_bias=bias,
        o_bias=bias,
        kinds=kinds,
        norm_topk=norm_topk,
        **fields,
    )


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    window = shared_window(spec)
    return {
        **written_sizes(spec, "Qwen3MoeForCausalLM", ffn="moe_intermediate_size"),
        **written_rope(spec),
        "hidden_act": "silu",
        "attention_bias": spec.qkv_bias,
        "num_experts": spec.experts,
        "num_experts_per_tok": spec.experts_per_token,
        "norm_topk_prob": spec.norm_topk,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": window is not None,
        "sliding_window": window,
    }
