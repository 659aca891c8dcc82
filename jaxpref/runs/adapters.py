"""The adapter of a run, from its config: its shape, where it starts, how its base is kept."""

from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh

from jaxpref.config import AdapterConfig, Config
from jaxpref.errors import InputError
from jaxpref.models import lora, peft
from jaxpref.models.lora import LoraSpec
from jaxpref.models.parameters import LORA
from jaxpref.models.placement import param_shardings
from jaxpref.models.quantize import Quantisation
from jaxpref.models.spec import ModelSpec
from jaxpref.sharding import place

BASE = "base"
"""As `reference.adapter`: the frozen weights without an adapter."""


def adapter_spec(config: AdapterConfig, model: ModelSpec) -> LoraSpec | None:
    """The adapter that a run trains, or None.

    Errors: InputError for targets that match nothing, an adapter that cannot be read, and quantised
        experts.
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
        spec = peft.read_spec(config.path, model)
        return spec if config.dropout is None else replace(spec, dropout=config.dropout)
    targets = lora.find_targets(config.targets, peft.target_names(model))
    alpha = float(config.rank) if config.alpha is None else config.alpha
    return LoraSpec(config.rank, alpha, targets, config.dropout or 0.0, config.rslora, config.dora)


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
        return read_adapter(config.path, spec, model, mesh)

    def new(layers):
        return lora.init(jax.random.key(seed), layers, spec)

    shardings = param_shardings({LORA: jax.eval_shape(new, base["layers"])}, mesh)
    return jax.jit(new, out_shardings=shardings[LORA])(base["layers"])


def read_adapter(path: str, spec: LoraSpec, model: ModelSpec, mesh: Mesh) -> Any:
    """A PEFT adapter on the mesh, for a model built with `spec`, whose scale it gets."""
    own, tree = peft.load_adapter(path, model)
    if own.scale != spec.scale:
        tree = peft.rescaled(tree, own.scale / spec.scale)

    return jax.tree.map(place, {LORA: tree}, param_shardings({LORA: tree}, mesh))[LORA]
