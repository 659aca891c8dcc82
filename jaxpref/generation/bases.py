"""The parameters of policies that are decoded together, read so that a shared base is held once."""

from pathlib import Path
from typing import Any, NamedTuple

from jaxpref.generation.sources import Source
from jaxpref.models.parameters import cast_for_products
from jaxpref.models.quantize import Quantisation
from jaxpref.runs.adapters import quantisation
from jaxpref.runs.directory import run_params
from jaxpref.runs.params import load_params, with_adapter
from jaxpref.step.policy import split
from jaxpref.storage.paths import as_path


class _BaseKey(NamedTuple):
    """What must agree for two policies to read the same arrays."""

    path: str
    compute_dtype: str
    quantisation: Quantisation | None
    step: str | int | None = None
    """Of a run that trained the weights."""
    modules_of: Path | None = None
    """Of a base below an adapter that brings its own embedding or head."""


class Bases:
    """The bases that were read so far, numbered in that order."""

    def __init__(self) -> None:
        self._trees: dict[_BaseKey, Any] = {}

    @property
    def trees(self) -> list[Any]:
        """Parameters of every base."""
        return list(self._trees.values())

    def read(
        self, source: Source, step: str | int, *, reference: bool = False
    ) -> tuple[int, dict[str, Any]]:
        """A policy's base, by its number, and what is laid over it.

        Args:
            step: checkpoint of a run.
            reference: whether it is read as the reference of policies that were read before.
        """
        key = _base_key(source, step)
        if source.pieces.lora is None:
            if not source.is_run:
                key = self._shared(key, reference)
            if key not in self._trees:
                self._trees[key] = cast_for_products(_all_params(source, step), source.pieces.dtype)
            overlay = {}
        else:
            overlay, weights = split(_adapter_params(source, step, self._trees.get(key)))
            if key not in self._trees:
                self._trees[key] = cast_for_products(weights, source.pieces.dtype)
        return list(self._trees).index(key), overlay

    def _shared(self, key: _BaseKey, reference: bool) -> _BaseKey:
        """The key of the same weights below an adapter, where there is one.

        A model whose base is quantised for the adapters is another model, but as a reference it is
        what they were trained against.
        """
        for other in self._trees:
            same_model = (other.path, other.compute_dtype) == (key.path, key.compute_dtype)
            as_asked = reference or other.quantisation is None
            if same_model and as_asked and other.step is None and other.modules_of is None:
                return other
        return key


def _base_key(source: Source, step: str | int) -> _BaseKey:
    pieces = source.pieces
    dtype = pieces.config.model.compute_dtype
    model = str(pieces.source.path.resolve())
    if pieces.lora is not None:
        kept, modules_of = quantisation(pieces.config.adapter), pieces.source.modules_of
        return _BaseKey(model, dtype, kept, modules_of=modules_of)
    if source.is_run:
        return _BaseKey(str(as_path(source.path).resolve()), dtype, None, step)
    return _BaseKey(model, dtype, None)


def _all_params(source: Source, step: str | int) -> Any:
    if source.is_run:
        return run_params(source.pieces, source.path, step)[0]
    return load_params(source.pieces)


def _adapter_params(source: Source, step: str | int, base: Any) -> Any:
    """An adapter with the weights below it, which are `base` unless that is None."""
    if source.is_run:
        return run_params(source.pieces, source.path, step, base=base)[0]
    return load_params(source.pieces) if base is None else with_adapter(source.pieces, base)
