"""The rules of `scores.py` as rewards of any answer to the demos' questions.

A config names them as `jaxpref.demo.judges:brevity`.
"""

from collections.abc import Mapping, Sequence
from functools import cache

from jaxpref.demo import scores, synthetic
from jaxpref.errors import InputError

_ROWS, _SEED, _TEST_FRACTION = 1000, 0, 0.1
"""As the demos generate them."""

Prompt = str | Sequence[Mapping[str, str]]


def correctness(prompt: Prompt, answer: str) -> float:
    """1 if the answer asserts the right candidate and no wrong one, else 0.

    Errors: InputError for a question that the demos do not ask.
    """
    question = _question(prompt)
    if question not in _solutions():
        raise InputError(
            "a question of the demos' generated data",
            repr(question),
            "judge answers to other questions by another reward",
        )
    return scores.score_correctness(answer, *_solutions()[question])


def brevity(prompt: Prompt, answer: str) -> float:
    """1 up to 5 words, falling to 0 at 30; 0 for an empty text."""
    return scores.score_brevity(answer)


def politeness(prompt: Prompt, answer: str) -> float:
    """0 (rude) to 1 (polite), by phrases."""
    return scores.score_politeness(answer)


def _question(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


@cache
def _solutions() -> dict[str, tuple[str, list[str]]]:
    """Question -> the right answer and the wrong ones."""
    train, test = synthetic.generate(_ROWS, seed=_SEED, test_fraction=_TEST_FRACTION)
    return {_question(row["prompt"]): (row["answer"], row["wrong"]) for row in train + test}
