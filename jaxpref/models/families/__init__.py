"""The model families, by Hugging Face `model_type`.

A family is one module with `WEIGHTS` (leaf path -> `jaxpref.models.weights.Weight`), `IGNORED_TENSORS` (a
regular expression), `from_hf(config, where) -> ModelSpec` and `to_hf(spec) -> dict`, and one line in
`FAMILIES`.
"""

import difflib
from typing import Any

from jaxpref.errors import InputError
from jaxpref.models.families import llama
from jaxpref.models.spec import ModelSpec

FAMILIES = {"llama": llama}


def spec_from_hf(config: dict[str, Any], where: str) -> ModelSpec:
    """The spec of a Hugging Face config dict, read by the family that its `model_type` names.

    Args:
        where: the file, for error messages.

    Errors: InputError for an unknown `model_type`, and what the family's `from_hf` refuses.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        nearest = difflib.get_close_matches(str(model_type), FAMILIES, n=1, cutoff=0.0)[0]
        raise InputError(
            f"a model_type among {', '.join(sorted(FAMILIES))}",
            f"model_type = {model_type!r} in {where}",
            f"use a model of a supported family (the nearest name is {nearest!r})",
        )
    return FAMILIES[model_type].from_hf(config, where)
