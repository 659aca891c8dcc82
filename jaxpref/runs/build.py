"""Config -> the pieces of a run, on the mesh.  Training, evaluation and export start here."""

import datetime
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxpref.config import Config
from jaxpref.data.pack import Layout
from jaxpref.data.pictures.processor import PictureProcessor, open_processor
from jaxpref.data.tables import Table
from jaxpref.data.template_date import fix_date, prints_date
from jaxpref.errors import InputError
from jaxpref.models.decoder import build_model
from jaxpref.models.fused_attention import AttentionChoice, choose_attention
from jaxpref.models.hf import read_json
from jaxpref.models.lora import LoraSpec
from jaxpref.models.model import Model
from jaxpref.models.placement import param_shardings
from jaxpref.models.source import Checkpoint, open_checkpoint
from jaxpref.objectives import OBJECTIVES, TRANSFORMS, Part, asked_logps, bind
from jaxpref.processes.together import first_does
from jaxpref.runs.adapters import adapter_spec, below_adapter, reference_adapter
from jaxpref.runs.compilation_cache import use_compilation_cache
from jaxpref.runs.compute_dtype import choose_compute_dtype
from jaxpref.runs.same_files import check_same_files
from jaxpref.runs.same_settings import check_same_settings
from jaxpref.settings.contradictions import objective_contradictions
from jaxpref.sharding import HOST_MEMORY, has_host_memory, make_mesh, vocab_ways
from jaxpref.step.batch_loss import LossSpec
from jaxpref.step.combine import Combine
from jaxpref.step.state import MovingReference
from jaxpref.storage.paths import as_path

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pieces:
    """What every command needs of a config before data and weights are read."""

    config: Config
    """With the compute dtype, and the date that the chat template prints, where it prints one."""
    mesh: Mesh
    source: Checkpoint
    tokenizer: Any
    model: Model
    parts: tuple[Part, ...]
    lora: LoraSpec | None = None
    """The adapter that is trained in place of the weights."""
    processor: PictureProcessor | None = None
    """Of a model that sees pictures."""
    given: Mapping[str, Sequence[str | Table]] = field(default_factory=dict)
    """`train` or `eval` -> what is read in place of the paths in the config."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Data columns that are read, where the data has them."""
        of_parts = {name for part in self.parts for name in part.all_columns}
        return tuple(sorted(of_parts | set(self.model.weight_columns)))

    @property
    def needs_reference(self) -> bool:
        return any(part.needs_reference for part in self.parts)

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.config.model.compute_dtype)

    @property
    def moving(self) -> MovingReference | None:
        """How the reference follows the policy; None: it does not."""
        reference = self.config.reference
        if not reference.sync_every:
            return None
        return MovingReference(reference.sync_every, reference.sync_alpha, self.dtype)

    @property
    def backward_passes(self) -> int:
        """Of a training step through one forward pass."""
        return len(self.parts) if Combine.of(self.config.optim) else 1

    @property
    def tower(self) -> str:
        """What becomes of the tower that sees pictures, for `runs.flops.step_flops`."""
        if self.lora is None:
            return "trained"
        return "adapted" if any(t.startswith("vision/") for t in self.lora.targets) else "frozen"

    def loss_spec(self, layout: Layout, kind: str) -> LossSpec:
        """How groups of a kind, laid out so, become losses."""
        dropout = self.lora is not None and self.lora.dropout > 0
        chunk = self.config.model.logprob_chunk
        return LossSpec(self.model, self.parts, chunk, layout.lengths, kind, dropout=dropout)


def build(
    config: Config,
    objective: Sequence[Any] | Callable | None = None,
    source: Checkpoint | None = None,
) -> Pieces:
    """Opens the model, its weights unread, and checks that all settings fit together.

    Args:
        objective: in place of `config.objective`; may hold functions.
        source: in place of `config.model.path`, when it is open already.
    Errors: InputError for an unknown model, settings that contradict each other, and a mesh that
        does not fit the devices or does not divide the model; and where hosts have other settings
        or models.
    """
    use_compilation_cache(config.compilation_cache)
    pieces = build_without_tokenizer(config, objective, source)
    config, tokenizer = dated_tokenizer(pieces.config, pieces.source)
    processor = picture_processor(pieces.source, tokenizer)
    return replace(pieces, config=config, tokenizer=tokenizer, processor=processor)


def picture_processor(source: Checkpoint, tokenizer: Any) -> PictureProcessor | None:
    """How a checkpoint's model is given pictures; None: it sees none.

    Errors: InputError for a checkpoint without it.
    """
    if source.own is not None or source.spec.vision is None:
        return None
    model_type = read_json(source.path / "config.json")["model_type"]
    return open_processor(source.path, model_type, source.spec.vision, tokenizer)


def build_without_tokenizer(
    config: Config,
    objective: Sequence[Any] | Callable | None = None,
    source: Checkpoint | None = None,
    devices: Sequence[Any] | None = None,
) -> Pieces:
    """As `build`, for what reads no text: a model of which there is a config.json is enough.

    Args:
        devices: of the mesh; None: all that there are.
    """
    check_same_settings(config)
    given = {} if devices is None else {"devices": list(devices)}
    mesh = make_mesh(config.mesh, **given)
    config = with_compute_dtype(config, mesh)
    _check_host_memory(config, mesh)
    source = (
        open_checkpoint(config.model.path, pictures=config.model.pictures)
        if source is None
        else source
    )
    if source.own is not None:
        _check_fits_own(config)
    source = below_adapter(source, config.adapter.path)
    if jax.process_count() > 1:
        check_same_files(_model_files(config, source))
    parts = bind(objective or config.objective, OBJECTIVES, TRANSFORMS)
    if problems := list(objective_contradictions(config, parts)):
        raise InputError(
            "settings that fit the objectives", "; ".join(problems), "change or remove these keys"
        )
    lora = adapter_spec(config.adapter, source.spec)
    attend = attention_of(config, source, mesh.devices.flat[0]).attend
    model = make_decoder(config, source, parts, mesh, lora, attend)
    param_shardings(
        param_shapes(model), mesh, model.axes
    )  # refuses a mesh that does not divide the model
    return Pieces(config, mesh, source, None, model, parts, lora)


def _check_fits_own(config: Config) -> None:
    """Errors: InputError for settings that a model of the user's own cannot follow."""
    problems = []
    if config.adapter.trained:
        problems.append("an adapter (adapter.rank, adapter.path)")
    if config.reference.path is not None:
        problems.append("reference.path (reference.extra takes checkpoints)")
    if config.train.neftune_alpha is not None:
        problems.append(f"train.neftune_alpha={config.train.neftune_alpha:g}")
    if config.mesh.context > 1:
        problems.append(f"mesh.context={config.mesh.context}")
    if problems:
        raise InputError(
            "settings that a model given in Python can follow",
            f"out={config.out}: {'; '.join(problems)}",
            "remove these settings; freeze weights in the module itself, by jax.lax.stop_gradient",
        )


def with_compute_dtype(config: Config, mesh: Mesh) -> Config:
    """With a dtype in place of `auto`."""
    if config.model.compute_dtype != "auto":
        return config
    name = choose_compute_dtype(mesh.devices.flat[0]).name
    return replace(config, model=replace(config.model, compute_dtype=name))


def _check_host_memory(config: Config, mesh: Mesh) -> None:
    """Errors: InputError where the devices cannot read what is to lie in the hosts' memory."""
    sections = {
        "optim.offload": config.optim.offload,
        "reference.offload": config.reference.offload,
    }
    asked = [name for name, offload in sections.items() if offload]
    if asked and not has_host_memory(mesh):
        raise InputError(
            f"devices that reach the hosts' memory ({HOST_MEMORY}), for {' and '.join(asked)}",
            mesh.devices.flat[0].device_kind,
            f"set {' '.join(name + '=false' for name in asked)}",
        )


def _model_files(config: Config, source: Checkpoint) -> dict[str, Path]:
    """Config key -> directory or file of the models and adapters that are read."""
    named = {"reference.path": config.reference.path}
    named |= {f"reference.extra[{i}]": extra for i, extra in enumerate(config.reference.extra)}
    models = {key: open_checkpoint(path).path for key, path in named.items() if path is not None}
    adapters = {"adapter.path": config.adapter.path, "reference.adapter": reference_adapter(config)}
    of_adapters = {key: as_path(path) for key, path in adapters.items() if path is not None}
    model = {} if source.own is not None else {"model.path": source.path}
    return model | models | of_adapters


def dated_tokenizer(config: Config, source: Checkpoint) -> tuple[Config, Any]:
    """A checkpoint's tokenizer whose chat template prints the date of the config, or today's.

    Returns: the config, in which that date is noted if the template prints one; the tokenizer.
    """
    tokenizer = source.load_tokenizer()
    if not prints_date(tokenizer):
        return config, tokenizer
    day = config.data.date or _today()
    fix_date(tokenizer, day)
    _log.info("the chat template prints today's date: %s, whenever it runs (data.date)", day)
    return replace(config, data=replace(config.data, date=day)), tokenizer


def _today() -> str:
    """The same day on every process, around midnight too."""
    return first_does(lambda: datetime.date.today().isoformat())


def make_decoder(
    config: Config,
    source: Checkpoint,
    parts: Sequence[Part] = (),
    mesh: Mesh | None = None,
    lora: LoraSpec | None = None,
    attend: Callable | None = None,
) -> Model:
    """A checkpoint's model.

    Args:
        parts: bound objectives, whose scalar heads it gets.
        mesh: for which the vocabulary is padded; None: it is not.
        lora: the adapter that it reads beside the weights.
        attend: as of `build_model`.
    Errors: InputError for a context where layers keep states, which go from token to token.
    """
    heads = [name for name in asked_logps(parts) if name in ("reward", "value")]
    dtype, vocab_multiple = jnp.dtype(config.model.compute_dtype), 1
    if mesh is not None:
        vocab_multiple = vocab_ways(mesh)
    if source.own is not None:
        return source.own.model(dtype, tuple(heads), vocab_multiple)
    vision = source.spec.vision
    if vision is not None and vision.mutual and config.mesh.context > 1:
        raise InputError(
            "mesh.context=1 for a model whose tokens of a picture see each other",
            f"mesh.context={config.mesh.context} and model_type {source.spec.family}",
            "spread weights by mesh.fsdp and mesh.tensor; lower data.row_length for less memory",
        )
    if source.spec.delta is not None and config.mesh.context > 1:
        raise InputError(
            "mesh.context=1 for a model with layers of Gated DeltaNet",
            f"mesh.context={config.mesh.context} and model_type {source.spec.family}",
            "spread weights by mesh.fsdp and mesh.tensor; lower data.row_length for less memory",
        )
    return build_model(
        source.spec,
        dtype=dtype,
        remat=config.model.remat,
        attention_block=config.model.attention_block,
        attend=attend,
        scalar_heads=heads,
        vocab_multiple=vocab_multiple,
        lora=lora,
        weight_columns=config.adapter.weight_columns if lora is not None else (),
    )


def attention_of(
    config: Config, source: Checkpoint, device: jax.Device | None = None
) -> AttentionChoice:
    """Which attention a model of this checkpoint computes.

    Args:
        device: one of those that compute; None: one of this process's.
    Errors: InputError when `model.attention` asks for one that cannot be used.
    """
    if source.own is not None:
        return AttentionChoice("its own", "a model given in Python", None)
    return choose_attention(
        config.model.attention,
        jax.devices()[0] if device is None else device,
        source.spec,
        config.model.compute_dtype,
        config.mesh.context,
    )


def param_shapes(model: Model) -> Any:
    """ShapeDtypeStruct of every parameter."""
    return jax.eval_shape(model.init, jax.random.key(0))
