"""Finished runs -> the record of a front: every policy measured, with what it cost."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from importlib.metadata import version
from typing import Any, NamedTuple

from jaxpref.config import Config
from jaxpref.data.rewrite import configured
from jaxpref.evaluation.bootstrap import Estimate, units_of
from jaxpref.pareto.config import FrontConfig
from jaxpref.pareto.entries import Entry, entries
from jaxpref.pareto.front import Front, Point
from jaxpref.pareto.inputs import answer_settings, asked_prompts
from jaxpref.pareto.measure import Candidate, EvaluationSet, mean_estimate
from jaxpref.pareto.policies import FrontPolicies
from jaxpref.pareto.rewards import judge, judge_digest
from jaxpref.pareto.run_configs import single_out
from jaxpref.pareto.settings import front_settings
from jaxpref.pareto.stages import Stages
from jaxpref.pareto.thumbnails import thumbnails
from jaxpref.pareto.told_pairs import HeldOutTexts
from jaxpref.runs.feed import read_data
from jaxpref.runs.metrics import read_jsonl
from jaxpref.storage.paths import as_path
from jaxpref.types import Group


class _Measured(NamedTuple):
    """What was measured of one policy."""

    answers: Mapping[str, Any]
    """As `EvaluationSet.answers` gives them."""
    accuracy: Mapping[str, Any]
    """Objective -> estimate, as JSON holds it."""
    reference_logps: Sequence[float]
    """Of its answers under the reference, nats."""
    rewards: Mapping[str, Sequence[float]]
    """Objective -> rewards of its answers."""


def measured_front(front: FrontConfig, singles: Mapping[str, Config], stages: Stages) -> Front:
    """Measures all policies of a front whose runs are finished.

    Args:
        singles: objective -> the config of its DPO run, whose data are its pairs.
    """
    policies = FrontPolicies(next(iter(singles.values())))
    evaluation = _evaluation_set(front, singles, policies)
    every = list(entries(front, policies, stages))
    answers, accuracies = [], []
    for entry in every:
        policy = cache(partial(entry.make, policies))  # read by the first stage that needs it
        answers.append(_answers(entry, evaluation, policy, stages))
        accuracies.append(_accuracy(entry, evaluation, policy, stages))
        del policy
    under_reference = stages(
        "reference-logps", lambda: {"logps": evaluation.logps(evaluation.reference, answers)}
    )["logps"]
    rewards = {
        name: _rewards(front, name, policies, evaluation, answers, under_reference, stages)
        for name in front.names
    }
    points = []
    for i, entry in enumerate(every):
        own_rewards = {name: of_policies[i] for name, of_policies in rewards.items()}
        measured = _Measured(answers[i], accuracies[i], under_reference[i], own_rewards)
        points.append(_point(front, entry, measured))
    prompts = [_text(evaluation.prompts[i]) for i in answers[0]["prompts"]]
    title = f"{' against '.join(front.names)}: {as_path(front.run.model.path).name}"
    shown = [thumbnails(evaluation.prompts[i]) for i in answers[0]["prompts"]]
    pictures = shown if any(shown) else []
    return Front(title, front.names, "reward", points, prompts, _about(front), pictures)


def _evaluation_set(
    front: FrontConfig, singles: Mapping[str, Config], policies: FrontPolicies
) -> EvaluationSet:
    """Held-out pairs of every objective, and the prompts that are answered."""
    held_out = {}
    for name, config in singles.items():
        groups, _ = read_data(replace(policies.pieces, config=config), "eval")
        held_out[name] = groups[: front.pareto.held_out]
    prompts, ids = asked_prompts(front, policies.pieces)
    data = [run.data for run in singles.values()]
    sources = [configured(each, each.eval_sets.get("", []), "eval") for each in data]
    texts = HeldOutTexts(sources, policies.pieces.tokenizer, policies.pieces.processor)
    return EvaluationSet(
        held_out, policies.reference(), prompts, ids, answer_settings(front), texts.told
    )


def _answers(
    entry: Entry, evaluation: EvaluationSet, policy: Callable[[], Candidate], stages: Stages
) -> dict[str, Any]:
    return stages(f"answers-{entry.name}", lambda: evaluation.answers(policy()))


def _accuracy(
    entry: Entry, evaluation: EvaluationSet, policy: Callable[[], Candidate], stages: Stages
) -> dict[str, Any]:
    def work() -> dict[str, Any]:
        estimates = evaluation.accuracy(policy())
        return {"accuracy": {name: asdict(estimate) for name, estimate in estimates.items()}}

    return stages(f"accuracy-{entry.name}", work)["accuracy"]


def _rewards(
    front: FrontConfig,
    name: str,
    policies: FrontPolicies,
    evaluation: EvaluationSet,
    answers: Sequence[Mapping[str, Any]],
    under_reference: Sequence[Sequence[float]],
    stages: Stages,
) -> list[list[float]]:
    """One objective's rewards of the answers of every policy.

    They are its judge's, or beta * (log pi - log ref) of its DPO policy.
    """
    objective = front.objective(name)
    if objective.judge or objective.reward:
        stage = f"rewards-{name}{judge_digest(front, name)}"
        judged = lambda: evaluation.judged(judge(front, name, stages), answers)
        return stages(stage, lambda: {"rewards": judged()})["rewards"]

    def work() -> dict[str, Any]:
        return {"logps": evaluation.logps(policies.run(single_out(front, name)), answers)}

    under_single = stages(f"logps-{name}", work)["logps"]
    rewards = []
    for logps, reference_logps in zip(under_single, under_reference, strict=True):
        pairs = zip(logps, reference_logps, strict=True)
        rewards.append([front.pareto.beta * (own - reference) for own, reference in pairs])
    return rewards


# ---- the record


def _point(front: FrontConfig, entry: Entry, measured: _Measured) -> Point:
    answers = measured.answers
    unit_B = units_of(answers["prompts"])
    tokens = [len(ids) for ids in answers["token_ids"]]
    measures = {
        "reward": {
            name: mean_estimate(values, unit_B) for name, values in measured.rewards.items()
        },
        "accuracy": {name: Estimate(**value) for name, value in measured.accuracy.items()},
        "tokens": {"answers": mean_estimate(tokens, unit_B)},
    }
    if front.pareto.answers.temperature == 1:  # only draws from the policy itself estimate it
        ratios = [
            own - reference
            for own, reference in zip(answers["logps"], measured.reference_logps, strict=True)
        ]
        measures["kl"] = {"to the reference, nats": mean_estimate(ratios, unit_B)}
    return Point(
        entry.name,
        entry.method,
        entry.weights,
        entry.base,
        front.run.train.seed,
        entry.run,
        measures,
        entry.cost,
        curves=[] if entry.run is None else read_jsonl(as_path(entry.run) / "metrics.jsonl"),
        answers=answers["texts"],
        rewards=measured.rewards,
    )


def _text(prompt: Group) -> str:
    if isinstance(prompt.prompt, str):
        return prompt.prompt
    return "\n\n".join(f"{message['role']}: {_content(message)}" for message in prompt.prompt)


def _content(message: Mapping[str, Any]) -> str:
    """A message's text, with a note where a picture stands."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "[picture] ") for part in content)


def _about(front: FrontConfig) -> dict[str, Any]:
    versions = {name: version(name) for name in ("jaxpref", "jax", "flax")}
    return {
        "config": front_settings(front),
        "versions": {**versions, "python": sys.version.split()[0]},
        "checkpoints": "the last of every run",
    }
