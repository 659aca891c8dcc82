"""What a policy of a front is worth: its accuracy on every objective's held-out pairs, and the
rewards of its answers.

All policies are measured on the same pairs, prompts and draws, against the same reference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from jaxpref.evaluation.bootstrap import DEFAULT, Estimate, estimates, mean, units_of
from jaxpref.generation.completions import Completion, Settings
from jaxpref.rewards.reward import Reward
from jaxpref.types import EncodedGroup, Group

Logps = Callable[[Sequence[EncodedGroup]], Mapping[int, np.ndarray]]
"""Groups -> {row id: [K] log-probs of the completions, summed over tokens, nats}."""
Answering = Callable[[Sequence[Group], Settings], Sequence[Completion]]
"""Prompts -> completions in the order of prompts and samples."""


Answer = tuple[bytes, bytes]
"""Tokens of a prompt and of an answer."""


@dataclass(frozen=True)
class Candidate:
    """A policy as a front sees it: how likely it finds given answers, and what it answers."""

    logps: Logps
    answers: Answering


@dataclass(frozen=True)
class Bench:
    """Where policies are measured.

    Args:
        held_out: objective -> its pairs, chosen first.
        reference: what log-ratios are to.
        prompts: that every policy answers.
        prompt_ids: the same as tokens.
        settings: how answers are drawn.
    """

    held_out: Mapping[str, Sequence[EncodedGroup]]
    reference: Candidate
    prompts: Sequence[Group]
    prompt_ids: Sequence[np.ndarray]
    settings: Settings

    def answers(self, policy: Candidate) -> dict[str, Any]:
        """Of every prompt: texts, their tokens, log-probs under the policy (nats) and numbers of
        their prompts."""
        done = policy.answers(self.prompts, self.settings)
        return {
            "texts": [item.text for item in done],
            "token_ids": [item.token_ids.tolist() for item in done],
            "logps": [item.logp for item in done],
            "prompts": [item.prompt_index for item in done],
        }

    def accuracy(self, policy: Candidate) -> dict[str, Estimate]:
        """Objective -> share of its pairs in which the log-ratio to the reference is larger for the
        chosen answer.

        A tie counts as none, so the reference itself has 0.
        """
        ratios = {
            key: logp - self._reference_logps[key]
            for key, logp in self._logps_of_answers(policy).items()
        }
        return {name: _accuracy(groups, ratios) for name, groups in self.held_out.items()}

    @cached_property
    def _reference_logps(self) -> dict[Answer, float]:
        return self._logps_of_answers(self.reference)

    @cached_property
    def _distinct(self) -> list[EncodedGroup]:
        """The pairs of all objectives, each once: objectives may label the same answers
        differently."""
        distinct: dict[tuple[bytes, frozenset], EncodedGroup] = {}
        for groups in self.held_out.values():
            for group in groups:
                answers = frozenset(ids.tobytes() for ids in group.completion_ids[:2])
                distinct.setdefault((group.prompt_ids.tobytes(), answers), group)
        keep = lambda group, i: replace(
            group, completion_ids=group.completion_ids[:2], row_id=i, columns={}
        )
        return [keep(group, i) for i, group in enumerate(distinct.values())]

    def _logps_of_answers(self, policy: Candidate) -> dict[Answer, float]:
        found = policy.logps(self._distinct)
        return {
            key: float(logp)
            for group in self._distinct
            for key, logp in zip(_answers(group), found[group.row_id], strict=False)
        }

    def logps(self, policy: Candidate, answers: Sequence[Mapping[str, Any]]) -> list[list[float]]:
        """Log-probs of the answers of several policies, nats a sequence, under one; in one call, so
        that every policy runs the same program."""
        flat = [
            item
            for found in answers
            for item in zip(found["prompts"], found["token_ids"], strict=True)
        ]
        groups = [
            EncodedGroup(self.prompt_ids[i], (np.array(ids, np.int32),), n, f"answer {n}")
            for n, (i, ids) in enumerate(flat)
        ]
        found = policy.logps(groups)
        return parts([float(found[n][0]) for n in range(len(groups))], answers)

    def judged(self, judge: Reward, answers: Sequence[Mapping[str, Any]]) -> list[list[float]]:
        """An explicit reward of the answers of several policies."""
        prompts = [self.prompts[i] for found in answers for i in found["prompts"]]
        return parts(
            judge(prompts, [text for found in answers for text in found["texts"]]), answers
        )


def _answers(group: EncodedGroup) -> list[Answer]:
    return [(group.prompt_ids.tobytes(), ids.tobytes()) for ids in group.completion_ids[:2]]


def _accuracy(groups: Sequence[EncodedGroup], ratios: Mapping[Answer, float]) -> Estimate:
    chosen_larger = [
        ratios[chosen] > ratios[rejected] for chosen, rejected in map(_answers, groups)
    ]
    return mean_estimate(chosen_larger, units_of([group.prompt_ids.tobytes() for group in groups]))


def parts(values: Sequence[float], answers: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Values of all answers -> those of every policy's."""
    sizes = [len(found["texts"]) for found in answers]
    return [part.tolist() for part in np.split(np.asarray(values, float), np.cumsum(sizes)[:-1])]


def mean_estimate(x_B: Any, unit_B: np.ndarray) -> Estimate:
    """Mean with its bootstrap interval over units."""
    return estimates(
        lambda weight_WB: {"mean": mean(weight_WB, np.asarray(x_B, float))}, unit_B, DEFAULT
    )["mean"]
