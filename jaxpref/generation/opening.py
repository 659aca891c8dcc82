"""Runs, models, PEFT adapters and mixes of these, opened: their parameters on the mesh."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxpref.errors import InputError
from jaxpref.generation.bases import Bases
from jaxpref.generation.decoding import (
    DecodingModel,
    decodes_unstacked,
    decoding_model,
)
from jaxpref.generation.mixed_distribution import Rule
from jaxpref.generation.mixing import Mix, mixture_of
from jaxpref.generation.sources import Source, check_same_vocabulary, find_source
from jaxpref.models.model import Model
from jaxpref.models.spec import ModelSpec
from jaxpref.runs.build import Pieces
from jaxpref.runs.directory import is_run
from jaxpref.sharding import place, replicated


class MixedModels(NamedTuple):
    """Several models that decide every token together, without their parameters."""

    models: tuple[tuple[Model, int], ...]
    """Each with the number of its base among those of the parameters; the reference last, if it
    takes part."""
    rule: Rule
    specs: tuple[ModelSpec, ...]

    def decoding_model(self, unstacked: bool) -> DecodingModel:
        each = tuple((decoding_model(model, unstacked), base) for model, base in self.models)
        return mixture_of(each, self.rule)


class OpenPolicy(NamedTuple):
    """A policy that can be decoded: one model, or several that decide together."""

    pieces: Pieces
    """Of the first, if there are several: its tokenizer, mesh and settings count for all."""
    params: Any
    """As `decoding_model` reads them."""
    mixed: MixedModels | None = None
    """None: one model, `pieces.model`."""

    @property
    def decoding_model(self) -> DecodingModel:
        unstacked = decodes_unstacked(self.pieces.mesh)
        if self.mixed is None:
            return decoding_model(self.pieces.model, unstacked)
        return self.mixed.decoding_model(unstacked)

    @property
    def positions(self) -> int:
        """Tokens that prompt and completion may have together."""
        specs = (self.pieces.source.spec,) if self.mixed is None else self.mixed.specs
        return min(spec.longest_sequence for spec in specs)


def open_source(
    source: str | Path | Mix, *, step: str | int = "best", overrides: Sequence[str] = ()
) -> OpenPolicy:
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
    policy, bases = find_source(source, step, overrides), Bases()
    base, overlay = bases.read(policy, step)
    return OpenPolicy(policy.pieces, {**bases.trees[base], **overlay})


def open_policy(
    source: str | Path, *, step: str | int = "best", overrides: Sequence[str] = ()
) -> tuple[Pieces, Any]:
    """A single policy, with its parameters on the mesh; arguments as of `open_source`."""
    opened = open_source(source, step=step, overrides=overrides)
    return opened.pieces, opened.params


def opened_mix(
    pieces: Pieces,
    mixed: MixedModels,
    weights: Sequence[float],
    bases: Sequence[Any],
    overlays: Sequence[Any],
) -> OpenPolicy:
    """A mix of policies whose parameters are on the mesh already.

    Args:
        weights: of all but the reference.
        bases: parameters, each once.
        overlays: of every model of `mixed`, what is laid over its base.
    """
    weight_O = _weights_on(pieces.mesh, weights)
    params = {"weight_O": weight_O, "bases": tuple(bases), "overlays": tuple(overlays)}
    return OpenPolicy(pieces, params, mixed)


def reweighted(opened: OpenPolicy, weights: Sequence[float]) -> OpenPolicy:
    """The same mix with other weights; nothing is read or compiled again.

    Args:
        weights: of all its policies but the reference.
    Errors: InputError for weights that the mix was not opened for: of another number, below 0 or
        all 0, or without a reference and not summing to 1.
    """
    expected, reference = len(opened.params["weight_O"]), opened.mixed.rule.reference
    fits = len(weights) == expected and min(weights) >= 0 and max(weights) > 0
    if fits and not reference:
        fits = math.isclose(math.fsum(weights), 1.0, abs_tol=1e-6)
    if not fits:
        total = "" if reference else ", in all 1"
        raise InputError(
            f"{expected} weights of 0 or more{total}",
            f"{list(weights)}",
            "change the weights, or open a mix with these",
        )
    weight_O = _weights_on(opened.pieces.mesh, weights)
    return opened._replace(params={**opened.params, "weight_O": weight_O})


def mesh_overrides(mesh: Mesh) -> list[str]:
    """The overrides with which another policy is opened on this mesh."""
    return [f"mesh.{axis}={size}" for axis, size in mesh.shape.items()]


def _open_mix(mix: Mix, step: str | int, overrides: Sequence[str]) -> OpenPolicy:
    taking_part = [(path, weight) for path, weight in mix.policies if weight > 0]
    paths = [path for path, _ in taking_part]
    if mix.needs_reference:
        paths.append(mix.reference)
    sources = _find_sources(paths, step, overrides)
    check_same_vocabulary(sources)
    # Adapters first, so that a model which is the base of one is found among the bases.
    adapters_first = sorted(range(len(sources)), key=lambda i: sources[i].pieces.lora is None)
    bases, read = Bases(), {}
    for i in adapters_first:
        is_reference = mix.needs_reference and i == len(sources) - 1
        read[i] = bases.read(sources[i], step, reference=is_reference)
    models = tuple((source.pieces.model, read[i][0]) for i, source in enumerate(sources))
    mixed = MixedModels(models, mix.rule, tuple(source.pieces.source.spec for source in sources))
    weights = [weight for _, weight in taking_part]
    overlays = [read[i][1] for i in range(len(sources))]
    return opened_mix(sources[0].pieces, mixed, weights, bases.trees, overlays)


def _find_sources(
    paths: Sequence[str | Path], step: str | int, overrides: Sequence[str]
) -> list[Source]:
    """The sources of a mix, on one mesh, because they are parts of one program."""
    any_run = any(is_run(path) for path in paths)
    sources: list[Source] = []
    for path in paths:
        # A step is of the runs of a mix; without any, `find_source` refuses it.
        own_step = step if is_run(path) or not any_run else "best"
        mesh = mesh_overrides(sources[0].pieces.mesh) if sources else []
        sources.append(find_source(path, own_step, [*overrides, *mesh]))
    return sources


def _weights_on(mesh: Mesh, weights: Sequence[float]) -> Any:
    return place(np.array(weights, np.float32), replicated(mesh))
