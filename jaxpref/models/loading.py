"""Stored tensors -> the parameter tree, in one loop for all file formats.

A file format offers a `TensorSource`.  Leaves are built one at a time and layer by layer, so a
checkpoint is never in memory twice, and `put` can ask for the part of a leaf that one device holds.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpref.errors import InputError
from jaxpref.models.finite import is_finite
from jaxpref.models.leaf import axis_sizes, layers_with
from jaxpref.models.parameters import model_shapes, nest
from jaxpref.models.spec import ModelSpec
from jaxpref.models.stored import Index, ReadSlice, StoredLeaf, stored_shapes, used_leaves

Put = Callable[[str, tuple[int, ...], np.dtype, ReadSlice], Any]

_CONVERTED_BYTES = 2**24
"""Bytes of a leaf that is not stacked that are converted to its dtype at a time."""


class TensorSource(NamedTuple):
    """An opened checkpoint: its stored tensors' shapes and a reader of contiguous parts."""

    where: str
    """The file or directory, for error messages."""
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str, Index], np.ndarray]
    """`read(name, index)` -> a new array, never a view of the file, which is closed later."""


def check_shapes(
    given: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    where: str,
    fix: str,
) -> None:
    """Compares names and shapes; `where` says whose they are.

    Errors: one InputError that lists every missing, extra and misshaped name.
    """
    lines = [f"missing {name} {list(shape)}" for name, shape in wanted.items() if name not in given]
    lines += [f"extra {name} {list(shape)}" for name, shape in given.items() if name not in wanted]
    lines += [
        f"misshaped {name}: {list(given[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in given and tuple(given[name]) != tuple(shape)
    ]
    if lines:
        raise InputError(
            f"{len(wanted)} tensors with the names and shapes of the model",
            f"in {where}:\n          " + "\n          ".join(lines),
            fix,
        )


def check_finite(tensor: np.ndarray, name: str, where: str) -> None:
    """Errors: InputError for a tensor that was read, with NaN or infinite numbers."""
    if not is_finite(tensor):
        raise InputError(
            "finite weights",
            f"NaN or infinite numbers in {name} of {where}",
            "copy or download the model again; if they were trained so, take an earlier checkpoint",
        )


def whole(path: str, shape: tuple[int, ...], dtype: np.dtype, read_slice: ReadSlice) -> np.ndarray:
    """The default `put`: the whole leaf as a numpy array on this host."""
    return read_slice((slice(None),) * len(shape))


def load_tree(
    source: TensorSource,
    table: Mapping[str, StoredLeaf],
    spec: ModelSpec,
    *,
    dtype: Any = np.float32,
    put: Put | None = None,
    ignored: str = r"(?!)",
) -> dict[str, Any]:
    """Builds the parameter tree from stored tensors, leaf by leaf.

    Args:
        source: the opened checkpoint.
        table: leaf path -> `StoredLeaf`, of the model's family.
        spec: the model; fixes which leaves there are and their shapes.
        dtype: of the returned leaves, whatever is stored.
        put: `put(path, shape, dtype, read_slice) -> array` makes one leaf.  `read_slice(index)`
            takes one contiguous slice per axis of the leaf and reads that part only, so a sharded
            leaf is `jax.make_array_from_callback(shape, sharding, read_slice)`.  Default: the whole
            leaf in numpy.
        ignored: regular expression of stored names that are knowingly not loaded.

    Returns: nested dict of arrays, the tree of `parameters.LEAVES`.
    Errors: InputError that lists all missing, extra and misshaped tensors; one for NaN or infinite
        numbers in what is read.
    """
    stored, sizes, dtype = used_leaves(table, spec), axis_sizes(spec), np.dtype(dtype)
    given = {
        name: shape for name, shape in source.shapes.items() if not re.fullmatch(ignored, name)
    }
    check_shapes(
        given,
        stored_shapes(stored, spec),
        where=source.where,
        fix="take weights and config from the same model; merge an adapter into its base first",
    )
    shapes, flat = model_shapes(spec), {}
    for path, leaf in stored.items():
        layers = layers_with(path, spec)
        read = _slice_reader(source, leaf, layers, sizes, shapes[path], dtype)
        flat[path] = (put or whole)(path, shapes[path], dtype, read)
    return nest(flat)


def _slice_reader(
    source: TensorSource,
    leaf: StoredLeaf,
    layers: Sequence[int],
    sizes: Mapping[str, int],
    shape: tuple[int, ...],
    dtype: np.dtype,
) -> ReadSlice:
    depth = len(leaf.stack)

    def fill(out: np.ndarray, place: tuple[int, ...], index: Index) -> None:
        name = leaf.stored_name(place)
        out[...] = leaf.read(sizes, index, lambda stored_index: source.read(name, stored_index))
        check_finite(out, name, source.where)

    def read_slice(index: Index) -> np.ndarray:
        spans = [range(*part.indices(size)) for part, size in zip(index, shape, strict=True)]
        out = np.empty([len(span) for span in spans], dtype)
        if leaf.stacked:
            for at in np.ndindex(out.shape[:depth]):
                number, *expert = (span[i] for span, i in zip(spans, at, strict=False))
                fill(out[at], (layers[number], *expert), index[depth:])
            return out
        # Some rows at a time: not a whole embedding in the file's dtype beside the converted one.
        rows = max(1, _CONVERTED_BYTES // max(1, out[:1].nbytes))
        for first in range(0, len(out), rows):
            part = out[first : first + rows]
            start = spans[0].start + first
            fill(part, (), (slice(start, start + len(part)), *index[1:]))
        return out

    return read_slice
