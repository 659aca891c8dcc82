"""Safetensors files in buckets: parts of their tensors, read as ranges of bytes.

The format: the header's length in 8 bytes, the header as JSON, the tensors' bytes in row-major
order (https://github.com/huggingface/safetensors).
"""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxpref.errors import InputError
from jaxpref.models.stored import Index
from jaxpref.storage.paths import file_system, key_of

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
GAP = 2**18
"""Bytes between two ranges that are read along: to ask for each by itself would take longer."""
_REQUEST = 2**24
"""Bytes that are asked for at a time; the requests for a part of a tensor run side by side."""
_LONGEST_HEADER = 10**8


class RangedFile:
    """A safetensors file in a bucket, its header read.

    Errors: InputError for a file that is none, or is cut.
    """

    def __init__(self, path: Path):
        self.path, self._files, self._key = path, file_system(path), key_of(path)
        self.bytes_read = 0
        self.size = self._files.size(self._key)
        length = int.from_bytes(self._bytes([(0, min(8, self.size))]), "little")
        self._first = 8 + length
        if not 0 < length <= min(_LONGEST_HEADER, self.size - 8):
            raise self._damaged("its header is longer than the file")
        try:
            self._header = json.loads(self._bytes([(8, self._first)]))
            self.metadata: dict[str, str] = self._header.pop("__metadata__", {})
            ends = [tensor["data_offsets"][1] for tensor in self._header.values()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(f"its header: {error}") from error
        if self._first + max(ends, default=0) != self.size:
            raise self._damaged("it is cut, or its header is of another file")

    def _damaged(self, why: str) -> InputError:
        return InputError(
            "a complete safetensors file",
            f"{self.path} ({self.size} bytes): {why}",
            "copy the file again",
        )

    def slices(self) -> dict[str, "RangedTensor"]:
        """Name -> tensor, of which parts may be taken."""
        return {name: RangedTensor(self, about) for name, about in self._header.items()}

    def read(self, ranges: list[tuple[int, int]]) -> bytes:
        """Ranges behind the header, one after another."""
        return self._bytes([(self._first + start, self._first + end) for start, end in ranges])

    def _bytes(self, ranges: list[tuple[int, int]]) -> bytes:
        parts = [
            (start, min(start + _REQUEST, end))
            for first, end in ranges
            for start in range(first, end, _REQUEST)
        ]
        starts, ends = zip(*parts, strict=True) if parts else ((), ())
        keys = [self._key] * len(parts)
        read = self._files.cat_ranges(keys, list(starts), list(ends), on_error="raise")
        self.bytes_read += sum(map(len, read))
        return b"".join(read)


class RangedTensor:
    """A tensor in a file; has the methods of safetensors' own slices.

    Args:
        about: as the header has it.
    """

    def __init__(self, file: RangedFile, about: dict[str, Any]):
        self._file, self._about = file, about

    def get_shape(self) -> list[int]:
        return self._about["shape"]

    def get_dtype(self) -> str:
        return self._about["dtype"]

    def __getitem__(self, index: Index) -> np.ndarray:
        """A part; index: one contiguous slice per axis."""
        dtype, shape = _DTYPES[self.get_dtype()], self.get_shape()
        spans = [range(*part.indices(size)) for part, size in zip(index, shape, strict=True)]
        sizes = [len(span) for span in spans]
        starts, length = _runs(spans, shape)
        first = self._about["data_offsets"][0]
        if not starts.size or not length:
            return np.zeros(sizes, dtype)
        starts, length = starts * dtype.itemsize + first, length * dtype.itemsize
        # Runs with a short gap between them are read together, and the gap is dropped here.
        apart = np.flatnonzero(np.diff(starts) - length > GAP) + 1
        read = []
        for together in np.split(starts, apart):
            end = int(together[-1]) + length
            whole = np.frombuffer(self._file.read([(int(together[0]), end)]), np.uint8)
            read += [whole[at : at + length] for at in (together - together[0]).tolist()]
        return np.concatenate(read).view(dtype).reshape(sizes)


def _runs(spans: list[range], shape: list[int]) -> tuple[np.ndarray, int]:
    """Where the contiguous runs of a part begin in its tensor, ascending, and how long each is.

    Both are counted in elements.
    """
    cut = [axis for axis, size in enumerate(shape) if len(spans[axis]) != size]
    last = cut[-1] if cut else 0
    length = math.prod(len(span) for span in spans[last:])
    starts = np.zeros((), np.int64)
    for axis, span in enumerate(spans[: last + 1]):
        at = np.array(span if axis < last else span[:1], np.int64)
        starts = starts[..., None] + at * math.prod(shape[axis + 1 :])
    return starts.reshape(-1), length
