"""The rows that a plan is made for: lengths of prompts and answers, without a text."""

import dataclasses
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpref.config import Config, MeshConfig
from jaxpref.data.dimensions import OTHER_REWARDS
from jaxpref.data.pictures.other import OTHER_PICTURES
from jaxpref.models.spec import VisionSpec
from jaxpref.objectives import Part, group_kinds
from jaxpref.objectives.contract import KINDS
from jaxpref.runs.build import build
from jaxpref.runs.feed import read_data
from jaxpref.types import EncodedGroup, Picture

GROUP_ARRAYS = ("weight", "margin", "label", "baseline", "labels", "objective_weights", "sign")
"""Arrays of objectives with one number per group; others have one per completion."""


@dataclass(frozen=True)
class RowSizes:
    """Groups whose token ids are all 0."""

    groups: tuple[EncodedGroup, ...]
    kind: str
    """Of the groups (objectives/contract.py: KINDS)."""

    def save(self, path: Path) -> None:
        """For `load` in another process of the same program."""
        path.write_bytes(pickle.dumps(self))

    @staticmethod
    def load(path: Path) -> "RowSizes":
        """What `save` wrote."""
        return pickle.loads(path.read_bytes())


def made_rows(
    parts: Sequence[Part],
    *,
    groups: int,
    prompt: int,
    completion: int,
    completions: int | None = None,
    kind: str | None = None,
    others: int = 0,
    vision: VisionSpec | None = None,
    tiles: int = 0,
) -> RowSizes:
    """Groups of one size; columns that the objectives require are 0.

    Args:
        groups: how many.
        prompt, completion: tokens of a prompt, and of every completion.
        completions: per prompt; None: as many as the kind has, 4 in a ranked list.
        kind: of the groups; None: the first that the objectives take.
        others: rewards of other objectives that `data.other_rewards` names; 0: none.
        vision: of a model that sees pictures.
        tiles: of the picture in every prompt, whose tokens are among the prompt's; 0: none.
    """
    kind = kind or group_kinds(parts)[0]
    count = completions or (4 if kind == "ranked" else len(KINDS[kind].split(", ")))
    if kind == "judged":
        count = 1  # "one completion with a label, 1 ..." has commas of its own
    columns: dict[str, Any] = {
        column: 0.0 if array in GROUP_ARRAYS else (0.0,) * count
        for part in parts
        for array in (*part.required, *part.sources)
        for column in _columns_of(part, array)
    }
    if others and OTHER_REWARDS in columns:
        columns[OTHER_REWARDS] = np.zeros((count, others), np.float32)
    ids = lambda n: np.zeros(n, np.int32)
    prompt_ids = ids(prompt)
    pictures: tuple[Picture, ...] = ()
    if vision is not None and tiles:
        prompt_ids[: tiles * vision.tile_embeddings] = vision.token_id
        pictures = (_picture(tiles),)
    return RowSizes(
        tuple(
            EncodedGroup(
                prompt_ids=prompt_ids,
                completion_ids=tuple(ids(completion) for _ in range(count)),
                row_id=i,
                where=f"made group {i + 1}",
                columns=columns,
                pictures=pictures,
                other_pictures=OTHER_PICTURES.get(kind),
            )
            for i in range(groups)
        ),
        kind,
    )


def _picture(tiles: int) -> Picture:
    """One of so many tiles, as nearly square as they allow."""
    rows = next(n for n in range(math.isqrt(tiles), 0, -1) if tiles % n == 0)
    return Picture(digest="made", grid=(rows, tiles // rows), whole=False)


def _columns_of(part: Part, array: str) -> list[str]:
    named = part.sources.get(array, array)
    names = [named] if isinstance(named, str) else list(named)
    return [name for name in names if name in part.columns]


def rows_like(config: Config, path: str) -> RowSizes:
    """The sizes of a file's rows, encoded as training would encode them.

    Errors: as of `runs.feed.read_data`.
    """
    data = dataclasses.replace(config.data, train=[path])
    # The mesh of this machine: it has no part in the lengths.
    mesh = MeshConfig(data=jax.device_count())
    pieces = build(dataclasses.replace(config, data=data, mesh=mesh))
    groups, report = read_data(pieces, "train")
    of_pictures = None if pieces.processor is None else pieces.processor.token_id
    zeros = lambda ids: np.where(ids == of_pictures, ids, 0).astype(np.int32)
    return RowSizes(
        tuple(
            dataclasses.replace(
                group,
                prompt_ids=zeros(group.prompt_ids),
                completion_ids=tuple(map(zeros, group.completion_ids)),
            )
            for group in groups
        ),
        report.kind,
    )
