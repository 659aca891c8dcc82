"""A preference put into the prompt, so that one policy serves every preference: data for training,
prompts for answers.

    cdpo       "< helpful: 5 > " before the prompt: the scores that are asked for; pairs are labelled by how well an
               answer meets them (controllable DPO, arXiv 2402.19085)
    ric        " <rm1_score> 0.4 <rm2_score> -1.2 " behind the prompt: the scores that the answer has, for supervised
               training (rewards-in-context, arXiv 2402.10207)
    metaalign  a preference in words before the prompt; pairs are labelled by the score that it stands for (MetaAlign,
               arXiv 2410.14184)

In messages, tags are put into the last message of the user, and words become the system's message
(before one that is there).
"""

import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxpref.data.dimensions import Preferred, preferred_pairs, scores_of
from jaxpref.data.rewrite import Source, group_of, rows_of
from jaxpref.errors import InputError, RowError
from jaxpref.types import Group

Prompt = str | list[dict]

CDPO_TAG = "< {name}: {value} > "
"""As the authors' code writes it."""
RIC_TAG = "<rm{number}_score> {value} "
"""Likewise; the scores are numbered from 1 in their order."""
_GOAL = " asked for"
"""Name of the score by which controllable DPO labels; no score of the data is called so."""


@dataclass
class ConditionReport:
    """What became of the rows."""

    rows: int = 0
    written: int = 0
    tied: int = 0
    """Pairs that the preference does not tell apart: dropped."""
    swapped: int = 0
    """Pairs in which the preference chose the other answer than the row."""
    dropped: Counter = field(default_factory=Counter)
    """Unusable rows, by reason."""

    def __str__(self) -> str:
        drops = [f"{count} dropped: {reason}" for reason, count in sorted(self.dropped.items())]
        pairs = f"{self.swapped} pairs turned round, {self.tied} dropped as ties"
        head = f"{self.rows} rows in, {self.written} out; {pairs}"
        return "\n".join([head, *drops])


# ---- prompts


def before(prompt: Prompt, text: str) -> Prompt:
    """The prompt with a text in front: of the last message of the user, where it is messages."""
    return (
        text + prompt
        if isinstance(prompt, str)
        else _last_user(prompt, lambda content: text + content)
    )


def behind(prompt: Prompt, text: str, ending: str = "") -> Prompt:
    """The prompt with a text behind it, after one space: behind the last message of the user, where
    it is messages.

    Args:
        ending: where a text prompt ends with it (as "\\n\\nAssistant:"), the text goes before it.
    """
    if not isinstance(prompt, str):
        return _last_user(prompt, lambda content: f"{content.rstrip()} {text.rstrip()}")
    ending = ending if prompt.endswith(ending) else ""
    return f"{prompt.removesuffix(ending).rstrip()} {text}{ending}"


def instructed(prompt: Prompt, words: str) -> Prompt:
    """The prompt after words of instruction: a paragraph before a text, the system's message before
    messages."""
    if isinstance(prompt, str):
        return f"{words}\n\n{prompt}"
    if prompt[0]["role"] == "system":
        return [{**prompt[0], "content": f"{words}\n\n{prompt[0]['content']}"}, *prompt[1:]]
    return [{"role": "system", "content": words}, *prompt]


def _last_user(messages: Sequence[dict], change: Any) -> list[dict]:
    at = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
    if at is None:
        raise InputError("a message of the user, to put tags into", f"{messages!r:.80}", "add one")
    changed = {**messages[at], "content": change(messages[at]["content"])}
    return [*messages[:at], changed, *messages[at + 1 :]]


def cdpo_prompt(prompt: Prompt, targets: Mapping[str, float], tag: str = CDPO_TAG) -> Prompt:
    """The prompt that asks for answers of these scores.

    Args:
        targets: score -> the value asked for, in the data's units.
    """
    return before(
        prompt,
        "".join(tag.format(name=name, value=shown(value)) for name, value in targets.items()),
    )


def ric_prompt(
    prompt: Prompt, scores: Sequence[float], tag: str = RIC_TAG, ending: str = ""
) -> Prompt:
    """The prompt with normalised scores, rounded to one decimal, in the order of training."""
    tags = (
        tag.format(number=i, value=f"{_rounded(value, 1):.1f}") for i, value in enumerate(scores, 1)
    )
    return behind(prompt, "".join(tags), ending)


def shown(value: float) -> str:
    """A number as it stands in a tag: 5, not 5.0."""
    return str(int(value)) if value == int(value) else str(value)


def _rounded(value: float, digits: int) -> float:
    return round(float(value), digits) + 0.0  # no -0.0


# ---- controllable DPO


@dataclass(frozen=True)
class ControllableDPO:
    """How pairs are conditioned and labelled.

    Args:
        scores: those that count, in the order of the tags.
        control: those that may be asked for; of the others the higher is the better.
        subsets: ask for a random non-empty part of `control` in every row, not for all of it.
        strength: lambda > 0, of the distance from what is asked for.
        copies: of every row, each with a draw of its own, >= 1.
        digits: to which the values asked for are rounded.
        seed: of the draws.
    """

    scores: Sequence[str]
    control: Sequence[str]
    subsets: bool = False
    strength: float = 1.0
    copies: int = 1
    digits: int = 1
    seed: int = 0
    tag: str = CDPO_TAG


def cdpo_rows(source: Source, how: ControllableDPO, report: ConditionReport) -> Iterator[dict]:
    """Rows of pairs: the prompt asks for the scores of one of its answers, drawn at random; the
    answer that meets them better is chosen.

    g = sum_i [ -lambda |s_i - c_i| where score i is asked for, s_i where it is not ], c the scores
    asked for: Guo et al., arXiv 2402.19085, as their code prepares UltraFeedback.  Ties of g are
    dropped.

    Args:
        source: pairs, or rows with `completions`, which give all their pairs.
        report: counts.
    """
    _check_cdpo(how)
    for row, group, kind in _usable_pairs(source, how.scores, report):
        for copy in range(how.copies):
            rng = random.Random(f"{how.seed} {group.row_id} {copy}")
            scores = {name: scores_of(group, name) for name in how.scores}
            targets = _targets(rng, scores, how)
            goal = [
                _goal({name: x[k] for name, x in scores.items()}, targets, how.strength)
                for k in _each(group)
            ]
            prompt = cdpo_prompt(group.prompt, targets, how.tag)
            yield from _labelled(row, group, kind, prompt, goal, report)


def _check_cdpo(how: ControllableDPO) -> None:
    odd = [name for name in how.control if name not in how.scores]
    if odd or not how.control or how.copies < 1 or not how.strength > 0:
        raise InputError(
            "scores to control among those that count, copies >= 1 and strength > 0",
            f"scores={list(how.scores)}, control={list(how.control)}, copies={how.copies}, strength={how.strength}",
            "correct them",
        )


def _targets(
    rng: random.Random, scores: Mapping[str, Sequence[float]], how: ControllableDPO
) -> dict[str, float]:
    """What is asked for: controlled scores of an answer drawn at random."""
    names = [name for name in how.scores if name in how.control]
    if how.subsets:
        parts = [
            part for n in range(1, len(names) + 1) for part in itertools.combinations(names, n)
        ]
        names = rng.choice(parts)
    k = rng.randrange(len(next(iter(scores.values()))))
    return {name: _rounded(scores[name][k], how.digits) for name in names}


def _goal(scores: Mapping[str, float], targets: Mapping[str, float], strength: float) -> float:
    return sum(
        -strength * abs(s - targets[name]) if name in targets else s for name, s in scores.items()
    )


def _each(group: Group) -> range:
    return range(len(group.completions))


# ---- MetaAlign


def metaalign_rows(
    source: Source, preferences: Mapping[str, str], report: ConditionReport
) -> Iterator[dict]:
    """Rows of pairs: every row once for each preference, which stands in words before the prompt
    and decides by its score which answer is chosen.  Ties are dropped.

    Args:
        source: pairs, or rows with `completions`.
        preferences: score -> words.
        report: counts.
    """
    for row, group, kind in _usable_pairs(source, list(preferences), report):
        for name, words in preferences.items():
            goal = scores_of(group, name)
            yield from _labelled(row, group, kind, instructed(group.prompt, words), goal, report)


def _usable(
    source: Source, names: Sequence[str], report: ConditionReport
) -> Iterator[tuple[dict, Group, str]]:
    """(row, group, kind) of the rows that have all these scores; the others are counted or
    refused."""
    for i, (row, where, kind) in enumerate(rows_of(source)):
        report.rows += 1
        group = group_of(source, row, where, kind, i)
        error = group if isinstance(group, RowError) else _missing(group, names)
        if error is None:
            yield row, group, kind
        elif source.on_bad_row == "error":
            raise error
        else:
            report.dropped[error.reason] += 1


def _missing(group: Group, names: Sequence[str]) -> RowError | None:
    try:
        for name in names:
            scores_of(group, name)
    except RowError as error:
        return error
    return None


def _usable_pairs(
    source: Source, names: Sequence[str], report: ConditionReport
) -> Iterator[tuple[dict, Group, str]]:
    for row, group, kind in _usable(source, names, report):
        if kind not in ("pair", "ranked"):
            raise InputError(
                "rows of two answers or more", f"{group.where}: one answer", "name data of pairs"
            )
        yield row, group, kind


def _labelled(
    row: Mapping[str, Any],
    group: Group,
    kind: str,
    prompt: Prompt,
    goal: Sequence[float],
    report: ConditionReport,
) -> Iterator[dict]:
    """The pairs of a group by falling `goal`, as rows with this prompt."""
    scored = dataclasses.replace(group, columns={**group.columns, f"scores/{_GOAL}": tuple(goal)})
    counts = Preferred(_GOAL)
    for pair in preferred_pairs(scored, kind, counts):
        report.written += 1
        yield _row_of_pair(row, pair, prompt)
    report.tied += counts.tied
    report.swapped += counts.swapped


_OF_ANSWERS = {
    "prompt",
    "messages",
    "chosen",
    "rejected",
    "completions",
    "scores",
    "scores_completions",
    "scores_chosen",
    "scores_rejected",
    "score_chosen",
    "score_rejected",
    "margins_chosen",
    "margins_rejected",
    "margin",
    "probability",
}


def _row_of_pair(row: Mapping[str, Any], pair: Group, prompt: Prompt) -> dict[str, Any]:
    """A pair as a row: its own texts and numbers, and what else the row had."""
    columns = {name: value for name, value in pair.columns.items() if name != f"scores/{_GOAL}"}
    made: dict[str, Any] = {
        "prompt": prompt,
        "chosen": pair.completions[0],
        "rejected": pair.completions[1],
    }
    for k, side in enumerate(("chosen", "rejected")):
        named = {
            name.removeprefix("scores/"): x[k]
            for name, x in columns.items()
            if name.startswith("scores/")
        }
        made |= {f"scores_{side}": named} if named else {}
        made |= {f"score_{side}": columns["score"][k]} if "score" in columns else {}
        made |= (
            {f"other_rewards_{side}": list(columns["other_rewards"][k])}
            if "other_rewards" in columns
            else {}
        )
    made |= {name: columns[name] for name in ("margin", "probability") if name in columns}
    return {**{key: value for key, value in row.items() if key not in _OF_ANSWERS}, **made}


# ---- rewards-in-context


@dataclass(frozen=True)
class ScoreStatistics:
    """Of one score over all answers; what normalises it, and the range of the normalised one."""

    mean: float
    std: float
    low: float
    high: float

    def normalised(self, score: float) -> float:
        return (score - self.mean) / self.std


def score_statistics(source: Source, names: Sequence[str]) -> dict[str, ScoreStatistics]:
    """Of every named score, over all answers of the usable rows.

    Errors: InputError for a score that is the same everywhere, RowError for a row without one.
    """
    values: dict[str, list[float]] = {name: [] for name in names}
    for _, group, _ in _usable(source, names, ConditionReport()):
        for name in names:
            values[name] += scores_of(group, name)
    found = {}
    for name, scores in values.items():
        x = np.array(scores, np.float64)
        if not len(x) or x.std() == 0:
            raise InputError(
                "a score that differs between answers",
                f"{name}: {len(x)} equal ones",
                "leave it out",
            )
        z = (x - x.mean()) / x.std()
        found[name] = ScoreStatistics(
            float(x.mean()), float(x.std()), float(z.min()), float(z.max())
        )
    return found


def ric_rows(
    source: Source,
    statistics: Mapping[str, ScoreStatistics],
    report: ConditionReport,
    *,
    tag: str = RIC_TAG,
    ending: str = "",
) -> Iterator[dict]:
    """Rows of one answer for supervised training: each answer once, its normalised scores behind
    its prompt.

    Scores are z-scored over the data and rounded to one decimal: Yang et al., arXiv 2402.10207, as
    in their code.

    Args:
        source: rows of any kind, with the scores.
        statistics: as `score_statistics` gives them, in the order of the tags.
        report: counts.
        ending: of `behind`.
    """
    for row, group, _ in _usable(source, list(statistics), report):
        scores = {name: scores_of(group, name) for name in statistics}
        rest = {
            key: row[key]
            for key in ("tools", "chat_template_kwargs", "weight")
            if row.get(key) is not None
        }
        for k, completion in enumerate(group.completions):
            report.written += 1
            normalised = [statistics[name].normalised(x[k]) for name, x in scores.items()]
            own = {"scores": {name: x[k] for name, x in scores.items()}}
            prompt = ric_prompt(group.prompt, normalised, tag, ending)
            yield {**rest, "prompt": prompt, "completion": completion, **own}


RIC_MAPS = ("linf", "l2", "linear")


def ric_targets(
    weights: Sequence[float], statistics: Sequence[ScoreStatistics], method: str = "linf"
) -> list[float]:
    """The normalised scores to ask for where the objectives have these weights, rounded to one
    decimal.

    With low and high the least and greatest normalised scores of the data, score i is low_i + t_i
    (high_i - low_i):
        linf    t_i = min(n w_i, 1), and 1 for the largest weight
        l2      t_i = w_i / ||w||
        linear  t_i = w_i
    Source: the code of Yang et al., arXiv 2402.10207.

    Args:
        weights: n numbers >= 0, not all 0, in the order of `statistics`.
    Errors: InputError for other weights, or an unknown method.
    """
    w = np.asarray(weights, np.float64)
    if (
        method not in RIC_MAPS
        or len(w) != len(statistics)
        or not (np.isfinite(w).all() and (w >= 0).all() and w.any())
    ):
        raise InputError(
            f"a weight >= 0 for each of {len(statistics)} scores, not all 0, and a map of {', '.join(RIC_MAPS)}",
            f"weights={list(weights)}, method={method!r}",
            "correct them",
        )
    if method == "linf":
        t = np.minimum(len(w) * w, 1.0)
        t[int(np.argmax(w))] = 1.0
    else:
        t = w / np.linalg.norm(w) if method == "l2" else w
    return [
        _rounded(s.low + share * (s.high - s.low), 1)
        for share, s in zip(t, statistics, strict=True)
    ]
