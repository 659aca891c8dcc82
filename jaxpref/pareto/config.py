"""The dataclasses of a front's configuration.

It is the configuration of a run, which all its runs share, with a section `pareto` beside it.

out: runs/front
adapter: {rank: 16}
pareto:
  objectives:
    # Pairs; its reward is learned by DPO.
    - {name: helpful, train: [helpful.jsonl], eval: [helpful-test.jsonl]}
    # An explicit reward.
    - {name: brief, reward: "rule:words"}
  weights: [[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]]
"""

import itertools
import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from jaxpref.config import Config
from jaxpref.fields import STRICT, LocalPath, OneOrMore, Paths

SHARED = "data.train"
"""Name of the pairs of data.train and data.eval beside the objectives' own.

No objective can be named so.
"""


@dataclass(frozen=True, config=STRICT)
class ObjectiveConfig:
    name: str
    """For tables, directories and the data's scores: letters, digits, - and _."""
    train: Paths = Field(default_factory=list)
    """Pairs labelled by this objective; empty: those of data.train, relabelled by its reward (ties
    are dropped)."""
    eval: Paths = Field(default_factory=list)
    """Its held-out pairs; empty: those of data.eval, relabelled by its reward."""
    reward: str | None = None
    """Explicit reward, as `jaxpref score --reward` takes it; null: the implicit reward of a DPO
    policy that is trained on its pairs first."""
    temperature: float | Literal["fit"] = 1.0
    """What an explicit reward is divided by to be on the scale of a Bradley-Terry model; fit: by
    maximum likelihood on this objective's training pairs."""
    judge: str | None = None
    """Reward by which answers are judged; null: the objective's own."""


@dataclass(frozen=True, config=STRICT)
class AnswersConfig:
    prompts: LocalPath | None = None
    """File of prompts that every policy answers; null: the first distinct prompts of the
    objectives' held-out data."""
    count: int = Field(default=64, ge=1)
    """Prompts, at most."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens of an answer, at most."""
    temperature: float = Field(default=1.0, ge=0)
    """Of the draw; 0: the most likely token each time."""
    samples: int = Field(default=1, ge=1)
    """Answers to every prompt."""
    batch_size: int = Field(default=32, ge=1)
    """Rows that are decoded together."""


Method = Literal[
    "dpo",
    "modpo",
    "mod",
    "soup_deltas",
    "soup_factors",
    "mpo",
    "raco",
    "cos_dpo",
    "panacea",
    "pblora",
    "rloo",
    "online_dpo",
    "mo_odpo",
]
BY_ADAPTER = ("panacea", "pblora")
"""Methods whose one adapter serves all weights: the names of its kinds (`adapter.kind`)."""
CONDITIONED = ("cos_dpo", "mo_odpo", *BY_ADAPTER)
"""Methods whose one run serves all weights, by its prompts or its adapter."""
LABELLED = ("raco", "cos_dpo", *BY_ADAPTER)
"""Methods that train on labels of all objectives; they need no DPO policies."""
ON_POLICY = ("rloo", "online_dpo", "mo_odpo")
"""Methods that train on answers of their own, by the rewards; they need no labels."""


def _default_methods() -> list[Method]:
    return ["dpo", "modpo"]


@dataclass(frozen=True, config=STRICT)
class ParetoConfig:
    objectives: list[ObjectiveConfig] = Field(default_factory=list)
    """Two or more, in the order of the weights."""
    weights: list[list[float]] | None = None
    """Weight vectors, each entry > 0; they are divided by their sum."""
    grid: int | None = Field(default=None, ge=2)
    """Instead of weights: all vectors whose entries are positive multiples of 1/grid."""
    base: str | None = None
    """The objective whose pairs MODPO trains on; null: for every point the one of the largest
    weight.  Labels that a reward gave are certain, whatever its temperature: prefer an objective
    with pairs of its own."""
    beta: float = Field(default=0.1, gt=0)
    """Of MODPO and of the single-objective DPO runs."""
    together: bool = True
    """Train the adapters of all points with the same base in one compiled step; false: one run
    after another."""
    methods: Annotated[list[Method], OneOrMore] = Field(default_factory=_default_methods)
    """What is shown.  dpo: the ends of the front, one run per objective; mod mixes these policies
    when decoding; soups average them; mpo mixes them with the weights whose worst objective is
    best.  raco: the weighted DPO losses of all labels, by directions
    that avoid conflicts (optim.combine_c).  One run for all weights, on these labels: cos_dpo,
    whose prompts say them; panacea and pblora, whose adapter reads them (adapter.kind).  On answers
    of their own, judged by the rewards (section `online`): rloo, online_dpo (pairs labelled by the
    weighted reward), mo_odpo (the same, one run for all weights)."""
    dirichlet: float | None = Field(default=1.0, gt=0)
    """Concentration of the Dirichlet distribution from which weights are drawn for every row, where
    one run serves all: 1 is uniform, less draws more near the ends.  null: the weights of the
    front's points alone, which such a run learns sooner."""
    answers: AnswersConfig = Field(default_factory=AnswersConfig)
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(default_factory=list)
    """The whole front once per seed, in place of train.seed, measured on the same prompts: measures
    then have intervals over seeds too. The points of a seed are trained together as ever."""
    held_out: int | None = Field(default=None, ge=1)
    """Held-out pairs of every objective that are measured: the first ones; null: all."""
    warm_start: bool = False
    """Start every MODPO point from the DPO policy of its base; the reference stays the model."""


@dataclass(frozen=True)
class FrontConfig:
    """A whole front."""

    run: Config
    """What all runs share; its `objective` is not used."""
    pareto: ParetoConfig

    @property
    def names(self) -> list[str]:
        return [objective.name for objective in self.pareto.objectives]

    def objective(self, name: str) -> ObjectiveConfig:
        return next(objective for objective in self.pareto.objectives if objective.name == name)

    @property
    def points(self) -> list[dict[str, float]]:
        """The weight vectors, each {objective: weight}, summing to 1."""
        rows = self._grid() if self.pareto.weights is None else self.pareto.weights
        points = []
        for row in rows:
            total = math.fsum(row)
            points.append(dict(zip(self.names, (x / total for x in row), strict=True)))
        return points

    def _grid(self) -> list[tuple[int, ...]]:
        """All vectors of positive whole numbers that sum to `pareto.grid`."""
        grid = self.pareto.grid
        all_but_last = itertools.product(range(1, grid), repeat=len(self.names) - 1)
        return [(*row, grid - sum(row)) for row in all_but_last if sum(row) < grid]

    def base(self, weights: Mapping[str, float]) -> str:
        """The objective whose pairs a point trains on."""
        return self.pareto.base or max(self.names, key=lambda name: weights[name])

    @property
    def relabelled(self) -> list[str]:
        """Objectives whose pairs are the shared ones."""
        return [objective.name for objective in self.pareto.objectives if not objective.train]

    def pool(self, name: str) -> str:
        """Name of the pairs that an objective's DPO and MODPO runs train on."""
        return name if self.objective(name).train else SHARED

    def needs_single(self, name: str) -> bool:
        """Whether a DPO policy of this objective alone is trained."""
        return (
            self.objective(name).reward is None
            or self.pareto.warm_start
            or not set(self.pareto.methods) <= {"modpo", *LABELLED, *ON_POLICY}
        )


def describe(weights: Mapping[str, float]) -> str:
    """As `helpful 0.3, harmless 0.7`."""
    return ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())


def point_name(method: str, weights: Mapping[str, float]) -> str:
    """As `modpo_0.3_0.7`."""
    return "_".join([method, *(f"{weight:.4g}" for weight in weights.values())])
