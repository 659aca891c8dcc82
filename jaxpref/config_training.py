"""The sections of a run's configuration that say how it trains: config.py has the others."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from jaxpref.fields import AUTO, STRICT, CountOrAuto, Interval, Names, Scales, Weights


@dataclass(frozen=True, config=STRICT)
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
    weight_vectors: list[list[Annotated[float, Field(ge=0)]]] = Field(default_factory=list)
    """The same, but drawn among these vectors alone, each in the order of the rewards: one policy
    for a few weights, which it learns sooner than all."""
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


@dataclass(frozen=True, config=STRICT)
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
    """Keep the moments in the hosts' memory between steps, brought to the devices layer by layer
    (of adafactor and muon at once); not of adapters that are trained together."""


@dataclass(frozen=True, config=STRICT)
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


@dataclass(frozen=True, config=STRICT)
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


@dataclass(frozen=True, config=STRICT)
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
