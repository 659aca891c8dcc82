"""OLMo 2: norms behind attention and MLP, and over all heads' queries and keys together."""

from typing import Any

from jaxpref.models.families.hf_config import ConfigReader, read_sizes, written_sizes
from jaxpref.models.families.rope import read_rope, written_rope
from jaxpref.models.families.tensors import ATTENTION, EMBED, MLP, ROTARY_BUFFERS, TOP
from jaxpref.models.spec import ModelSpec
from jaxpref.models.stored import StoredLeaf

_LAYER = "model.layers.{layer}."
TENSORS = {
    **EMBED,
    **ATTENTION,
    "layers/attention/q_norm": StoredLeaf(_LAYER + "self_attn.q_norm.weight", "NH -> NH"),
    "layers/attention/k_norm": StoredLeaf(_LAYER + "self_attn.k_norm.weight", "MH -> MH"),
    "layers/attention_post_norm/scale": StoredLeaf(
        _LAYER + "post_attention_layernorm.weight", "D -> D"
    ),
    **MLP,
    "layers/mlp_post_norm/scale": StoredLeaf(
        _LAYER + "post_feedforward_layernorm.weight", "D -> D"
    ),
    **TOP,
}
IGNORED_TENSORS = ROTARY_BUFFERS
DEFAULTS = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-05,
}


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of a Hugging Face config; arguments and errors as in `llama.from_hf`."""
    read = ConfigReader(config, "OLMo 2", where, defaults=DEFAULTS)
    read.only("model_type", "olmo2")
    read.only("architectures", ["Olmo2ForCausalLM"])
    read.only("use_qk_norm", True)
    read.only("hidden_act", "silu")
    read.only("attention_dropout", 0)
    bias = read.flag("attention_bias")
    fields = read_sizes(read) | read_rope(read)
    read.finish()
    return ModelSpec(
        family="olmo2", norm_at="post", qk_norm="whole", qkv_bias=bias, o_bias=bias, **fields
    )


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    return {
        **written_sizes(spec, "Olmo2ForCausalLM"),
        **written_rope(spec),
        "hidden_act": "silu",
        "attention_bias": spec.qkv_bias,
    }
