"""MetaAlign: a preference in words before the prompt (arXiv 2410.14184)."""

from collections.abc import Iterator, Mapping

from jaxpref.conditioning.prompts import instructed
from jaxpref.conditioning.rows import ConditionReport, labelled_pairs, usable_pairs
from jaxpref.data.dimensions import scores_of
from jaxpref.data.rewrite import Source


def metaalign_rows(
    source: Source, preferences: Mapping[str, str], report: ConditionReport
) -> Iterator[dict]:
    """Rows of pairs: every row once for each preference, whose words stand before the prompt.

    The score that a preference stands for decides which answer is chosen.  Ties are dropped.

    Args:
        source: pairs, or rows with `completions`.
        preferences: score -> words.
        report: counts.
    """
    for row, group, kind in usable_pairs(source, list(preferences), report):
        for name, words in preferences.items():
            prompt = instructed(group.prompt, words)
            yield from labelled_pairs(row, group, kind, prompt, scores_of(group, name), report)
