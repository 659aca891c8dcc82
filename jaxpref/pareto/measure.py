"""What policies of a front are worth: accuracy on held-out pairs, and the rewards of their answers.

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
from jaxpref.types import EncodedGroup, Group, Text

Logps = Callable[[Sequence[EncodedGroup]], Mapping[int, np.ndarray]]
"""Groups -> {row id: [K] log-probs of the completions, summed over tokens, nats}."""
Generate = Callable[[Sequence[Group], Settings], Sequence[Completion]]
"""Prompts -> completions in the order of prompts and samples."""

Tell = Callable[[Text], Text]
"""A prompt -> the same with more in it."""
TellPairs = Callable[[Sequence[EncodedGroup], Tell], Sequence[EncodedGroup]]
"""Held-out pairs -> the same pairs, their prompts told."""

AnswerKey = tuple[bytes, bytes]
"""The tokens of a prompt and of an answer to it, hashable."""


@dataclass(frozen=True)
class Candidate:
    """A policy as a front sees it: how likely it finds given answers, and what it answers.

    Args:
        tell: what is done to every prompt before this policy reads it; None: nothing.
    """

    logps: Logps
    generate: Generate
    tell: Tell | None = None


@dataclass(frozen=True)
class EvaluationSet:
    """What all policies of a front are measured on.

    Args:
        held_out: objective -> its pairs, chosen first.
        reference: what log-ratios are to.
        prompts: that every policy answers.
        prompt_ids: the same as tokens.
        settings: how answers are drawn.
        tell_pairs: held-out pairs for policies that read other prompts than the reference.
    """

    held_out: Mapping[str, Sequence[EncodedGroup]]
    reference: Candidate
    prompts: Sequence[Group]
    prompt_ids: Sequence[np.ndarray]
    settings: Settings
    tell_pairs: TellPairs

    def answers(self, policy: Candidate) -> dict[str, Any]:
        """The policy's answers, in the order of the prompts, as JSON holds them.

        Returns: texts, their tokens, log-probs under the policy (nats) and numbers of their
            prompts.
        """
        prompts = self.prompts
        if policy.tell:
            prompts = [replace(prompt, prompt=policy.tell(prompt.prompt)) for prompt in prompts]
        completions = policy.generate(prompts, self.settings)
        return {
            "texts": [completion.text for completion in completions],
            "token_ids": [completion.token_ids.tolist() for completion in completions],
            "logps": [completion.logp for completion in completions],
            "prompts": [completion.prompt_index for completion in completions],
        }

    def accuracy(self, policy: Candidate) -> dict[Any, Estimate]:
        """Objective -> share of its pairs whose chosen answer has the larger log-ratio.

        Log-ratios are to the reference, which reads the prompts that the policy reads.  A tie does
        not count, so the reference itself has 0.
        """
        reference_logps = self._reference_logps
        if policy.tell:
            reference_logps = self._logps_of_held_out(replace(self.reference, tell=policy.tell))
        ratios = {
            key: logp - reference_logps[key]
            for key, logp in self._logps_of_held_out(policy).items()
        }
        return {name: _accuracy(groups, ratios) for name, groups in self.held_out.items()}

    @cached_property
    def _reference_logps(self) -> dict[AnswerKey, float]:
        return self._logps_of_held_out(self.reference)

    @cached_property
    def _distinct_pairs(self) -> list[EncodedGroup]:
        """The pairs of all objectives, each once: objectives may label the same answers apart."""
        first_of: dict[tuple[bytes, frozenset], EncodedGroup] = {}
        for groups in self.held_out.values():
            for group in groups:
                answers = frozenset(ids.tobytes() for ids in group.completion_ids[:2])
                first_of.setdefault((group.prompt_key, answers), group)
        return [
            replace(group, completion_ids=group.completion_ids[:2], row_id=number, columns={})
            for number, group in enumerate(first_of.values())
        ]

    def _logps_of_held_out(self, policy: Candidate) -> dict[AnswerKey, float]:
        pairs: Sequence[EncodedGroup] = self._distinct_pairs
        if policy.tell:
            pairs = self.tell_pairs(pairs, policy.tell)
        logps_of_row = policy.logps(pairs)
        logps = {}
        for group in self._distinct_pairs:
            for key, logp in zip(_answer_keys(group), logps_of_row[group.row_id], strict=False):
                logps[key] = float(logp)
        return logps

    def logps(
        self, policy: Candidate, answers_of_policies: Sequence[Mapping[str, Any]]
    ) -> list[list[float]]:
        """Log-probs under one policy of the answers of several, nats per sequence.

        They come of one call, so that every policy runs the same program.
        """
        groups = []
        for answers in answers_of_policies:
            for prompt, ids in zip(answers["prompts"], answers["token_ids"], strict=True):
                number = len(groups)
                completion_ids = (np.array(ids, np.int32),)
                group = EncodedGroup(
                    self.prompt_ids[prompt],
                    completion_ids,
                    number,
                    f"answer {number}",
                    pictures=self.prompts[prompt].pictures,
                )
                groups.append(group)
        logps_of_row = policy.logps(groups)
        flat = [float(logps_of_row[number][0]) for number in range(len(groups))]
        return split_by_policy(flat, answers_of_policies)

    def judged(
        self, judge: Reward, answers_of_policies: Sequence[Mapping[str, Any]]
    ) -> list[list[float]]:
        """An explicit reward of the answers of several policies."""
        prompts, texts = [], []
        for answers in answers_of_policies:
            prompts += [self.prompts[i] for i in answers["prompts"]]
            texts += answers["texts"]
        return split_by_policy(judge(prompts, texts), answers_of_policies)


def _answer_keys(group: EncodedGroup) -> list[AnswerKey]:
    return [(group.prompt_key, ids.tobytes()) for ids in group.completion_ids[:2]]


def _accuracy(groups: Sequence[EncodedGroup], ratios: Mapping[AnswerKey, float]) -> Estimate:
    chosen_larger = [
        ratios[chosen] > ratios[rejected] for chosen, rejected in map(_answer_keys, groups)
    ]
    return mean_estimate(chosen_larger, units_of([group.prompt_key for group in groups]))


def split_by_policy(
    values: Sequence[float] | np.ndarray, answers_of_policies: Sequence[Mapping[str, Any]]
) -> list[list[float]]:
    """Values of the answers of all policies -> those of each policy."""
    ends = np.cumsum([len(answers["texts"]) for answers in answers_of_policies])
    return [part.tolist() for part in np.split(np.asarray(values, float), ends[:-1])]


def mean_estimate(x_B: Any, unit_B: np.ndarray) -> Estimate:
    """Mean with its bootstrap interval over units."""
    x_B = np.asarray(x_B, float)
    return estimates(lambda weight_WB: {"mean": mean(weight_WB, x_B)}, unit_B, DEFAULT)["mean"]
