"""Finished runs -> the record of a front: every policy measured, with what it cost."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxpref import build as b
from jaxpref.config import Config
from jaxpref.data.rewrite import configured, read_pairs
from jaxpref.evaluation.bootstrap import Estimate, units_of
from jaxpref.generate import Settings
from jaxpref.generation.opening import Opened
from jaxpref.generation.prompts import prompt_ids, read_prompts
from jaxpref.generation.sampling import Sampling
from jaxpref.merge import merge
from jaxpref.metrics import forward_flops, read_jsonl
from jaxpref.pareto.config import FrontConfig, explicit_reward, front_settings, point_name, point_out, single_out
from jaxpref.pareto.cost import Cost, Work
from jaxpref.pareto.front import Front, Point
from jaxpref.pareto.measure import Bench, Policy, first_prompts, mean_estimate
from jaxpref.pareto.policies import LATEST, Make, Shelf
from jaxpref.rewards import open_reward
from jaxpref.types import Group

Stage = Callable[[str, Callable[[], Mapping[str, Any]]], dict[str, Any]]
"""(name, work) -> what the work returned and its `seconds`; done once (`sweep.py`)."""


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


def measured_front(front: FrontConfig, singles: Mapping[str, Config], stage: Stage) -> Front:
    """Measures all policies of a front whose runs are finished.

    Args:
        singles: objective -> the config of its DPO run, whose data are its pairs.
    """
    shelf = Shelf(next(iter(singles.values())))
    bench = _bench(front, singles, shelf)
    entries, answers, accuracies = list(_entries(front, singles, shelf, stage)), [], []
    for entry in entries:
        policy = cache(partial(entry.make, shelf))  # read by the first stage that needs it
        answers.append(stage(f"answers-{entry.name}", lambda policy=policy: bench.answers(policy())))
        accuracies.append(stage(f"accuracy-{entry.name}", lambda policy=policy: _accuracy(bench, policy())))
        del policy
    reference = stage("logps-reference", lambda: {"logps": bench.logps(bench.reference, answers)})["logps"]
    rewards = {name: _rewards(front, name, shelf, bench, answers, reference, stage) for name in front.names}
    points = [
        _point(front, entry, {"answers": answers[i], "accuracy": accuracies[i], "reference": reference[i],
                              "rewards": {name: found[i] for name, found in rewards.items()}})
        for i, entry in enumerate(entries)
    ]  # fmt: skip
    prompts = [_text(bench.prompts[i]) for i in answers[0]["prompts"]]
    title = f"{' against '.join(front.names)}: {Path(front.run.model.path).name}"
    return Front(title, front.names, "reward", points, prompts, _about(front))


def _bench(front: FrontConfig, singles: Mapping[str, Config], shelf: Shelf) -> Bench:
    """Held-out pairs of every objective, and the prompts that are answered."""
    asked, pieces = front.pareto.answers, shelf.pieces
    read = lambda config: b.read_data(replace(pieces, config=config), "eval")[0][: front.pareto.held_out]
    held_out = {name: read(config) for name, config in singles.items()}
    if asked.prompts is None:
        sources = {name: configured(config.data, config.data.eval, "eval") for name, config in singles.items()}
        prompts = first_prompts({name: read_pairs(source) for name, source in sources.items()}, asked.count)
    else:
        prompts = read_prompts(asked.prompts)[: asked.count]
    positions = Opened(pieces, None).positions
    ids = prompt_ids(prompts, pieces.tokenizer, positions=positions, max_new_tokens=asked.max_new_tokens)
    settings = Settings(
        Sampling(asked.temperature), samples=asked.samples, max_new_tokens=asked.max_new_tokens,
        seed=front.run.train.seed, batch_size=asked.batch_size,
    )  # fmt: skip
    return Bench(held_out, shelf.reference(), prompts, ids, settings)


def _accuracy(bench: Bench, policy: Policy) -> dict[str, Any]:
    return {"accuracy": {name: asdict(found) for name, found in bench.accuracy(policy).items()}}


def _rewards(front, name: str, shelf: Shelf, bench: Bench, answers, reference, stage: Stage) -> list[list[float]]:
    """One objective's rewards of all answers: of its judge, or beta * (log pi - log ref) of its DPO policy."""
    objective = front.objective(name)
    what = objective.judge or objective.reward
    if what is not None:
        judge = open_reward(what) if objective.judge else explicit_reward(front, name)
        return stage(f"rewards-{name}", lambda: {"rewards": bench.judged(judge, answers)})["rewards"]
    single = shelf.run(single_out(front, name))
    own = stage(f"logps-{name}", lambda: {"logps": bench.logps(single, answers)})["logps"]
    pairs = zip(own, reference, strict=True)
    return [[front.pareto.beta * (x - y) for x, y in zip(*pair, strict=True)] for pair in pairs]


# ---- what is measured, and what it cost


def _entries(front: FrontConfig, singles: Mapping[str, Config], shelf: Shelf, stage: Stage) -> Iterator[Entry]:
    """The reference, the ends, and every method at every weight vector."""
    methods, runs = front.pareto.methods, {name: single_out(front, name) for name in front.names}
    yield Entry("reference", "reference", None, lambda shelf: shelf.reference())
    trained = {name: _stage_cost(stage, f"dpo-{name}") for name in front.names if front.needs_single(name)}
    margins = [trained[name] for name in front.names if front.objective(name).reward is None]
    scoring = _scoring_cost(front, singles, shelf, stage)
    if "dpo" in methods:
        for name in front.names:
            one_hot = {other: float(other == name) for other in front.names}
            make = lambda shelf, name=name: shelf.run(runs[name])
            yield Entry(f"dpo_{name}", "dpo", one_hot, make, name, runs[name], Cost(*trained[name]))
    for method in (method for method in methods if method != "dpo"):
        for weights in front.points:
            name = point_name(method, weights)
            if method == "modpo":
                run = point_out(front, weights)
                own, shared = _point_cost(front, weights, stage), _added([*margins, scoring])
                make = lambda shelf, run=run: shelf.run(run)
                yield Entry(name, _modpo(front, weights), weights, make, front.base(weights), run, Cost(*own, *shared))
            else:
                make = partial(_untrained, front, method, weights, runs, name)
                yield Entry(name, method, weights, make, cost=Cost(0.0, 0.0, *_added(trained.values())))


def _modpo(front: FrontConfig, weights: Mapping[str, float]) -> str:
    return "modpo_stacked" if _together(front, weights) else "modpo"


def _together(front: FrontConfig, weights: Mapping[str, float]) -> int:
    """With how many points one was trained together; 0: by itself."""
    same = [other for other in front.points if front.base(other) == front.base(weights)]
    return len(same) if front.pareto.together and len(same) > 1 else 0


def _untrained(front: FrontConfig, method: str, weights: Mapping[str, float], runs, name: str, shelf: Shelf) -> Policy:
    given = {runs[objective]: weight for objective, weight in weights.items()}
    if method == "mod":
        return shelf.mix(given)
    to = Path(front.run.out) / "soups" / name
    if not to.is_dir():
        merge(given, to, how=method.removeprefix("soup_"), adapter=True, step=LATEST)
    return shelf.adapter(to)


def _stage_cost(stage: Stage, name: str) -> tuple[float, float]:
    """(FLOPs, seconds) of a finished stage."""
    found = stage(name, _not_done)
    return found.get("flops", 0.0), found["seconds"]


def _not_done() -> dict[str, Any]:
    raise AssertionError("measured before it was trained")


def _point_cost(front: FrontConfig, weights: Mapping[str, float], stage: Stage) -> tuple[float, float]:
    count = _together(front, weights)
    if not count:
        return _stage_cost(stage, point_name("modpo", weights))
    return tuple(x / count for x in _stage_cost(stage, f"stacked-{front.base(weights)}"))


def _scoring_cost(front: FrontConfig, singles: Mapping[str, Config], shelf: Shelf, stage: Stage) -> tuple[float, float]:
    """Of the margins; an implicit reward is a forward pass of policy and reference over all pairs."""
    implicit = [name for name in front.names if front.objective(name).reward is None]
    kinds = (["explicit"] if len(implicit) < len(front.names) else []) + (["all"] if implicit else [])
    pools = {front.pool(name): singles[name] for name in front.names}
    if "modpo" not in front.pareto.methods:
        return 0.0, 0.0
    names = [f"score-{kind}-{pool}-{side}" for kind in kinds for pool in pools for side in ("train", "eval")]
    seconds = sum(stage(name, _not_done)["seconds"] for name in names)
    if not implicit:
        return 0.0, seconds
    count = lambda: {"flops": sum(_forward_flops(shelf, config) for config in pools.values())}
    return 2 * len(implicit) * stage("forward-flops", count)["flops"], seconds


def _forward_flops(shelf: Shelf, config: Config) -> float:
    """Of one pass over a run's training and held-out pairs, ties among them."""
    pieces = replace(shelf.pieces, config=replace(config, data=replace(config.data, prefer=None, margins=[])))
    groups = [group for side in ("train", "eval") for group in b.read_data(pieces, side)[0]]
    return forward_flops(pieces.source.spec, groups, share_prefix=config.data.share_prefix)


def _added(costs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    flops, seconds = zip((0.0, 0.0), *costs, strict=True)
    return sum(flops), sum(seconds)


# ---- the record


def _point(front: FrontConfig, entry: Entry, found: Mapping[str, Any]) -> Point:
    answers, rewards = found["answers"], found["rewards"]
    unit_B = units_of(answers["prompts"])
    tokens = [len(ids) for ids in answers["token_ids"]]
    measures = {
        "reward": {name: mean_estimate(values, unit_B) for name, values in rewards.items()},
        "accuracy": {name: Estimate(**value) for name, value in found["accuracy"]["accuracy"].items()},
        "tokens": {"answers": mean_estimate(tokens, unit_B)},
    }
    if front.pareto.answers.temperature == 1:  # only draws from the policy itself estimate it
        ratios = [own - reference for own, reference in zip(answers["logps"], found["reference"], strict=True)]
        measures["kl"] = {"to the reference, nats": mean_estimate(ratios, unit_B)}
    curves = [] if entry.run is None else read_jsonl(Path(entry.run) / "metrics.jsonl")
    return Point(
        entry.name, entry.method, entry.weights, entry.base, front.run.train.seed, entry.run, measures, entry.cost,
        curves, answers["texts"], rewards,
    )  # fmt: skip


def _text(prompt: Group) -> str:
    if isinstance(prompt.prompt, str):
        return prompt.prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt.prompt)


def _about(front: FrontConfig) -> dict[str, Any]:
    return {
        "config": front_settings(front),
        "versions": {name: version(name) for name in ("jaxpref", "jax", "flax")} | {"python": sys.version.split()[0]},
        "checkpoints": "the last of every run",
    }
