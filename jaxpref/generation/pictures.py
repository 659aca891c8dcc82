"""Pictures of prompts: their tiles, and which tokens of the prompt their embeddings stand for."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpref.data.pictures.layout import empty_pictures, place_prompt, place_tiles, tiles_of
from jaxpref.data.pictures.processor import PictureProcessor
from jaxpref.data.pictures.tiles import TileReader
from jaxpref.types import EncodedGroup, Picture, Pictures, TilePlaces

PromptPictures = Pictures
"""The pictures of one prompt, a row of its own."""


def stacked_tiles(pictures: Sequence[PromptPictures | None], rows: int) -> Pictures | None:
    """What the tower reads of prompts, and of rows of padding; None without pictures."""
    own = {row: prompt for row, prompt in enumerate(pictures) if prompt is not None}
    if not own:
        return None
    most = max(prompt.pixels_Rpijc.shape[1] for prompt in own.values())
    most = 1 << (most - 1).bit_length()  # few shapes are compiled

    def stacked(arrays: dict[int, np.ndarray]) -> np.ndarray:
        """Arrays [1, p, ...] of rows, as one [R, p, ...]."""
        one = next(iter(arrays.values()))
        whole = np.zeros((rows, most, *one.shape[2:]), one.dtype)
        for row, array in arrays.items():
            whole[row, : array.shape[1]] = array[0]
        return whole

    places = None
    if all(prompt.places is not None for prompt in own.values()):
        each = zip(*(prompt.places for prompt in own.values()), strict=True)
        places = TilePlaces(*(stacked(dict(zip(own, arrays, strict=True))) for arrays in each))
    pixels = stacked({row: prompt.pixels_Rpijc for row, prompt in own.items()})
    return Pictures(pixels, np.zeros((rows, 0), np.int32), places)


def stacked_tokens(
    pictures: Sequence[PromptPictures | None], rows: int, length: int
) -> dict[str, np.ndarray]:
    """The fields of `Pictures` about tokens, of prompts without their last token.

    Args:
        length: tokens of the rows, at whose ends the prompts lie.
    """
    fields: dict[str, np.ndarray] = {"index_RL": np.full((rows, length), -1, np.int32)}
    if any(prompt is not None and prompt.offset_RL3 is not None for prompt in pictures):
        fields["offset_RL3"] = np.zeros((rows, length, 3), np.int32)
        fields["behind_R"] = np.zeros(rows, np.int32)
    for row, prompt in enumerate(pictures):
        if prompt is None:
            continue
        before_last = prompt.index_RL.shape[1] - 1
        of_prompt: Any = np.s_[row, length - before_last :]
        fields["index_RL"][of_prompt] = prompt.index_RL[0, :-1]
        if "offset_RL3" in fields:
            fields["offset_RL3"][of_prompt] = prompt.offset_RL3[0, :-1]
            fields["behind_R"][row] = prompt.behind_R[0]
    return fields


class PromptTiles:
    """Reads the pictures of prompts as they are needed; the latest stay in memory."""

    def __init__(self, processor: PictureProcessor):
        self._processor, self._reader = processor, TileReader(processor)

    def read(
        self, ids: np.ndarray, pictures: Sequence[Picture], where: str
    ) -> PromptPictures | None:
        """Those of one prompt; None: it has none.

        Args:
            ids: tokens of the prompt, with those of its pictures.
            pictures: with their digests and grids.
        """
        if not pictures:
            return None
        group = EncodedGroup(ids, (), 0, where, pictures=tuple(pictures))
        own = empty_pictures(1, len(ids), tiles_of(group), self._processor)
        self._reader.fill([(own.pixels_Rpijc[0], group)])
        place_tiles(own, 0, group, 0, self._processor)
        behind = place_prompt(own, 0, 0, group, 0, 0, self._processor)
        return own._replace(behind_R=np.full(1, behind, np.int32))
