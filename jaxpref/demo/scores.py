"""The scores of the synthetic data's answers: rules that anyone can rerun on any text."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache

from jaxpref.demo.wording import cells
from jaxpref.errors import InputError

AXES = ("correctness", "brevity", "politeness")
FULL_BREVITY_WORDS, NO_BREVITY_WORDS = 5, 30

POLITE_PHRASES = cells("""
please|thank you|thanks|you're welcome|you are welcome|happy to help|glad to help|glad you asked
happy to explain|happy to answer|pleasure|gladly|of course|certainly|absolutely|great question
good question
nice question|lovely question|hope that helps|hope this helps|hope it helps|feel free|let me know
have a nice day|have a lovely day|have a great day|best wishes|all the best|take care|kind regards
kindly
i'd be happy|i'd be glad|sorry|apologies|appreciate|delighted|good luck|nice to hear|excuse me
wish you well
if i may
""")
RUDE_PHRASES = cells("""
stupid|silly|dumb|idiot|fool|foolish|lazy|ridiculous|pathetic|duh|ugh|obviously|shut up|go away
leave me alone
waste my time|wasting my time|waste of my time|who cares|whatever|look it up|google it|figure it out
your own homework|child knows|everyone knows|are you kidding|are you serious|seriously?
pay attention
stop asking|bother me|bothering me|how do you not know|how can you not know|clueless|hopeless
embarrassed
embarrassing|boring|annoying|don't ask|for the last time|thanks for nothing|moron|ignorant
your brain
nobody asked|tired of you
""")
_CLAUSE_END = re.compile(r"[.,;:!?()\n–—]|\b(?:but|and|so|because)\b")
_NEGATION = re.compile(r"\b(?:not|never|neither|nor|cannot)\b|n't\b")
_COMPARED_WITH = re.compile(r"\b(?:than|instead of|unlike)\s+(?:an?\s+|the\s+)?['\"]?$")
_NEGATED_AFTER = re.compile(r"['\"]?\s+(?:is|was)(?:n't|\s+(?:not|never|wrong|incorrect|false))\b")
_STRAIGHT_QUOTES = str.maketrans("‘’“”", "''\"\"")
_NUMBER_WORDS = """
two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen
eighteen nineteen twenty
""".split()


def score_correctness(text: str, answer: str, wrong: Sequence[str]) -> float:
    """1.0 if `text` asserts `answer` and no candidate of `wrong`, else 0.0.

    A candidate is asserted where it stands as a whole word or number ("12" is not in "112" or
    "12.5") and is neither negated in its clause ("not 12", "12 is wrong") nor only the far side of
    a comparison ("more than 12").  Numbers from 2 to 20 also match in words, and "3,000" matches
    "3000".  Accents are ignored.  Case counts only for candidates with a capital letter ("May" is
    not "may").
    """
    plain = _plain(text)
    asserts_wrong = any(_asserts(plain, candidate) for candidate in wrong)
    return float(_asserts(plain, answer) and not asserts_wrong)


def score_brevity(text: str) -> float:
    """1.0 up to 5 words (split at white space), falling linearly to 0.0 at 30.

    0.0 for an empty text.
    """
    words = len(text.split())
    if not words:
        return 0.0
    span = NO_BREVITY_WORDS - FULL_BREVITY_WORDS
    return min(max(NO_BREVITY_WORDS - words, 0), span) / span


def score_politeness(text: str) -> float:
    """0.5, plus 0.25 for each polite phrase; 0.5 minus 0.25 for each rude one if there is any.

    Up to two different phrases count, so the values are 0, 0.25, 0.5, 0.75 and 1; courtesy does not
    make up for rudeness.  A phrase negated in its clause ("that is not a stupid question") is not
    counted.
    """
    plain = _plain(text).lower()
    rude = min(_count_phrases(plain, RUDE_PHRASES), 2)
    polite = min(_count_phrases(plain, POLITE_PHRASES), 2)
    return 0.5 - 0.25 * rude if rude else 0.5 + 0.25 * polite


def score(text: str, answer: str, wrong: Sequence[str]) -> dict[str, float]:
    """All three scores of one answer, by axis."""
    return {
        "correctness": score_correctness(text, answer, wrong),
        "brevity": score_brevity(text),
        "politeness": score_politeness(text),
    }


def overall(scores: Mapping[str, float], weights: Mapping[str, float] | None = None) -> float:
    """Weighted sum of the scores over the axes.

    Args:
        weights: by axis; None: one third each.

    Raises:
        InputError: `weights` does not name exactly the three axes.
    """
    weights = dict.fromkeys(AXES, 1 / 3) if weights is None else weights
    if set(weights) != set(AXES):
        got = f"weights for {', '.join(sorted(weights))}"
        raise InputError(
            f"one weight for each of {', '.join(AXES)}", got, "name all three; 0 leaves one out"
        )
    total = 0.0
    for axis in AXES:  # not sum(): from Python 3.12 on it rounds floats differently
        total += weights[axis] * scores[axis]
    return total


def _plain(text: str) -> str:
    """Without accents, curly quotes and thousands commas."""
    if not text.isascii():
        text = text.translate(_STRAIGHT_QUOTES)
        text = "".join(
            c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)
        )
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)


def _asserts(plain: str, candidate: str) -> bool:
    for match in _candidate_pattern(candidate).finditer(plain):
        before, after = plain[: match.start()].lower(), plain[match.end() :].lower()
        mentioned_only = _COMPARED_WITH.search(before) or _NEGATED_AFTER.match(after)
        if not mentioned_only and not _negated(before):
            return True
    return False


def _negated(before: str) -> bool:
    """Whether the clause that `before` ends in holds a negation."""
    return bool(_NEGATION.search(_CLAUSE_END.split(before)[-1]))


@lru_cache(maxsize=4096)
def _candidate_pattern(candidate: str) -> re.Pattern:
    forms = [re.escape(_plain(candidate))]
    if candidate.isdigit() and 2 <= int(candidate) <= 20:
        forms.append(_NUMBER_WORDS[int(candidate) - 2])
    flags = 0 if candidate != candidate.lower() else re.IGNORECASE
    return re.compile(rf"(?<![\w-])(?<!\d[.,])(?:{'|'.join(forms)})(?![\w-]|[.,]\d)", flags)


def _count_phrases(plain: str, phrases: tuple[str, ...]) -> int:
    """How many different phrases the text has, without those negated in their clause."""
    matches = _phrase_pattern(phrases).finditer(plain)
    return len({match.group() for match in matches if not _negated(plain[: match.start()])})


@lru_cache(maxsize=2)
def _phrase_pattern(phrases: tuple[str, ...]) -> re.Pattern:
    longest_first = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
