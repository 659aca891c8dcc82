"""Phi-3, Phi-3.5 and Phi-4: fused projections, a window, LongRoPE, heads rotated in part."""

from typing import Any

from jaxpref.models.families.hf_config import (
    ConfigReader,
    read_sizes,
    shared_window,
    window_everywhere,
    written_sizes,
)
from jaxpref.models.families.rope import read_rope, written_rope
from jaxpref.models.families.tensors import (
    ATTENTION_NORM,
    EMBED,
    LLAMA,
    MLP_NORM,
    ROTARY_BUFFERS,
    TOP,
)
from jaxpref.models.spec import LongRope, ModelSpec
from jaxpref.models.stored import StoredLeaf

_QKV = "model.layers.{layer}.self_attn.qkv_proj.weight"
_GATE_UP = "model.layers.{layer}.mlp.gate_up_proj.weight"
TENSORS = {
    **EMBED,
    **ATTENTION_NORM,
    "layers/attention/q": StoredLeaf(_QKV, "[NH]+MH+MH,D -> DNH"),
    "layers/attention/k": StoredLeaf(_QKV, "NH+[MH]+MH,D -> DMH"),
    "layers/attention/v": StoredLeaf(_QKV, "NH+MH+[MH],D -> DMH"),
    "layers/attention/o": LLAMA["layers/attention/o"],
    **MLP_NORM,
    "layers/mlp/gate": StoredLeaf(_GATE_UP, "[F]+F,D -> DF"),
    "layers/mlp/up": StoredLeaf(_GATE_UP, "F+[F],D -> DF"),
    "layers/mlp/down": LLAMA["layers/mlp/down"],
    **TOP,
}
IGNORED_TENSORS = ROTARY_BUFFERS
DEFAULTS = {
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "original_max_position_embeddings": 4096,
}


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of a Hugging Face config; arguments and errors as in `llama.from_hf`."""
    read = ConfigReader(config, "Phi-3", where, defaults=DEFAULTS)
    read.only("model_type", "phi3")
    read.only("architectures", ["Phi3ForCausalLM"])
    read.only("hidden_act", "silu")
    for key in ("attention_dropout", "resid_pdrop", "embd_pdrop"):
        read.only(key, 0)
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        read.only(key, False)
    for key in ("full_attn_mod", "interpolate_factor"):  # of Phi-4-mini's own code
        read.only(key, 1)
    fields = read_sizes(read) | read_rope(read, types=("default", "longrope"), partial=True)
    read.get("original_max_position_embeddings")  # means nothing without LongRoPE
    _check_rotated(read, fields)
    kinds = window_everywhere(fields["layers"], read.optional_size("sliding_window"))
    read.finish()
    return ModelSpec(family="phi3", kinds=kinds, **fields)


def _check_rotated(read: ConfigReader, fields: dict[str, Any]) -> None:
    rotated = int(fields["head_dim"] * fields["partial_rotary"])
    if rotated % 2 or not rotated:
        part = fields["partial_rotary"]
        read.problems.append(
            f"partial_rotary_factor = {part} rotates {rotated} of each head, not pairs"
        )
    rope = fields["rope_scaling"]
    if not isinstance(rope, LongRope):
        return
    for name in ("short_factor", "long_factor"):
        count = len(getattr(rope, name))
        if count != rotated // 2:
            read.problems.append(f"{count} numbers in {name}, not {rotated // 2}")


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    rope, scaling = written_rope(spec), spec.rope_scaling
    length = scaling.original_length if isinstance(scaling, LongRope) else spec.max_positions
    rope["rope_parameters"] |= {"partial_rotary_factor": spec.partial_rotary}
    if scaling is not None:  # transformers before 5 knows no other spelling in a Phi-3 config
        rope["rope_scaling"]["type"] = rope["rope_scaling"].pop("rope_type")
    return {
        **written_sizes(spec, "Phi3ForCausalLM"),
        **rope,
        "partial_rotary_factor": spec.partial_rotary,
        "original_max_position_embeddings": length,
        "hidden_act": "silu",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "sliding_window": shared_window(spec),
    }
