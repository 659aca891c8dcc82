"""SmolVLM (Idefics3) and LLaVA 1.5: vision-language models whose text part is a Llama."""

from typing import Any

from jaxpref.models.families.hf_config import ConfigReader, read_text_part

# Of the code that SmolVLM was trained with; transformers' Llama does not read them.  Its other
# switches, `qk_layer_norms` and `use_resampler`, are off in what is published, or refused.
_TRAINING_ONLY = ("neftune_noise_alpha", "perceiver_config", "pixel_shuffle_factor")
# What transformers' Llama config has, and the published text parts leave out.
_SIZES = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


def smolvlm_text_part(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The config of a SmolVLM's text part; errors as of `hf_config.read_text_part`."""
    images = ["vision_config", "image_token_id", "scale_factor", "vocab_size", "_pad_token_id"]
    read = ConfigReader(config, "SmolVLM", where, ignored=images)
    read.only("model_type", "idefics3", "smolvlm")
    read.only(
        "architectures", ["Idefics3ForConditionalGeneration"], ["SmolVLMForConditionalGeneration"]
    )
    text = read_text_part(read, "llama")
    if text.get("architectures") == ["VLlama3ForCausalLM"]:  # that code's name for its Llama
        del text["architectures"]
    text = {key: value for key, value in text.items() if key not in _TRAINING_ONLY}
    return _SIZES | {"rms_norm_eps": 1e-5} | text


def llava_text_part(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The config of a LLaVA 1.5's text part; errors as of `hf_config.read_text_part`."""
    images = ["vision_config", "image_token_index", "image_token_id", "image_seq_length"]
    images += ["vision_feature_layer", "vision_feature_select_strategy", "vocab_size"]
    images += ["projector_hidden_act", "multimodal_projector_bias", "ignore_index"]
    read = ConfigReader(config, "LLaVA", where, ignored=images)
    read.only("model_type", "llava")
    read.only("architectures", ["LlavaForConditionalGeneration"])
    return _SIZES | read_text_part(read, "llama")
