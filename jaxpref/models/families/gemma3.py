"""Gemma 3, text only: five local layers to a global one, each kind with a RoPE of its own.

The models of 4B and more are published with an image encoder, as `model_type: gemma3`
(`gemma3_pictures.py`).  Their text part is read, and written as the text model that it is.
"""

from typing import Any

from jaxpref.models.families.gemma import read_gemma, written_gemma
from jaxpref.models.families.hf_config import (
    FULL,
    SLIDING,
    ConfigReader,
    layer_kinds,
)
from jaxpref.models.families.rope import read_ropes, written_ropes
from jaxpref.models.families.tensors import (
    ATTENTION,
    ATTENTION_NORM,
    EMBED,
    HEAD_NORM,
    MLP,
    ROTARY_BUFFERS,
    SANDWICH,
    TOP,
    in_multimodal,
)
from jaxpref.models.spec import ModelSpec

TENSORS = {**EMBED, **ATTENTION_NORM, **ATTENTION, **HEAD_NORM, **SANDWICH, **MLP, **TOP}
OTHER_FORMS = in_multimodal(TENSORS)
IGNORED_TENSORS = rf"{ROTARY_BUFFERS}|(model\.)?(vision_tower|multi_modal_projector)\..*"
# The published configs of text parts leave out what the config class has.
DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
}
_THETAS = {FULL: ("rope_theta", 1_000_000.0), SLIDING: ("rope_local_base_freq", 10_000.0)}


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of a Hugging Face config; arguments and errors as in `llama.from_hf`."""
    # transformers writes `_sliding_window_pattern` beside `layer_types` and does not read it.
    ignored = ["hidden_act", "_sliding_window_pattern"]
    read = ConfigReader(config, "Gemma 3", where, defaults=DEFAULTS, ignored=ignored)
    read.only("model_type", "gemma3_text")
    read.only("architectures", ["Gemma3ForCausalLM"])
    read.only("use_qk_norm", True)
    read.only("attn_logit_softcapping", None)  # transformers keeps the number and does not apply it
    fields = read_gemma(read) | read_ropes(read, _THETAS, types=("default", "linear"))
    layers, pattern = fields["layers"], read.size("sliding_window_pattern")
    every = [SLIDING if (layer + 1) % pattern else FULL for layer in range(layers)]
    layer_types = read.layer_types(layers, every)
    ropes = ["local" if kind == SLIDING else "global" for kind in layer_types]
    kinds = layer_kinds(read, layer_types, read.optional_size("sliding_window"), ropes)
    read.finish()
    return ModelSpec(family="gemma3_text", qk_norm="head", kinds=kinds, **fields)


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    return {
        **written_gemma(spec, "Gemma3ForCausalLM"),
        "attn_logit_softcapping": None,
        **written_ropes(spec),
        "rope_local_base_freq": spec.rope_local_theta,
    }
