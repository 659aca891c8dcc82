"""Qwen3.5, text only: three layers of Gated DeltaNet to one of gated attention.

The published models have an image encoder (`model_type: qwen3_5`) and a layer that predicts a token
further ahead.  Their text part is read, and written as the text model that it is.
"""

from typing import Any

from jaxpref.models.families.hf_config import (
    FULL,
    ConfigReader,
    read_sizes,
    read_text_part,
    written_sizes,
)
from jaxpref.models.families.rope import read_rope, written_rope
from jaxpref.models.families.tensors import (
    ATTENTION,
    ATTENTION_NORM,
    EMBED,
    HEAD_NORM,
    MLP,
    MLP_NORM,
    TOP,
    in_multimodal,
)
from jaxpref.models.spec import DeltaNet, LayerKind, Mixer, ModelSpec
from jaxpref.models.stored import StoredLeaf

LINEAR = "linear_attention"
"""Name of Gated DeltaNet in `layer_types`."""

_LAYER = "model.layers.{layer}."
_DELTA = _LAYER + "linear_attn."
_QKV, _TAPS = _DELTA + "in_proj_qkv.weight", _DELTA + "conv1d.weight"
TENSORS = {
    **EMBED,
    **ATTENTION_NORM,
    "layers/attention/q_gate": StoredLeaf(_LAYER + "self_attn.q_proj.weight", "NgH,D -> DNgH"),
    **ATTENTION,
    **HEAD_NORM,
    "layers/delta/q": StoredLeaf(_QKV, "[mh]+mh+nv,D -> Dmh"),
    "layers/delta/k": StoredLeaf(_QKV, "mh+[mh]+nv,D -> Dmh"),
    "layers/delta/v": StoredLeaf(_QKV, "mh+mh+[nv],D -> Dnv"),
    "layers/delta/z": StoredLeaf(_DELTA + "in_proj_z.weight", "nv,D -> Dnv"),
    "layers/delta/beta": StoredLeaf(_DELTA + "in_proj_b.weight", "n,D -> Dn"),
    "layers/delta/decay": StoredLeaf(_DELTA + "in_proj_a.weight", "n,D -> Dn"),
    "layers/delta/q_taps": StoredLeaf(_TAPS, "[mh]+mh+nv,1,t -> mht"),
    "layers/delta/k_taps": StoredLeaf(_TAPS, "mh+[mh]+nv,1,t -> mht"),
    "layers/delta/v_taps": StoredLeaf(_TAPS, "mh+mh+[nv],1,t -> nvt"),
    "layers/delta/a_log": StoredLeaf(_DELTA + "A_log", "n -> n"),
    "layers/delta/dt_bias": StoredLeaf(_DELTA + "dt_bias", "n -> n"),
    "layers/delta/norm": StoredLeaf(_DELTA + "norm.weight", "v -> v"),
    "layers/delta/o": StoredLeaf(_DELTA + "out_proj.weight", "D,nv -> nvD"),
    **MLP_NORM,
    **MLP,
    **TOP,
}
OTHER_FORMS = in_multimodal(TENSORS)
IGNORED_TENSORS = r"mtp\..*|model\.visual\..*"
DEFAULTS = {
    "vocab_size": 248320,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "full_attention_interval": 4,
}
# Of the layer that predicts a token further ahead, and of kernels.
_IGNORED = (
    "mtp_num_hidden_layers",
    "mtp_use_dedicated_embeddings",
    "mamba_ssm_dtype",
    "mlp_only_layers",
)
_PARTIAL_ROTARY = 0.25
"""Where a config says nothing of it."""


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of a Hugging Face config; arguments and errors as in `llama.from_hf`."""
    read = ConfigReader(config, "Qwen3.5", where, defaults=DEFAULTS, ignored=_IGNORED)
    read.only("model_type", "qwen3_5_text")
    read.only("architectures", ["Qwen3_5ForCausalLM"])
    read.only("hidden_act", "silu")
    read.only("attention_dropout", 0)
    read.only("attention_bias", False)
    read.only("attn_output_gate", True)
    read.only("output_gate_type", "swish")
    fields = read_sizes(read) | _read_rope(read)
    delta = DeltaNet(
        key_heads=read.size("linear_num_key_heads"),
        value_heads=read.size("linear_num_value_heads"),
        key_size=read.size("linear_key_head_dim"),
        value_size=read.size("linear_value_head_dim"),
        taps=read.size("linear_conv_kernel_dim"),
    )
    kinds = _read_kinds(read, fields["layers"])
    if delta.value_heads % delta.key_heads:
        read.problems.append(
            f"linear_num_value_heads = {delta.value_heads} is not a multiple of "
            f"linear_num_key_heads = {delta.key_heads}"
        )
    read.finish()
    has_delta = any(kind.mixer == "delta" for kind in kinds)
    return ModelSpec(
        family="qwen3_5_text",
        norm="rms_plus_one",
        qk_norm="head",
        attention_gate=True,
        kinds=kinds,
        delta=delta if has_delta else None,
        **fields,
    )


def _read_rope(read: ConfigReader) -> dict[str, Any]:
    """Of text all three sections of the rotation (`mrope`) have the same position: it is RoPE."""
    forms: dict[str, Any] = {key: read.mapping(key) for key in ("rope_parameters", "rope_scaling")}
    for form in forms.values():
        for name in ("mrope_section", "mrope_interleaved"):
            form.pop(name, None)
    part = "partial_rotary_factor"
    if all(form.get(part) is None for form in (read.config, *forms.values())):
        forms |= {part: _PARTIAL_ROTARY}
    read.config |= forms
    return read_rope(read, partial=True)


def _read_kinds(read: ConfigReader, layers: int) -> tuple[LayerKind, ...]:
    interval = read.size("full_attention_interval")
    every = [LINEAR if (layer + 1) % interval else FULL for layer in range(layers)]
    mixers: dict[str, Mixer] = {FULL: "attention", LINEAR: "delta"}
    layer_types = read.layer_types(layers, every, known=tuple(mixers))
    return tuple(LayerKind(mixer=mixers[kind]) for kind in layer_types)


def text_part(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The config of a multimodal Qwen3.5's text part; errors as of `hf_config.read_text_part`."""
    images = ["vision_config", "language_model_only"]
    images += ["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"]
    read = ConfigReader(config, "multimodal Qwen3.5", where, ignored=images)
    read.only("model_type", "qwen3_5")
    read.only("architectures", ["Qwen3_5ForConditionalGeneration"])
    return read_text_part(read, "qwen3_5_text")


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    rope, sizes = written_rope(spec), {}
    rope["rope_parameters"] |= {"partial_rotary_factor": spec.partial_rotary}
    if spec.delta is not None:
        sizes = {
            "linear_num_key_heads": spec.delta.key_heads,
            "linear_num_value_heads": spec.delta.value_heads,
            "linear_key_head_dim": spec.delta.key_size,
            "linear_value_head_dim": spec.delta.value_size,
            "linear_conv_kernel_dim": spec.delta.taps,
        }
    names = {"delta": LINEAR, "attention": FULL}
    return {
        **written_sizes(spec, "Qwen3_5ForCausalLM"),
        **rope,
        "partial_rotary_factor": spec.partial_rotary,
        "hidden_act": "silu",
        "attention_bias": False,
        "attn_output_gate": True,
        "layer_types": [names[mixer] for mixer in spec.mixers],
        **sizes,
    }
