"""What can be decoded, found: the config and tokenizer of a run, a model or a PEFT adapter."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jaxpref.config import Config
from jaxpref.errors import InputError
from jaxpref.models.peft import base_of, is_adapter
from jaxpref.runs.adapters import check_one_policy
from jaxpref.runs.build import Pieces, build
from jaxpref.runs.directory import as_policy, is_run, read_config
from jaxpref.settings import load_config


class Source(NamedTuple):
    """A policy before its weights are read."""

    path: str | Path
    pieces: Pieces
    is_run: bool


def find_source(path: str | Path, step: str | int, overrides: Sequence[str]) -> Source:
    """The policy at a path; arguments as of `opening.open_source`.

    Errors: InputError for a `step` of something that is no run, and what `build` raises.
    """
    if is_run(path):
        pieces = build(read_config(path, overrides))
        check_one_policy(path, pieces.lora)
        return Source(path, pieces, is_run=True)
    if step != "best":
        raise InputError(
            "`step` with a run only",
            f"step={step!r} with {path}, which is not a run",
            "remove `step`, or name the directory of a run",
        )
    config = _with_model(as_policy(load_config(None, overrides)), path, overrides)
    return Source(path, build(config), is_run=False)


def _with_model(config: Config, path: str | Path, overrides: Sequence[str]) -> Config:
    """The config of a model, or of a PEFT adapter on the model that it names."""
    if not is_adapter(path):
        return replace(config, model=replace(config.model, path=str(path)))
    config = replace(config, adapter=replace(config.adapter, path=str(path)))
    if any(item.startswith("model.path=") for item in overrides):
        return config
    return replace(config, model=replace(config.model, path=base_of(path)))


def check_same_vocabulary(sources: Sequence[Source]) -> None:
    """Errors: InputError unless a token id means the same to all."""
    first = sources[0]
    size = first.pieces.source.spec.vocab
    tokens = first.pieces.tokenizer.get_vocab()
    for other in sources[1:]:
        other_size = other.pieces.source.spec.vocab
        if size == other_size and other.pieces.tokenizer.get_vocab() == tokens:
            continue
        got = f"{first.path} with {size} tokens and {other.path} with {other_size}"
        if size == other_size:
            got += ", which are other ones"
        raise InputError(
            "policies with one vocabulary, for they decide every token together",
            got,
            "mix policies that were trained from one model",
        )
