"""Config -> the pieces of a run, on the mesh.  Training, evaluation and export start here."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref.config import Config, reference_contradictions
from jaxpref.data.dataset import DataReport, common_columns, load_groups
from jaxpref.data.dimensions import margin_contradictions
from jaxpref.data.encode import check_known_tokens
from jaxpref.data.loader import Loader
from jaxpref.data.pack import MASKS, UNIFORM, Layout, columns_of
from jaxpref.errors import InputError
from jaxpref.models.decoder import Model, build_model
from jaxpref.models.lora import LoraSpec
from jaxpref.models.quantize import is_quantisable, place_quantised
from jaxpref.models.source import Checkpoint, open_checkpoint
from jaxpref.models.spec import LORA, SCALAR_HEADS
from jaxpref.models.streaming import place_leaf, with_zero_rows
from jaxpref.models.weights import ReadSlice
from jaxpref.objectives import OBJECTIVES, TRANSFORMS, Part, asked_logps, bind, check_columns, group_kinds
from jaxpref.policy import (
    Frozen,
    adapter_spec,
    quantisation,
    read_adapter,
    reference_adapter,
    split,
    start_adapter,
)
from jaxpref.reference import cached_logps, frozen_copy, weights_key, with_column
from jaxpref.sharding import (
    VOCAB_LEAVES,
    batch_sharding,
    leaf_path,
    make_mesh,
    param_shardings,
    row_ways,
    vocab_ways,
)
from jaxpref.step import REFERENCE_COLUMN, MovingReference, Scoring, make_logp_step, summed_logps
from jaxpref.types import Batch, EncodedGroup

EXTRA_COLUMN = "extra_refs"
"""Data column [R, G, K, N] of log-probs under the models of `reference.extra`."""


@dataclass(frozen=True)
class Pieces:
    """What every command needs before data and weights are read."""

    config: Config
    mesh: Mesh
    source: Checkpoint
    tokenizer: Any
    model: Model
    parts: tuple[Part, ...]
    lora: LoraSpec | None = None
    """The adapter that is trained in place of the weights."""

    @property
    def needs_reference(self) -> bool:
        return any(part.needs_reference for part in self.parts)

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.config.model.compute_dtype)

    @property
    def moving(self) -> MovingReference | None:
        reference = self.config.reference
        if not reference.sync_every:
            return None
        dtype = self.dtype if self.lora is None else jnp.float32  # an adapter runs as it is kept
        return MovingReference(reference.sync_every, reference.sync_alpha, dtype)

    def scoring(self, layout: Layout, kind: str) -> Scoring:
        """How groups of a kind, laid out so, become losses."""
        dropout = self.lora is not None and self.lora.dropout > 0
        chunk = self.config.model.logprob_chunk
        return Scoring(self.model, self.parts, chunk, layout.lengths, kind, dropout=dropout)


def build(config: Config, objective: Sequence[Any] | None = None) -> Pieces:
    """Opens the model (config and tokenizer, no weights yet) and checks that everything fits together.

    Args:
        objective: in place of `config.objective`; may hold functions.
    Errors: InputError for an unknown model, a mesh that does not fit the devices or does not divide the model.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    source = open_checkpoint(config.model.path)
    parts = bind(objective or config.objective, OBJECTIVES, TRANSFORMS)
    if found := [
        *reference_contradictions(config.reference, parts),
        *margin_contradictions(config.data.margins, parts),
    ]:
        raise InputError("settings that fit the objective", "; ".join(found), "correct these keys")
    lora = adapter_spec(config.adapter, source.spec)
    model = make_decoder(config, source, parts, mesh, lora)
    param_shardings(param_shapes(model), mesh)  # refuses a mesh that does not divide, before weights are read
    return Pieces(config, mesh, source, source.load_tokenizer(), model, parts, lora)


def make_decoder(
    config: Config,
    source: Checkpoint,
    parts: Sequence[Part] = (),
    mesh: Mesh | None = None,
    lora: LoraSpec | None = None,
) -> Model:
    """A checkpoint's model, with the scalar heads that the objectives ask for, its vocabulary padded for the mesh."""
    return build_model(
        source.spec,
        dtype=jnp.dtype(config.model.compute_dtype),
        remat=config.model.remat,
        attention_block=config.model.attention_block,
        scalar_heads=[name for name in asked_logps(parts) if name in ("reward", "value")],
        vocab_multiple=1 if mesh is None else vocab_ways(mesh),
        lora=lora,
    )


def param_shapes(model: Model) -> Any:
    """ShapeDtypeStruct of every parameter."""
    return jax.eval_shape(model.init, jax.random.key(0))


def load_params(pieces: Pieces, source: Checkpoint | None = None) -> Any:
    """The policy that training starts from, every process reading only what its devices hold.

    Weights are float32; scalar heads are zero.  Where an adapter is trained, the weights are in the compute dtype or
    quantised, and the adapter lies beside them.

    Args:
        source: another model of the same sizes, without an adapter.
    """
    shapes = param_shapes(pieces.model)
    shardings = param_shardings(shapes, pieces.mesh)
    laid_out = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    leaves = {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(laid_out)}

    adapter = pieces.config.adapter
    lora = pieces.lora if source is None else None
    kept = np.dtype(np.float32 if lora is None else pieces.dtype)
    quantised = None if lora is None else quantisation(adapter)

    def put(path: str, shape: tuple[int, ...], dtype: np.dtype, read: ReadSlice) -> Any:
        leaf = leaves[path]
        if path in VOCAB_LEAVES:
            read = with_zero_rows(read, shape[0], leaf.shape[0])
        if quantised and is_quantisable(path):
            return place_quantised(path, leaf.shape, leaf.sharding, read, quantised)
        return place_leaf(leaf.shape, kept, leaf.sharding, lambda index: read(index).astype(kept, copy=False))

    params = (source or pieces.source).load_params(dtype=np.float32, put=put)
    if SCALAR_HEADS in shapes:
        zeros = lambda x, sharding: jax.device_put(np.zeros(x.shape, x.dtype), sharding)
        params[SCALAR_HEADS] = jax.tree.map(zeros, shapes[SCALAR_HEADS], shardings[SCALAR_HEADS])
    return params if lora is None else with_adapter(pieces, params)


def with_adapter(pieces: Pieces, base: Mapping[str, Any]) -> dict[str, Any]:
    """The frozen weights with the adapter that training starts from beside them."""
    config, spec = pieces.config, pieces.source.spec
    return {**base, LORA: start_adapter(config.adapter, pieces.lora, spec, base, pieces.mesh, config.train.seed)}


def reference_source(pieces: Pieces) -> Checkpoint:
    """The checkpoint of the reference.  Errors: InputError when it is not the same kind of model."""
    if pieces.config.reference.path is None:
        return pieces.source
    source = open_checkpoint(pieces.config.reference.path)
    if source.spec != pieces.source.spec:
        raise InputError(
            "a reference of the same sizes as the model",
            f"reference.path={pieces.config.reference.path} is {source.spec}; the model is {pieces.source.spec}",
            "choose another reference",
        )
    return source


def reference_overlay(pieces: Pieces, params: Any) -> Any:
    """What the reference lays over the frozen base (`policy.Frozen`), or None when no objective needs a reference or
    its log-probs are cached.

    Args:
        params: the policy that training starts from, as `load_params` gives it.
    """
    runs = pieces.needs_reference and pieces.config.reference.mode == "copy"
    return _overlay(pieces, params) if runs else None


def _overlay(pieces: Pieces, params: Any) -> Any:
    reference, lora = pieces.config.reference, pieces.lora
    if reference.path is not None:
        return frozen_copy(load_params(pieces, reference_source(pieces)), pieces.dtype)
    if lora is None:
        return frozen_copy(params, pieces.dtype)
    if pieces.moving:
        return frozen_copy(split(params)[0], pieces.moving.dtype)
    path = reference_adapter(pieces.config)
    return {} if path is None else {LORA: read_adapter(path, lora, pieces.source.spec, pieces.mesh)}


def reference_params(pieces: Pieces, params: Any) -> Any:
    """The reference's parameters, or None; arguments as of `reference_overlay`."""
    return Frozen(split(params)[1], reference_overlay(pieces, params)).reference_params()


def read_data(pieces: Pieces, which: str) -> tuple[list[EncodedGroup], DataReport]:
    """`train` or `eval` data, encoded, with the columns of the objectives checked."""
    data = pieces.config.data
    paths, split = (data.train, data.train_split) if which == "train" else (data.eval, data.eval_split)
    if not paths:
        raise InputError(f"at least one path in data.{which}", "an empty list", f"set data.{which}=[FILE]")
    seed, kinds = pieces.config.train.seed, group_kinds(pieces.parts)
    columns = sorted({name for part in pieces.parts for name in part.all_columns})
    groups, report = load_groups(data, pieces.tokenizer, paths, split, kinds=kinds, seed=seed, columns=columns)
    check_columns(pieces.parts, common_columns(groups))
    check_known_tokens(((g.where, (g.prompt_ids, *g.completion_ids)) for g in groups), pieces.source.spec.vocab)
    return groups, report


def row_layout(config: Config, groups: Sequence[EncodedGroup]) -> Layout:
    """Row length from the config, or the longest group rounded up to whole attention blocks in every bucket."""
    length, block = config.data.row_length, config.model.attention_block * config.data.length_buckets
    if length is None:
        longest = max(columns_of(group, config.data.share_prefix) for group in groups)
        length = -(-longest // block) * block
    return Layout(length, config.data.share_prefix, config.data.pack, config.data.length_buckets)


def make_loader(pieces: Pieces, groups: Sequence[EncodedGroup], *, training: bool) -> Loader:
    """Training: shuffled, by steps of the config.  Otherwise one pass in order."""
    config = pieces.config
    columns = list(check_columns(pieces.parts, common_columns(groups)))
    columns += [name for name in (REFERENCE_COLUMN, EXTRA_COLUMN) if name in groups[0].columns]
    columns += [UNIFORM] if any(UNIFORM in (*part.required, *part.optional) for part in pieces.parts) else []
    asked = asked_logps(pieces.parts)
    return Loader(
        groups,
        batch_size=config.train.batch_size,
        micro_rows=config.train.micro_rows or row_ways(pieces.mesh),
        layout=row_layout(config, groups),
        columns=columns,
        masks=[name for name in asked if name in MASKS],
        score_prompt="prompt" in asked,
        seed=config.train.seed if training and config.data.shuffle else None,
        epochs=config.train.epochs if training else 1,
        max_steps=config.train.max_steps if training else None,
    )


def owned_rows(loader: Loader, mesh: Mesh) -> list[bool]:
    """Which rows of a micro-batch this process's devices hold."""
    rows = loader.plan.micro_rows
    owned = [False] * rows
    for (part,) in batch_sharding(mesh).addressable_devices_indices_map((rows,)).values():
        for r in range(*part.indices(rows)):
            owned[r] = True
    return owned


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """[T, R, ...] arrays onto the mesh, each process giving the rows it holds."""
    sharding = batch_sharding(mesh, leading=1)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), batch)


def put_scalar(value: int, mesh: Mesh) -> jax.Array:
    replicated = NamedSharding(mesh, P())
    return jax.make_array_from_callback((), replicated, lambda _: np.int32(value))


def with_reference_logps(pieces: Pieces, groups: Sequence[EncodedGroup], params: Any = None) -> tuple[list, int]:
    """Groups with cached log-probs of the reference and of further references where the config says so, and how many
    log-probs of groups had to be computed.

    Args:
        params: the policy that training starts from, when it is loaded already.
    """
    config, groups, computed = pieces.config, list(groups), 0
    if pieces.needs_reference and config.reference.mode == "cache":
        if config.reference.path is None:
            values, computed = _logps_under_start(pieces, groups, params)
        else:
            values, computed = _logps_under(pieces, reference_source(pieces), groups)
        groups = with_column(groups, REFERENCE_COLUMN, values)
    if config.reference.extra:
        found = [_logps_under(pieces, open_checkpoint(path), groups) for path in config.reference.extra]
        groups = with_column(
            groups, EXTRA_COLUMN, [np.stack(v, axis=-1) for v in zip(*(v for v, _ in found), strict=True)]
        )
        computed += sum(count for _, count in found)
    return groups, computed


def _logps_under_start(pieces: Pieces, groups: Sequence[EncodedGroup], params: Any) -> tuple:
    """Log-probs of all completions under the reference that the start of the training makes, through the cache."""

    def load() -> Any:
        start = load_params(pieces) if params is None else params
        return Frozen(split(start)[1], _overlay(pieces, start)).reference_params()

    adapter, how = reference_adapter(pieces.config), quantisation(pieces.config.adapter)
    key = lambda: weights_key(pieces.source.path, pieces.config.model.compute_dtype, adapter, how)
    return _cached(pieces, groups, key, load)


def _logps_under(pieces: Pieces, source: Checkpoint, groups: Sequence[EncodedGroup]) -> tuple:
    """The same under another checkpoint, which may be of another size than the model."""
    config = pieces.config
    if source.spec.vocab != pieces.source.spec.vocab:
        raise InputError(
            f"a reference with the model's vocabulary of {pieces.source.spec.vocab} tokens",
            f"{source.path}: {source.spec.vocab}",
            "choose one with the same tokenizer",
        )
    model = make_decoder(config, source, mesh=pieces.mesh)
    theirs = dataclasses.replace(pieces, source=source, model=model, lora=None)
    load = lambda: jax.tree.map(lambda x: x.astype(pieces.dtype), load_params(theirs))
    return _cached(theirs, groups, lambda: weights_key(source.path, config.model.compute_dtype), load)


def _cached(pieces: Pieces, groups: Sequence[EncodedGroup], key: Callable[[], str], load: Callable[[], Any]) -> tuple:
    """Log-probs under `load()`, which is called only when some are not in the cache, kept under `key()`."""
    cache = Path(pieces.config.reference.cache_dir).expanduser()
    compute = lambda missing: compute_logps(pieces, load(), missing)
    return cached_logps(groups, lambda: cache / f"{key()}.npz", compute)


def compute_logps(
    pieces: Pieces, params: Any, groups: Sequence[EncodedGroup], sums: Callable[[Any, Batch], jax.Array] | None = None
) -> dict[int, np.ndarray]:
    """{row id: [K] summed log-probs} of all groups under `params`.

    Args:
        sums: (params, micro-batch) -> [B, K], the same function for the same programs; None: those of the model.
    """
    config, mesh = pieces.config, pieces.mesh
    loader = Loader(
        groups,
        batch_size=config.train.batch_size,
        micro_rows=config.train.micro_rows or row_ways(mesh),
        layout=row_layout(config, groups),
    )
    values: dict[int, np.ndarray] = {}
    step = _compiled_logp_step(
        sums or summed_logps(pieces.model, config.model.logprob_chunk), tuple(loader.layout.lengths), mesh
    )
    with jax.set_mesh(mesh):
        for item in loader.iterate():  # every process needs every value, so it builds every row
            logps = np.asarray(step(params, put_batch(item.batch, mesh), put_scalar(item.micro_batches, mesh)))
            rows = item.batch.row_id_RG
            values |= {int(rows[at]): logps[at] for at in zip(*np.nonzero(rows >= 0), strict=True)}
    return values


@functools.lru_cache(maxsize=8)  # another policy on the same groups compiles nothing
def _compiled_logp_step(sums: Callable, lengths: tuple[int, ...], mesh: Mesh) -> Callable:
    return jax.jit(make_logp_step(sums, lengths=lengths), out_shardings=NamedSharding(mesh, P()))
