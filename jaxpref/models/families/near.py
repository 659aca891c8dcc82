"""What a config of no supported family describes, and what is near to it in kind."""

import importlib
from collections.abc import Collection, Mapping
from typing import Any

_RECURRENT = ("linear_attention", "mamba", "conv", "recurrent", "sliding_recurrent")
"""Of `layer_types` and `layers_block_type`."""
_RECURRENT_TYPES = "mamba mamba2 falcon_mamba rwkv xlstm recurrent_gemma jamba".split()
# Layers of Qwen3.5 with experts and one that is shared by all tokens.
_DELTA_TYPES = "qwen3_next qwen3_5_moe qwen3_5_moe_text".split()
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# Dense decoders -> the supported family whose layers are most like theirs.
_RELATIVES = {
    "gemma2": "gemma vaultgemma",
    "gpt2": "bloom codegen falcon gpt_bigcode gpt_neo gpt_neox gptj mpt openai-gpt opt",
    "llama": "aquila arcee baichuan cohere cohere2 deepseek exaone glm glm4 helium "
    "internlm internlm2 internlm3 minicpm nemotron persimmon seed_oss stablelm Yi",
    "olmo2": "olmo exaone4",
    "phi3": "phi phi-msft",
    "qwen2": "qwen starcoder2 hunyuan_v1_dense",
    "mistral": "ministral ministral3",
}


def kind(config: Mapping[str, Any], supported: Collection[str]) -> str:
    """One sentence on a model whose `model_type` is not supported, never by its spelling.

    Args:
        supported: every `model_type` that is.
    """
    name = config.get("model_type")
    if not name:
        return "this config names none: take config.json of the model that the weights belong to"
    if name in _DELTA_TYPES:
        return (
            f"{name} has the layers of qwen3_5_text (Gated DeltaNet) with a mixture of experts and "
            "one that all tokens share, which is missing here: use a dense Qwen3.5"
        )
    text = config.get("text_config")
    if isinstance(text, Mapping) and text.get("model_type") in supported:
        return (
            f"{name} is multimodal; its text part, {text['model_type']}, is supported: save that "
            "as a model of its own"
        )
    if _is_multimodal(config):
        return f"{name} is multimodal, and its text part is not supported: use a text model"
    if config.get("is_encoder_decoder") or name in _names("SEQ_TO_SEQ_CAUSAL_LM"):
        return f"{name} is an encoder with a decoder: use a model that is a decoder alone"
    if name in _names("MASKED_LM"):
        return f"{name} is an encoder and does not generate: use a decoder"
    if _is_recurrent(config):
        return f"{name} has recurrent layers: use a model with attention in every layer"
    if config.get("kv_lora_rank"):
        return f"{name} has latent attention (MLA): use a model with keys and values for its heads"
    if any(config.get(key) for key in _EXPERTS):
        near = " and ".join(family for family in ("mixtral", "qwen3_moe") if family in supported)
        return f"{name} is a mixture of experts; near in kind are {near}"
    for family, relatives in _RELATIVES.items():
        if name in relatives.split():
            return f"{name} is a decoder whose layers differ from those of {family}, its nearest"
    return f"{name} is not known here: use a decoder of a supported family"


def _is_multimodal(config: Mapping[str, Any]) -> bool:
    parts = ("vision_config", "audio_config", "text_config")
    return any(config.get(part) for part in parts) or config["model_type"] in _names(
        "MULTIMODAL_LM"
    )


def _is_recurrent(config: Mapping[str, Any]) -> bool:
    layers = [*(config.get("layer_types") or ()), *(config.get("layers_block_type") or ())]
    return config["model_type"] in _RECURRENT_TYPES or any(kind in _RECURRENT for kind in layers)


def _names(task: str) -> Collection[str]:
    """Every `model_type` that transformers has for a task."""
    tables = importlib.import_module("transformers.models.auto.modeling_auto")
    return getattr(tables, f"MODEL_FOR_{task}_MAPPING_NAMES", ())
