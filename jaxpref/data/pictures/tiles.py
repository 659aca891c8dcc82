"""Tiles of the pictures of a step, decoded in threads; the latest stay in memory."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np

from jaxpref.data.pictures.decode import decoded, stored_bytes
from jaxpref.data.pictures.other import CROPPED, cropped
from jaxpref.data.pictures.processor import PictureProcessor
from jaxpref.data.workers import processors
from jaxpref.errors import InputError
from jaxpref.types import EncodedGroup, Picture

MOST_BYTES = 2**30
"""Of tiles that are kept for the next epoch, or the next row with the same picture."""

_Key = tuple[str, tuple[int, int] | None]


class TileReader:
    """Decodes pictures into tiles of the model."""

    def __init__(self, processor: PictureProcessor, most_bytes: int = MOST_BYTES):
        self.processor = processor
        self._most_bytes, self._bytes = most_bytes, 0
        self._kept: OrderedDict[_Key, np.ndarray] = OrderedDict()
        self._lock = Lock()
        self._threads = ThreadPoolExecutor(processors(), "pictures")  # Pillow works beside Python

    def fill(self, places: Iterable[tuple[np.ndarray, EncodedGroup]]) -> None:
        """Writes the tiles of groups.

        Args:
            places: [p, H, W, 3] uint8 for the tiles of a group, and the group.
        Errors: RowError for a picture that is no longer what it was when its tokens were made.
        """
        jobs = [job for tiles, group in places for job in _jobs(tiles, group)]
        for _ in self._threads.map(lambda job: self._write(*job), jobs):
            pass

    def _write(
        self, to: np.ndarray, picture: Picture, crop: tuple[int, int] | None, where: str
    ) -> None:
        key = (picture.digest, crop)
        with self._lock:
            tiles = self._kept.get(key)
            if tiles is not None:
                self._kept.move_to_end(key)
        if tiles is None:
            tiles = self._made(picture, crop, where)
            self._keep(key, tiles)
        to[:] = tiles

    def _made(self, picture: Picture, crop: tuple[int, int] | None, where: str) -> np.ndarray:
        image = decoded(stored_bytes(picture, where), where)
        if crop is not None:
            image = cropped(image, np.random.default_rng(crop))
        tiles = self.processor.tiles(image)
        if len(tiles) != picture.tiles:
            raise InputError(
                f"{picture.tiles} tiles, of which the tokens of the picture were made",
                f"{where}: {len(tiles)}",
                "set data.cache=none once, if another version of transformers made the tokens",
            )
        return tiles

    def _keep(self, key: _Key, tiles: np.ndarray) -> None:
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = tiles
            self._bytes += tiles.nbytes
            while self._bytes > self._most_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.nbytes


def _jobs(
    tiles: np.ndarray, group: EncodedGroup
) -> Iterator[tuple[np.ndarray, Picture, tuple[int, int] | None, str]]:
    """(where to write, the picture, what draws its crop, its place) of the pictures of a group."""
    start = 0
    for crops in (False, True) if group.other_pictures == CROPPED else (False,):
        for i, picture in enumerate(group.pictures):
            crop = (group.row_id, i) if crops else None
            place = f"{group.where}, picture {i + 1}"
            yield tiles[start : start + picture.tiles], picture, crop, place
            start += picture.tiles
