"""Splits: what they are called in names of files, and which one is read.

A split that is asked for is read or refused.  A default is not asked for: it decides only where
there are several splits.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from jaxpref.config import DataConfig
from jaxpref.errors import InputError
from jaxpref.storage.paths import as_path

Key = TypeVar("Key", bound=Hashable)

_TRAIN = {"train", "training"}
_HELD_OUT = {"test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation"}
_SHARD = re.compile(r"[-_. ]\d+([-_. ]of[-_. ]\d+)?$")
_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(_TRAIN | _HELD_OUT)})\d*(?![a-z0-9])(.*)")


class Part(NamedTuple):
    """What to read of a path that may have several splits and configurations."""

    split: str | None = None
    """The split that was asked for."""
    default: str | None = None
    """The split that is meant where none was asked for."""
    config_name: str | None = None
    """The configuration of a hub dataset or its copy that was asked for."""


def part_of_side(data: DataConfig, side: str) -> Part:
    """What a run reads for training (`train`) or as held-out data (`eval`).

    Errors: InputError as of `check_split`.
    """
    if side == "train":
        check_split(data.train_split, data.train, "data.train_split")
        return Part(data.train_split, "train", data.config_name)
    held_out = [path for paths in data.eval_sets.values() for path in paths]
    check_split(data.eval_split, held_out, "data.eval_split")
    return Part(data.eval_split, "test", data.config_name)


def may_have_splits(paths: Sequence[str]) -> bool:
    """Whether one of the paths is more than a file, which is read whole."""
    return not all(as_path(path).is_file() for path in paths)


def check_split(split: str | None, paths: Sequence[str], key: str) -> None:
    """A split that is asked for is of one of the paths at least.  Errors: InputError."""
    if split is not None and paths and not may_have_splits(paths):
        unset = f" ({key}=null on the command line)" if key.startswith("data.") else ""
        files = f"the file {paths[0]}" if len(paths) == 1 else f"files alone ({', '.join(paths)})"
        raise InputError(
            f"{key} only with a path that may have several splits",
            f"{key}={split!r} with {files}",
            f"remove it{unset}, or name the folder or the hub id: a file is read whole",
        )


def split_in_name(stem: str) -> str | None:
    """The split that the name of a file gives, without the file's ending; None: it gives none.

    It begins with a word such as `train` and ends before the number of a shard: `train` of
    `base.train-00000-of-00002`, `train_prefs` of `train_prefs-00000-of-00001`.
    """
    found = _SPLIT.search(_SHARD.sub("", stem.lower()))
    return found[1] + found[2] if found else None


def choose(split_of: Mapping[Key, str | None], wanted: Part, where: str) -> list[Key]:
    """The files or the like of a dataset that are read, all of one split.

    A split is asked for by its name, or by a word that only one has (`prefs` for `train_prefs`).

    Args:
        split_of: each with its split, None for what belongs to none.
        where: the dataset, for errors.

    Raises:
        InputError: the split that is asked for does not exist or may be one of several; none is
            asked for, there are several, and none of them is the default one; there is one, and its
            name says that it is for something else than the default (`train`, for evaluation).
    """
    splits = [split for split in dict.fromkeys(split_of.values()) if split is not None]
    if not splits and wanted.split is None:
        return list(split_of)
    meant = (wanted.split or wanted.default or "").lower()
    matching = [split for split in splits if split.lower() == meant]
    matching = matching or [split for split in splits if meant in _words(split)]
    if wanted.split is None and not matching and not _opposed(splits, wanted.default):
        matching = splits
    if len(matching) != 1:
        raise _no_split(matching or splits, wanted, where)
    return [key for key, split in split_of.items() if split in matching]


def _no_split(splits: list[str], wanted: Part, where: str) -> InputError:
    if not splits:
        return InputError(
            "`split` only where there are splits",
            f"split={wanted.split!r} with {where}, which has none",
            "remove `split`",
        )
    default = "" if wanted.split or not wanted.default else f" (default {wanted.default})"
    return InputError(
        "one of its splits",
        f"split={wanted.split!r}{default} with {where}",
        "set `split` (data.train_split, data.eval_split or --split) to one of: "
        f"{', '.join(splits)}; or name the files of one",
    )


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))


def _opposed(splits: list[str], default: str | None) -> bool:
    """Whether a split is named for training and the default is not, or the other way round."""
    opposite = {"train": _HELD_OUT, "test": _TRAIN}.get(default or "", set())
    return any(_words(split) & opposite for split in splits)
