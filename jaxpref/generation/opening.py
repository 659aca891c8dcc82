"""Runs, models and PEFT adapters -> what can be decoded, on the mesh; policies on one base hold it
once."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.config import Config
from jaxpref.errors import InputError
from jaxpref.generation.decoding import DecodingModel, decodes_unstacked, decoding_model
from jaxpref.generation.mixing import Mix, Rule, mixture_of
from jaxpref.models.model import Model
from jaxpref.models.parameters import CAST_BY_PRODUCTS, leaf_path
from jaxpref.models.peft import base_of, is_adapter
from jaxpref.models.quantize import Quantisation
from jaxpref.models.spec import ModelSpec
from jaxpref.runs.adapters import quantisation
from jaxpref.runs.build import Pieces, build
from jaxpref.runs.directory import as_policy, is_run, read_config, run_params
from jaxpref.runs.params import load_params, with_adapter
from jaxpref.settings import load_config
from jaxpref.step.policy import split


class Opened(NamedTuple):
    """A policy that can be decoded: a model, or several that decide together."""

    pieces: Pieces
    """Of the first, if there are several: its tokenizer, mesh and settings count for all."""
    params: Any
    """As the policy reads them."""
    mixed: "Mixed | None" = None
    """None: one model, `pieces.model`."""

    @property
    def policy(self) -> DecodingModel:
        unstacked = decodes_unstacked(self.pieces.mesh)
        return (
            decoding_model(self.pieces.model, unstacked)
            if self.mixed is None
            else self.mixed.policy(unstacked)
        )

    @property
    def positions(self) -> int:
        """Tokens that prompt and completion may have together."""
        specs = (self.pieces.source.spec,) if self.mixed is None else self.mixed.specs
        return min(spec.longest_sequence for spec in specs)


class Mixed(NamedTuple):
    """What is known of several models that decide together."""

    models: tuple[tuple[Model, int], ...]
    """Each with the number of its base among those of the parameters; the reference last, if it
    takes part."""
    rule: Rule
    specs: tuple[ModelSpec, ...]

    def policy(self, unstacked: bool) -> DecodingModel:
        return mixture_of(
            tuple((decoding_model(model, unstacked), base) for model, base in self.models),
            self.rule,
        )


class _BaseKey(NamedTuple):
    """What must agree for two policies to read the same arrays."""

    path: str
    compute_dtype: str
    kept: Any
    """Dtype of norms and biases: the rest is in the compute dtype."""
    quantisation: Quantisation | None
    step: str | None = None
    """Of a run that trained the weights."""


class _Found(NamedTuple):
    """A policy before its weights are read."""

    source: str | Path
    pieces: Pieces
    run: bool


def open_source(
    source: str | Path | Mix, *, step: str = "best", overrides: Sequence[str] = ()
) -> Opened:
    """A policy or several, with their parameters on the mesh.

    Args:
        source: directory of a run, a model as `model.path` of a config, a PEFT adapter directory
            (whose base is the one that it names, unless `overrides` set model.path), or a `Mix` of
            these.
        step: of runs: best, latest or a number.
        overrides: settings `model.compute_dtype=bfloat16` or `mesh.data=8`, for all of a mix.
    Errors: InputError for anything that does not fit.
    """
    if isinstance(source, Mix):
        return _open_mix(source, step, overrides)
    found = _find(source, step, overrides)
    bases: dict[_BaseKey, Any] = {}
    key, overlay = _read(found, step, bases)
    return Opened(found.pieces, {**bases[key], **overlay})


def open_policy(
    source: str | Path, *, step: str = "best", overrides: Sequence[str] = ()
) -> tuple[Pieces, Any]:
    """A single policy, with its parameters on the mesh; arguments as of `open_source`."""
    opened = open_source(source, step=step, overrides=overrides)
    return opened.pieces, opened.params


def reweighted(opened: Opened, weights: Sequence[float]) -> Opened:
    """The same mix with other weights, of all its policies but the reference: nothing is read or
    compiled anew.

    Errors: InputError for weights that the mix was not opened for: of another number, below 0 or
        all 0, or without a reference and not summing to 1.
    """
    given = opened.params["weight_N"]
    whole = math.isclose(math.fsum(weights), 1.0, abs_tol=1e-6)
    fits = len(weights) == len(given) and min(weights) >= 0 and max(weights) > 0
    if not fits or not (whole or opened.mixed.rule.reference):
        rest = "" if opened.mixed.rule.reference else ", in all 1"
        raise InputError(
            f"{len(given)} weights of 0 or more{rest}", f"{list(weights)}", "open the mix with them"
        )
    return opened._replace(
        params={**opened.params, "weight_N": _everywhere(weights, opened.pieces.mesh)}
    )


def _everywhere(weights: Sequence[float], mesh: Mesh) -> jax.Array:
    values = np.array(weights, np.float32)
    return jax.make_array_from_callback(
        values.shape, NamedSharding(mesh, P()), lambda index: values[index]
    )


def _open_mix(mix: Mix, step: str, overrides: Sequence[str]) -> Opened:
    sources = [source for source, weight in mix.policies if weight > 0]
    sources += [mix.reference] if mix.needs_reference else []
    runs = [source for source in sources if is_run(source)]
    found: list[_Found] = []
    for source in sources:
        # Arrays of one program lie on one mesh.
        mesh = (
            [f"mesh.{axis}={size}" for axis, size in found[0].pieces.mesh.shape.items()]
            if found
            else []
        )
        found.append(
            _find(source, step if source in runs or not runs else "best", [*overrides, *mesh])
        )
    _check_vocabularies(found)
    bases: dict[_BaseKey, Any] = {}
    read: dict[int, tuple[_BaseKey, Any]] = {}
    adapters_first = sorted(range(len(found)), key=lambda i: (found[i].pieces.lora is None, i))
    for i in adapters_first:
        reference = mix.needs_reference and i == len(found) - 1
        read[i] = _read(found[i], step, bases, reference=reference)
    keys, each = list(bases), [read[i] for i in range(len(found))]
    pieces = found[0].pieces
    weights = [weight for _, weight in mix.policies if weight > 0]
    models = tuple(
        (f.pieces.model, keys.index(key)) for f, (key, _) in zip(found, each, strict=True)
    )
    mixed = Mixed(models, mix.rule, tuple(f.pieces.source.spec for f in found))
    return opened_mix(
        pieces, mixed, weights, list(bases.values()), [overlay for _, overlay in each]
    )


def opened_mix(
    pieces: Pieces,
    mixed: Mixed,
    weights: Sequence[float],
    bases: Sequence[Any],
    overlays: Sequence[Any],
) -> Opened:
    """A mix of policies whose parameters are there.

    Args:
        weights: of all but the reference.
        bases: parameters, each once.
        overlays: of every model of `mixed`, what is laid over its base.
    """
    weight_N = _everywhere(weights, pieces.mesh)
    return Opened(
        pieces, {"weight_N": weight_N, "bases": tuple(bases), "overlays": tuple(overlays)}, mixed
    )


def _find(source: str | Path, step: str, overrides: Sequence[str]) -> _Found:
    run = is_run(source)
    if not run and step != "best":
        raise InputError(
            "`step` with a run only",
            f"step={step!r} with {source}, which is not a run",
            "leave it out",
        )
    if run:
        config = read_config(source, overrides)
    else:
        config = _with_model(as_policy(load_config(None, overrides)), source, overrides)
    return _Found(source, build(config), run)


def _with_model(config: Config, source: str | Path, overrides: Sequence[str]) -> Config:
    """The config of a model, or of a PEFT adapter on the model that it names."""
    if not is_adapter(source):
        return replace(config, model=replace(config.model, path=str(source)))
    config = replace(config, adapter=replace(config.adapter, path=str(source)))
    if any(item.startswith("model.path=") for item in overrides):
        return config
    return replace(config, model=replace(config.model, path=base_of(source)))


def _read(
    found: _Found, step: str, bases: dict[_BaseKey, Any], *, reference: bool = False
) -> tuple[_BaseKey, dict[str, Any]]:
    """Key of its base among `bases`, to which it is added when it is missing, and what is laid over
    that base."""
    pieces = found.pieces
    key = _base_key(found, step)
    if pieces.lora is None:
        key = key if found.run else _shared(key, bases, reference)
        if key not in bases:
            params = run_params(pieces, found.source, step)[0] if found.run else load_params(pieces)
            bases[key] = _cast(params, pieces)
        return key, {}
    base = bases.get(key)
    if found.run:
        params = run_params(pieces, found.source, step, base=base)[0]
    elif base is None:
        params = load_params(pieces)
    else:
        params = with_adapter(pieces, base)
    overlay, weights = split(params)
    if base is None:
        bases[key] = _cast(weights, pieces)
    return key, overlay


def _base_key(found: _Found, step: str) -> _BaseKey:
    pieces = found.pieces
    dtype = pieces.config.model.compute_dtype
    if pieces.lora is not None:
        return _BaseKey(
            str(pieces.source.path.resolve()), dtype, dtype, quantisation(pieces.config.adapter)
        )
    if found.run:
        return _BaseKey(str(Path(found.source).resolve()), dtype, "float32", None, step)
    return _BaseKey(str(pieces.source.path.resolve()), dtype, "float32", None)


def _shared(key: _BaseKey, bases: Sequence[_BaseKey], reference: bool) -> _BaseKey:
    """The key of the same weights below an adapter, where there is one.

    A model whose base is quantised for the adapters is another model, but as a reference it is what
    they were trained against.
    """
    same = (
        k
        for k in bases
        if k[:2] == key[:2] and k.step is None and (reference or k.quantisation is None)
    )
    return next(same, key)


def _cast(params: Any, pieces: Pieces) -> Any:
    """The weights that every product would cast, cast once."""
    dtype = jnp.dtype(pieces.dtype)
    cast = lambda path, x: x.astype(dtype) if leaf_path(path) in CAST_BY_PRODUCTS else x
    return jax.tree_util.tree_map_with_path(cast, params)


def _check_vocabularies(found: Sequence[_Found]) -> None:
    """Errors: InputError unless a token id means the same to all."""
    first = found[0]
    tokens = first.pieces.tokenizer.get_vocab()
    for other in found[1:]:
        sizes = first.pieces.source.spec.vocab, other.pieces.source.spec.vocab
        same = sizes[0] == sizes[1] and other.pieces.tokenizer.get_vocab() == tokens
        if not same:
            raise InputError(
                "policies with one vocabulary, for they decide every token together",
                f"{first.source} with {sizes[0]} tokens and {other.source} with {sizes[1]}"
                + (", which are other ones" if sizes[0] == sizes[1] else ""),
                "mix policies that were trained from one model",
            )
