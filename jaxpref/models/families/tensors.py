"""Stored tensors that several families name and lay out alike."""

from jaxpref.models.weights import Weight

# Buffers that old checkpoints carry and that follow from the config.
ROTARY_BUFFERS = r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"

_LAYER = "model.layers.{layer}."

EMBED = {"embed/table": Weight("model.embed_tokens.weight", "V,D -> VD")}
ATTENTION = {
    "layers/attention/q": Weight(_LAYER + "self_attn.q_proj.weight", "NH,D -> DNH"),
    "layers/attention/k": Weight(_LAYER + "self_attn.k_proj.weight", "MH,D -> DMH"),
    "layers/attention/v": Weight(_LAYER + "self_attn.v_proj.weight", "MH,D -> DMH"),
    "layers/attention/o": Weight(_LAYER + "self_attn.o_proj.weight", "D,NH -> NHD"),
    "layers/attention/q_bias": Weight(_LAYER + "self_attn.q_proj.bias", "NH -> NH"),
    "layers/attention/k_bias": Weight(_LAYER + "self_attn.k_proj.bias", "MH -> MH"),
    "layers/attention/v_bias": Weight(_LAYER + "self_attn.v_proj.bias", "MH -> MH"),
    "layers/attention/o_bias": Weight(_LAYER + "self_attn.o_proj.bias", "D -> D"),
}
HEAD_NORM = {
    "layers/attention/q_norm": Weight(_LAYER + "self_attn.q_norm.weight", "H -> H"),
    "layers/attention/k_norm": Weight(_LAYER + "self_attn.k_norm.weight", "H -> H"),
}
ATTENTION_NORM = {
    "layers/attention_norm/scale": Weight(_LAYER + "input_layernorm.weight", "D -> D")
}
MLP_NORM = {"layers/mlp_norm/scale": Weight(_LAYER + "post_attention_layernorm.weight", "D -> D")}
# Norms before and behind both parts of a layer, beside ATTENTION_NORM (Gemma 2 and 3).
SANDWICH = {
    "layers/attention_post_norm/scale": Weight(
        _LAYER + "post_attention_layernorm.weight", "D -> D"
    ),
    "layers/mlp_norm/scale": Weight(_LAYER + "pre_feedforward_layernorm.weight", "D -> D"),
    "layers/mlp_post_norm/scale": Weight(_LAYER + "post_feedforward_layernorm.weight", "D -> D"),
}
MLP = {
    "layers/mlp/gate": Weight(_LAYER + "mlp.gate_proj.weight", "F,D -> DF"),
    "layers/mlp/up": Weight(_LAYER + "mlp.up_proj.weight", "F,D -> DF"),
    "layers/mlp/down": Weight(_LAYER + "mlp.down_proj.weight", "D,F -> FD"),
}
# A mixture as transformers 5 holds it in memory, and stores it when asked not to convert back.
FUSED_EXPERTS = {
    "layers/experts/router": Weight(_LAYER + "mlp.gate.weight", "E,D -> DE"),
    "layers/experts/gate": Weight(_LAYER + "mlp.experts.gate_up_proj", "E,[F]+F,D -> EDF"),
    "layers/experts/up": Weight(_LAYER + "mlp.experts.gate_up_proj", "E,F+[F],D -> EDF"),
    "layers/experts/down": Weight(_LAYER + "mlp.experts.down_proj", "E,D,F -> EFD"),
}
TOP = {
    "final_norm/scale": Weight("model.norm.weight", "D -> D"),
    "head/kernel": Weight("lm_head.weight", "V,D -> VD"),
}

LLAMA = {**EMBED, **ATTENTION_NORM, **ATTENTION, **MLP_NORM, **MLP, **TOP}
"""A model has the leaves that its spec says (`weights.used_weights`): biases and an own head are
optional."""


def experts(router: str, gate: str, up: str, down: str) -> dict[str, Weight]:
    """A mixture stored with a tensor an expert, under these names inside a layer."""
    return {
        "layers/experts/router": Weight(_LAYER + router, "E,D -> DE"),
        "layers/experts/gate": Weight(_LAYER + gate, "F,D -> DF"),
        "layers/experts/up": Weight(_LAYER + up, "F,D -> DF"),
        "layers/experts/down": Weight(_LAYER + down, "D,F -> FD"),
    }
