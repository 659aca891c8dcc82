"""Mixtral: Mistral with a mixture of experts in every layer."""

from typing import Any

from jaxpref.models.families.hf_config import (
    ConfigReader,
    read_mixture,
    read_sizes,
    shared_window,
    window_everywhere,
    written_sizes,
)
from jaxpref.models.families.rope import read_rope, written_rope
from jaxpref.models.families.tensors import (
    ATTENTION,
    ATTENTION_NORM,
    EMBED,
    FUSED_EXPERTS,
    MLP_NORM,
    ROTARY_BUFFERS,
    TOP,
    experts,
)
from jaxpref.models.spec import ModelSpec

_OTHER = {**EMBED, **ATTENTION_NORM, **ATTENTION, **MLP_NORM, **TOP}
TENSORS = _OTHER | experts(
    router="block_sparse_moe.gate.weight",
    gate="block_sparse_moe.experts.{expert}.w1.weight",
    up="block_sparse_moe.experts.{expert}.w3.weight",
    down="block_sparse_moe.experts.{expert}.w2.weight",
)
OTHER_FORMS = (_OTHER | FUSED_EXPERTS,)
IGNORED_TENSORS = ROTARY_BUFFERS
DEFAULTS = {
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of a Hugging Face config; arguments and errors as in `llama.from_hf`.

    The attributes of the auxiliary loss are ignored: it is an objective of its own,
    `router_balance`.
    """
    ignored = ["output_router_logits", "router_aux_loss_coef"]
    read = ConfigReader(config, "Mixtral", where, defaults=DEFAULTS, ignored=ignored)
    read.only("model_type", "mixtral")
    read.only("architectures", ["MixtralForCausalLM"])
    read.only("hidden_act", "silu")
    read.only("attention_dropout", 0)
    read.only("router_jitter_noise", 0)
    fields = read_sizes(read) | read_rope(read, theta=1_000_000.0)
    kinds = window_everywhere(fields["layers"], read.optional_size("sliding_window"))
    fields |= read_mixture(read, "num_local_experts")
    read.finish()
    return ModelSpec(family="mixtral", kinds=kinds, **fields)


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    return {
        **written_sizes(spec, "MixtralForCausalLM"),
        **written_rope(spec),
        "hidden_act": "silu",
        "sliding_window": shared_window(spec),
        "num_local_experts": spec.experts,
        "num_experts_per_tok": spec.experts_per_token,
        "router_jitter_noise": 0.0,
    }
