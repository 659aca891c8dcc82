"""Pictures of prompts: their tiles, and which tokens of the prompt their embeddings stand for."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxpref.data.pictures.layout import point_at_tiles, tiles_of
from jaxpref.data.pictures.processor import PictureProcessor
from jaxpref.data.pictures.tiles import TileReader
from jaxpref.types import EncodedGroup, Picture


class PromptPictures(NamedTuple):
    """The pictures of a prompt."""

    pixels_pijc: np.ndarray
    """uint8 tiles."""
    index_L: np.ndarray
    """As of `types.Pictures`, of the prompt's tokens."""


def stacked_pixels(pictures: Sequence[PromptPictures | None], rows: int) -> np.ndarray | None:
    """`types.Pictures.pixels_Rpijc` of prompts, and of rows of padding; None without pictures."""
    tiles = [0 if own is None else len(own.pixels_pijc) for own in pictures]
    if not any(tiles):
        return None
    most = 1 << (max(tiles) - 1).bit_length()  # few shapes are compiled
    (side,) = {own.pixels_pijc.shape[1:] for own in pictures if own is not None}
    pixels_Rpijc = np.zeros((rows, most, *side), np.uint8)
    for row, own in enumerate(pictures):
        if own is not None:
            pixels_Rpijc[row, : tiles[row]] = own.pixels_pijc
    return pixels_Rpijc


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
        side = self._processor.image_size
        pixels_pijc = np.zeros((tiles_of(group), side, side, 3), np.uint8)
        self._reader.fill([(pixels_pijc, group)])
        index_L = np.full(len(ids), -1, np.int32)
        point_at_tiles(index_L, group, 0, 0, self._processor)
        return PromptPictures(pixels_pijc, index_L)
