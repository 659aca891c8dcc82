"""GPT-2: learned positions, LayerNorm, two-matrix MLP, fused and transposed projections.

Dropout is ignored: every published config has 0.1, and preference training runs without it, as
TRL's `disable_dropout` does by default.
"""

from dataclasses import replace
from typing import Any, Literal

from jaxpref.models.families.hf_config import ConfigReader
from jaxpref.models.spec import ModelSpec
from jaxpref.models.stored import StoredLeaf

_BLOCK = "transformer.h.{layer}."
# transformers' Conv1D keeps its matrix as [in, out].
TENSORS = {
    "embed/table": StoredLeaf("transformer.wte.weight", "V,D -> VD"),
    "embed/position": StoredLeaf("transformer.wpe.weight", "P,D -> PD"),
    "layers/attention_norm/scale": StoredLeaf(_BLOCK + "ln_1.weight", "D -> D"),
    "layers/attention_norm/bias": StoredLeaf(_BLOCK + "ln_1.bias", "D -> D"),
    "layers/attention/q": StoredLeaf(_BLOCK + "attn.c_attn.weight", "D,[NH]+MH+MH -> DNH"),
    "layers/attention/k": StoredLeaf(_BLOCK + "attn.c_attn.weight", "D,NH+[MH]+MH -> DMH"),
    "layers/attention/v": StoredLeaf(_BLOCK + "attn.c_attn.weight", "D,NH+MH+[MH] -> DMH"),
    "layers/attention/q_bias": StoredLeaf(_BLOCK + "attn.c_attn.bias", "[NH]+MH+MH -> NH"),
    "layers/attention/k_bias": StoredLeaf(_BLOCK + "attn.c_attn.bias", "NH+[MH]+MH -> MH"),
    "layers/attention/v_bias": StoredLeaf(_BLOCK + "attn.c_attn.bias", "NH+MH+[MH] -> MH"),
    "layers/attention/o": StoredLeaf(_BLOCK + "attn.c_proj.weight", "NH,D -> NHD"),
    "layers/attention/o_bias": StoredLeaf(_BLOCK + "attn.c_proj.bias", "D -> D"),
    "layers/mlp_norm/scale": StoredLeaf(_BLOCK + "ln_2.weight", "D -> D"),
    "layers/mlp_norm/bias": StoredLeaf(_BLOCK + "ln_2.bias", "D -> D"),
    "layers/mlp/up": StoredLeaf(_BLOCK + "mlp.c_fc.weight", "D,F -> DF"),
    "layers/mlp/up_bias": StoredLeaf(_BLOCK + "mlp.c_fc.bias", "F -> F"),
    "layers/mlp/down": StoredLeaf(_BLOCK + "mlp.c_proj.weight", "F,D -> FD"),
    "layers/mlp/down_bias": StoredLeaf(_BLOCK + "mlp.c_proj.bias", "D -> D"),
    "final_norm/scale": StoredLeaf("transformer.ln_f.weight", "D -> D"),
    "final_norm/bias": StoredLeaf("transformer.ln_f.bias", "D -> D"),
    "head/kernel": StoredLeaf("lm_head.weight", "V,D -> VD"),
}
# The published checkpoints were saved without the head's class, so their names lack its prefix.
OTHER_FORMS = (
    {path: replace(w, name=w.name.removeprefix("transformer.")) for path, w in TENSORS.items()},
)
# The causal mask, which old checkpoints carry.
IGNORED_TENSORS = r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias"
DEFAULTS = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
}

_ACTIVATIONS: dict[str, Literal["gelu_tanh", "gelu"]] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
}


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of a Hugging Face config; arguments and errors as in `llama.from_hf`."""
    read = ConfigReader(
        config,
        "GPT-2",
        where,
        defaults=DEFAULTS,
        # Dropout (unused, as the first lines say); settings of other heads; where the arithmetic is
        # done; what the sizes say already; special tokens of the first GPT.
        ignored=[
            "attn_pdrop",
            "embd_pdrop",
            "resid_pdrop",
            "summary_type",
            "summary_use_proj",
            "summary_activation",
            "summary_proj_to_labels",
            "summary_first_dropout",
            "reorder_and_upcast_attn",
            "n_ctx",
            "n_special",
            "predict_special_tokens",
        ],
    )
    read.only("model_type", "gpt2")
    read.only("architectures", ["GPT2LMHeadModel"])
    read.only("scale_attn_by_inverse_layer_idx", False)
    read.only("add_cross_attention", False)
    activation = read.get("activation_function")
    if activation not in _ACTIVATIONS:
        read.problems.append(
            f"activation_function = {activation!r}, only {', '.join(_ACTIVATIONS)} are implemented"
        )
    width, heads = read.size("n_embd"), read.size("n_head")
    if not read.problems and width % heads:
        read.problems.append(f"n_embd = {width} is not a multiple of n_head = {heads}")
    scaled = read.flag("scale_attn_weights")
    fields: dict[str, Any] = dict(
        vocab=read.size("vocab_size"),
        width=width,
        ffn=read.size("n_inner", 4 * width),
        layers=read.size("n_layer"),
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        max_positions=read.size("n_positions"),
        norm_eps=read.number("layer_norm_epsilon", below=1),
        tied=read.flag("tie_word_embeddings"),
    )
    read.finish()
    return ModelSpec(
        family="gpt2",
        rope_theta=10000.0,
        learned_positions=True,
        activation=_ACTIVATIONS[activation],
        gated=False,
        norm="layer",
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        attention_scale=None if scaled else 1.0,
        **fields,
    )


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": spec.vocab,
        "n_positions": spec.max_positions,
        "n_embd": spec.width,
        "n_layer": spec.layers,
        "n_head": spec.heads,
        "n_inner": spec.ffn,
        "activation_function": "gelu" if spec.activation == "gelu" else "gelu_new",
        "layer_norm_epsilon": spec.norm_eps,
        "scale_attn_weights": spec.attention_scale is None,
        "tie_word_embeddings": spec.tied,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }
