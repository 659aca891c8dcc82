"""Where pictures lie in a packed row: tiles one behind the other, and tokens that point at them."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxpref.data.pictures.other import CROPPED, MASKED
from jaxpref.data.pictures.processor import PictureProcessor
from jaxpref.types import EncodedGroup


def tiles_of(group: EncodedGroup) -> int:
    """Tiles that a group takes in its row, however often its prompt is written."""
    return _tiles(group) * (2 if group.other_pictures == CROPPED else 1)


def _tiles(group: EncodedGroup) -> int:
    return sum(picture.tiles for picture in group.pictures)


def first_tiles(groups: Sequence[EncodedGroup]) -> Iterator[int]:
    """Where the tiles of each group of a row begin."""
    return iter(np.cumsum([0, *map(tiles_of, groups)]).tolist())


def point_at_tiles(
    index_L: np.ndarray, group: EncodedGroup, k: int, first: int, processor: PictureProcessor
) -> None:
    """Fills the index of the prompt before completion k with the embeddings of its pictures.

    Args:
        index_L: at the prompt's tokens; -1 so far.
        first: where the group's tiles begin in its row.
    """
    if group.has_own_prompt(k):
        if group.other_pictures == MASKED:
            return
        first += _tiles(group)
    (places,) = np.nonzero(group.prompt_ids == processor.token_id)
    index_L[places] = first * processor.tile_embeddings + np.arange(len(places))
