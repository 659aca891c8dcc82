"""A reward for the tests of fronts."""


def short(prompt, answer: str) -> float:
    return -len(answer)
