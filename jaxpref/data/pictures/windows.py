"""Pictures of any shape (Qwen2.5-VL): the order of their tiles, and positions by row and column."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Grid = tuple[int, int]
"""As of `types.Picture`."""


def tiles_by_window(image_processor: Any, made: Mapping[str, Any], side: int) -> np.ndarray:
    """[tiles, 3, H, W] in the order of windows.

    Args:
        made: by transformers' image processor, of one picture: patches that lie flat, tile by tile
            and row by row, each once for every frame.
    """
    size, square = image_processor.patch_size, image_processor.merge_size
    shape = square, square, 3, image_processor.temporal_patch_size, size, size
    one_frame = made["pixel_values"].reshape(-1, *shape)[:, :, :, :, 0]
    tiles = one_frame.transpose(0, 3, 1, 4, 2, 5).reshape(-1, 3, square * size, square * size)
    rows, columns = (made["image_grid_thw"][0, 1:] // square).tolist()
    return tiles[window_order((rows, columns), side)]


def window_order(grid: Grid, side: int) -> np.ndarray:
    """[tiles] numbers of the tiles, row by row, in the order of windows of side x side of them."""
    row, column = _at(grid)
    return np.lexsort((column, row, column // side, row // side))


def places(grid: Grid, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the tiles in the order of windows: [tiles, 2] row and column, and [tiles, 2] the span.

    The span is that of the tile's window, from its first tile to the one behind its last.
    """
    row, column = (x[window_order(grid, side)] for x in _at(grid))
    window = row // side * grid[1] + column // side  # ascending
    span = [np.searchsorted(window, window, end) for end in ("left", "right")]
    return np.stack([row, column], 1), np.stack(span, 1)


def tile_pairs(grids: Iterable[Grid], side: int) -> tuple[int, int]:
    """(tile, tile) pairs within a window, and within a picture."""
    in_windows = in_pictures = 0
    for rows, columns in grids:
        heights, widths = (
            np.minimum(side, n - np.arange(0, n, side), dtype=np.int64) for n in (rows, columns)
        )
        in_windows += int((heights**2).sum() * (widths**2).sum())
        in_pictures += (rows * columns) ** 2
    return in_windows, in_pictures


def position_offsets(
    ids: np.ndarray, token_id: int, grids: Sequence[Grid]
) -> tuple[np.ndarray, int]:
    """[L, 3] what M-RoPE adds to the positions of a prompt's tokens, and to all behind it.

    The tokens of a picture stand at one time, at its rows and its columns, all counted from the
    position at which the picture begins; the text goes on behind the largest of them.

    Args:
        ids: the prompt.
        token_id: of the tokens that stand for pictures.
        grids: of its pictures, in order.
    """
    offset_L3, behind = np.zeros((len(ids), 3), np.int32), 0
    (at,) = np.nonzero(ids == token_id)
    for grid in grids:
        of_picture, at = at[: grid[0] * grid[1]], at[grid[0] * grid[1] :]
        row, column = _at(grid)
        begin = of_picture[0] + behind
        position = begin + np.stack([np.zeros_like(row), row, column], 1)
        offset_L3[of_picture] = position - of_picture[:, None]
        behind += max(grid) - len(of_picture)
        offset_L3[of_picture[-1] + 1 :] = behind
    return offset_L3, behind


def _at(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the tiles, row by row."""
    return np.divmod(np.arange(grid[0] * grid[1]), grid[1])
