"""How stored tensors map onto the parameter tree, and the one loop that loads them, whatever the file format.

A family states one `Weight` a leaf; a file format offers a `TensorSource`.  Leaves are built one at a time
and layer by layer, so a checkpoint is never in memory twice, and `put` can ask for the part of a leaf that
one device holds.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxpref.errors import InputError
from jaxpref.models.spec import ModelSpec

Index = tuple[slice, ...]
ReadSlice = Callable[[Index], np.ndarray]
Put = Callable[[str, tuple[int, ...], np.dtype, ReadSlice], Any]


@dataclass(frozen=True)
class Weight:
    """Where one leaf is stored and in which layout.

    `name` is the tensor's name; with `{layer}` in it the leaf is stacked over layers.  `layout` reads
    `stored -> leaf`, one letter an axis (letters as in `jaxpref.types`), commas between the stored axes;
    letters that share a stored axis are flattened into it, the first one slowest: `NH,D -> DNH` is a stored
    `[N*H, D]` matrix whose leaf is `[D, N, H]`.
    """

    name: str
    layout: str

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.name

    @property
    def stored_axes(self) -> list[str]:
        return self.layout.split(" -> ")[0].split(",")

    @property
    def leaf_axes(self) -> str:
        return self.layout.split(" -> ")[1]

    def stored_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(int(np.prod([sizes[a] for a in axis])) for axis in self.stored_axes)

    def leaf_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of one layer's part of the leaf (of the leaf, when it is not stacked)."""
        return tuple(sizes[a] for a in self.leaf_axes)

    def read(self, sizes: Mapping[str, int], index: Index, read_stored: ReadSlice) -> np.ndarray:
        """The part `index` (contiguous, over `leaf_axes`) of one layer's leaf, reading no more than it must.

        Letters behind the first of a flattened axis are read whole and cut afterwards: a stored file offers
        contiguous ranges only.
        """
        part = dict(zip(self.leaf_axes, index, strict=True))
        stored_index, unflat_shape, cut = [], [], []
        for axis in self.stored_axes:
            first, rest = axis[0], axis[1:]
            block = int(np.prod([sizes[a] for a in rest], dtype=int))
            start, stop, step = part[first].indices(sizes[first])
            assert step == 1, "leaves are read in contiguous slices"
            stored_index.append(slice(start * block, stop * block))
            unflat_shape += [stop - start, *(sizes[a] for a in rest)]
            cut += [slice(None), *(part[a] for a in rest)]
        unflat = read_stored(tuple(stored_index)).reshape(unflat_shape)[tuple(cut)]
        order = "".join(self.stored_axes)
        return unflat.transpose([order.index(a) for a in self.leaf_axes])

    def stored(self, leaf: np.ndarray) -> np.ndarray:
        """One layer's leaf, whole, in the stored layout: the inverse of `read`."""
        order = "".join(self.stored_axes)
        sizes = dict(zip(self.leaf_axes, leaf.shape, strict=True))
        return leaf.transpose([self.leaf_axes.index(a) for a in order]).reshape(self.stored_shape(sizes))


class TensorSource(NamedTuple):
    """An opened checkpoint: its stored tensors' shapes and a reader of contiguous parts."""

    where: str
    """The file or directory, for error messages."""
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str, Index], np.ndarray]
    """`read(name, index)` -> a new array: never a view of the file, which is closed after loading."""


def axis_sizes(spec: ModelSpec) -> dict[str, int]:
    """Letter -> size, for the letters that a `Weight.layout` may use."""
    return {
        "1": 1,
        "D": spec.width, "F": spec.ffn, "V": spec.vocab,
        "N": spec.heads, "M": spec.kv_heads, "H": spec.head_dim,
    }  # fmt: skip


def used_weights(table: Mapping[str, Weight], spec: ModelSpec) -> dict[str, Weight]:
    """The table's leaves that this model has: a tied model has no head of its own."""
    return {path: weight for path, weight in table.items() if not (spec.tied and path == "head/kernel")}


def stored_shapes(weights: Mapping[str, Weight], spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Stored name -> stored shape of every tensor of the model, in file order."""
    return {
        w.name.format(layer=layer): w.stored_shape(axis_sizes(spec)) for _, w, layer in in_file_order(weights, spec)
    }


def in_file_order(weights: Mapping[str, Weight], spec: ModelSpec) -> list[tuple[str, Weight, int]]:
    """(path, weight, layer) of every stored tensor: the embedding, layer by layer, the rest.

    `layer` is 0 for a leaf that is not stacked.
    """
    single = [(path, w, 0) for path, w in weights.items() if not w.stacked]
    stacked = [(path, w, y) for y in range(spec.layers) for path, w in weights.items() if w.stacked]
    return single[:1] + stacked + single[1:]


def tree_shapes(weights: Mapping[str, Weight], spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Leaf path -> shape of the parameter tree."""
    sizes = axis_sizes(spec)
    return {path: (spec.layers,) * w.stacked + w.leaf_shape(sizes) for path, w in weights.items()}


def check_shapes(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], *, where: str, fix: str
) -> None:
    """Compares names and shapes; `where` says whose they are.

    Errors: one InputError that lists every missing, extra and misshaped name.
    """
    lines = [f"missing {name} {list(shape)}" for name, shape in wanted.items() if name not in found]
    lines += [f"extra {name} {list(shape)}" for name, shape in found.items() if name not in wanted]
    lines += [
        f"misshaped {name}: {list(found[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if lines:
        raise InputError(
            f"{len(wanted)} tensors with the names and shapes of the model",
            f"in {where}:\n          " + "\n          ".join(lines),
            fix,
        )


def whole(path: str, shape: tuple[int, ...], dtype: np.dtype, read_slice: ReadSlice) -> np.ndarray:
    """The default `put`: the whole leaf as a numpy array on this host."""
    return read_slice((slice(None),) * len(shape))


def load_tree(
    source: TensorSource,
    table: Mapping[str, Weight],
    spec: ModelSpec,
    *,
    dtype: Any = np.float32,
    put: Put | None = None,
    ignored: str = r"(?!)",
) -> dict[str, Any]:
    """Builds the parameter tree from stored tensors, leaf by leaf.

    Args:
        source: the opened checkpoint.
        table: leaf path -> `Weight`, of the model's family.
        spec: the model; fixes which leaves there are and their shapes.
        dtype: of the returned leaves, whatever is stored.
        put: `put(path, shape, dtype, read_slice) -> array` makes one leaf.  `read_slice(index)` takes one
            contiguous slice an axis of the leaf and reads that part only, so a sharded leaf is
            `jax.make_array_from_callback(shape, sharding, read_slice)`.  Default: the whole leaf in numpy.
        ignored: regular expression of stored names that are knowingly not loaded.

    Returns: nested dict of arrays, the tree that `ModelSpec` documents.
    Errors: InputError that lists all missing, extra and misshaped tensors.
    """
    weights, sizes, dtype = used_weights(table, spec), axis_sizes(spec), np.dtype(dtype)
    found = {name: shape for name, shape in source.shapes.items() if not re.fullmatch(ignored, name)}
    check_shapes(
        found, stored_shapes(weights, spec), where=source.where,
        fix="take weights and config from the same model; an adapter must be merged into its base first",
    )  # fmt: skip
    flat = {}
    for path, shape in tree_shapes(weights, spec).items():
        read = _slice_reader(source, weights[path], sizes, shape, dtype)
        flat[path] = (put or whole)(path, shape, dtype, read)
    return nest(flat)


def _slice_reader(
    source: TensorSource, weight: Weight, sizes: Mapping[str, int], shape: tuple[int, ...], dtype: np.dtype
) -> ReadSlice:
    def read_layer(layer: int, index: Index) -> np.ndarray:
        name = weight.name.format(layer=layer)
        return weight.read(sizes, index, lambda stored_index: source.read(name, stored_index))

    def read_slice(index: Index) -> np.ndarray:
        if not weight.stacked:
            return np.ascontiguousarray(read_layer(0, index), dtype=dtype)
        spans = [range(*part.indices(size)) for part, size in zip(index, shape, strict=True)]
        out = np.empty([len(span) for span in spans], dtype)
        for row, layer in enumerate(spans[0]):
            out[row] = read_layer(layer, index[1:])
        return out

    return read_slice


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a/b": x}` -> `{"a": {"b": x}}`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": x}}` -> `{"a/b": x}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
