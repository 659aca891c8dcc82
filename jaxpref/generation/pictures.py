"""Pictures of prompts: their tiles, and which tokens of the prompt their embeddings stand for."""

from collections.abc import Sequence

import numpy as np

from jaxpref.data.pictures.layout import point_at_tiles, tiles_of
from jaxpref.data.pictures.processor import PictureProcessor
from jaxpref.data.pictures.tiles import TileReader
from jaxpref.generation.decoding import PromptPictures
from jaxpref.types import EncodedGroup, Picture


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
