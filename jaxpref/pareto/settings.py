"""A front's configuration: read, overridden, checked, and written down again."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jaxpref.config import Config
from jaxpref.errors import InputError
from jaxpref.pareto.config import (
    BY_ADAPTER,
    ON_POLICY,
    FrontConfig,
    ObjectiveConfig,
    ParetoConfig,
    describe,
)
from jaxpref.settings import (
    as_json,
    check_mapping,
    described,
    make_config,
    merged_settings,
    to_dict,
)

SMALL_BASE = 0.1
"""Below this weight of the base the sigmoid saturates (arXiv 2310.03708).

The other rewards are divided by that weight.
"""


def load_front_config(path: str | Path, overrides: Sequence[str] = ()) -> FrontConfig:
    """A front's YAML with `section.key=value` overrides.

    Errors: InputError listing everything that is wrong, at once.
    """
    return make_front_config(merged_settings(path, overrides), where=str(path))


def make_front_config(raw: Mapping[str, Any], *, where: str = "configuration") -> FrontConfig:
    """The front of a plain nested mapping; errors as in `load_front_config`."""
    check_mapping(raw, "make_front_config")
    of_functions = "a reward that is a function stands as FILE.py:FUNCTION"
    raw, problems, run, pareto = as_json(raw, where, of_functions), [], None, None
    section = raw.pop("pareto", {})
    if "objective" in raw:
        problems.append(
            "objective: a front chooses it for every run (dpo, modpo): remove it; see pareto.beta"
        )
        del raw["objective"]
    try:
        run = make_config(raw, where=where)
    except InputError as error:
        listed = error.got.split("\n  - ")[1:]
        if not listed:
            raise
        problems += listed
    try:
        pareto = TypeAdapter(ParetoConfig).validate_json(json.dumps(section))
    except ValidationError as error:
        problems += described(error, ParetoConfig, "pareto.")
    if pareto is not None:
        problems += _contradictions(pareto, run)
    if problems:
        raise InputError(
            "a valid configuration",
            f"{where}:\n  - " + "\n  - ".join(problems),
            "change these keys as each line says",
        )
    return FrontConfig(run, pareto)


def front_settings(front: FrontConfig) -> dict[str, Any]:
    """What `make_front_config` makes the front of."""
    settings = to_dict(front.run)
    del settings["objective"]
    return settings | {"pareto": TypeAdapter(ParetoConfig).dump_python(front.pareto)}


# ---- contradictions


def _contradictions(pareto: ParetoConfig, run: Config | None) -> Iterator[str]:
    names = [objective.name for objective in pareto.objectives]
    yield from _name_contradictions(pareto, names)
    yield from _weight_contradictions(pareto, names)
    for objective in pareto.objectives:
        yield from _objective_contradictions(objective, run)
    if pareto.answers.prompts == "":
        yield "pareto.answers.prompts is an empty text: name a file, or leave it out"
    if run is not None:
        if isinstance(run.data.eval, dict):
            yield "data.eval: a front has one set of held-out pairs: give a list of paths"
        yield from _run_contradictions(pareto, run)


def _name_contradictions(pareto: ParetoConfig, names: Sequence[str]) -> Iterator[str]:
    if len(names) < 2 or len(set(names)) < len(names):
        yield f"pareto.objectives: two or more of different names, got {names}"
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name, re.ASCII):
            yield f"pareto.objectives: {name!r} is no name of letters, digits, - and _"
    if not pareto.methods:
        yield "pareto.methods: none; name one or more"
    if len(set(pareto.methods)) < len(pareto.methods):
        yield f"pareto.methods: {', '.join(pareto.methods)}: name each once"
    if len(set(pareto.seeds)) < len(pareto.seeds):
        yield f"pareto.seeds: {pareto.seeds}: name each once"
    if pareto.base is not None and pareto.base not in names:
        yield f"pareto.base={pareto.base!r} is none of {names}"


def _weight_contradictions(pareto: ParetoConfig, names: Sequence[str]) -> Iterator[str]:
    if (pareto.weights is None) == (pareto.grid is None):
        yield "pareto.weights or pareto.grid: give one of them"
    if pareto.grid is not None and pareto.grid < len(names):
        yield (
            f"pareto.grid={pareto.grid}: set {len(names)} or more with {len(names)} objectives, "
            "because all weights are > 0"
        )
    if pareto.weights == []:
        yield "pareto.weights: no vector; give one or more, or pareto.grid"
    yield from _repeated_weights(pareto.weights or ())
    for row in pareto.weights or ():
        if len(row) != len(names):
            yield f"pareto.weights: {row} has {len(row)} entries for {len(names)} objectives"
        elif not all(0 < x < math.inf for x in row):
            yield (
                f"pareto.weights: {row} has an entry that is not > 0; "
                "for the ends of the front add dpo to pareto.methods"
            )


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
    for key in ("reward", "judge"):
        if getattr(objective, key) == "":
            yield f"{name}: {key} is an empty text: name a reward, or leave it out"
    if objective.reward is None:
        yield from _learned_reward_contradictions(objective, name)
    elif bool(objective.train) != bool(objective.eval):
        yield (
            f"{name} has one of train and eval (pairs); "
            "give both, or neither to relabel those of data.train"
        )
    elif run is not None:
        yield from _explicit_reward_contradictions(objective, run, name)
    if objective.temperature != "fit" and not 0 < objective.temperature < math.inf:
        yield f"{name}: temperature={objective.temperature} is not > 0"
    if (objective.reward or "").startswith("column:") and objective.judge is None:
        yield (
            f"{name}: {objective.reward} is known only for the answers in the data: "
            "name a judge for generated ones"
        )


def _learned_reward_contradictions(objective: ObjectiveConfig, name: str) -> Iterator[str]:
    for key in ("train", "eval"):
        if not getattr(objective, key):
            yield f"{name} has neither {key} (pairs) nor a reward to relabel data.{key} with"
    if objective.temperature != 1.0:
        yield (
            f"{name}: temperature divides an explicit reward; "
            "an implicit one has its scale from beta"
        )


def _explicit_reward_contradictions(
    objective: ObjectiveConfig, run: Config, name: str
) -> Iterator[str]:
    for key in ("train", "eval"):
        if not getattr(objective, key) and not getattr(run.data, key):
            yield f"{name} has no {key}, and data.{key} is empty too"
    if objective.temperature == "fit" and not objective.train:
        yield (
            f"{name}: temperature=fit needs pairs labelled by people (or a judge) in train; pairs "
            "relabelled by the reward itself are never wrong, so every temperature above 0 would "
            "be too large"
        )


def _run_contradictions(pareto: ParetoConfig, run: Config) -> Iterator[str]:
    soups = ", ".join(key for key in ("soup_deltas", "soup_factors") if key in pareto.methods)
    if run.adapter.rank is None and soups:
        yield f"pareto.methods: {soups} average adapters: set adapter.rank"
    by_adapter = ", ".join(method for method in BY_ADAPTER if method in pareto.methods)
    if by_adapter and run.adapter.rank is None:
        yield f"pareto.methods: {by_adapter} are kinds of adapters: set adapter.rank"
    if by_adapter and (run.adapter.dora or run.adapter.rslora):
        yield (
            f"pareto.methods: {by_adapter} with adapter.dora or adapter.rslora, which are of LoRA: "
            "remove one of them"
        )
    if run.adapter.kind != "lora":
        yield "adapter.kind: methods of a front choose it (panacea, pblora): remove it"
    if run.adapter.dora and soups:
        yield (
            f"pareto.methods: {soups} and adapter.dora, whose lengths are not a sum: "
            "remove one of them"
        )
    if pareto.together and run.adapter.rank is None:
        yield (
            "pareto.together trains adapters: set adapter.rank, "
            "or pareto.together=false to train the weights"
        )
    if run.adapter.path is not None:
        yield "adapter.path: every run of a front starts a new adapter: set adapter.rank instead"
    if pareto.warm_start and run.adapter.rank is None:
        yield "pareto.warm_start starts from adapters: set adapter.rank"
    if run.reference.path is not None or run.reference.adapter is not None:
        yield (
            "reference.path and reference.adapter: the reference of a front is the model: "
            "remove them"
        )
    if run.data.prefer is not None or run.data.other_rewards:
        yield "data.prefer and data.other_rewards: a front chooses them for every run: remove them"
    if run.optim.combine != "sum":
        yield "optim.combine: methods of a front choose it (raco): remove it; optim.combine_c stays"
    yield from _online_contradictions(pareto, run)
    if run.reference.sync_every or run.reference.extra:
        yield "reference.sync_every and reference.extra have no place in a front: remove them"


def _online_contradictions(pareto: ParetoConfig, run: Config) -> Iterator[str]:
    online = run.online
    draws = online.dirichlet or online.weight_vectors
    if online.rewards or online.weights or online.scales or draws:
        yield (
            "online.rewards, weights, scales, dirichlet and weight_vectors: a front chooses them "
            "for every run: remove them; see pareto.dirichlet"
        )
    methods = [method for method in pareto.methods if method in ON_POLICY]
    for objective in pareto.objectives:
        if methods and (objective.reward or "").startswith("column:"):
            yield (
                f"pareto.objectives: {objective.name}: {objective.reward} cannot score the answers "
                f"of {', '.join(methods)}: name a reward that can"
            )
    if methods and run.reference.mode == "cache":
        yield (
            f"reference.mode=cache with {', '.join(methods)}, whose answers are drawn on the way: "
            "set reference.mode=copy"
        )


# ---- doubts


def doubtful_bases(front: FrontConfig) -> list[str]:
    """Warnings about points whose base is relabelled by a reward, or has a small weight."""
    if "modpo" not in front.pareto.methods:
        return []
    return [*_relabelled_bases(front), *_bases_of_small_weight(front)]


def _relabelled_bases(front: FrontConfig) -> Iterator[str]:
    labelled = [name for name in front.names if front.objective(name).train]
    if not labelled:
        return
    bases = {front.base(weights) for weights in front.points}
    for base in front.names:
        if base in bases and base not in labelled:
            yield (
                f"the pairs of base {base!r} are labelled by its reward, always for the higher "
                "one, so its temperature has no effect at the points trained on them; "
                f"pareto.base={labelled[0]} has labels of its own for all points"
            )


def _bases_of_small_weight(front: FrontConfig) -> Iterator[str]:
    for weights in front.points:
        base = front.base(weights)
        if weights[base] < SMALL_BASE:
            yield (
                f"base {base!r} has weight {weights[base]:.3g} in {describe(weights)}: below "
                f"{SMALL_BASE} the other rewards, divided by it, saturate the loss; remove "
                "pareto.base to take the objective of the largest weight"
            )
