"""What a reward is: a function of prompts and answers with a name and a scale."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpref.data.truncation import TRUNCATIONS
from jaxpref.errors import InputError, RowError
from jaxpref.generation.prompts import given_prompts
from jaxpref.types import Group


@dataclass(frozen=True)
class Limits:
    """How long prompt and answer may be for models.

    As `data.max_length` and `data.truncation` of a run.
    """

    max_length: int | None = None
    """Tokens of prompt + one answer; None: no limit but the model's own, which is an error to
    exceed."""
    truncation: str = "keep_start"
    """What happens beyond it, as in `data.encode.encode_groups`."""

    def __post_init__(self):
        problems = []
        length = self.max_length
        if length is not None and not (type(length) is int and length >= 1):
            problems.append(f"max_length={length!r}: a whole number from 1")
        if self.truncation not in TRUNCATIONS:
            problems.append(f"truncation={self.truncation!r}: one of {', '.join(TRUNCATIONS)}")
        if problems:
            raise InputError(
                "limits that can be kept", "; ".join(problems), "change these settings"
            )


WHOLE = Limits()

Values = tuple[float, ...] | None
"""Rewards of a group's completions, in their order; None where the limits leave nothing of the
group."""


@dataclass(frozen=True)
class Reward:
    """A reward of answers: call it with prompts and as many answers, or let it score groups.

    Args:
        name: for tables and files.
        score: (prompts as groups without completions, answers) -> one number each, higher is
            better.
        bradley_terry: whether sigmoid(difference of two rewards of a prompt) is the probability
            that the first answer is preferred (`rewards/scale.py`).
        of_groups: (groups, limits) -> rewards of all completions of each, for rewards that read
            more than texts: models take the tokens on which a run with these limits would train.
            None: `score` of the texts.
        columns: data columns that `of_groups` reads.
        identity: -> text that changes with anything that its scores depend on (weights, code,
            versions), under which scores may be kept (`rewards/cache.py`).  None: they are not
            kept.
        temperature: what `score` and `of_groups` give is divided by it (`rewards/calibrate.py`).
        temperature_error: its standard error; None: not fitted.
        sees_pictures: whether it may be asked about prompts with pictures, which functions and
            rules of texts do not look at.
    """

    name: str
    score: Callable[[Sequence[Group], Sequence[str]], Sequence[float]]
    bradley_terry: bool = False
    of_groups: Callable[[Sequence[Group], Limits], Sequence[Values]] | None = None
    columns: tuple[str, ...] = ()
    identity: Callable[[], str] | None = None
    temperature: float = 1.0
    temperature_error: float | None = None
    sees_pictures: bool = True

    def __call__(self, prompts: Sequence[Any], answers: Sequence[str]) -> np.ndarray:
        """[n] float64 rewards.

        Args:
            prompts: texts, lists of messages, or groups
                (`jaxpref.generation.prompts.read_prompts`).
            answers: one text per prompt.
        Errors: InputError for unequal numbers, and for a reward that is not a finite number, naming
            the prompt.
        """
        if len(prompts) != len(answers) or not answers:
            raise InputError(
                "one answer or more, each with its prompt",
                f"{len(prompts)} prompts, {len(answers)} answers",
                "repeat a prompt for each of its answers",
            )
        texts = [prompt for prompt in prompts if not isinstance(prompt, Group)]
        made = iter(given_prompts(texts))
        groups = [prompt if isinstance(prompt, Group) else next(made) for prompt in prompts]
        rewards = list(self.score(groups, list(answers)))
        if len(rewards) != len(answers):
            raise InputError(
                f"a number for each answer from the reward {self.name}",
                f"{len(rewards)} for {len(answers)} answers",
                "let the reward return as many numbers as it is given answers",
            )
        for group, answer, reward in zip(groups, answers, rewards, strict=True):
            self._check(reward, f"{group.where}, answer {answer[:60]!r}")
        return np.array([float(reward) for reward in rewards]) / self.temperature

    def of(self, groups: Sequence[Group], limits: Limits = WHOLE) -> list[Values]:
        """Rewards of all completions of every group.

        Args:
            groups: prompts with completions, one or more each.
            limits: for models; rewards of texts read all of a text.
        Errors: InputError for a reward that is not a finite number; RowError, naming the row, for
            an answer of several messages where the reward reads texts.
        """

        def scaled(values: Values) -> Values:
            return None if values is None else tuple(float(x) / self.temperature for x in values)

        return [scaled(values) for values in self.raw(groups, limits)]

    def raw(self, groups: Sequence[Group], limits: Limits) -> list[Values]:
        """The same, not divided by the temperature."""
        if self.of_groups is None:
            return self._of_texts(groups)
        rewards = list(self.of_groups(groups, limits))
        for group, values in zip(groups, rewards, strict=True):
            for value in values or ():
                self._check(value, group.where)
        return rewards

    def _of_texts(self, groups: Sequence[Group]) -> list[Values]:
        prompts, texts = [], []
        for group in groups:
            prompt = dataclasses.replace(group, completions=(), columns={})
            for completion in group.completions:
                prompts.append(prompt)
                texts.append(plain_text(completion, group.where))
        if not texts:
            return [() for _ in groups]
        values = iter(dataclasses.replace(self, temperature=1.0)(prompts, texts).tolist())
        return [tuple(next(values) for _ in group.completions) for group in groups]

    def _check(self, value: Any, where: str) -> None:
        if not _is_number(value):
            raise InputError(
                f"a finite number from the reward {self.name}",
                f"{value!r} for {where}",
                "let the reward function return a finite number for every answer",
            )


def plain_text(completion: str | list[dict], where: str) -> str:
    """The text of an answer.

    Raises: RowError for an answer of several messages, or one that is more than its text.
    """
    if isinstance(completion, str):
        return completion
    if len(completion) == 1 and set(completion[0]) == {"role", "content"}:
        return completion[0]["content"]
    keys = sorted({key for message in completion for key in message})
    raise RowError(
        "an answer of more than one text",
        "answers of one message with nothing but text, for a reward that reads texts",
        f"{where}: {len(completion)} messages with {', '.join(keys)}",
        "drop the row (`--on-bad-row drop`), or take a reward that reads messages (a model)",
    )


def _is_number(value: Any) -> bool:
    """Whether it is a finite number, or an array without dimensions that holds one."""
    array = np.asarray(value)
    return array.shape == () and array.dtype.kind in "fiu" and bool(np.isfinite(array))
