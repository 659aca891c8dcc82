"""Finished runs -> the record of a front: every policy measured, with what it cost."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxpref.config import Config
from jaxpref.data.rewrite import configured, groups_of
from jaxpref.evaluation.bootstrap import Estimate, units_of
from jaxpref.pareto.config import (
    SHARED,
    FrontConfig,
    front_settings,
    point_name,
    point_out,
    single_out,
)
from jaxpref.pareto.cost import Cost, Work
from jaxpref.pareto.front import Front, Point
from jaxpref.pareto.inputs import answer_settings, asked_prompts
from jaxpref.pareto.measure import Bench, Candidate, mean_estimate
from jaxpref.pareto.policies import LATEST, Make, Shelf
from jaxpref.pareto.rewards import judge, judge_digest, limits
from jaxpref.pareto.stages import Stages
from jaxpref.rewards.tokens import encode_within
from jaxpref.runs.feed import read_data
from jaxpref.runs.flops import forward_flops
from jaxpref.runs.merge import merge
from jaxpref.runs.metrics import read_jsonl
from jaxpref.types import Group


@dataclass(frozen=True)
class Entry:
    """A policy of the front, before it is measured."""

    name: str
    method: str
    weights: Mapping[str, float] | None
    make: Make
    base: str | None = None
    run: str | None = None
    cost: Cost = Cost()


def measured_front(front: FrontConfig, singles: Mapping[str, Config], stages: Stages) -> Front:
    """Measures all policies of a front whose runs are finished.

    Args:
        singles: objective -> the config of its DPO run, whose data are its pairs.
    """
    shelf = Shelf(next(iter(singles.values())))
    bench = _bench(front, singles, shelf)
    entries, answers, accuracies = list(_entries(front, shelf, stages)), [], []
    for entry in entries:
        policy = cache(partial(entry.make, shelf))  # read by the first stage that needs it
        answers.append(
            stages(f"answers-{entry.name}", lambda policy=policy: bench.answers(policy()))
        )
        accuracies.append(
            stages(f"accuracy-{entry.name}", lambda policy=policy: _accuracy(bench, policy()))
        )
        del policy
    reference = stages("reference-logps", lambda: {"logps": bench.logps(bench.reference, answers)})[
        "logps"
    ]
    rewards = {
        name: _rewards(front, name, shelf, bench, answers, reference, stages)
        for name in front.names
    }
    points = [
        _point(
            front,
            entry,
            {
                "answers": answers[i],
                "accuracy": accuracies[i],
                "reference": reference[i],
                "rewards": {name: found[i] for name, found in rewards.items()},
            },
        )
        for i, entry in enumerate(entries)
    ]
    prompts = [_text(bench.prompts[i]) for i in answers[0]["prompts"]]
    title = f"{' against '.join(front.names)}: {Path(front.run.model.path).name}"
    return Front(title, front.names, "reward", points, prompts, _about(front))


def _bench(front: FrontConfig, singles: Mapping[str, Config], shelf: Shelf) -> Bench:
    """Held-out pairs of every objective, and the prompts that are answered."""
    read = lambda config: read_data(replace(shelf.pieces, config=config), "eval")[0][
        : front.pareto.held_out
    ]
    held_out = {name: read(config) for name, config in singles.items()}
    return Bench(
        held_out, shelf.reference(), *asked_prompts(front, shelf.pieces), answer_settings(front)
    )


def _accuracy(bench: Bench, policy: Candidate) -> dict[str, Any]:
    return {"accuracy": {name: asdict(found) for name, found in bench.accuracy(policy).items()}}


def _rewards(
    front, name: str, shelf: Shelf, bench: Bench, answers, reference, stages: Stages
) -> list[list[float]]:
    """One objective's rewards of all answers: of its judge, or beta * (log pi - log ref) of its DPO
    policy."""
    objective = front.objective(name)
    if objective.judge or objective.reward:
        judged = lambda: {"rewards": bench.judged(judge(front, name, stages), answers)}
        return stages(f"rewards-{name}{judge_digest(front, name)}", judged)["rewards"]
    single = lambda: shelf.run(single_out(front, name))
    own = stages(f"logps-{name}", lambda: {"logps": bench.logps(single(), answers)})["logps"]
    pairs = zip(own, reference, strict=True)
    return [[front.pareto.beta * (x - y) for x, y in zip(*pair, strict=True)] for pair in pairs]


# ---- what is measured, and what it cost


def _entries(front: FrontConfig, shelf: Shelf, stages: Stages) -> Iterator[Entry]:
    """The reference, the ends, and every method at every weight vector."""
    methods, runs = front.pareto.methods, {name: single_out(front, name) for name in front.names}
    yield Entry("reference", "reference", None, lambda shelf: shelf.reference())
    trained = {name: stages.cost(f"dpo-{name}") for name in front.names if front.needs_single(name)}
    if "dpo" in methods:
        for name in front.names:
            one_hot = {other: float(other == name) for other in front.names}
            make = lambda shelf, name=name: shelf.run(runs[name])
            cost = Cost(trained[name], _label_costs(front, name, stages))
            yield Entry(f"dpo_{name}", "dpo", one_hot, make, name, runs[name], cost)
    for method in (method for method in methods if method != "dpo"):
        for weights in front.points:
            name = point_name(method, weights)
            if method == "modpo":
                run, base = point_out(front, weights), front.base(weights)
                make = lambda shelf, run=run: shelf.run(run)
                shared = {
                    **_policy_costs(front, _policies_before(front, base), trained, stages),
                    **_scoring_costs(front, base, shelf, stages),
                }
                yield Entry(
                    name,
                    method,
                    weights,
                    make,
                    base,
                    run,
                    _point_cost(front, weights, shared, stages),
                )
            else:
                make = partial(_untrained, front, method, weights, runs, name)
                cost = Cost(shared=_policy_costs(front, front.names, trained, stages))
                yield Entry(name, method, weights, make, cost=cost)


def _policies_before(front: FrontConfig, base: str) -> list[str]:
    """Objectives whose DPO policy a MODPO point needs: learned rewards, and the one that it starts
    from."""
    margin = lambda name: name != base and front.objective(name).reward is None
    return [
        name for name in front.names if margin(name) or (name == base and front.pareto.warm_start)
    ]


def _untrained(
    front: FrontConfig, method: str, weights: Mapping[str, float], runs, name: str, shelf: Shelf
) -> Candidate:
    given = {runs[objective]: weight for objective, weight in weights.items()}
    if method == "mod":
        return shelf.mix(given)
    to = Path(front.run.out) / "soups" / name
    if not to.is_dir():
        merge(given, to, how=method.removeprefix("soup_"), adapter=True, step=LATEST)
    return shelf.adapter(to)


def _point_cost(
    front: FrontConfig, weights: Mapping[str, float], shared: Mapping[str, Work], stages: Stages
) -> Cost:
    """An equal share of the run that trained it, and what it needs besides."""
    base = front.base(weights)
    count = sum(front.base(other) == base for other in front.points) if front.pareto.together else 1
    run = stages.cost(point_name("modpo", weights) if count == 1 else f"stacked-{base}")
    return Cost(Work(run.flops / count, run.seconds / count), shared, count)


def _policy_costs(
    front, names: Sequence[str], trained: Mapping[str, Work], stages: Stages
) -> dict[str, Work]:
    """Of the DPO policies of objectives, with the labels that they were trained on."""
    labels = {
        key: work for name in names for key, work in _label_costs(front, name, stages).items()
    }
    return {f"DPO on {name}": trained[name] for name in names} | labels


def _label_costs(front: FrontConfig, name: str, stages: Stages) -> dict[str, Work]:
    """Of an objective's pairs, where its reward labels them."""
    return {} if front.objective(name).train else _explicit_costs(front, SHARED, stages)


def _explicit_costs(front: FrontConfig, pool: str, stages: Stages) -> dict[str, Work]:
    """Of the explicit scores of some pairs; what models among the rewards compute is not
    counted."""
    rewards = {o.name: o.reward for o in front.pareto.objectives if o.reward}
    models = any(what.startswith("adapter:") or Path(what).exists() for what in rewards.values())
    work = stages.cost(f"score-explicit-{pool}-train")
    fitted = [name for name in rewards if front.objective(name).temperature == "fit"]
    return {
        f"explicit scores of {pool}": replace(work, flops=None) if models else work,
        **{f"temperature of {name}": stages.cost(f"temperature-{name}") for name in fitted},
    }


def _scoring_costs(front: FrontConfig, base: str, shelf: Shelf, stages: Stages) -> dict[str, Work]:
    """Of the scores of a base's training pairs; an implicit reward is a forward pass of policy and
    reference."""
    pool = front.pool(base)
    implicit = [
        name for name in front.names if front.objective(name).reward is None and name != base
    ]
    explicit = any(
        front.objective(name).reward for name in front.names if name != base or pool == SHARED
    )
    found = _explicit_costs(front, pool, stages) if explicit else {}
    if implicit:
        count = lambda: {"flops": _forward_flops(front, pool, shelf)}
        passes = 2 * len(implicit) * stages(f"forward-flops-{pool}", count)["flops"]
        found[f"implicit scores of {pool}"] = replace(
            stages.cost(f"score-implicit-{pool}-train"), flops=passes
        )
    return found


def _forward_flops(front: FrontConfig, pool: str, shelf: Shelf) -> float:
    """Of one pass over all training pairs of a pool, ties among them, as they are scored."""
    data = front.run.data
    paths = data.train if pool == SHARED else front.objective(pool).train
    groups = encode_within(
        list(groups_of(configured(data, paths, "train"))), shelf.pieces.tokenizer, limits(front)
    )
    return forward_flops(shelf.pieces.source.spec, groups, share_prefix=data.share_prefix)


# ---- the record


def _point(front: FrontConfig, entry: Entry, found: Mapping[str, Any]) -> Point:
    answers, rewards = found["answers"], found["rewards"]
    unit_B = units_of(answers["prompts"])
    tokens = [len(ids) for ids in answers["token_ids"]]
    measures = {
        "reward": {name: mean_estimate(values, unit_B) for name, values in rewards.items()},
        "accuracy": {
            name: Estimate(**value) for name, value in found["accuracy"]["accuracy"].items()
        },
        "tokens": {"answers": mean_estimate(tokens, unit_B)},
    }
    if front.pareto.answers.temperature == 1:  # only draws from the policy itself estimate it
        ratios = [
            own - reference
            for own, reference in zip(answers["logps"], found["reference"], strict=True)
        ]
        measures["kl"] = {"to the reference, nats": mean_estimate(ratios, unit_B)}
    curves = [] if entry.run is None else read_jsonl(Path(entry.run) / "metrics.jsonl")
    return Point(
        entry.name,
        entry.method,
        entry.weights,
        entry.base,
        front.run.train.seed,
        entry.run,
        measures,
        entry.cost,
        curves,
        answers["texts"],
        rewards,
    )


def _text(prompt: Group) -> str:
    if isinstance(prompt.prompt, str):
        return prompt.prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt.prompt)


def _about(front: FrontConfig) -> dict[str, Any]:
    return {
        "config": front_settings(front),
        "versions": {name: version(name) for name in ("jaxpref", "jax", "flax")}
        | {"python": sys.version.split()[0]},
        "checkpoints": "the last of every run",
    }
