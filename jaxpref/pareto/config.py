"""The configuration of a front: that of a run, which all its runs share, and a section `pareto`
beside it.

out: runs/front
adapter: {rank: 16}
pareto:
  objectives:
    - {name: helpful, train: [helpful.jsonl], eval: [helpful-test.jsonl]}   # pairs; its reward is learned by DPO
    - {name: brief, reward: "rule:words"}                                   # an explicit reward
  weights: [[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]]
"""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from jaxpref.config import Config
from jaxpref.errors import InputError
from jaxpref.settings import make_config, merged_settings, to_dict

_STRICT = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
SHARED = "data.train"
"""Name of the pairs of data.train and data.eval beside the objectives' own; no objective can be
named so."""
SMALL_BASE = 0.1
"""Below this weight of the base the other rewards, which are divided by it, saturate the sigmoid
(arXiv 2310.03708)."""


@dataclass(frozen=True, config=_STRICT)
class ObjectiveConfig:
    name: str
    """For tables, directories and score columns: letters, digits, - and _."""
    train: list[str] = Field(default_factory=list)
    """Pairs labelled by this objective; empty: those of data.train, relabelled by its reward (ties
    dropped)."""
    eval: list[str] = Field(default_factory=list)
    """Held-out pairs of it; empty: those of data.eval, relabelled by its reward."""
    reward: str | None = None
    """Explicit reward, as `jaxpref score --reward` takes it; null: the implicit reward of a DPO
    policy that is trained on its pairs first."""
    temperature: float | Literal["fit"] = 1.0
    """What an explicit reward is divided by to be on the scale of a Bradley-Terry model; fit: by
    maximum likelihood on this objective's training pairs."""
    judge: str | None = None
    """Reward by which answers are judged; null: the objective's own."""


@dataclass(frozen=True, config=_STRICT)
class AnswersConfig:
    prompts: str | None = None
    """File of prompts that every policy answers; null: the first distinct prompts of the
    objectives' held-out data."""
    count: int = Field(default=64, ge=1)
    """Prompts at most."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens of an answer at most."""
    temperature: float = Field(default=1.0, ge=0)
    """Of the draw; 0: the most likely token each time."""
    samples: int = Field(default=1, ge=1)
    """Answers to every prompt."""
    batch_size: int = Field(default=32, ge=1)
    """Rows that are decoded together."""


Method = Literal["dpo", "modpo", "mod", "soup_deltas", "soup_factors"]


@dataclass(frozen=True, config=_STRICT)
class ParetoConfig:
    objectives: list[ObjectiveConfig] = Field(default_factory=list)
    """Two or more, in the order of the weights."""
    weights: list[list[float]] | None = None
    """Weight vectors, each entry > 0; they are divided by their sum."""
    grid: int | None = Field(default=None, ge=2)
    """In place of weights: all vectors whose entries are positive multiples of 1/grid."""
    base: str | None = None
    """The objective whose pairs MODPO trains on; null: for every point the one of the largest
    weight.  Labels that a reward gave are certain, whatever its temperature: prefer an objective
    with pairs of its own."""
    beta: float = Field(default=0.1, gt=0)
    """Of MODPO and of the single-objective DPO runs."""
    together: bool = True
    """Train the adapters of all points with the same base in one compiled step; false: one run
    after another."""
    methods: list[Method] = Field(default_factory=lambda: ["dpo", "modpo"])
    """What is shown: dpo are the ends, one run an objective; mod mixes these when decoding, soups
    average them."""
    answers: AnswersConfig = Field(default_factory=AnswersConfig)
    held_out: int | None = Field(default=None, ge=1)
    """Held-out pairs of every objective that are measured, the first ones; null: all."""
    warm_start: bool = False
    """Start every point from the DPO policy of its base; the reference stays the model."""


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
        pareto, n = self.pareto, len(self.names)
        if pareto.grid is not None:
            cuts = itertools.product(range(1, pareto.grid), repeat=n - 1)
            rows = [(*cut, pareto.grid - sum(cut)) for cut in cuts if sum(cut) < pareto.grid]
        else:
            rows = pareto.weights
        return [
            dict(zip(self.names, (x / math.fsum(row) for x in row), strict=True)) for row in rows
        ]

    def base(self, weights: Mapping[str, float]) -> str:
        """The objective whose pairs a point trains on."""
        return self.pareto.base or max(self.names, key=lambda name: weights[name])

    def pool(self, name: str) -> str:
        """Name of the pairs that an objective's DPO and MODPO runs train on."""
        return name if self.objective(name).train else SHARED

    def needs_single(self, name: str) -> bool:
        """Whether a DPO policy of this objective alone is trained."""
        return (
            self.objective(name).reward is None
            or self.pareto.warm_start
            or set(self.pareto.methods) != {"modpo"}
        )


def load_front_config(path: str | Path, overrides: Sequence[str] = ()) -> FrontConfig:
    """A front's YAML with `section.key=value` overrides.

    Errors: InputError listing everything that is wrong, at once.
    """
    raw = merged_settings(path, overrides)
    return make_front_config(raw, where=str(path))


def make_front_config(raw: Mapping[str, Any], *, where: str = "configuration") -> FrontConfig:
    """The front of a plain nested mapping; errors as in `load_front_config`."""
    raw, problems, run, pareto = dict(raw), [], None, None
    section = raw.pop("pareto", {})
    if "objective" in raw:
        problems.append(
            "objective: a front chooses it for every run (dpo, modpo): remove it; see pareto.beta"
        )
        del raw["objective"]
    try:
        run = make_config(raw, where=where, own_data=False)
    except InputError as error:
        problems += error.got.split("\n  - ")[1:]
    try:
        pareto = TypeAdapter(ParetoConfig).validate_json(json.dumps(section))
    except ValidationError as error:
        problems += [
            f"pareto.{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}"
            for e in error.errors()
        ]
    if pareto is not None:
        problems += _contradictions(pareto, run)
    if problems:
        raise InputError(
            "a valid configuration",
            f"{where}:\n  - " + "\n  - ".join(problems),
            "correct these keys",
        )
    return FrontConfig(run, pareto)


def _contradictions(pareto: ParetoConfig, run: Config | None) -> Iterator[str]:
    names = [objective.name for objective in pareto.objectives]
    if len(names) < 2 or len(set(names)) < len(names):
        yield f"pareto.objectives: two or more of different names, got {names}"
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name, re.ASCII):
            yield f"pareto.objectives: {name!r} is no name of letters, digits, - and _"
    if len(set(pareto.methods)) < len(pareto.methods):
        yield f"pareto.methods: {', '.join(pareto.methods)}: each once"
    if (pareto.weights is None) == (pareto.grid is None):
        yield "pareto.weights or pareto.grid: give one of them"
    if pareto.grid is not None and pareto.grid < len(names):
        yield f"pareto.grid={pareto.grid}: {len(names)} or more with {len(names)} objectives, for all weights are > 0"
    if pareto.weights == []:
        yield "pareto.weights: no vector; give one or more, or pareto.grid"
    yield from _repeated_weights(pareto.weights or ())
    for row in pareto.weights or ():
        if len(row) != len(names):
            yield f"pareto.weights: {row} has {len(row)} entries for {len(names)} objectives"
        elif not all(0 < x < math.inf for x in row):
            yield f"pareto.weights: {row} has an entry that is not > 0; the ends of the front are the method dpo"
    if pareto.base is not None and pareto.base not in names:
        yield f"pareto.base={pareto.base!r} is none of {names}"
    for objective in pareto.objectives:
        yield from _objective_contradictions(objective, run)
    if run is not None:
        yield from _run_contradictions(pareto, run)


def _repeated_weights(rows: Sequence[Sequence[float]]) -> Iterator[str]:
    """Points are named by their weights to four digits."""
    named: dict[tuple[str, ...], Sequence[float]] = {}
    for row in rows:
        total = math.fsum(row)
        name = tuple(f"{x / total:.4g}" for x in row) if 0 < total < math.inf else ()
        if name and name in named:
            yield f"pareto.weights: {row} and {named[name]} are the same point"
        named[name] = row


def _objective_contradictions(objective: ObjectiveConfig, run: Config | None) -> Iterator[str]:
    name = f"pareto.objectives: {objective.name}"
    if objective.reward is None:
        for key in ("train", "eval"):
            if not getattr(objective, key):
                yield f"{name} has neither {key} (pairs) nor a reward to relabel data.{key} with"
        if objective.temperature != 1.0:
            yield f"{name}: temperature is of an explicit reward; an implicit one has its scale from beta"
    elif bool(objective.train) != bool(objective.eval):
        yield f"{name} has one of train and eval (pairs); give both, or neither to relabel those of data.train"
    elif run is not None:
        for key in ("train", "eval"):
            if not getattr(objective, key) and not getattr(run.data, key):
                yield f"{name} has no {key}, and data.{key} is empty too"
        if objective.temperature == "fit" and not objective.train:
            yield (
                f"{name}: temperature=fit needs pairs labelled by people (or a judge) in train; pairs relabelled by "
                "the reward itself are never wrong, so every temperature above 0 would be too large"
            )
    if objective.temperature != "fit" and not 0 < objective.temperature < math.inf:
        yield f"{name}: temperature={objective.temperature} is not > 0"
    if (objective.reward or "").startswith("column:") and objective.judge is None:
        yield f"{name}: {objective.reward} is known for the data's answers only: name a judge for generated ones"


def _run_contradictions(pareto: ParetoConfig, run: Config) -> Iterator[str]:
    adapters = [key for key in ("soup_deltas", "soup_factors") if key in pareto.methods]
    if run.adapter.rank is None and adapters:
        yield f"pareto.methods: {', '.join(adapters)} average adapters: set adapter.rank"
    if run.adapter.dora and adapters:
        yield f"pareto.methods: {', '.join(adapters)} and adapter.dora, whose lengths are not a sum: leave one out"
    if pareto.together and run.adapter.rank is None:
        yield "pareto.together trains adapters: set adapter.rank, or pareto.together=false to train the weights"
    if run.adapter.path is not None:
        yield "adapter.path: every run of a front starts a new adapter: give adapter.rank"
    if pareto.warm_start and run.adapter.rank is None:
        yield "pareto.warm_start starts from adapters: set adapter.rank"
    if run.reference.path is not None or run.reference.adapter is not None:
        yield "reference.path and reference.adapter: the reference of a front is the model: remove them"
    if run.data.prefer is not None or run.data.other_rewards:
        yield "data.prefer and data.other_rewards: a front chooses them for every run: remove them"
    if run.reference.sync_every or run.reference.extra:
        yield "reference.sync_every and reference.extra have no place in a front: remove them"


def doubtful_bases(front: FrontConfig) -> list[str]:
    """What to warn about: points whose base has a small weight, or labels of which a reward is
    certain."""
    if "modpo" not in front.pareto.methods:
        return []
    labelled = [name for name in front.names if front.objective(name).train]
    bases = {front.base(weights) for weights in front.points} if labelled else set()
    relabelled = [
        f"the pairs of base {base!r} are labelled by its reward, always for the higher one, so its temperature does "
        f"not count at the points trained on them; pareto.base={labelled[0]} has labels of its own for all points"
        for base in front.names
        if base in bases and base not in labelled
    ]
    return relabelled + [
        f"base {base!r} has weight {weights[base]:.3g} in {describe(weights)}: below {SMALL_BASE} the other rewards, divided "
        "by it, saturate the loss; leave pareto.base out to take the largest weight"
        for weights in front.points
        if weights[base := front.base(weights)] < SMALL_BASE
    ]


def describe(weights: Mapping[str, float]) -> str:
    """As `helpful 0.3, harmless 0.7`."""
    return ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())


def point_name(method: str, weights: Mapping[str, float]) -> str:
    """As `modpo_0.3_0.7`."""
    return "_".join([method, *(f"{weight:.4g}" for weight in weights.values())])


def single_out(front: FrontConfig, name: str) -> str:
    """Directory of the DPO run of one objective."""
    return str(Path(front.run.out) / "dpo" / name)


def point_out(front: FrontConfig, weights: Mapping[str, float]) -> str:
    """Directory of the MODPO run of one weight vector."""
    return str(Path(front.run.out) / "points" / point_name("modpo", weights))


def single_run(front: FrontConfig, name: str, train: Sequence[str], eval: Sequence[str]) -> Config:
    """The DPO run of one objective.  Args: train, eval: its pairs, scored where they have to be
    relabelled.

    Every policy is measured at the end, on the same pairs; a run evaluates itself only if
    `train.eval_every` is set.
    """
    relabel = None if front.objective(name).train else name
    data = replace(front.run.data, train=list(train), eval=list(eval), prefer=relabel)
    return replace(
        front.run,
        out=single_out(front, name),
        data=data,
        objective=[{"name": "dpo", "beta": front.pareto.beta}],
    )


def point_run(
    front: FrontConfig, weights: Mapping[str, float], train: Sequence[str], eval: Sequence[str]
) -> Config:
    """The MODPO run of one weight vector.  Args: train, eval: the base's pairs, with scores of the
    other objectives."""
    base = front.base(weights)
    others = [name for name in front.names if name != base]
    single = single_run(front, base, train, eval)
    modpo = {
        "name": "modpo",
        "beta": front.pareto.beta,
        "w": [weights[base], *(weights[name] for name in others)],
    }
    data = replace(single.data, other_rewards=others)
    return replace(single, out=point_out(front, weights), data=data, objective=[modpo])


def front_settings(front: FrontConfig) -> dict[str, Any]:
    """What `make_front_config` makes the front of."""
    settings = to_dict(front.run)
    del settings["objective"]
    return settings | {"pareto": TypeAdapter(ParetoConfig).dump_python(front.pareto)}
