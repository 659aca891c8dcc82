"""Towers of models that see pictures, SigLIP and CLIP: their configs and their stored tensors."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxpref.models.families.hf_config import ConfigReader
from jaxpref.models.families.tensors import in_multimodal
from jaxpref.models.spec import ModelSpec
from jaxpref.models.stored import StoredLeaf

ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu"}
"""Names in Hugging Face configs -> ours."""

SIGLIP: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CLIP: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
"""How the published processors of both normalise."""


def forms_of_whole(
    text: Mapping[str, StoredLeaf], connector: Callable[[str], Mapping[str, StoredLeaf]]
) -> tuple[dict[str, StoredLeaf], ...]:
    """Of a text model behind a tower: as published, as transformers 5 writes it and holds it.

    Args:
        connector: its tensors, whose names begin so.
    """
    published, in_memory = in_multimodal(text)
    outside = {**published, **connector("multi_modal_projector.")}
    inside = {**in_memory, **connector("model.multi_modal_projector.")}
    return (
        outside | tower_tensors("vision_tower.vision_model."),
        outside | tower_tensors("vision_tower."),
        inside | tower_tensors("model.vision_tower."),
    )


def tower_tensors(prefix: str) -> dict[str, StoredLeaf]:
    """Of a tower whose tensors begin so.  A SigLIP and a CLIP name what both have alike."""
    layer = prefix + "encoder.layers.{block}."
    attention, path = layer + "self_attn.", "vision/layers/"
    table = {
        "vision/embed/patch": StoredLeaf(
            f"{prefix}embeddings.patch_embedding.weight", "d,c,k,o -> ckod"
        ),
        "vision/embed/patch_bias": StoredLeaf(f"{prefix}embeddings.patch_embedding.bias", "d -> d"),
        "vision/embed/class": StoredLeaf(f"{prefix}embeddings.class_embedding", "d -> d"),
        "vision/embed/position": StoredLeaf(
            f"{prefix}embeddings.position_embedding.weight", "a,d -> ad"
        ),
        **_norm("vision/first_norm", f"{prefix}pre_layrnorm"),  # the misspelling is CLIP's
        **_norm(f"{path}attention_norm", f"{layer}layer_norm1"),
        **_norm(f"{path}mlp_norm", f"{layer}layer_norm2"),
        f"{path}attention/o": StoredLeaf(f"{attention}out_proj.weight", "d,qr -> qrd"),
        f"{path}attention/o_bias": StoredLeaf(f"{attention}out_proj.bias", "d -> d"),
        f"{path}mlp/up": StoredLeaf(f"{layer}mlp.fc1.weight", "f,d -> df"),
        f"{path}mlp/up_bias": StoredLeaf(f"{layer}mlp.fc1.bias", "f -> f"),
        f"{path}mlp/down": StoredLeaf(f"{layer}mlp.fc2.weight", "d,f -> fd"),
        f"{path}mlp/down_bias": StoredLeaf(f"{layer}mlp.fc2.bias", "d -> d"),
        **_norm("vision/final_norm", f"{prefix}post_layernorm"),
    }
    for name in "qkv":
        stored = f"{attention}{name}_proj"
        table[f"{path}attention/{name}"] = StoredLeaf(f"{stored}.weight", "qr,d -> dqr")
        table[f"{path}attention/{name}_bias"] = StoredLeaf(f"{stored}.bias", "qr -> qr")
    return table


def _norm(path: str, stored: str) -> dict[str, StoredLeaf]:
    return {
        f"{path}/scale": StoredLeaf(f"{stored}.weight", "d -> d"),
        f"{path}/bias": StoredLeaf(f"{stored}.bias", "d -> d"),
    }


def read_tower(
    config: Mapping[str, Any],
    where: str,
    defaults: Mapping[str, Any],
    model_types: tuple[str, ...],
    ignored: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The fields of `VisionSpec` that `vision_config` says.

    Args:
        config: it.
        defaults: what transformers' config class takes for attributes that the file leaves out.
        model_types: that the tower may have, the first of them where none is said.
        ignored: attributes that have no effect on the tower.
    Errors: InputError as of `ConfigReader.finish`.
    """
    defaults = {"model_type": model_types[0], **defaults}
    where = f"vision_config of {where}"
    read = ConfigReader(config, "vision tower", where, defaults=defaults, ignored=ignored)
    read.only("model_type", *model_types)
    read.only("num_channels", 3)
    read.only("attention_dropout", 0)
    activation = read.get("hidden_act")
    if activation not in ACTIVATIONS:
        read.problems.append(f"hidden_act = {activation!r}, not one of {', '.join(ACTIVATIONS)}")
    fields: dict[str, Any] = {
        "image_size": read.size("image_size"),
        "patch_size": read.size("patch_size"),
        "width": read.size("hidden_size"),
        "ffn": read.size("intermediate_size"),
        "layers": read.size("num_hidden_layers"),
        "heads": read.size("num_attention_heads"),
        "norm_eps": read.number("layer_norm_eps", below=1),
        "activation": ACTIVATIONS.get(activation, "gelu"),
    }
    if not read.problems:
        if fields["width"] % fields["heads"]:
            read.problems.append("hidden_size is not a multiple of num_attention_heads")
        if fields["patch_size"] > fields["image_size"]:
            read.problems.append("patch_size is more than image_size")
    read.finish()
    return fields


def written_tower(spec: ModelSpec, model_type: str) -> dict[str, Any]:
    """The inverse of `read_tower`."""
    vision = spec.vision
    assert vision is not None
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    return {
        "model_type": model_type,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_size": vision.width,
        "intermediate_size": vision.ffn,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "num_channels": 3,
        "layer_norm_eps": vision.norm_eps,
        "hidden_act": names[vision.activation],
        "attention_dropout": 0.0,
    }


def check_token(read: ConfigReader, name: str, token: int, vocab: int) -> None:
    """The last check of a model's config.

    Errors: InputError for a picture token that the embedding has no row for, and for what `read`
        has noted before.
    """
    if token >= vocab:
        read.problems.append(f"{name} = {token} with a vocabulary of {vocab}")
    read.finish()
