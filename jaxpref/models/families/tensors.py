"""Stored tensors that several families name and lay out alike."""

from collections.abc import Mapping
from dataclasses import replace

from jaxpref.models.stored import StoredLeaf

# Buffers that old checkpoints carry and that follow from the config.
ROTARY_BUFFERS = r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"

_LAYER = "model.layers.{layer}."

EMBED = {"embed/table": StoredLeaf("model.embed_tokens.weight", "V,D -> VD")}
ATTENTION = {
    "layers/attention/q": StoredLeaf(_LAYER + "self_attn.q_proj.weight", "NH,D -> DNH"),
    "layers/attention/k": StoredLeaf(_LAYER + "self_attn.k_proj.weight", "MH,D -> DMH"),
    "layers/attention/v": StoredLeaf(_LAYER + "self_attn.v_proj.weight", "MH,D -> DMH"),
    "layers/attention/o": StoredLeaf(_LAYER + "self_attn.o_proj.weight", "D,NH -> NHD"),
    "layers/attention/q_bias": StoredLeaf(_LAYER + "self_attn.q_proj.bias", "NH -> NH"),
    "layers/attention/k_bias": StoredLeaf(_LAYER + "self_attn.k_proj.bias", "MH -> MH"),
    "layers/attention/v_bias": StoredLeaf(_LAYER + "self_attn.v_proj.bias", "MH -> MH"),
    "layers/attention/o_bias": StoredLeaf(_LAYER + "self_attn.o_proj.bias", "D -> D"),
}
HEAD_NORM = {
    "layers/attention/q_norm": StoredLeaf(_LAYER + "self_attn.q_norm.weight", "H -> H"),
    "layers/attention/k_norm": StoredLeaf(_LAYER + "self_attn.k_norm.weight", "H -> H"),
}
ATTENTION_NORM = {
    "layers/attention_norm/scale": StoredLeaf(_LAYER + "input_layernorm.weight", "D -> D")
}
MLP_NORM = {
    "layers/mlp_norm/scale": StoredLeaf(_LAYER + "post_attention_layernorm.weight", "D -> D")
}
# Norms before and behind both parts of a layer, beside ATTENTION_NORM (Gemma 2 and 3).
SANDWICH = {
    "layers/attention_post_norm/scale": StoredLeaf(
        _LAYER + "post_attention_layernorm.weight", "D -> D"
    ),
    "layers/mlp_norm/scale": StoredLeaf(_LAYER + "pre_feedforward_layernorm.weight", "D -> D"),
    "layers/mlp_post_norm/scale": StoredLeaf(
        _LAYER + "post_feedforward_layernorm.weight", "D -> D"
    ),
}
MLP = {
    "layers/mlp/gate": StoredLeaf(_LAYER + "mlp.gate_proj.weight", "F,D -> DF"),
    "layers/mlp/up": StoredLeaf(_LAYER + "mlp.up_proj.weight", "F,D -> DF"),
    "layers/mlp/down": StoredLeaf(_LAYER + "mlp.down_proj.weight", "D,F -> FD"),
}
# A mixture as transformers 5 holds it in memory, and stores it when asked not to convert back.
FUSED_EXPERTS = {
    "layers/experts/router": StoredLeaf(_LAYER + "mlp.gate.weight", "E,D -> DE"),
    "layers/experts/gate": StoredLeaf(_LAYER + "mlp.experts.gate_up_proj", "E,[F]+F,D -> EDF"),
    "layers/experts/up": StoredLeaf(_LAYER + "mlp.experts.gate_up_proj", "E,F+[F],D -> EDF"),
    "layers/experts/down": StoredLeaf(_LAYER + "mlp.experts.down_proj", "E,D,F -> EFD"),
}
TOP = {
    "final_norm/scale": StoredLeaf("model.norm.weight", "D -> D"),
    "head/kernel": StoredLeaf("lm_head.weight", "V,D -> VD"),
}

LLAMA = {**EMBED, **ATTENTION_NORM, **ATTENTION, **MLP_NORM, **MLP, **TOP}
"""Of these a model has the leaves that its spec says (`stored.used_leaves`)."""


def experts(router: str, gate: str, up: str, down: str) -> dict[str, StoredLeaf]:
    """A mixture stored with one tensor per expert, under these names inside a layer."""
    return {
        "layers/experts/router": StoredLeaf(_LAYER + router, "E,D -> DE"),
        "layers/experts/gate": StoredLeaf(_LAYER + gate, "F,D -> DF"),
        "layers/experts/up": StoredLeaf(_LAYER + up, "F,D -> DF"),
        "layers/experts/down": StoredLeaf(_LAYER + down, "D,F -> FD"),
    }


def in_multimodal(table: Mapping[str, StoredLeaf]) -> tuple[dict[str, StoredLeaf], ...]:
    """A text model's tensors as multimodal checkpoints name them: as published, and in memory.

    transformers 5 writes the published names back, unless asked not to.
    """
    published = {p: replace(leaf, name=f"language_model.{leaf.name}") for p, leaf in table.items()}
    return published, inside(table, "language_model")


def inside(table: Mapping[str, StoredLeaf], part: str) -> dict[str, StoredLeaf]:
    """A text model's tensors, with the decoder a part of the whole, `model.PART`."""
    named = lambda name: name.replace("model.", f"model.{part}.", 1)
    return {
        p: replace(leaf, name=named(leaf.name)) if leaf.name.startswith("model.") else leaf
        for p, leaf in table.items()
    }
