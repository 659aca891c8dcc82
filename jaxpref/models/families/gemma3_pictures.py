"""Gemma 3 with pictures: a SigLIP tower, the mean over squares of patches, a norm, a linear map."""

from dataclasses import replace
from typing import Any

from jaxpref.models.families import gemma3
from jaxpref.models.families.hf_config import ConfigReader, read_text_part
from jaxpref.models.families.towers import (
    SIGLIP,
    check_token,
    forms_of_whole,
    read_tower,
    written_tower,
)
from jaxpref.models.spec import ModelSpec, VisionSpec
from jaxpref.models.stored import StoredLeaf


def _connector(prefix: str) -> dict[str, StoredLeaf]:
    return {
        "connector/norm/scale": StoredLeaf(f"{prefix}mm_soft_emb_norm.weight", "d1 -> 1d"),
        "connector/project": StoredLeaf(f"{prefix}mm_input_projection_weight", "w1,D -> 1wD"),
    }


TENSORS, *OTHER_FORMS = forms_of_whole(gemma3.TENSORS, _connector)
IN_MEMORY = OTHER_FORMS[-1]
# SigLIP's own use of its tower.
IGNORED_TENSORS = r"(model\.)?vision_tower\.(vision_model\.)?head\..*"

_TOWER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_AROUND = {"boi": 255999, "eoi": 256000}


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of the whole model; errors as of `llama.from_hf`."""
    read = _reader(config, where)
    tower = read_tower(
        read.mapping("vision_config"), where, _TOWER, ("siglip_vision_model",), ("vision_use_head",)
    )
    token = _token(read, "image", 262144)
    around = tuple(_token(read, name, default) for name, default in _AROUND.items())
    embeddings = read.size("mm_tokens_per_image", 256)
    spec = gemma3.from_hf(read_text_part(read, "gemma3_text"), f"text_config of {where}")
    side, along = tower["image_size"] // tower["patch_size"], round(embeddings**0.5)
    if along**2 != embeddings or side % along:
        read.problems.append(f"mm_tokens_per_image = {embeddings} of {side} * {side} patches")
    windows = [kind.window for kind in spec.kinds if kind.window is not None]
    if windows and min(windows) < embeddings:
        read.problems.append(f"mm_tokens_per_image = {embeddings}, beyond sliding_window")
    check_token(read, "image_token_index", token, spec.vocab)
    vision = VisionSpec(
        connector="pool",
        tile_embeddings=embeddings,
        token_id=token,
        mutual=True,
        around_ids=around,
        **tower,
        **SIGLIP,
    )
    return replace(spec, family="gemma3", vision=vision)


def text_part(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The config of the text part; errors as of `hf_config.read_text_part`."""
    names = [f"{name}_token_{end}" for name in ("boi", "eoi", "image") for end in ("index", "id")]
    read = _reader(config, where, "vision_config", "mm_tokens_per_image", *names)
    return read_text_part(read, "gemma3_text")


def _reader(config: dict[str, Any], where: str, *of_pictures: str) -> ConfigReader:
    read = ConfigReader(config, "multimodal Gemma 3", where, ignored=of_pictures)
    read.only("model_type", "gemma3")
    read.only("architectures", ["Gemma3ForConditionalGeneration"])
    return read


def _token(read: ConfigReader, name: str, default: int) -> int:
    names = f"{name}_token_index", f"{name}_token_id"
    token = read.agreed(" and ".join(names), *map(read.get, names))
    return default if token is None else token


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    vision = spec.vision
    assert vision is not None
    around = dict(zip(_AROUND, vision.around_ids, strict=True))
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": gemma3.to_hf(replace(spec, family="gemma3_text", vision=None)),
        "vision_config": written_tower(spec, "siglip_vision_model") | {"vision_use_head": False},
        "mm_tokens_per_image": vision.tile_embeddings,
        "image_token_index": vision.token_id,
        **{f"{name}_token_index": token for name, token in around.items()},
        "tie_word_embeddings": spec.tied,
    }
