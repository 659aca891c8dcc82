"""The rows of a config, written for tensorflow-datasets."""

from collections.abc import Iterator, Sequence
from functools import partial

from jaxpref.config import DataConfig
from jaxpref.data import tfds
from jaxpref.data.sources import read_all
from jaxpref.data.splits import part_of_side


def write_tfds(config: DataConfig, directory: str) -> dict[str, int]:
    """Writes the training rows and every set of held-out ones as a split of its own.

    Returns: name of a split -> how many rows it has.
    Errors: as of `tfds.write` and `read_all`.
    """
    sets = {"train": ("train", config.train)}
    sets |= {name or "test": ("eval", paths) for name, paths in config.eval_sets.items()}

    def rows(side: str, paths: Sequence[str]) -> Iterator[dict]:
        return (row for row, _ in read_all(paths, part_of_side(config, side)))

    return tfds.write(
        {name: partial(rows, *of_set) for name, of_set in sets.items() if of_set[1]}, directory
    )
