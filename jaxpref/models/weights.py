"""How stored tensors map onto the parameter tree, and the one loop that loads them, whatever the
file format.

A family states one `Weight` a leaf; a file format offers a `TensorSource`.  Leaves are built one at
a time and layer by layer, so a checkpoint is never in memory twice, and `put` can ask for the part
of a leaf that one device holds.  Writing goes the other way, one `StoredTensor` at a time.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxpref.errors import InputError
from jaxpref.models.spec import ModelSpec

Index = tuple[slice, ...]
ReadSlice = Callable[[Index], np.ndarray]
Put = Callable[[str, tuple[int, ...], np.dtype, ReadSlice], Any]

_CONVERTED_BYTES = 2**24
"""Of a leaf that is not stacked, what is converted to its dtype at a time."""


class StoredAxis(NamedTuple):
    """One axis of a stored tensor; it may hold the parts of several leaves, one behind the
    other."""

    letters: str
    """The letters of the leaf's part, flattened, the first one slowest."""
    before: tuple[str, ...] = ()
    """Letters of the parts in front of it."""
    after: tuple[str, ...] = ()

    def offset(self, sizes: Mapping[str, int]) -> int:
        return sum(_product(letters, sizes) for letters in self.before)

    def size(self, sizes: Mapping[str, int]) -> int:
        return sum(
            _product(letters, sizes) for letters in (*self.before, self.letters, *self.after)
        )


def _product(letters: str, sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[letter] for letter in letters)


@dataclass(frozen=True)
class Weight:
    """Where one leaf is stored and in which layout.

    `name` is the tensor's name; with `{layer}` in it the leaf is stacked over layers, with
    `{expert}` over layers and experts.  `layout` reads `stored -> leaf`, one letter an axis
    (letters as in `jaxpref.types`), commas between the stored axes:

    - letters that share a stored axis are flattened into it, the first one slowest: `NH,D -> DNH`
      is a stored `[N*H, D]` matrix whose leaf is `[D, N, H]`;
    - a stored axis that holds several leaves one behind the other names all parts and brackets the
      leaf's own: `NH+[MH]+MH,D -> DMH` is the keys' part of a fused `[(N+2M)*H, D]` matrix.
    """

    name: str
    layout: str

    @property
    def stack(self) -> str:
        """Letters of the leaf's leading axes that are spread over stored tensors."""
        return "Y" * ("{layer}" in self.name) + "E" * ("{expert}" in self.name)

    @property
    def stacked(self) -> bool:
        return bool(self.stack)

    def stored_name(self, place: tuple[int, ...]) -> str:
        """Of the tensor at this layer and expert."""
        return self.name.format(**dict(zip(("layer", "expert"), place, strict=False)))

    @property
    def stored_axes(self) -> list[StoredAxis]:
        return [_stored_axis(text) for text in self.layout.split(" -> ")[0].split(",")]

    @property
    def leaf_axes(self) -> str:
        """Axes of the leaf behind those of `stack`."""
        return self.layout.split(" -> ")[1]

    def stored_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(axis.size(sizes) for axis in self.stored_axes)

    def leaf_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of one stored tensor's part of the leaf (of the leaf, when it is not stacked)."""
        return tuple(sizes[a] for a in self.leaf_axes)

    def read(self, sizes: Mapping[str, int], index: Index, read_stored: ReadSlice) -> np.ndarray:
        """The part `index` (contiguous, over `leaf_axes`) of one stored tensor's leaf, reading no
        more than it must.

        Letters behind the first of a flattened axis are read whole and cut afterwards: a stored
        file offers contiguous ranges only.
        """
        part = dict(zip(self.leaf_axes, index, strict=True))
        stored_index, unflat_shape, cut = [], [], []
        for axis in self.stored_axes:
            first, rest = axis.letters[0], axis.letters[1:]
            block, offset = _product(rest, sizes), axis.offset(sizes)
            start, stop, step = part[first].indices(sizes[first])
            assert step == 1, "leaves are read in contiguous slices"
            stored_index.append(slice(offset + start * block, offset + stop * block))
            unflat_shape += [stop - start, *(sizes[a] for a in rest)]
            cut += [slice(None), *(part[a] for a in rest)]
        unflat = read_stored(tuple(stored_index)).reshape(unflat_shape)[tuple(cut)]
        order = "".join(axis.letters for axis in self.stored_axes)
        return unflat.transpose([order.index(a) for a in self.leaf_axes])

    def stored(self, leaf: np.ndarray) -> np.ndarray:
        """One stored tensor's leaf, whole, in the stored layout: the inverse of `read`.

        Of a fused tensor it is the leaf's own part.
        """
        groups = [axis.letters for axis in self.stored_axes]
        sizes = dict(zip(self.leaf_axes, leaf.shape, strict=True))
        own_shape = [_product(letters, sizes) for letters in groups]
        return leaf.transpose([self.leaf_axes.index(a) for a in "".join(groups)]).reshape(own_shape)


def _stored_axis(text: str) -> StoredAxis:
    parts = text.split("+")
    if len(parts) == 1:
        return StoredAxis(text)
    (own,) = [i for i, part in enumerate(parts) if part.startswith("[")]
    return StoredAxis(parts[own].strip("[]"), tuple(parts[:own]), tuple(parts[own + 1 :]))


class TensorSource(NamedTuple):
    """An opened checkpoint: its stored tensors' shapes and a reader of contiguous parts."""

    where: str
    """The file or directory, for error messages."""
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str, Index], np.ndarray]
    """`read(name, index)` -> a new array: never a view of the file, which is closed after
    loading."""


class StoredTensor(NamedTuple):
    """One tensor of a checkpoint and the leaves that lie in it: one, or the parts of a fused tensor
    in their order."""

    name: str
    at: tuple[int, ...]
    """Layer and expert: where it lies in the stacked leaves; empty when they are not stacked."""
    parts: tuple[tuple[str, Weight], ...]
    """Leaf path and `Weight`."""

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return self.parts[0][1].stored_shape(sizes)

    def build(self, fetch: Callable[[str, tuple[int, ...]], np.ndarray]) -> np.ndarray:
        """The tensor in the stored layout; `fetch(path, at)` gives one leaf's part on the host."""
        own = [weight.stored(fetch(path, self.at)) for path, weight in self.parts]
        if len(own) == 1:
            return own[0]
        axes = self.parts[0][1].stored_axes
        return np.concatenate(
            own, axis=next(i for i, axis in enumerate(axes) if axis.before or axis.after)
        )


def axis_sizes(spec: ModelSpec) -> dict[str, int]:
    """Letter -> size, for the letters that a `Weight.layout` may use."""
    return {
        "1": 1,
        "D": spec.width,
        "F": spec.ffn,
        "V": spec.vocab,
        "P": spec.max_positions,
        "N": spec.heads,
        "M": spec.kv_heads,
        "H": spec.head_dim,
        "Y": spec.layers,
        "E": spec.experts,
    }


# Leaf path (regular expression) -> whether the model has it, as `ModelSpec` says; every model has
# the other leaves.
_PRESENT: tuple[tuple[str, Callable[[ModelSpec], bool]], ...] = (
    (r"embed/position", lambda spec: spec.learned_positions),
    (r"layers/(attention|mlp)_norm/\w+", lambda spec: spec.norm_at != "post"),
    (r"layers/(attention|mlp)_post_norm/\w+", lambda spec: spec.norm_at != "pre"),
    (r".*_norm/bias", lambda spec: spec.norm == "layer"),
    (r"layers/attention/[qkv]_bias", lambda spec: spec.qkv_bias),
    (r"layers/attention/o_bias", lambda spec: spec.o_bias),
    (r"layers/attention/[qk]_norm", lambda spec: spec.qk_norm is not None),
    (r"layers/mlp/\w+", lambda spec: not spec.experts),
    (r"layers/mlp/gate", lambda spec: spec.gated),
    (r"layers/mlp/\w+_bias", lambda spec: spec.mlp_bias),
    (r"layers/experts/\w+", lambda spec: spec.experts > 0),
    (r"head/kernel", lambda spec: not spec.tied),
)


def used_weights(table: Mapping[str, Weight], spec: ModelSpec) -> dict[str, Weight]:
    """The table's leaves that this model has: a tied model has no head of its own."""
    return {
        path: weight
        for path, weight in table.items()
        if all(present(spec) for rule, present in _PRESENT if re.fullmatch(rule, path))
    }


def stored_form(
    names: Collection[str], forms: Sequence[Mapping[str, Weight]], spec: ModelSpec
) -> Mapping[str, Weight]:
    """Of the forms in which a family's checkpoints are written, the one that knows most of these
    stored names."""
    return max(
        forms,
        key=lambda form: len(set(names) & stored_shapes(used_weights(form, spec), spec).keys()),
    )


def stored_shapes(weights: Mapping[str, Weight], spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Stored name -> stored shape of every tensor of the model, in file order."""
    sizes = axis_sizes(spec)
    return {tensor.name: tensor.shape(sizes) for tensor in stored_tensors(weights, spec)}


def stored_tensors(weights: Mapping[str, Weight], spec: ModelSpec) -> list[StoredTensor]:
    """Every stored tensor of the model in file order: the embedding, layer by layer, the rest."""
    found: dict[str, list[tuple[str, Weight]]] = {}
    for path, weight in weights.items():
        found.setdefault(weight.name, []).append((path, weight))
    parts_in_front = lambda part: sum(len(axis.before) for axis in part[1].stored_axes)
    all_parts = [tuple(sorted(parts, key=parts_in_front)) for parts in found.values()]
    sizes = axis_sizes(spec)

    def tensors(
        parts: tuple[tuple[str, Weight], ...], place: tuple[int, ...]
    ) -> list[StoredTensor]:
        """Those of a layer, or the one that is not stacked."""
        weight = parts[0][1]
        places = [(*place, *expert) for expert in np.ndindex(*(sizes[a] for a in weight.stack[1:]))]
        return [StoredTensor(weight.stored_name(at), at, parts) for at in places]

    single = [
        tensor for parts in all_parts if not parts[0][1].stacked for tensor in tensors(parts, ())
    ]
    stacked = [
        tensor
        for layer in range(spec.layers)
        for parts in all_parts
        if parts[0][1].stacked
        for tensor in tensors(parts, (layer,))
    ]
    return single[:1] + stacked + single[1:]


def tree_shapes(weights: Mapping[str, Weight], spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Leaf path -> shape of the parameter tree."""
    sizes = axis_sizes(spec)
    return {path: tuple(sizes[a] for a in w.stack + w.leaf_axes) for path, w in weights.items()}


def check_shapes(
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    where: str,
    fix: str,
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
        put: `put(path, shape, dtype, read_slice) -> array` makes one leaf.  `read_slice(index)`
            takes one contiguous slice an axis of the leaf and reads that part only, so a sharded
            leaf is `jax.make_array_from_callback(shape, sharding, read_slice)`.  Default: the whole
            leaf in numpy.
        ignored: regular expression of stored names that are knowingly not loaded.

    Returns: nested dict of arrays, the tree that `ModelSpec` documents.
    Errors: InputError that lists all missing, extra and misshaped tensors.
    """
    weights, sizes, dtype = used_weights(table, spec), axis_sizes(spec), np.dtype(dtype)
    found = {
        name: shape for name, shape in source.shapes.items() if not re.fullmatch(ignored, name)
    }
    check_shapes(
        found,
        stored_shapes(weights, spec),
        where=source.where,
        fix="take weights and config from the same model; an adapter must be merged into its base first",
    )
    flat = {}
    for path, shape in tree_shapes(weights, spec).items():
        read = _slice_reader(source, weights[path], sizes, shape, dtype)
        flat[path] = (put or whole)(path, shape, dtype, read)
    return nest(flat)


def _slice_reader(
    source: TensorSource,
    weight: Weight,
    sizes: Mapping[str, int],
    shape: tuple[int, ...],
    dtype: np.dtype,
) -> ReadSlice:
    depth = len(weight.stack)

    def read_one(place: tuple[int, ...], index: Index) -> np.ndarray:
        name = weight.stored_name(place)
        return weight.read(sizes, index, lambda stored_index: source.read(name, stored_index))

    def read_slice(index: Index) -> np.ndarray:
        spans = [range(*part.indices(size)) for part, size in zip(index, shape, strict=True)]
        out = np.empty([len(span) for span in spans], dtype)
        if weight.stacked:
            for at in np.ndindex(out.shape[:depth]):
                out[at] = read_one(
                    tuple(span[i] for span, i in zip(spans, at, strict=False)), index[depth:]
                )
            return out
        # Some rows at a time: a whole embedding in the file's dtype beside the converted one would
        #     be too much.
        rows = max(1, _CONVERTED_BYTES // max(1, out[:1].nbytes))
        for first in range(0, len(out), rows):
            part = out[first : first + rows]
            start = spans[0].start + first
            part[:] = read_one((), (slice(start, start + len(part)), *index[1:]))
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
        flat |= (
            flatten(value, f"{prefix}{key}/")
            if isinstance(value, Mapping)
            else {prefix + key: value}
        )
    return flat
