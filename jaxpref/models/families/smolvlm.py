"""SmolVLM (Idefics3): a SigLIP tower, squares of patches side by side, and a Llama."""

from dataclasses import replace
from typing import Any

from jaxpref.models.families import llama
from jaxpref.models.families.hf_config import ConfigReader, read_text_part
from jaxpref.models.families.tensors import LLAMA, ROTARY_BUFFERS, inside
from jaxpref.models.families.towers import (
    SIGLIP,
    check_token,
    read_tower,
    tower_tensors,
    written_tower,
)
from jaxpref.models.spec import ModelSpec, VisionSpec
from jaxpref.models.stored import StoredLeaf

TENSORS = {
    **inside(LLAMA, "text_model"),
    **tower_tensors("model.vision_model."),
    "connector/project": StoredLeaf(
        "model.connector.modality_projection.proj.weight", "D,w1 -> 1wD"
    ),
}
IGNORED_TENSORS = ROTARY_BUFFERS.replace("model", "model\\.text_model", 1)

_ARCHITECTURES = {
    "idefics3": "Idefics3ForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
}
# Of the code that SmolVLM was trained with; transformers' Llama does not read them.  Its other
# switches, `qk_layer_norms` and `use_resampler`, are off in what is published, or refused.
_TRAINING_ONLY = ("neftune_noise_alpha", "perceiver_config", "pixel_shuffle_factor")
# What transformers' Llama config has, and the published text parts leave out.
LLAMA_SIZES = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
_TOWER = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_TOWER_TYPES = ("idefics3_vision", "idefics3", "smolvlm_vision", "smolvlm", "siglip_vision_model")
# Patches along a tile's side at which transformers, rounding in float32, gives some patch the
# learned position of its neighbour, up to 80; what is published has 26, 27 and 32.
_ROUNDED = [19, 25, 29, 31, 38, 40, 41, 43, 47, 49, 50, 54, 55, 58, 59, 61, 62, 67, 68, 71, 72, 73]
_ROUNDED += [74, 76, 77]
# Of the processor, which has a file of its own; `use_base_siglip` is of the training code.
_OF_PROCESSOR = ("size", "max_image_size", "use_base_siglip", "tie_word_embeddings")


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of the whole model; errors as of `llama.from_hf`."""
    read = _reader(config, where)
    tower = read_tower(read.mapping("vision_config"), where, _TOWER, _TOWER_TYPES, _OF_PROCESSOR)
    token, scale = read.size("image_token_id", 128257), read.size("scale_factor", 2)
    spec = llama.from_hf(_text(read), f"text_config of {where}")
    side = tower["image_size"] // tower["patch_size"]
    if side in _ROUNDED or side > 80:
        read.problems.append(f"{side} patches along a tile, whose positions depend on rounding")
    if side % scale:
        read.problems.append(f"{side} patches along a tile, no multiple of scale_factor = {scale}")
    check_token(read, "image_token_id", token, spec.vocab)
    embeddings = (side // scale) ** 2
    vision = VisionSpec(
        connector="shuffle", tile_embeddings=embeddings, token_id=token, **tower, **SIGLIP
    )
    return replace(spec, family=config["model_type"], vision=vision)


def text_part(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The config of the text part; errors as of `hf_config.read_text_part`."""
    return _text(_reader(config, where, "vision_config", "image_token_id", "scale_factor"))


def _reader(config: dict[str, Any], where: str, *of_pictures: str) -> ConfigReader:
    ignored = [*of_pictures, "vocab_size", "_pad_token_id", "use_reentrant_checkpointing"]
    read = ConfigReader(config, "SmolVLM", where, ignored=ignored)
    read.only("model_type", *_ARCHITECTURES)
    read.only("architectures", *([name] for name in _ARCHITECTURES.values()))
    return read


def _text(read: ConfigReader) -> dict[str, Any]:
    text = read_text_part(read, "llama")
    if text.get("architectures") == ["VLlama3ForCausalLM"]:  # that code's name for its Llama
        del text["architectures"]
    text = {key: value for key, value in text.items() if key not in _TRAINING_ONLY}
    return LLAMA_SIZES | {"rms_norm_eps": 1e-5} | text


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    vision = spec.vision
    assert vision is not None
    return {
        "architectures": [_ARCHITECTURES[spec.family]],
        "model_type": spec.family,
        "text_config": llama.to_hf(replace(spec, family="llama", vision=None)),
        "vision_config": written_tower(spec, f"{spec.family}_vision"),
        "scale_factor": vision.square,
        "image_token_id": vision.token_id,
        "tie_word_embeddings": spec.tied,
    }
