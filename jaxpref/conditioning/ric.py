"""Rewards-in-context: " <rm1_score> 0.4 <rm2_score> -1.2 " behind the prompt.

The scores that the answer has, for supervised training; those that are wished for, for answers
(Yang et al., arXiv 2402.10207).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxpref.conditioning.prompts import Prompt, behind, rounded
from jaxpref.conditioning.rows import ConditionReport, usable_rows
from jaxpref.data.dimensions import scores_of
from jaxpref.data.rewrite import Source
from jaxpref.errors import InputError

RIC_TAG = "<rm{number}_score> {value} "
"""As the authors' code writes it; the scores are numbered from 1 in their order."""
RIC_MAPS = ("linf", "l2", "linear")


@dataclass(frozen=True)
class ScoreStatistics:
    """Of one score over all answers."""

    mean: float
    std: float
    low: float
    """Least normalised score."""
    high: float
    """Greatest normalised score."""

    def normalised(self, score: float) -> float:
        return (score - self.mean) / self.std


def ric_prompt(
    prompt: Prompt, scores: Sequence[float], tag: str = RIC_TAG, ending: str = ""
) -> Prompt:
    """The prompt with normalised scores, rounded to one decimal, in the order of training.

    Args:
        ending: as for `prompts.behind`.
    """
    tags = [
        tag.format(number=i, value=f"{rounded(score, 1):.1f}") for i, score in enumerate(scores, 1)
    ]
    return behind(prompt, "".join(tags), ending)


def score_statistics(source: Source, names: Sequence[str]) -> dict[str, ScoreStatistics]:
    """Of every named score, over all answers of the usable rows.

    Errors: InputError for a score that is the same everywhere, RowError for a row without one.
    """
    values: dict[str, list[float]] = {name: [] for name in names}
    for _, group, _ in usable_rows(source, names, ConditionReport()):
        for name in names:
            values[name] += scores_of(group, name)
    return {name: _statistics(name, scores) for name, scores in values.items()}


def _statistics(name: str, scores: Sequence[float]) -> ScoreStatistics:
    x = np.array(scores, np.float64)
    if not len(x) or x.std() == 0:
        raise InputError(
            "a score that differs between answers",
            f"{name}: {len(x)} equal ones",
            f"remove {name} from the scores",
        )
    z = (x - x.mean()) / x.std()
    return ScoreStatistics(float(x.mean()), float(x.std()), float(z.min()), float(z.max()))


def ric_rows(
    source: Source,
    statistics: Mapping[str, ScoreStatistics],
    report: ConditionReport,
    *,
    tag: str = RIC_TAG,
    ending: str = "",
) -> Iterator[dict]:
    """Rows of one answer for supervised training: each answer once, its scores behind its prompt.

    Scores are z-scored over the data and rounded to one decimal.
    Source: Yang et al., arXiv 2402.10207, as in their code.

    Args:
        source: rows of any kind, with the scores.
        statistics: as `score_statistics` gives them, in the order of the tags.
        report: counts.
        ending: as for `prompts.behind`.
    """
    for row, group, _ in usable_rows(source, list(statistics), report):
        kept = {
            key: row[key]
            for key in ("tools", "chat_template_kwargs", "weight")
            if row.get(key) is not None
        }
        for k, completion in enumerate(group.completions):
            report.written += 1
            scores = {name: scores_of(group, name)[k] for name in statistics}
            normalised = [statistics[name].normalised(score) for name, score in scores.items()]
            prompt = ric_prompt(group.prompt, normalised, tag, ending)
            yield {**kept, "prompt": prompt, "completion": completion, "scores": scores}


def ric_targets(
    weights: Sequence[float], statistics: Sequence[ScoreStatistics], method: str = "linf"
) -> list[float]:
    """The normalised scores to ask for, rounded to one decimal, of these objective weights.

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
    if method not in RIC_MAPS:
        raise InputError(f"a map of {', '.join(RIC_MAPS)}", repr(method), "choose one of them")
    w = np.asarray(weights, np.float64)
    usable = np.isfinite(w).all() and (w >= 0).all() and w.any()
    if len(w) != len(statistics) or not usable:
        raise InputError(
            f"a weight >= 0 for each of {len(statistics)} scores, not all 0",
            f"weights={list(weights)}",
            "give every score a weight, 0 where it does not matter",
        )
    if method == "linf":
        t = np.minimum(len(w) * w, 1.0)
        t[int(np.argmax(w))] = 1.0
    elif method == "l2":
        t = w / np.linalg.norm(w)
    else:
        t = w
    return [
        rounded(s.low + share * (s.high - s.low), 1) for share, s in zip(t, statistics, strict=True)
    ]
