"""The rules of `synthetic.py` as rewards of any answer to its questions:
`jaxpref.demo.judges:brevity`."""

from collections.abc import Mapping, Sequence
from functools import cache

from jaxpref.demo import synthetic
from jaxpref.errors import InputError

_ROWS, _SEED, _TEST_FRACTION = 1000, 0, 0.1
"""As the demos generate them."""

Prompt = str | Sequence[Mapping[str, str]]


def correctness(prompt: Prompt, answer: str) -> float:
    """1 if the answer asserts the right one and no wrong one, else 0.  Errors: InputError for an
    unknown question."""
    question = _question(prompt)
    if question not in _solutions():
        raise InputError(
            "a question of the demos' generated data", repr(question), "judge it by another reward"
        )
    return synthetic.score_correctness(answer, *_solutions()[question])


def brevity(prompt: Prompt, answer: str) -> float:
    """1 up to 5 words, falling to 0 at 30; 0 for an empty text."""
    return synthetic.score_brevity(answer)


def politeness(prompt: Prompt, answer: str) -> float:
    """0 (rude) to 1 (polite), by phrases."""
    return synthetic.score_politeness(answer)


def _question(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


@cache
def _solutions() -> dict[str, tuple[str, list[str]]]:
    """Question -> the right answer and the wrong ones."""
    rows = [
        row
        for split in synthetic.generate(_ROWS, seed=_SEED, test_fraction=_TEST_FRACTION)
        for row in split
    ]
    return {_question(row["prompt"]): (row["answer"], row["wrong"]) for row in rows}
