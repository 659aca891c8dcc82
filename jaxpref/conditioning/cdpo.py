"""Controllable DPO: "< helpful: 5 > " before the prompt, the scores that are asked for.

Pairs are labelled by how well an answer meets what is asked for (Guo et al., arXiv 2402.19085).
"""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxpref.conditioning.prompts import Prompt, before, rounded
from jaxpref.conditioning.rows import ConditionReport, labelled_pairs, usable_pairs
from jaxpref.data.dimensions import scores_of
from jaxpref.data.rewrite import Source
from jaxpref.errors import InputError

CDPO_TAG = "< {name}: {value} > "
"""As the authors' code writes it."""


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


def cdpo_prompt(prompt: Prompt, targets: Mapping[str, float], tag: str = CDPO_TAG) -> Prompt:
    """The prompt that asks for answers of these scores.

    Args:
        targets: score -> the value asked for, in the data's units.
    """
    tags = [tag.format(name=name, value=_shown(value)) for name, value in targets.items()]
    return before(prompt, "".join(tags))


def _shown(value: float) -> str:
    """A number as it stands in a tag: 5, not 5.0."""
    return str(int(value)) if value == int(value) else str(value)


def cdpo_rows(source: Source, how: ControllableDPO, report: ConditionReport) -> Iterator[dict]:
    """Rows of pairs whose prompt asks for the scores of one of its answers, drawn at random.

    The answer that meets them better is chosen: the one with the higher
        g = sum_i [ -lambda |s_i - c_i| where score i is asked for, s_i where it is not ],
    c the scores asked for.  Ties of g are dropped.
    Source: Guo et al., arXiv 2402.19085, as their code prepares UltraFeedback.

    Args:
        source: pairs, or rows with `completions`, which give all their pairs.
        report: counts.
    """
    _check(how)
    for row, group, kind in usable_pairs(source, how.scores, report):
        scores = {name: scores_of(group, name) for name in how.scores}
        for copy in range(how.copies):
            rng = random.Random(f"{how.seed} {group.row_id} {copy}")
            targets = _targets(rng, scores, how)
            goal = [
                _goal({name: values[k] for name, values in scores.items()}, targets, how.strength)
                for k in range(len(group.completions))
            ]
            prompt = cdpo_prompt(group.prompt, targets, how.tag)
            yield from labelled_pairs(row, group, kind, prompt, goal, report)


def _check(how: ControllableDPO) -> None:
    unknown = [name for name in how.control if name not in how.scores]
    if not how.control or unknown:
        raise InputError(
            f"scores to control among those that count, {', '.join(how.scores)}",
            ", ".join(how.control) or "none",
            f"add {', '.join(unknown)} to the scores" if unknown else "name at least one of them",
        )
    if how.copies < 1:
        raise InputError("copies >= 1", str(how.copies), "make at least one copy of every row")
    if not how.strength > 0:
        raise InputError("strength > 0", str(how.strength), "set it to 1, the default")


def _targets(
    rng: random.Random, scores: Mapping[str, Sequence[float]], how: ControllableDPO
) -> dict[str, float]:
    """What is asked for: controlled scores of an answer drawn at random."""
    names = [name for name in how.scores if name in how.control]
    if how.subsets:
        sizes = range(1, len(names) + 1)
        subsets = [part for n in sizes for part in itertools.combinations(names, n)]
        names = list(rng.choice(subsets))
    k = rng.randrange(len(next(iter(scores.values()))))
    return {name: rounded(scores[name][k], how.digits) for name in names}


def _goal(scores: Mapping[str, float], targets: Mapping[str, float], strength: float) -> float:
    """g of one answer, of its scores."""
    return sum(
        -strength * abs(score - targets[name]) if name in targets else score
        for name, score in scores.items()
    )
