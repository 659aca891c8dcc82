"""The adapter of a run, from its config: its shape, where it starts, how its base is kept."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpref.config import AdapterConfig, Config
from jaxpref.errors import InputError
from jaxpref.models import conditioned, lora, peft
from jaxpref.models.leaf import axis_sizes
from jaxpref.models.loading import Put, whole
from jaxpref.models.lora import TARGETS, LoraSpec
from jaxpref.models.parameters import LORA
from jaxpref.models.placement import param_shardings
from jaxpref.models.quantize import Quantisation
from jaxpref.models.source import Checkpoint
from jaxpref.models.spec import ModelSpec
from jaxpref.models.stored import ReadSlice
from jaxpref.sharding import place
from jaxpref.storage.paths import as_path

BASE = "base"
"""As `reference.adapter`: the frozen weights without an adapter."""


def adapter_spec(config: AdapterConfig, model: ModelSpec) -> LoraSpec | None:
    """The adapter that a run trains, or None.

    Errors: InputError for targets that match nothing, a rank above all of the weights' own, an
        adapter that cannot be read, and quantised experts.
    """
    if not config.trained:
        return None
    if config.quantize and model.experts:
        raise InputError(
            "a model without experts, for adapter.quantize",
            f"adapter.quantize={config.quantize} and {model.experts} experts per layer, which are "
            "read in place",
            "remove adapter.quantize: the adapter then lies on weights in model.compute_dtype",
        )
    if config.path is not None:
        spec = peft.read_spec(config.path, model, modules=True)
        return spec if config.dropout is None else replace(spec, dropout=config.dropout)
    names = peft.target_names(model)
    if config.kind != "lora":  # pictures are of no token, and objective weights are of tokens
        if config.targets is not None:
            _check_of_tokens(config.kind, lora.find_targets(config.targets, names))
        names = {target: own for target, own in names.items() if _is_of_tokens(target)}
    targets = lora.find_targets(config.targets, names)
    _check_rank(config.rank, targets, model)
    return LoraSpec(
        config.rank,
        float(config.rank) if config.alpha is None else config.alpha,
        targets,
        dropout=config.dropout or 0.0,
        rslora=config.rslora,
        dora=config.dora,
        kind=config.kind,
        objectives=len(config.weight_columns),
    )


def _is_of_tokens(target: str) -> bool:
    """Whether a weight is multiplied with tokens, and not with patches of pictures."""
    return lora.path_of(target).startswith("layers/")


def _check_of_tokens(kind: str, targets: Sequence[str]) -> None:
    if others := [target for target in targets if not _is_of_tokens(target)]:
        raise InputError(
            f"adapter.targets in the decoder, for adapters that objective weights fill ({kind})",
            f"adapter.targets with {', '.join(others)}, which see pictures, and weights are of "
            "tokens",
            f"name weights of the decoder alone, as [q, v], or leave out {kind}",
        )


def adapter_at(
    tree: Mapping[str, Any], spec: LoraSpec, weights: Sequence[float]
) -> tuple[dict[str, Any], LoraSpec]:
    """A conditioned adapter for these objective weights, as an ordinary one.

    Args:
        tree: what lies under `lora`.
    Errors: InputError for an adapter that reads no weights, and for weights that do not fit.
    """
    fits = len(weights) == spec.objectives and all(0 <= w < math.inf for w in weights)
    if spec.kind == "lora" or not fits:
        wanted = f"{spec.objectives} objective weights of 0 or more"
        raise InputError(
            "an adapter for all weights" if spec.kind == "lora" else wanted,
            f"weights {list(weights)} for adapter.kind={spec.kind}",
            "leave the weights out: this adapter is one policy"
            if spec.kind == "lora"
            else "give one weight per objective, in the order of the run's adapter.weight_columns",
        )
    groups = {
        group: {name: conditioned.at_weights(own, weights) for name, own in adapters.items()}
        for group, adapters in tree["layers"].items()
    }
    return {"layers": groups}, spec.of_one_weight_vector


def check_one_policy(directory: str | Path, spec: LoraSpec | None) -> None:
    """Errors: InputError for a run that is one policy per weight vector, and not one policy."""
    if spec is not None and spec.kind != "lora":
        raise InputError(
            "one policy",
            f"{directory} serves all objective weights (adapter.kind={spec.kind})",
            f"choose weights: jaxpref export {directory} --to DIR --adapter --weights "
            f"{','.join([f'{1 / spec.objectives:.2g}'] * spec.objectives)}, and name DIR instead",
        )


def _check_rank(rank: int, targets: Sequence[str], model: ModelSpec) -> None:
    """Errors: InputError for a rank that no adapted weight can have."""
    sizes = axis_sizes(model)
    ranks = {
        target: min(math.prod(sizes[letter] for letter in axes) for axes in TARGETS[target])
        for target in targets
    }
    if rank > max(ranks.values()):
        full = ", ".join(f"{target} {full}" for target, full in ranks.items())
        raise InputError(
            f"adapter.rank up to {max(ranks.values())}, the largest rank of the adapted weights",
            f"adapter.rank={rank}; the weights' own: {full}",
            "lower adapter.rank, or remove it to train the weights themselves",
        )


def below_adapter(source: Checkpoint, path: str | Path | None) -> Checkpoint:
    """A checkpoint with the embedding and head that the adapter at `path` brings, if any."""
    modules = {} if path is None else peft.saved_modules(path, source.spec)
    if not modules:
        return source

    def load_params(*, dtype: Any = np.float32, put: Put = whole) -> dict[str, Any]:
        def put_own(path: str, shape: tuple[int, ...], dtype: np.dtype, read: ReadSlice) -> Any:
            own = modules.get(path)
            if own is not None:
                read = lambda index: own[index].astype(dtype)
            return put(path, shape, dtype, read)

        return source.load_params(dtype=dtype, put=put_own)

    return replace(source, load_params=load_params, modules_of=as_path(path).resolve())


def check_trainable(source: Checkpoint) -> None:
    """Errors: InputError where PEFT would train an embedding or head beside the adapter."""
    if source.modules_of is not None:
        raise InputError(
            "an adapter of low rank alone to train",
            f"adapter.path={source.modules_of} brings its own embedding or head (modules_to_save), "
            "which PEFT would train too",
            "merge it into its base with PEFT, take the result as model.path, and set adapter.rank",
        )


def reference_adapter(config: Config) -> str | None:
    """The PEFT adapter with which the frozen weights are the reference; None: without one."""
    path = config.adapter.path if config.reference.adapter is None else config.reference.adapter
    return None if path == BASE else path


def quantisation(config: AdapterConfig) -> Quantisation | None:
    """How the frozen weights are kept; None: in the compute dtype."""
    return Quantisation(config.quantize, config.quantize_block) if config.quantize else None


def start_adapter(
    config: AdapterConfig, spec: LoraSpec, model: ModelSpec, base: Any, mesh: Mesh, seed: int
) -> Any:
    """The adapter that training starts from, on the mesh.

    It is the one at `config.path`, or a new one on these weights.
    """
    if config.path is not None:
        return read_adapter(config.path, spec, model, mesh, modules=True)

    def new(base):
        return lora.init(jax.random.key(seed), base, spec)

    shardings = param_shardings({LORA: jax.eval_shape(new, base)}, mesh)
    return jax.jit(new, out_shardings=shardings[LORA])(base)


def read_adapter(
    path: str, spec: LoraSpec, model: ModelSpec, mesh: Mesh, *, modules: bool = False
) -> Any:
    """A PEFT adapter on the mesh, for a model built with `spec`, whose scales it gets.

    Args:
        modules: as of `peft.load_adapter`.
    """
    own, tree = peft.load_adapter(path, model, modules=modules)
    tree = peft.rescaled(tree, own, spec)
    return jax.tree.map(place, {LORA: tree}, param_shardings({LORA: tree}, mesh))[LORA]
