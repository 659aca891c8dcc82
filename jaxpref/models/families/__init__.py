"""The model families, by Hugging Face `model_type`.

A family is one module with

    TENSORS          leaf path -> `stored.StoredLeaf`, as checkpoints of the family are written
    OTHER_FORMS      more such tables, where checkpoints come in other forms too (optional)
    IN_MEMORY        that of them with transformers' own names, if it is not the first (optional)
    IGNORED_TENSORS  a regular expression of stored names that are left out
    DEFAULTS         what transformers takes for attributes that a config leaves out (optional)
    from_hf          (config, where) -> ModelSpec
    to_hf            spec -> config.json
    text_part        (config, where) of a multimodal model -> config of its text part (optional)

and one line in `FAMILIES`, in `TEXT_PARTS` where there is a text part, and in `WITH_PICTURES` where
the whole of such a model is understood.  What several share is in `hf_config`, `attributes`,
`rope`, `tensors`, `towers`, `qwen` and `gemma`; `near` speaks of models of no family.
"""

from collections.abc import Mapping
from typing import Any

from jaxpref.errors import InputError
from jaxpref.models.families import (
    attributes,
    gemma2,
    gemma3,
    gemma3_pictures,
    gpt2,
    gpt_oss,
    granite,
    llama,
    llava,
    mistral,
    mixtral,
    near,
    olmo2,
    olmo3,
    phi3,
    qwen2,
    qwen2_5_vl,
    qwen3,
    qwen3_5,
    qwen3_moe,
    smollm3,
    smolvlm,
)
from jaxpref.models.spec import ModelSpec
from jaxpref.models.stored import StoredLeaf

FAMILIES = {
    "gemma2": gemma2,
    "gemma3_text": gemma3,
    "gpt2": gpt2,
    "gpt_oss": gpt_oss,
    "granite": granite,
    "llama": llama,
    "mistral": mistral,
    "mixtral": mixtral,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "qwen3_5_text": qwen3_5,
    "qwen3_moe": qwen3_moe,
    "smollm3": smollm3,
}

TEXT_PARTS = {
    "gemma3": gemma3_pictures.text_part,
    "idefics3": smolvlm.text_part,
    "llava": llava.text_part,
    "qwen2_5_vl": qwen2_5_vl.text_part,
    "qwen3_5": qwen3_5.text_part,
    "smolvlm": smolvlm.text_part,
}
"""By the `model_type` of multimodal models: what finds the config of the text part."""


WITH_PICTURES = {
    "gemma3": gemma3_pictures,
    "idefics3": smolvlm,
    "llava": llava,
    "qwen2_5_vl": qwen2_5_vl,
    "smolvlm": smolvlm,
}
"""By the `model_type` of multimodal models that can be read whole."""


def spec_from_hf(config: dict[str, Any], where: str, *, pictures: bool = False) -> ModelSpec:
    """The spec of a Hugging Face config dict, read by the family that its `model_type` names.

    Args:
        where: the file, for error messages.
        pictures: whether a multimodal model is read whole, and not its text part alone.

    Errors: InputError for quantised weights, for an unknown `model_type`, for pictures without a
        model that sees any, and what the family's `from_hf` refuses.
    """
    _check_not_quantised(config, where)
    model_type = config.get("model_type")
    if pictures:
        if model_type not in WITH_PICTURES:
            raise InputError(
                f"a model that sees pictures: a model_type among {', '.join(WITH_PICTURES)}",
                f"model.pictures=true with model_type = {model_type!r} in {where}",
                "leave out model.pictures, or take a model of one of these",
            )
        return WITH_PICTURES[model_type].from_hf(config, where)
    if model_type in TEXT_PARTS:
        return spec_from_hf(TEXT_PARTS[model_type](config, where), f"text_config of {where}")
    if model_type not in FAMILIES:
        raise InputError(
            f"a model_type among {', '.join(sorted(FAMILIES))}",
            f"model_type = {model_type!r} in {where}",
            near.kind(config, FAMILIES),
        )
    return FAMILIES[model_type].from_hf(config, where)


def _check_not_quantised(config: Mapping[str, Any], where: str) -> None:
    for key in attributes.QUANTISED:
        if config.get(key):
            how = config[key]
            method = how.get("quant_method") if isinstance(how, Mapping) else None
            raise quantised(f"{key} in {where}: {method or how}")


def quantised(found: str) -> InputError:
    """The error for weights that are stored in few bits; `found` says by what they were known."""
    return InputError(
        "weights in float32, float16 or bfloat16",
        found,
        "use the checkpoint that is not quantised; `adapter.quantize` keeps its frozen weights in "
        "8 or 4 bits",
    )


def family_module(family: str) -> Any:
    """The module of a spec's family."""
    return WITH_PICTURES[family] if family in WITH_PICTURES else FAMILIES[family]


def forms(family: str) -> tuple[Mapping[str, StoredLeaf], ...]:
    """The tables of stored tensors that checkpoints of a family follow; the first is written."""
    module = family_module(family)
    return (module.TENSORS, *getattr(module, "OTHER_FORMS", ()))


def in_memory(family: str) -> Mapping[str, StoredLeaf]:
    """The form of a family's tensors as transformers holds them, by whose names PEFT goes."""
    module = family_module(family)
    return getattr(module, "IN_MEMORY", module.TENSORS)
