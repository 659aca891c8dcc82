"""Held-out pairs for policies whose prompts say what is wanted: the same answers, other prompts."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from jaxpref.data.encode import encode_prompts
from jaxpref.data.pictures.processor import PictureProcessor
from jaxpref.data.rewrite import Source, groups_of
from jaxpref.pareto.measure import Tell
from jaxpref.types import EncodedGroup, Group


class HeldOutTexts:
    """The prompts of held-out pairs as texts, read when they are first asked for.

    Args:
        sources: of the pairs.
        processor: as of `encode_prompts`.
    """

    def __init__(
        self, sources: Iterable[Source], tokenizer: Any, processor: PictureProcessor | None
    ):
        self._sources, self._tokenizer, self._processor = list(sources), tokenizer, processor

    def told(self, pairs: Sequence[EncodedGroup], tell: Tell) -> list[EncodedGroup]:
        """The pairs with told prompts.  Their answers stay the same tokens."""
        # Those of the pairs are read already.
        prompts = [replace(self._prompts[pair.where], pictures=pair.pictures) for pair in pairs]
        plain_ids = encode_prompts(prompts, self._tokenizer, self._processor)
        changed = [replace(prompt, prompt=tell(prompt.prompt)) for prompt in prompts]
        told_ids = encode_prompts(changed, self._tokenizer, self._processor)
        return [
            replace(pair, prompt_ids=_cut_alike(told, plain, pair.prompt_ids))
            for pair, plain, told in zip(pairs, plain_ids, told_ids, strict=True)
        ]

    @cached_property
    def _prompts(self) -> dict[str, Group]:
        """Place of a row -> its prompt, without answers."""
        return {
            group.where: replace(group, completions=(), columns={})
            for source in self._sources
            for group in groups_of(source)
        }


def _cut_alike(told: np.ndarray, plain: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The told prompt without the last tokens that the answers of the pair have in their place.

    Args:
        plain: the tokens of the prompt alone.
        used: those of the pair's prompt.  One that was cut at its start to fit is told whole.
    """
    replaced = len(plain) - len(used)
    at_the_end = replaced > 0 and np.array_equal(plain[: len(used)], used)
    return told[: len(told) - replaced] if at_the_end else told
