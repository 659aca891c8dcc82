"""Qwen2.5-VL: a windowed tower for pictures of any shape, a merger, and a Qwen2 with M-RoPE."""

from dataclasses import replace
from typing import Any

from jaxpref.models.families import qwen2
from jaxpref.models.families.hf_config import ConfigReader
from jaxpref.models.families.rope import check_theta
from jaxpref.models.families.tensors import LLAMA, inside
from jaxpref.models.families.towers import CLIP, check_token
from jaxpref.models.spec import ModelSpec, VisionSpec, Windows
from jaxpref.models.stored import StoredLeaf


def _tower(prefix: str) -> dict[str, StoredLeaf]:
    layer, path = prefix + "blocks.{block}.", "vision/layers/"
    attention, merger = layer + "attn.", f"{prefix}merger."
    table = {
        "vision/embed/patch": StoredLeaf(f"{prefix}patch_embed.proj.weight", "d,c,y,k,o -> cykod"),
        f"{path}attention_norm/scale": StoredLeaf(f"{layer}norm1.weight", "d -> d"),
        f"{path}mlp_norm/scale": StoredLeaf(f"{layer}norm2.weight", "d -> d"),
        f"{path}attention/o": StoredLeaf(f"{attention}proj.weight", "d,qr -> qrd"),
        f"{path}attention/o_bias": StoredLeaf(f"{attention}proj.bias", "d -> d"),
        "connector/norm/scale": StoredLeaf(f"{merger}ln_q.weight", "d1 -> 1d"),
        "connector/merge": StoredLeaf(f"{merger}mlp.0.weight", "u,ad1 -> 1adu"),
        "connector/merge_bias": StoredLeaf(f"{merger}mlp.0.bias", "u1 -> 1u"),
        "connector/down": StoredLeaf(f"{merger}mlp.2.weight", "D,u1 -> 1uD"),
        "connector/down_bias": StoredLeaf(f"{merger}mlp.2.bias", "D1 -> 1D"),
    }
    for name, part in {"q": "[qr]+qr+qr", "k": "qr+[qr]+qr", "v": "qr+qr+[qr]"}.items():
        stored = f"{path}attention/{name}"
        table[stored] = StoredLeaf(f"{attention}qkv.weight", f"{part},d -> dqr")
        table[f"{stored}_bias"] = StoredLeaf(f"{attention}qkv.bias", f"{part} -> qr")
    for name, axes in {"gate": "f,d -> df", "up": "f,d -> df", "down": "d,f -> fd"}.items():
        stored, bias = f"{layer}mlp.{name}_proj", axes[0]
        table[f"{path}mlp/{name}"] = StoredLeaf(f"{stored}.weight", axes)
        table[f"{path}mlp/{name}_bias"] = StoredLeaf(f"{stored}.bias", f"{bias} -> {bias}")
    return table


TENSORS = LLAMA | _tower("visual.")
IN_MEMORY = inside(LLAMA, "language_model") | _tower("model.visual.")
OTHER_FORMS = (IN_MEMORY,)
IGNORED_TENSORS = r"(?!)"

# What transformers' config classes take for attributes that the file leaves out.
_TEXT = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_window_layers": 80,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
}
_TEXT_TYPE = "qwen2_5_vl_text"
_ARCHITECTURE, _TEXT_ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLTextModel"
_THETA = 1e6
_SECTIONS = (16, 24, 24)
_VISION = {
    "model_type": "qwen2_5_vl_vision",
    "depth": 32,
    "hidden_size": 3584,
    "hidden_act": "silu",
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_NORM_EPS = 1e-6  # of tower and merger; no config says it
# Of videos, and around pictures: the chat template and the processor write them.
_TOKENS = ("video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id")
_OF_WHOLE = {
    "model_type",
    "architectures",
    "text_config",
    "vision_config",
    "image_token_id",
    "tie_word_embeddings",
    *_TOKENS,
}


def from_hf(config: dict[str, Any], where: str = "config.json") -> ModelSpec:
    """The spec of the whole model; errors as of `llama.from_hf`."""
    read, text = _parts(config, where)
    token = read.size("image_token_id", 151655)
    text, sections = _as_qwen2(read, text)
    spec = qwen2.from_hf(text, f"text part of {where}")
    tower = _read_tower(read.mapping("vision_config"), where, spec.width)
    if spec.head_dim * spec.heads != spec.width:  # transformers reads no head_dim here
        read.problems.append(f"head_dim = {spec.head_dim}, not hidden_size / num_attention_heads")
    if sum(sections) != spec.head_dim // 2:
        pairs = spec.head_dim // 2
        read.problems.append(f"mrope_section = {list(sections)} of {pairs} rotated pairs")
    check_token(read, "image_token_id", token, spec.vocab)
    vision = VisionSpec(token_id=token, **tower, **CLIP)
    return replace(spec, family="qwen2_5_vl", vision=vision, rope_sections=sections)


def text_part(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The config of the text part, a Qwen2: M-RoPE of a text is RoPE.

    Errors: as of `hf_config.read_text_part`.
    """
    read, text = _parts(config, where, "vision_config", "image_token_id")
    text, _ = _as_qwen2(read, text)
    read.finish()
    return text


def _parts(
    config: dict[str, Any], where: str, *ignored: str
) -> tuple[ConfigReader, dict[str, Any]]:
    """The attributes of the whole, and those of the text part.

    These stand among the others, or in `text_config`, or in both places.
    """
    text = config.get("text_config") or {k: v for k, v in config.items() if k not in _OF_WHOLE}
    text = {"model_type": _TEXT_TYPE, **{k: v for k, v in text.items() if k not in _TOKENS}}
    whole = {k: v for k, v in config.items() if k in _OF_WHOLE or text.get(k) != v}
    read = ConfigReader(whole, "Qwen2.5-VL", where, ignored=[*_TOKENS, *ignored, "text_config"])
    read.only("model_type", "qwen2_5_vl")
    read.only("architectures", [_ARCHITECTURE])
    return read, text


def _as_qwen2(
    read: ConfigReader, text: dict[str, Any]
) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """The config of a Qwen2 for the text part, and the sections of M-RoPE."""
    text = {**_TEXT, **text}
    if text["model_type"] != _TEXT_TYPE:
        read.problems.append(f"text_config of model_type {text['model_type']!r}")
    if text.get("architectures") in ([_ARCHITECTURE], [_TEXT_ARCHITECTURE]):
        del text["architectures"]
    key = "tie_word_embeddings"
    tied = read.agreed(f"{key} and that of text_config", read.get(key), text.get(key))
    given = []
    for key in ("rope_parameters", "rope_scaling"):
        rope = dict(text.get(key) or {})
        given.append(rope.pop("mrope_section", None))
        for name in ("type", "rope_type"):
            if rope.get(name) == "mrope":
                rope[name] = "default"
        if rope.get("type") == rope.get("rope_type"):  # transformers once wrote both
            rope.pop("type", None)
        text[key] = rope
    if "rope_theta" not in text["rope_parameters"]:
        text.setdefault("rope_theta", _THETA)
    sections = read.agreed("mrope_section of rope_parameters and rope_scaling", *given)
    text = {**text, "model_type": "qwen2", "tie_word_embeddings": bool(tied)}
    return text, _three(read, _SECTIONS if sections is None else sections)


def _three(read: ConfigReader, sections: Any) -> tuple[int, int, int]:
    if not isinstance(sections, list | tuple) or [*map(type, sections)] != [int] * 3:
        read.problems.append(f"mrope_section = {sections!r} is not three numbers")
        return _SECTIONS
    return tuple(sections)


def _read_tower(config: dict[str, Any], where: str, width: int) -> dict[str, Any]:
    """The fields of `VisionSpec` that `vision_config` says.

    Args:
        width: of the decoder.
    """
    where, ignored = f"vision_config of {where}", ["tokens_per_second"]  # of videos
    read = ConfigReader(config, "vision tower", where, defaults=_VISION, ignored=ignored)
    read.only("model_type", _VISION["model_type"], "qwen2_5_vl")
    read.only("in_channels", 3)
    read.only("in_chans", 3)  # its name in the code that Qwen published
    read.only("hidden_act", "silu")
    rope = read.mapping("rope_parameters")
    theta = rope.pop("rope_theta", 10000.0)
    if rope not in ({}, {"rope_type": "axial"}):
        read.problems.append(f"rope_parameters = {rope}, only 'axial' is implemented")
    patch, square = read.size("patch_size"), read.size("spatial_merge_size")
    read.only("spatial_patch_size", patch)
    read.only("out_hidden_size", width)
    window, layers = read.size("window_size"), read.size("depth")
    tower_width, heads = read.size("hidden_size"), read.size("num_heads")
    whole_layers = read.get("fullatt_block_indexes")
    fields: dict[str, Any] = {
        "image_size": patch * square,
        "patch_size": patch,
        "width": tower_width,
        "ffn": read.size("intermediate_size"),
        "layers": layers,
        "heads": heads,
        "norm_eps": _NORM_EPS,
        "activation": "silu",
        "connector": "merge",
        "tile_embeddings": 1,
        "norm": "rms",
        "gated": True,
        "frames": read.size("temporal_patch_size"),
    }
    known = range(layers)
    if not isinstance(whole_layers, list) or not all(layer in known for layer in whole_layers):
        read.problems.append(f"fullatt_block_indexes = {whole_layers} of {layers} layers")
    if not read.problems:
        if tower_width % (4 * heads):
            read.problems.append(f"hidden_size = {tower_width} is no multiple of 4 * num_heads")
        if window < patch * square:
            read.problems.append(f"window_size = {window} is less than {patch * square}")
    read.finish()
    side = window // (patch * square)
    fields["windows"] = Windows(side, tuple(whole_layers), check_theta(read, theta))
    return fields


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of `spec`, without dtype and token ids."""
    vision = spec.vision
    assert vision is not None and vision.windows is not None and spec.rope_sections is not None
    text = qwen2.to_hf(replace(spec, family="qwen2", vision=None))
    sections = {"mrope_section": list(spec.rope_sections)}
    scaling = text["rope_scaling"] or {"rope_type": "default"}
    return {
        "architectures": [_ARCHITECTURE],
        "model_type": "qwen2_5_vl",
        "text_config": text
        | {
            "architectures": [_TEXT_ARCHITECTURE],
            "model_type": _TEXT_TYPE,
            "rope_scaling": scaling | sections,
            "rope_parameters": text["rope_parameters"] | sections,
        },
        "vision_config": {
            "model_type": _VISION["model_type"],
            "depth": vision.layers,
            "hidden_size": vision.width,
            "hidden_act": "silu",
            "intermediate_size": vision.ffn,
            "num_heads": vision.heads,
            "in_channels": 3,
            "patch_size": vision.patch_size,
            "spatial_merge_size": vision.square,
            "temporal_patch_size": vision.frames,
            "window_size": vision.windows.side * vision.image_size,
            "out_hidden_size": spec.width,
            "fullatt_block_indexes": list(vision.windows.whole_layers),
            "rope_parameters": {"rope_type": "axial", "rope_theta": vision.windows.rope_theta},
        },
        "image_token_id": vision.token_id,
        "tie_word_embeddings": spec.tied,
    }
