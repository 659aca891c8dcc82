"""Where pictures lie in a packed row: tiles one behind the other, and tokens that point at them."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxpref.data.pictures.other import CROPPED, MASKED
from jaxpref.data.pictures.processor import PictureProcessor
from jaxpref.data.pictures.windows import places, position_offsets, tile_pairs, window_order
from jaxpref.types import EncodedGroup, Pictures, TilePlaces


def tiles_of(group: EncodedGroup) -> int:
    """Tiles that a group takes in its row, however often its prompt is written."""
    return _tiles(group) * _copies(group)


def _tiles(group: EncodedGroup) -> int:
    return sum(picture.tiles for picture in group.pictures)


def _copies(group: EncodedGroup) -> int:
    """How often the pictures of a group stand in its row, the other ones included."""
    return 2 if group.other_pictures == CROPPED else 1


def tile_pairs_of(groups: Sequence[EncodedGroup], window: int) -> tuple[int, int]:
    """(tile, tile) pairs within a window, and within a picture.

    Args:
        window: tiles along its side, if the model reads pictures of any shape; 0: it does not.
    """
    if not window:
        return 0, 0
    grids = (p.grid for group in groups for p in group.pictures * _copies(group))
    return tile_pairs(grids, window)


def first_tiles(groups: Sequence[EncodedGroup]) -> Iterator[int]:
    """Where the tiles of each group of a row begin."""
    return iter(np.cumsum([0, *map(tiles_of, groups)]).tolist())


def empty_pictures(rows: int, length: int, tiles: int, processor: PictureProcessor) -> Pictures:
    """Rows without pictures.

    Args:
        length: of a row in tokens; `tiles`: that it has room for.
    """
    size = processor.image_size
    pixels = np.zeros((rows, tiles, size, size, 3), np.uint8)
    index_RL = np.full((rows, length), -1, np.int32)
    if not processor.window:
        return Pictures(pixels, index_RL)
    at, window, picture = (np.zeros((rows, tiles, 2), np.int32) for _ in range(3))
    offset_RL3 = np.zeros((rows, length, 3), np.int32)
    return Pictures(pixels, index_RL, TilePlaces(at, window, picture), offset_RL3)


def place_tiles(
    pictures: Pictures, r: int, group: EncodedGroup, first: int, processor: PictureProcessor
) -> None:
    """Says where the tiles of a group lie along their pictures, if the model reads any shape.

    Args:
        first: where the group's tiles begin in row r.
    """
    if pictures.places is None:
        return
    for picture in group.pictures * _copies(group):
        of_picture = slice(first, first + picture.tiles)
        at, window = places(picture.grid, processor.window)
        pictures.places.at_Rp2[r, of_picture] = at
        pictures.places.window_Rp2[r, of_picture] = first + window
        pictures.places.picture_Rp2[r, of_picture] = of_picture.start, of_picture.stop
        first = of_picture.stop


def place_prompt(
    pictures: Pictures,
    r: int,
    start: int,
    group: EncodedGroup,
    k: int,
    first: int,
    processor: PictureProcessor,
) -> int:
    """Points the tokens of the prompt before completion k at the embeddings of its pictures.

    Args:
        start: of the prompt along row r, of which nothing points at a picture so far.
        first: where the group's tiles begin in the row.
    Returns: as of `Pictures.behind_R`.
    """
    end, behind = start + len(group.prompt_ids), 0
    if pictures.offset_RL3 is not None:
        grids = [picture.grid for picture in group.pictures]
        offset_L3, behind = position_offsets(group.prompt_ids, processor.token_id, grids)
        pictures.offset_RL3[r, start:end] = offset_L3
    if group.has_own_prompt(k):
        if group.other_pictures == MASKED:
            return behind
        first += _tiles(group)
    (at,) = np.nonzero(group.prompt_ids == processor.token_id)
    index_L = pictures.index_RL[r, start:end]
    index_L[at] = first * processor.tile_embeddings + _in_order_of_tokens(group, processor)
    return behind


def _in_order_of_tokens(group: EncodedGroup, processor: PictureProcessor) -> np.ndarray:
    """Numbers of the embeddings of a group's pictures, counted from its first."""
    if not processor.window:
        return np.arange(_tiles(group) * processor.tile_embeddings)
    numbers, first = [np.empty(0, np.int64)], 0
    for picture in group.pictures:  # each tile has one embedding, row by row among the tokens
        numbers.append(first + np.argsort(window_order(picture.grid, processor.window)))
        first += picture.tiles
    return np.concatenate(numbers)
