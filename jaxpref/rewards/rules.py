"""Rewards by rule, and from columns: no model, no download.

Some need the packages of `jaxpref[rewards]`.
"""

import functools
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

from jaxpref.data.dimensions import scores_of
from jaxpref.errors import InputError, optional_package
from jaxpref.rewards.reward import Limits, Reward, Values
from jaxpref.rewards.tokens import token_count_reward
from jaxpref.types import Group

RULES_HELP = """    rule:words                       minus the number of words
    rule:tokens:MODEL                minus the number of its tokenizer's tokens
    rule:vader                       VADER's compound sentiment, -1 to 1
    rule:readability                 Flesch's reading ease: 60 to 70 is plain
    rule:profanity                   minus the number of profane words"""

_WORDS_KEPT = 1 << 16


def rule_reward(what: str) -> Reward:
    """A reward by rule, named as in `RULES_HELP` without `rule:`.

    Errors: InputError for an unknown rule, and for a package that is not installed.
    """
    name, _, argument = what.partition(":")
    if name == "tokens" and argument:
        return token_count_reward(argument)
    if name not in _TEXT_RULES or argument:
        raise InputError(
            f"a rule: {', '.join(f'rule:{known}' for known in _TEXT_RULES)} or rule:tokens:MODEL",
            f"rule:{what}",
            "name one of these rules",
        )
    make, package = _TEXT_RULES[name]
    rule = make()
    version = importlib.metadata.version(package) if package else ""
    score = lambda prompts, answers: [rule(answer) for answer in answers]
    return Reward(f"rule:{name}", score, identity=lambda: f"rule:{name} {package} {version}")


def column_reward(name: str) -> Reward:
    """A score that the data has already: `scores/NAME`, or the column NAME of every answer.

    The latter stands in NAME_chosen and so on.  It scores groups only: an answer that was just
    generated has no score.
    Errors (when called): InputError for texts; RowError for a row without the score.
    """

    def of_groups(groups: Sequence[Group], limits: Limits) -> list[Values]:
        return [_column(group, name) for group in groups]

    def score(prompts: Sequence[Group], answers: Sequence[str]) -> list[float]:
        raise InputError(
            "a reward that can score new answers",
            f"column:{name}, a score that is in the data",
            "take a rule, a function or a model",
        )

    columns = (name, f"scores/{name}")
    return Reward(f"column:{name}", score, of_groups=of_groups, columns=columns)


def _column(group: Group, name: str) -> tuple[float, ...]:
    column = group.columns.get(name)
    one_number_each = isinstance(column, tuple) and not isinstance(column[0], tuple)
    return column if one_number_each else scores_of(group, name)


# ---- rules of texts


def _words() -> Callable[[str], float]:
    return lambda answer: -len(answer.split())


def _vader() -> Callable[[str], float]:
    analyzer = _package("vaderSentiment.vaderSentiment", "vader").SentimentIntensityAnalyzer()
    return lambda answer: analyzer.polarity_scores(answer)["compound"]


def _readability() -> Callable[[str], float]:
    return _package("textstat", "readability").textstat.flesch_reading_ease


def _profanity() -> Callable[[str], float]:
    judge = _package("better_profanity", "profanity").Profanity()
    # It compares a word with every word of its list, so each is judged once.
    is_profane = functools.lru_cache(_WORDS_KEPT)(judge.contains_profanity)
    return lambda answer: -sum(map(is_profane, answer.lower().split()))


def _package(module: str, rule: str) -> Any:
    return optional_package(module, f"rule:{rule}", "rewards")


_TEXT_RULES = {
    "words": (_words, ""),
    "vader": (_vader, "vaderSentiment"),
    "readability": (_readability, "textstat"),
    "profanity": (_profanity, "better-profanity"),
}
"""Name -> (what makes the function of a text, the package whose version it depends on)."""
