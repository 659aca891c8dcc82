"""How long groups are, of all rows at once: what checks and plans ask before the first step.

As `row_tokens`, `all_loss_tokens` and `tiles_of` say it of one group; of groups that lie in a file
without making any of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxpref.data.kept_groups import KeptGroups
from jaxpref.data.pictures.layout import tiles_of
from jaxpref.types import EncodedGroup


@dataclass(frozen=True)
class Sizes:
    """Of B groups in order; numbers of tokens but for the tiles."""

    prompt_B: np.ndarray
    completion_tokens: np.ndarray
    """Of every completion of all groups, one behind the other."""
    completions_B: np.ndarray
    """How many each group has."""
    last_has_own_prompt_B: np.ndarray
    """Whether the last completion stands after a copy of the prompt of its own in any layout."""
    tiles_B: np.ndarray

    def row_tokens_B(self, share_prefix: bool) -> np.ndarray:
        """Tokens of a row that each group takes."""
        copies_B = np.minimum(self.completions_B, 1 + self.last_has_own_prompt_B)
        if not share_prefix:
            copies_B = self.completions_B
        return self.prompt_B * copies_B + self._sum_B(self.completion_tokens)

    def loss_tokens_B(self, loss_on_prompt: bool) -> np.ndarray:
        """Without a prompt nothing predicts the first token of a completion."""
        tokens_B = self._sum_B(self.completion_tokens) - self.completions_B * (self.prompt_B == 0)
        return tokens_B + np.maximum(self.prompt_B - 1, 0) * loss_on_prompt

    def longest_sequence_B(self) -> np.ndarray:
        """The prompt with the longest completion."""
        return self.prompt_B + np.maximum.reduceat(self.completion_tokens, self._starts_B1()[:-1])

    def _sum_B(self, values: np.ndarray) -> np.ndarray:
        return np.diff(np.concatenate([[0], np.cumsum(values)])[self._starts_B1()])

    def _starts_B1(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.completions_B)])


def sizes_of(groups: Sequence[EncodedGroup]) -> Sizes:
    """Of groups with at least one completion each."""
    if isinstance(groups, KeptGroups) and not groups.have_pictures:
        no_B = np.zeros(len(groups), np.int64)
        return Sizes(*groups.lengths(), no_B.astype(bool), no_B)
    ints = lambda values: np.fromiter(values, np.int64)
    prompts, completions, own, tiles = [], [], [], []
    for group in groups:
        prompts.append(len(group.prompt_ids))
        completions.append([len(ids) for ids in group.completion_ids])
        own.append(group.other_pictures is not None)
        tiles.append(tiles_of(group))
    return Sizes(
        ints(prompts),
        ints(n for of_group in completions for n in of_group),
        ints(map(len, completions)),
        np.array(own, bool),
        ints(tiles),
    )
