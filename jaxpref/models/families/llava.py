"""LLaVA 1.5: a CLIP tower without its class token and last layer, an MLP, and a Llama."""

from dataclasses import replace
from typing import Any

from jaxpref.models.families import llama
from jaxpref.models.families.hf_config import ConfigReader, read_text_part
from jaxpref.models.families.smolvlm import LLAMA_SIZES
from jaxpref.models.families.tensors import LLAMA
from jaxpref.models.families.towers import (
    CLIP,
    check_token,
    forms_of_whole,
    read_tower,
    written_tower,
)
from jaxpref.models.spec import ModelSpec, VisionSpec
from jaxpref.models.stored import StoredLeaf


def _connector(prefix: str) -> dict[str, StoredLeaf]:
    return {
        "connector/up": StoredLeaf(f"{prefix}linear_1.weight", "u,d1 -> 1du"),
        "connector/up_bias": StoredLeaf(f"{prefix}linear_1.bias", "u1 -> 1u"),
        "connector/down": StoredLeaf(f"{prefix}linear_2.weight", "D,u1 -> 1uD"),
        "connector/down_bias": StoredLeaf(f"{prefix}linear_2.bias", "D1 -> 1D"),
    }


TENSORS, *OTHER_FORMS = forms_of_whole(LLAMA, _connector)
IN_MEMORY = OTHER_FORMS[-1]
# Buffers of old checkpoints.
IGNORED_TENSORS = (
    r"vision_tower\.(vision_model\.)?embeddings\.position_ids"
    r"|language_model\.model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
)

_TOWER = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# CLIP's own use of its tower, and how it was initialised.
_OF_CLIP = ("projection_dim", "vocab_size", "initializer_factor", "dropout")


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of the whole model; errors as of `llama.from_hf`."""
    read = _reader(config, where)
    tower = read_tower(
        read.mapping("vision_config"), where, _TOWER, ("clip_vision_model",), _OF_CLIP
    )
    read.only("projector_hidden_act", "gelu")
    read.only("multimodal_projector_bias", True)
    read.only("vision_feature_select_strategy", "default")
    token = read.agreed(
        "image_token_index and image_token_id",
        read.get("image_token_index"),
        read.get("image_token_id"),
    )
    given, embeddings = (
        read.get("image_seq_length"),
        (tower["image_size"] // tower["patch_size"]) ** 2,
    )
    if given not in (None, embeddings):
        read.problems.append(f"image_seq_length = {given} for {embeddings} patches")
    layer, layers = read.get("vision_feature_layer", -2), tower["layers"]
    if type(layer) is not int or not -layers - 1 <= layer <= layers:
        read.problems.append(f"vision_feature_layer = {layer!r} of a tower of {layers} layers")
        layer = -2
    spec = llama.from_hf(_text(read), f"text_config of {where}")
    token = 32000 if token is None else token
    check_token(read, "image_token_index", token, spec.vocab)
    vision = VisionSpec(
        connector="mlp",
        tile_embeddings=embeddings,
        token_id=token,
        class_token=True,
        # Numbered from the embeddings on, whose output is that of layer 0.
        layers_run=layer if layer >= 0 else layers + 1 + layer,
        **tower,
        **CLIP,
    )
    return replace(spec, family="llava", vision=vision)


def text_part(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The config of the text part; errors as of `hf_config.read_text_part`."""
    of_pictures = ["vision_config", "image_token_index", "image_token_id", "image_seq_length"]
    of_pictures += ["vision_feature_layer", "vision_feature_select_strategy"]
    of_pictures += ["projector_hidden_act", "multimodal_projector_bias"]
    return _text(_reader(config, where, *of_pictures))


def _reader(config: dict[str, Any], where: str, *of_pictures: str) -> ConfigReader:
    ignored = [*of_pictures, "vocab_size", "ignore_index"]
    read = ConfigReader(config, "LLaVA", where, ignored=ignored)
    read.only("model_type", "llava")
    read.only("architectures", ["LlavaForConditionalGeneration"])
    return read


def _text(read: ConfigReader) -> dict[str, Any]:
    return LLAMA_SIZES | read_text_part(read, "llama")


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    vision = spec.vision
    assert vision is not None
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": llama.to_hf(replace(spec, family="llama", vision=None)),
        "vision_config": written_tower(spec, "clip_vision_model"),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": vision.layers_run,
        "vision_feature_select_strategy": "default",
        "image_seq_length": vision.tile_embeddings,
        "image_token_index": vision.token_id,
        "tie_word_embeddings": spec.tied,
    }
