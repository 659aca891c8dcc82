"""Evaluation of generated text: rewards of a policy's answers, and wins against another policy."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxpref.data.checks import shown
from jaxpref.errors import InputError
from jaxpref.evaluation.answers import Answers, in_order_of
from jaxpref.evaluation.bootstrap import (
    DEFAULT,
    Bootstrap,
    Estimate,
    check_bootstrap,
    correlation,
    estimates,
    mean,
    units_of,
)
from jaxpref.evaluation.report import Report, quantiles, split_defined
from jaxpref.evaluation.sign_test import sign_test
from jaxpref.processes.agreement import check_same
from jaxpref.rewards.reward import Reward

WIN_NOTE = (
    "win_rate counts a tie as half a win.  An answer is compared with the other's answer to the "
    "same prompt.  The sign test is exact and two-sided, over prompts: a prompt is won where more "
    "than half of its comparisons are; prompts that are tied are dropped."
)


@dataclass(frozen=True)
class Generations:
    """What `evaluate_answers` measured, and the arrays from which figures are drawn."""

    report: Report
    rows: list[dict[str, Any]]
    """Every answer with its rewards, and the answer that it was compared with."""
    rewards: Mapping[str, np.ndarray]
    """Reward -> [B] of the answers."""
    against: Mapping[str, np.ndarray] | None
    """The same of the other policy's, in the same order."""


def evaluate_answers(
    answers: Answers,
    rewards: Sequence[Reward],
    *,
    against: Answers | None = None,
    bootstrap: Bootstrap = DEFAULT,
    about: Mapping[str, Any] | None = None,
) -> Generations:
    """Rewards of answers, with intervals over prompts.

    Against another policy also win rates and sign tests.

    Args:
        answers: of the policy (`evaluation.answers`).
        rewards: each by itself; `jaxpref.rewards.open_reward` makes them.
        against: the other's, to the same prompts.
        about: more to say in the report.
    Errors: InputError where prompts differ, where hosts have other answers, and for a reward that
        is not a finite number.
    """
    _check_kinds(answers, rewards, against)
    check_bootstrap(bootstrap)
    names = names_of(rewards)
    other = None if against is None else in_order_of(answers, against)
    for one in (answers, other):
        if one is not None:
            _check_same_answers(one)
    ours, theirs = _scored(rewards, answers, other)
    unit_B = units_of(answers.keys)

    def statistics(weight_WB: np.ndarray) -> dict[str, np.ndarray]:
        values = {}
        for reward in rewards:
            theirs_B = None if theirs is None else theirs[reward.name]
            values |= _of_reward(weight_WB, reward, answers, ours[reward.name], theirs_B)
        values[f"characters/{_LENGTHS}"] = mean(weight_WB, _characters(answers))
        if other is not None:
            values[f"characters_against/{_LENGTHS}"] = mean(weight_WB, _characters(other))
        return values

    defined, left_out = split_defined(estimates(statistics, unit_B, bootstrap), _UNDEFINED)
    tests = []
    if theirs is not None:
        tests = [_test(name, ours[name] - theirs[name], unit_B) for name in names]
    prompts = int(unit_B.max()) + 1
    title = f"{answers.name}: {len(answers.texts)} answers to {prompts} prompts"
    sections: dict[str, dict[str, Estimate]] = {title: {} for title in (*names, _LENGTHS)}
    for name, estimate in defined.items():
        sections[name.partition("/")[2]][name] = estimate
    report = Report(
        about={
            "title": f"{title}, against {other.name}" if other else title,
            "policy": answers.name,
            "against": other.name if other else None,
            "answers": len(unit_B),
            "prompts": prompts,
            "rewards": names,
            "bootstrap": asdict(bootstrap),
            **(about or {}),
        },
        sections=sections,
        tables={"rewards": _quantiles(ours, theirs), "sign_test": tests},
        left_out=left_out,
        notes=list(_notes(tests, prompts, bootstrap)),
    )
    return Generations(report, _rows(answers, other, ours, theirs), ours, theirs)


def names_of(rewards: Sequence[Reward]) -> list[str]:
    """Errors: InputError for none, and for two of one name."""
    names = [reward.name for reward in rewards]
    if len(set(names)) < len(names) or not names:
        raise InputError(
            "one reward or more, of different names",
            ", ".join(names) or "none",
            "give every reward a name of its own, and at least one reward",
        )
    return names


def _check_kinds(answers: Any, rewards: Any, against: Any) -> None:
    """Errors: InputError for paths, policies and names in place of what is made of them."""
    for name, one in (("answers", answers), ("against", against)):
        if not isinstance(one, Answers | None if name == "against" else Answers):
            raise InputError(
                "answers that were read or generated",
                f"{name}: {shown(one)}",
                "make them by jaxpref.evaluation.read_answers(FILE) or generated_answers(RUN, "
                "PROMPTS, SETTINGS)",
            )
    given = rewards if isinstance(rewards, list | tuple) else [rewards]
    wrong = [reward for reward in given if not isinstance(reward, Reward)]
    if wrong or given is not rewards:
        raise InputError(
            "a list of rewards",
            f"rewards: {shown(wrong[0] if wrong else rewards)}",
            "make each by jaxpref.rewards.open_reward('rule:words') or function_reward(function), "
            "and put it into a list",
        )


def _check_same_answers(answers: Answers) -> None:
    """Errors: InputError on every process where some have others."""
    text = json.dumps([answers.keys, answers.texts])
    check_same(
        f"answers of {answers.name}",
        {"number": len(answers.texts), "digest": hashlib.sha256(text.encode()).hexdigest()[:12]},
        "give every host the same files",
    )


def _scored(
    rewards: Sequence[Reward], answers: Answers, other: Answers | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    """{reward: [B]} of the answers, and of the other's.

    Both in one call: a model is loaded and compiled once.
    """
    if other is None:
        return {reward.name: reward(answers.prompts, answers.texts) for reward in rewards}, None
    ours, theirs, n = {}, {}, len(answers.texts)
    for reward in rewards:
        both = reward(answers.prompts + other.prompts, answers.texts + other.texts)
        ours[reward.name], theirs[reward.name] = both[:n], both[n:]
    return ours, theirs


def _characters(answers: Answers) -> np.ndarray:
    return np.array([len(text) for text in answers.texts], float)


def _notes(tests: Sequence[Mapping[str, Any]], prompts: int, bootstrap: Bootstrap) -> Iterator[str]:
    for test in tests:
        yield (
            f"{test['reward']}: of {prompts} prompts {test['wins']} won, {test['losses']} lost, "
            f"{test['ties']} tied; sign test p = {test['p']:.3g}"
        )
    yield bootstrap.note(f"{prompts} prompts with all their answers")
    if tests:
        yield WIN_NOTE


_LENGTHS = "lengths of the answers"
_UNDEFINED = {"length_correlation": "rewards or lengths are all equal"}


def _of_reward(
    weight_WB: np.ndarray,
    reward: Reward,
    answers: Answers,
    ours_B: np.ndarray,
    theirs_B: np.ndarray | None,
) -> dict[str, np.ndarray]:
    name = reward.name
    values = {
        f"reward/{name}": mean(weight_WB, ours_B),
        f"length_correlation/{name}": correlation(weight_WB, ours_B, _characters(answers)),
    }
    if theirs_B is None:
        return values
    difference_B = ours_B - theirs_B
    values |= {
        f"reward_against/{name}": mean(weight_WB, theirs_B),
        f"difference/{name}": mean(weight_WB, difference_B),
        f"win_rate/{name}": mean(weight_WB, wins(difference_B)),
        f"ties/{name}": mean(weight_WB, (difference_B == 0).astype(float)),
    }
    if reward.bradley_terry:
        # The mean probability that a judge of this reward prefers ours.
        probability_B = np.exp(-np.logaddexp(0.0, -difference_B))
        values[f"expected_win_rate/{name}"] = mean(weight_WB, probability_B)
    return values


def wins(difference_B: np.ndarray) -> np.ndarray:
    """1 where ours is better, 0 where the other is, 0.5 for a tie."""
    return 0.5 + 0.5 * np.sign(difference_B)


def _test(name: str, difference_B: np.ndarray, unit_B: np.ndarray) -> dict[str, Any]:
    """The sign test over prompts."""
    share = np.bincount(unit_B, wins(difference_B)) / np.bincount(unit_B)
    won, lost = int((share > 0.5).sum()), int((share < 0.5).sum())
    return {
        "reward": name,
        "wins": won,
        "losses": lost,
        "ties": len(share) - won - lost,
        "p": sign_test(won, lost),
    }


def _quantiles(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray] | None
) -> list[dict[str, Any]]:
    table = []
    for name in ours:
        table.append({"reward": name, "of": "policy", **quantiles(ours[name])})
        if theirs is not None:
            table.append({"reward": name, "of": "against", **quantiles(theirs[name])})
    return table


def _rows(
    answers: Answers,
    other: Answers | None,
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray] | None,
) -> list[dict[str, Any]]:
    rows = []
    for b, (prompt, text) in enumerate(zip(answers.prompts, answers.texts, strict=True)):
        row = {"prompt": prompt.prompt, "completion": text, "rewards": _of_row(ours, b)}
        if other is not None:
            row["against"] = {"completion": other.texts[b], "rewards": _of_row(theirs, b)}
        rows.append(row)
    return rows


def _of_row(rewards: Mapping[str, np.ndarray], b: int) -> dict[str, float]:
    return {name: float(reward_B[b]) for name, reward_B in rewards.items()}
