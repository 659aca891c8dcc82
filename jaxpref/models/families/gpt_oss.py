"""gpt-oss: attention sinks, every other layer local, experts with biases and a clamped SwiGLU.

The published checkpoints are quantised (MXFP4), and refused as such.
"""

from typing import Any

from jaxpref.models.families.hf_config import (
    FULL,
    SLIDING,
    ConfigReader,
    layer_kinds,
    read_mixture,
    read_sizes,
    shared_window,
    written_layer_types,
    written_sizes,
)
from jaxpref.models.families.rope import read_rope, written_rope
from jaxpref.models.families.tensors import (
    ATTENTION,
    ATTENTION_NORM,
    EMBED,
    MLP_NORM,
    ROTARY_BUFFERS,
    TOP,
)
from jaxpref.models.spec import ClampedSwiglu, ModelSpec
from jaxpref.models.stored import StoredLeaf

_LAYER = "model.layers.{layer}."
_EXPERTS = _LAYER + "mlp.experts."
TENSORS = {
    **EMBED,
    **ATTENTION_NORM,
    **ATTENTION,
    "layers/attention/sinks": StoredLeaf(_LAYER + "self_attn.sinks", "N -> N"),
    **MLP_NORM,
    "layers/experts/router": StoredLeaf(_LAYER + "mlp.router.weight", "E,D -> DE"),
    "layers/experts/router_bias": StoredLeaf(_LAYER + "mlp.router.bias", "E -> E"),
    "layers/experts/gate": StoredLeaf(_EXPERTS + "gate_up_proj", "E,D,[F]|F -> EDF"),
    "layers/experts/up": StoredLeaf(_EXPERTS + "gate_up_proj", "E,D,F|[F] -> EDF"),
    "layers/experts/gate_bias": StoredLeaf(_EXPERTS + "gate_up_proj_bias", "E,[F]|F -> EF"),
    "layers/experts/up_bias": StoredLeaf(_EXPERTS + "gate_up_proj_bias", "E,F|[F] -> EF"),
    "layers/experts/down": StoredLeaf(_EXPERTS + "down_proj", "E,F,D -> EFD"),
    "layers/experts/down_bias": StoredLeaf(_EXPERTS + "down_proj_bias", "E,D -> ED"),
    **TOP,
}
IGNORED_TENSORS = ROTARY_BUFFERS
DEFAULTS = {
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "attention_bias": True,
    "sliding_window": 128,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
}
_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""Where a config says nothing of rope."""


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of a Hugging Face config; arguments and errors as in `llama.from_hf`.

    The attributes of the auxiliary loss are ignored: it is an objective of its own,
    `router_balance`.  `initial_context_length` is of OpenAI's own code.
    """
    if not config.get("rope_parameters") and not config.get("rope_scaling"):
        config = config | {"rope_scaling": _ROPE}
    ignored = ["output_router_logits", "router_aux_loss_coef", "initial_context_length"]
    read = ConfigReader(config, "gpt-oss", where, defaults=DEFAULTS, ignored=ignored)
    read.only("model_type", "gpt_oss")
    read.only("architectures", ["GptOssForCausalLM"])
    read.only("hidden_act", "silu")
    read.only("attention_dropout", 0)
    bias = read.flag("attention_bias")
    fields = read_sizes(read) | read_rope(read, theta=150_000.0)
    fields |= read_mixture(read, "num_local_experts", "num_experts")
    per_token = read.get("experts_per_token")  # as OpenAI's own code calls it
    if per_token not in (None, fields["experts_per_token"]):
        read.problems.append("experts_per_token and num_experts_per_tok disagree")
    layers = fields["layers"]
    every = [FULL if layer % 2 else SLIDING for layer in range(layers)]
    kinds = layer_kinds(read, read.layer_types(layers, every), read.optional_size("sliding_window"))
    activation = ClampedSwiglu(read.number("swiglu_alpha"), read.number("swiglu_limit"))
    read.finish()
    return ModelSpec(
        family="gpt_oss",
        qkv_bias=bias,
        o_bias=bias,
        attention_sinks=True,
        expert_bias=True,
        activation=activation,
        kinds=kinds,
        **fields,
    )


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    assert isinstance(spec.activation, ClampedSwiglu)
    return {
        **written_sizes(spec, "GptOssForCausalLM"),
        **written_rope(spec),
        "hidden_act": "silu",
        "attention_bias": spec.qkv_bias,
        "sliding_window": shared_window(spec),
        "layer_types": written_layer_types(spec),
        "num_local_experts": spec.experts,
        "num_experts_per_tok": spec.experts_per_token,
        "swiglu_alpha": spec.activation.alpha,
        "swiglu_limit": spec.activation.limit,
    }
