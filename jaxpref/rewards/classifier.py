"""Reward models as Hugging Face writes them: decoder without LM head, and `score.weight` [1, D]."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxpref.errors import InputError
from jaxpref.models.families import family_module, forms, spec_from_hf
from jaxpref.models.hf import open_safetensors, read_json
from jaxpref.models.hf.tokenizer import load_tokenizer
from jaxpref.models.loading import check_finite, load_tree
from jaxpref.models.source import Checkpoint
from jaxpref.models.stored import stored_form
from jaxpref.storage.paths import as_path

_SCORE = "score.weight"
_LABELS = ("architectures", "num_labels", "id2label", "label2id", "problem_type")


def is_classifier(path: str | Path) -> bool:
    """Whether a directory's config.json names a sequence classifier."""
    config = as_path(path) / "config.json"
    names = (read_json(config).get("architectures") or []) if config.is_file() else []
    return any(name.endswith("ForSequenceClassification") for name in names)


def open_classifier(path: str | Path) -> tuple[Checkpoint, Callable[[], np.ndarray]]:
    """The decoder of a reward model as a checkpoint, and a function that reads its head.

    Returns: the checkpoint; () -> the scalar head [1, D] in float32.
    Errors: InputError for a directory that is none, and for a score of more than one label.
    """
    path = as_path(path)
    if not is_classifier(path):
        raise InputError(
            "a reward model: a Hugging Face directory with a ForSequenceClassification "
            "architecture",
            f"{path}",
            "name a directory as `jaxpref export` writes it from a run with a reward head",
        )
    where = path / "config.json"
    config = {key: value for key, value in read_json(where).items() if key not in _LABELS}
    # It has no LM head of its own, and nothing reads one.
    spec = dataclasses.replace(spec_from_hf(config, str(where)), tied=True)
    with open_safetensors(path) as source:
        shape = source.shapes.get(_SCORE)
    if shape != (1, spec.width):
        raise InputError(
            f"{_SCORE} of shape [1, {spec.width}], a single label",
            f"{path}: {list(shape) if shape else 'there is none'}",
            "name a reward model of one label",
        )

    def load_params(**options: Any) -> dict[str, Any]:
        ignored = rf"{family_module(spec.family).IGNORED_TENSORS}|score\.weight"
        with open_safetensors(path) as source:
            return load_tree(
                source,
                stored_form(source.shapes, forms(spec.family), spec),
                spec,
                ignored=ignored,
                **options,
            )

    def head() -> np.ndarray:
        with open_safetensors(path) as source:
            score = np.asarray(source.read(_SCORE, (slice(None), slice(None))), np.float32)
        check_finite(score, _SCORE, str(path))
        return score

    return Checkpoint(path, spec, {}, load_params, lambda: load_tokenizer(path)), head
