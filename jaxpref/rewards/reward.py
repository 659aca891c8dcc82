"""What a reward is: a function of prompts and answers with a name and a scale."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpref.errors import InputError
from jaxpref.generation.prompts import given_prompts
from jaxpref.types import Group


@dataclass(frozen=True)
class Reward:
    """A reward of answers; call it with prompts and as many answers.

    Args:
        name: for tables and files.
        score: (prompts as groups without completions, answers) -> a number each, higher is better.
        bradley_terry: whether sigmoid(difference of two rewards of a prompt) is the probability that the first answer
            is preferred (`rewards/scale.py`).
    """

    name: str
    score: Callable[[Sequence[Group], Sequence[str]], Sequence[float]]
    bradley_terry: bool = False

    def __call__(self, prompts: Sequence[Any], answers: Sequence[str]) -> np.ndarray:
        """[n] float64 rewards.

        Args:
            prompts: texts, lists of messages, or groups (`jaxpref.generation.prompts.read_prompts`).
            answers: a text each.
        Errors: InputError for unequal numbers, and for a reward that is not a finite number, naming the prompt.
        """
        if len(prompts) != len(answers) or not answers:
            raise InputError(
                "one answer or more, each with its prompt", f"{len(prompts)} prompts, {len(answers)} answers",
                "repeat a prompt for each of its answers",
            )  # fmt: skip
        texts = [prompt for prompt in prompts if not isinstance(prompt, Group)]
        made = iter(given_prompts(texts))
        groups = [prompt if isinstance(prompt, Group) else next(made) for prompt in prompts]
        rewards = list(self.score(groups, list(answers)))
        for group, answer, reward in zip(groups, answers, rewards, strict=True):
            if not _is_number(reward):
                raise InputError(
                    f"a finite number from the reward {self.name}",
                    f"{reward!r} for {group.where}, answer {answer[:60]!r}",
                    "mend the reward function",
                )
        return np.array([float(reward) for reward in rewards])


def _is_number(value: Any) -> bool:
    """A finite one, also where it is an array of no dimensions."""
    array = np.asarray(value)
    return array.shape == () and array.dtype.kind in "fiu" and bool(np.isfinite(array))
