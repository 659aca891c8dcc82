"""Llama 1 to 3, SmolLM2, TinyLlama and what else says `model_type: llama`."""

from typing import Any

from jaxpref.models.families.hf_config import ConfigReader, read_sizes, written_sizes
from jaxpref.models.families.rope import read_rope, written_rope
from jaxpref.models.families.tensors import LLAMA, ROTARY_BUFFERS, in_multimodal, inside
from jaxpref.models.spec import LinearRope, ModelSpec

TENSORS = LLAMA
# Of LLaVA's and SmolVLM's checkpoints, whose text part is read (`smolvlm.py`, `llava.py`).
OTHER_FORMS = (*in_multimodal(TENSORS), inside(TENSORS, "text_model"))
_OF_IMAGES = r"(model\.)?(vision_tower|multi_modal_projector|vision_model|connector)\..*"
IGNORED_TENSORS = rf"{ROTARY_BUFFERS}|{_OF_IMAGES}"
DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of a Hugging Face Llama config.

    Args:
        config: the parsed config.json; `rope_parameters` (transformers 5) or `rope_theta` with
            `rope_scaling` (older).
        where: the file, for error messages.

    Errors: one InputError naming every attribute that is missing, out of range, not implemented or
        unknown.  An unknown attribute that is None, False, 0 or empty is off, and passes; so does
        one that only repeats what is in force (see `attributes.py`).
    """
    read = ConfigReader(config, "Llama", where, defaults=DEFAULTS, ignored=["is_llama_config"])
    read.only("model_type", "llama")
    read.only("architectures", ["LlamaForCausalLM"], ["LLaMAForCausalLM"])
    read.only("hidden_act", "silu")
    read.only("mlp_bias", False)
    read.only("attention_dropout", 0)
    bias = read.flag("attention_bias")
    fields = read_sizes(read) | read_rope(read)
    length, rope = fields["max_positions"], fields["rope_scaling"]
    if isinstance(rope, LinearRope):  # Vicuna 1.5 16k gives the length that the rescaling makes
        read.only("max_sequence_length", length, rope.factor * length)
    read.finish()
    return ModelSpec(family="llama", qkv_bias=bias, o_bias=bias, **fields)


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    return {
        **written_sizes(spec, "LlamaForCausalLM"),
        **written_rope(spec),
        "hidden_act": "silu",
        "attention_bias": spec.qkv_bias,
        "mlp_bias": False,
    }
