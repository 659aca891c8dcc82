"""The train step of a config as shapes: what training would compile, without weights or data."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.config import Config
from jaxpref.data.loader import Loader, Step
from jaxpref.data.pictures.tiles import TileReader
from jaxpref.models import lora
from jaxpref.models.parameters import CAST_BY_PRODUCTS, LORA, cast_for_products, leaf_path
from jaxpref.models.placement import param_shardings
from jaxpref.models.quantize import is_quantisable, quantised_shapes
from jaxpref.plan.row_sizes import RowSizes
from jaxpref.runs.adapters import quantisation, reference_adapter
from jaxpref.runs.build import Pieces, build_without_tokenizer, param_shapes
from jaxpref.runs.cached_reference import with_column
from jaxpref.runs.feed import EXTRA_COLUMN, make_loader
from jaxpref.runs.flops import step_flops
from jaxpref.runs.params import runs_reference
from jaxpref.sharding import batch_sharding, in_host_memory, replicated
from jaxpref.step.batch_loss import REFERENCE_COLUMN
from jaxpref.step.combine import check_combinable
from jaxpref.step.optim import make_optimizer, make_schedule
from jaxpref.step.policy import Frozen, split
from jaxpref.step.state import TrainState, init_state, state_shardings
from jaxpref.training.loop import jitted_step
from jaxpref.training.prepare import StepNumbers, step_with
from jaxpref.training.stackable import stacked_numbers
from jaxpref.training.stacked import make_stacked_step


@dataclass(frozen=True)
class PlannedStep:
    """A train step and the shapes of its arguments, each with its sharding."""

    pieces: Pieces
    loader: Loader
    item: Step
    """The step with the most micro-batches among the first ones: the one that is planned for."""
    step: Callable
    state: TrainState
    frozen: Frozen
    numbers: Any
    """The step's last argument (training/prepare.py: StepNumbers)."""
    points: int = 1
    """Adapters that the step trains at once, on a leading axis of the state."""

    @property
    def arguments(self) -> tuple[Any, ...]:
        """(state, what is frozen, batch, micro-batches in use, numbers), as the step takes them."""
        mesh = self.pieces.mesh
        whole = replicated(mesh)
        rows = batch_sharding(mesh, leading=1)
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), self.item.batch
        )
        in_use = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
        numbers = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.float32, sharding=whole), self.numbers
        )
        return self.state, self.frozen, batch, in_use, numbers

    @property
    def jitted(self) -> Any:
        """The step as the training loop compiles it; lower it under `jax.set_mesh`."""
        shardings = jax.tree.map(lambda x: x.sharding, self.state)
        return jitted_step(self.step, shardings, self.pieces.mesh)

    @property
    def model_flops(self) -> float:
        """As `runs.flops.step_flops` counts them."""
        reference = self.frozen.reference is not None or self.pieces.moving is not None
        return step_flops(
            self.pieces.source.spec,
            self.item,
            reference=reference,
            frozen=bool(self.frozen.base),
            backward=self.pieces.backward_passes,
            tower=self.pieces.tower,
            policies=self.points,
        )


def plan_step(configs: Sequence[Config], rows: RowSizes, devices: Sequence[Any]) -> PlannedStep:
    """The step that training with this config on these devices would compile.

    Args:
        configs: one, or those of adapters that are trained together (training/stacked.py).
    Errors: InputError for settings, a mesh or rows that training would refuse.
    """
    config = configs[0]
    pieces = build_without_tokenizer(config, devices=devices)
    check_combinable(config.optim, pieces.parts)
    pieces = dataclasses.replace(pieces, processor=_tile_sizes(pieces))
    loader = make_loader(pieces, _with_cached_columns(pieces, rows.groups), training=True)
    loader.packer = dataclasses.replace(loader.packer, tile_reader=_NoPixels(pieces.processor))
    layout = loader.layout
    params = _loaded(pieces)
    trained, base = split(params)
    reference = _reference(pieces, params) if runs_reference(pieces) else None
    if config.reference.offload:
        reference = jax.tree.map(lambda x: _laid_out(x, in_host_memory(x.sharding)), reference)
    moving, reference = (reference, None) if pieces.moving else (None, reference)
    schedule = make_schedule(config.optim, loader.plan.steps)
    source = pieces.source
    optimizer = make_optimizer(
        config.optim, schedule, source.spec.vocab, tower_layers=source.tower_layers_run
    )

    def first_state(params, moving):
        kept = jax.tree.map(lambda x: x.astype(jnp.float32), moving)
        return init_state(params, optimizer, config.train.seed, pieces.parts, kept)

    shapes = jax.eval_shape(first_state, trained, moving)
    laid_out = state_shardings(shapes, pieces.mesh, offload=config.optim.offload)
    state = jax.tree.map(_laid_out, shapes, laid_out)
    loss_spec = pieces.loss_spec(layout, rows.kind)
    make_step = partial(step_with, pieces=pieces, loss_spec=loss_spec, steps=loader.plan.steps)
    numbers: Any = StepNumbers.of(pieces)
    if len(configs) == 1:
        step = lambda *arguments: make_step(arguments[-1])(*arguments[:-1])
    else:
        step = make_stacked_step(make_step, pieces.parts)
        numbers = numbers, stacked_numbers(configs)
        state = jax.tree.map(lambda x: _stacked(x, len(configs)), state)
    return PlannedStep(
        pieces=pieces,
        loader=loader,
        item=_fullest(loader),
        step=step,
        state=state,
        frozen=Frozen(base, reference),
        numbers=numbers,
        points=len(configs),
    )


@dataclass(frozen=True)
class _TileSizes:
    """What packing reads of a `PictureProcessor`."""

    image_size: int
    tile_embeddings: int
    token_id: int
    window: int


def _tile_sizes(pieces: Pieces) -> Any:
    own = pieces.source.own is not None
    vision = None if own else pieces.source.spec.vision
    if vision is None:
        return None
    return _TileSizes(vision.image_size, vision.tile_embeddings, vision.token_id, vision.window)


class _NoPixels(TileReader):
    """Reads no picture: the pixels stay 0."""

    def fill(self, places: Any) -> None:
        pass


def _stacked(x: jax.ShapeDtypeStruct, points: int) -> jax.ShapeDtypeStruct:
    """With a leading axis that no mesh axis divides."""
    sharding = NamedSharding(x.sharding.mesh, P(None, *x.sharding.spec))
    return jax.ShapeDtypeStruct((points, *x.shape), x.dtype, sharding=sharding)


def _fullest(loader: Loader, among: int = 20) -> Step:
    steps = loader.iterate()
    first = (next(steps) for _ in range(min(among, loader.plan.steps)))
    return max(first, key=lambda item: item.micro_batches)


def _with_cached_columns(pieces: Pieces, groups: Sequence[Any]) -> Sequence[Any]:
    """Columns of log-probs that training would have computed before its first step."""
    reference = pieces.config.reference
    completions = [len(group.completion_ids) for group in groups]
    if pieces.needs_reference and reference.mode == "cache":
        groups = with_column(groups, REFERENCE_COLUMN, [(0.0,) * k for k in completions])
    if reference.extra:
        zeros = [np.zeros((k, len(reference.extra)), np.float32) for k in completions]
        groups = with_column(groups, EXTRA_COLUMN, zeros)
    return groups


def _laid_out(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _loaded(pieces: Pieces) -> dict[str, Any]:
    """What `runs.params.load_params` gives."""
    shapes = param_shapes(pieces.model)
    shardings = param_shardings(shapes, pieces.mesh)
    quantised = None if pieces.lora is None else quantisation(pieces.config.adapter)

    def kept(path, leaf, sharding):
        name = leaf_path(path)
        if quantised and is_quantisable(name):
            return quantised_shapes(name, leaf.shape, sharding, quantised)
        frozen = pieces.lora is not None and name in CAST_BY_PRODUCTS
        dtype = pieces.dtype if frozen else jnp.float32
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

    params = jax.tree_util.tree_map_with_path(kept, shapes, shardings)
    return params if pieces.lora is None else {**params, LORA: _adapter(pieces, shapes)}


def _adapter(pieces: Pieces, shapes: Any) -> Any:
    def new(base):
        return lora.init(jax.random.key(0), base, pieces.lora)

    adapter = {LORA: jax.eval_shape(new, shapes)}
    return jax.tree.map(_laid_out, adapter, param_shardings(adapter, pieces.mesh))[LORA]


def _reference(pieces: Pieces, params: dict[str, Any]) -> Any:
    """What `runs.params.reference_overlay` gives."""
    if pieces.config.reference.path is not None:
        alone = dataclasses.replace(pieces, lora=None)
        return _cast(pieces, _loaded(alone))
    if pieces.lora is None:
        return _cast(pieces, params)
    if pieces.moving:
        return _cast(pieces, split(params)[0])
    return {} if reference_adapter(pieces.config) is None else {LORA: params[LORA]}


def _cast(pieces: Pieces, params: Any) -> Any:
    shapes = jax.eval_shape(lambda tree: cast_for_products(tree, pieces.dtype), params)
    return jax.tree.map(lambda new, old: _laid_out(new, old.sharding), shapes, params)
