"""Rewards of the enumerable answers of bandit.py: what it says of the nine, and less than the least of all others."""

import bandit


def _value(objective, answer):
    values = bandit.REWARDS[objective]
    return float(values[bandit.TEXTS.index(answer)]) if answer in bandit.TEXTS else float(values.min())


def first(prompt, answer):
    return _value(0, answer)


def second(prompt, answer):
    return _value(1, answer)
