"""Encoded groups in an Arrow file that is mapped into memory: token ids stay on disk until used."""

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from jaxpref.types import EncodedGroup, Picture

if TYPE_CHECKING:
    import pyarrow


def as_batch(groups: Sequence[EncodedGroup]) -> "pyarrow.RecordBatch":
    """Groups as a piece of such a file."""
    import pyarrow

    completions = [ids for group in groups for ids in group.completion_ids]
    per_group = np.array([len(group.completion_ids) for group in groups])
    return pyarrow.record_batch(
        {
            "prompt": _lists([group.prompt_ids for group in groups]),
            "completions": pyarrow.ListArray.from_arrays(_offsets(per_group), _lists(completions)),
            "row_id": pyarrow.array([group.row_id for group in groups], pyarrow.int64()),
            "where": pyarrow.array([group.where for group in groups], pyarrow.string()),
            "columns": pyarrow.array(
                [_written(group.columns) for group in groups], pyarrow.string()
            ),
            "pictures": pyarrow.array(
                [[_as_struct(picture) for picture in group.pictures] for group in groups],
                pyarrow.list_(_picture_type()),
            ),
            "other_pictures": pyarrow.array(
                [group.other_pictures for group in groups], pyarrow.string()
            ),
        }
    )


def _picture_type() -> "pyarrow.DataType":
    import pyarrow

    number = pyarrow.int32()
    return pyarrow.struct(
        {
            "file": pyarrow.string(),
            "data": pyarrow.large_binary(),
            "digest": pyarrow.string(),
            "rows": number,
            "columns": number,
            "whole": pyarrow.bool_(),
        }
    )


def _as_struct(picture: Picture) -> dict[str, Any]:
    rows, columns = picture.grid
    about = {"file": picture.file, "data": picture.data, "digest": picture.digest}
    return {**about, "rows": rows, "columns": columns, "whole": picture.whole}


def _as_picture(struct: "pyarrow.StructScalar") -> Picture:
    """Its bytes are not read before they are used."""
    grid = struct["rows"].as_py(), struct["columns"].as_py()
    return Picture(
        struct["file"].as_py(),
        struct["data"].as_buffer(),
        struct["digest"].as_py(),
        grid,
        struct["whole"].as_py(),
    )


def _lists(arrays: Sequence[np.ndarray]) -> "pyarrow.ListArray":
    import pyarrow

    flat = np.concatenate(arrays) if arrays else np.empty(0, np.int32)
    return pyarrow.ListArray.from_arrays(
        _offsets(np.array([len(ids) for ids in arrays], np.int64)),
        pyarrow.array(flat.astype(np.int32, copy=False)),
    )


def _offsets(lengths: np.ndarray) -> "pyarrow.Array":
    import pyarrow

    return pyarrow.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _written(columns: Mapping[str, Any]) -> str | None:
    """Numbers as JSON, which gives them back to the bit."""
    return json.dumps(dict(columns), default=float) if columns else None


def with_row_ids_from(batch: "pyarrow.RecordBatch", first: int) -> "pyarrow.RecordBatch":
    """The same groups with row ids that count from `first`, not from 0."""
    import pyarrow

    row_ids = batch["row_id"].to_numpy() + first
    at = batch.schema.get_field_index("row_id")
    return batch.set_column(at, "row_id", pyarrow.array(row_ids))


def write_batches(path: Path, batches: Iterable["pyarrow.RecordBatch"]) -> None:
    import pyarrow

    with pyarrow.OSFile(str(path), "wb") as file:
        with pyarrow.ipc.new_file(file, as_batch([]).schema) as writer:
            for batch in batches:
                writer.write_batch(batch)


class _Part(NamedTuple):
    """A piece of the file, as arrays that look into it."""

    prompt_starts: np.ndarray
    prompts: np.ndarray
    first_completions: np.ndarray
    """Where the completions of every group begin, counted in completions."""
    completion_starts: np.ndarray
    completions: np.ndarray
    row_ids: np.ndarray
    where: "pyarrow.StringArray"
    columns: "pyarrow.StringArray"
    picture_counts: np.ndarray
    pictures: "pyarrow.ListArray"
    other_pictures: "pyarrow.StringArray"

    @classmethod
    def of(cls, batch: "pyarrow.RecordBatch") -> "_Part":
        prompts, completions = batch["prompt"], batch["completions"]
        return cls(
            prompts.offsets.to_numpy(),
            prompts.values.to_numpy(),
            completions.offsets.to_numpy(),
            completions.values.offsets.to_numpy(),
            completions.values.values.to_numpy(),
            batch["row_id"].to_numpy(),
            batch["where"],
            batch["columns"],
            np.diff(batch["pictures"].offsets.to_numpy()),
            batch["pictures"],
            batch["other_pictures"],
        )

    def group(self, i: int) -> EncodedGroup:
        start, end = self.prompt_starts[i : i + 2]
        first, last = self.first_completions[i : i + 2]
        starts = self.completion_starts[first : last + 1].tolist()
        return EncodedGroup(
            prompt_ids=self.prompts[start:end],
            completion_ids=tuple(self.completions[a:b] for a, b in pairwise(starts)),
            row_id=int(self.row_ids[i]),
            where=self.where[i].as_py(),
            columns=_read(self.columns[i].as_py()),
            pictures=self._pictures_of(i),
            other_pictures=self.other_pictures[i].as_py(),
        )

    def _pictures_of(self, i: int) -> tuple[Picture, ...]:
        return tuple(map(_as_picture, self.pictures[i])) if self.picture_counts[i] else ()

    def groups(self) -> Iterator[EncodedGroup]:
        """All, faster than one by one."""
        prompts, completions = self.prompt_starts.tolist(), self.completion_starts.tolist()
        firsts, row_ids = self.first_completions.tolist(), self.row_ids.tolist()
        texts = zip(
            self.where.to_pylist(),
            self.columns.to_pylist(),
            self.other_pictures.to_pylist(),
            strict=True,
        )
        for i, (where, columns, other_pictures) in enumerate(texts):
            starts = completions[firsts[i] : firsts[i + 1] + 1]
            yield EncodedGroup(
                self.prompts[prompts[i] : prompts[i + 1]],
                tuple(self.completions[a:b] for a, b in pairwise(starts)),
                row_ids[i],
                where,
                _read(columns),
                self._pictures_of(i),
                other_pictures,
            )


class KeptGroups(Sequence[EncodedGroup]):
    """The groups of a file, in its order; each is made when it is asked for."""

    def __init__(self, path: Path):
        import pyarrow

        file = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
        batches = (file.get_batch(i) for i in range(file.num_record_batches))
        self._parts = [_Part.of(batch) for batch in batches if batch.num_rows]
        ends = np.cumsum([len(part.row_ids) for part in self._parts])
        self._ends = ends.tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, i: int) -> EncodedGroup: ...
    @overload
    def __getitem__(self, i: slice) -> list[EncodedGroup]: ...
    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        k = i + len(self) if i < 0 else int(i)
        if not 0 <= k < len(self):
            raise IndexError(i)
        p = bisect_right(self._ends, k)
        return self._parts[p].group(k - (self._ends[p - 1] if p else 0))

    def __iter__(self) -> Iterator[EncodedGroup]:
        for part in self._parts:
            yield from part.groups()

    def places(self) -> Mapping[int, str]:
        """Row id -> file and row."""
        return _Places(self)

    @property
    def have_pictures(self) -> bool:
        return any(part.picture_counts.any() for part in self._parts)

    @property
    def have_columns(self) -> bool:
        return any(part.columns.null_count < len(part.columns) for part in self._parts)

    @property
    def largest_token(self) -> int:
        texts = (ids for part in self._parts for ids in (part.prompts, part.completions))
        return max((int(ids.max()) for ids in texts if len(ids)), default=0)

    def lengths(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens of every prompt, tokens of every completion, and completions of every group."""
        starts = (
            [getattr(part, name) for part in self._parts]
            for name in ("prompt_starts", "completion_starts", "first_completions")
        )
        prompts, completions, groups = (
            np.concatenate([np.diff(of_part) for of_part in of_parts]).astype(np.int64)
            for of_parts in starts
        )
        return prompts, completions, groups

    @property
    def row_ids(self) -> np.ndarray:
        return np.concatenate([part.row_ids for part in self._parts])


class _Places(Mapping[int, str]):
    def __init__(self, groups: KeptGroups):
        self._groups, self._row_ids = groups, groups.row_ids
        self._order = np.argsort(self._row_ids, kind="stable")

    def __getitem__(self, row_id: int) -> str:
        at = np.searchsorted(self._row_ids, row_id, sorter=self._order)
        if at == len(self._order) or self._row_ids[self._order[at]] != row_id:
            raise KeyError(row_id)
        return self._groups[int(self._order[at])].where

    def __iter__(self) -> Iterator[int]:
        return map(int, self._row_ids)

    def __len__(self) -> int:
        return len(self._row_ids)


def row_ids_of(groups: Sequence[EncodedGroup]) -> np.ndarray:
    """[B]"""
    if isinstance(groups, KeptGroups):
        return groups.row_ids
    return np.array([group.row_id for group in groups], np.int64)


def places_of(groups: Sequence[EncodedGroup]) -> Mapping[int, str]:
    """Row id -> file and row; texts that lie in a file are not read before they are asked for."""
    if isinstance(groups, KeptGroups):
        return groups.places()
    return {group.row_id: group.where for group in groups}


def _read(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    return {name: _as_tuples(value) for name, value in json.loads(text).items()}


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
