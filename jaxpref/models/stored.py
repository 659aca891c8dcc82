"""How the tensors of checkpoints hold the leaves of the parameter tree.

A family states one `StoredLeaf` per leaf: the tensor's name and layout.  `read` takes a leaf from
its tensors (loading.py does, for whole trees); a `StoredTensor` builds a tensor from its leaves.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxpref.models.leaf import axis_sizes, layers_with
from jaxpref.models.parameters import model_leaves
from jaxpref.models.spec import ModelSpec

Index = tuple[slice, ...]
ReadSlice = Callable[[Index], np.ndarray]


_FIELDS = {"Y": "layer", "E": "expert", "l": "block"}
"""Letter of a leaf's axis that is spread over stored tensors -> its field in their name."""


class StoredAxis(NamedTuple):
    """One axis of a stored tensor, which may hold parts of several leaves."""

    letters: str
    """The letters of the leaf's part, flattened, the first one slowest."""
    before: tuple[str, ...] = ()
    """Letters of the parts in front of it."""
    after: tuple[str, ...] = ()
    alternating: bool = False
    """The parts are not behind one another: their elements alternate."""

    def own(self, sizes: Mapping[str, int], start: int = 0, stop: int | None = None) -> slice:
        """Where the leaf's part lies, from `start` to `stop` of its first letter."""
        block = _product(self.letters[1:], sizes)
        stop = sizes[self.letters[0]] if stop is None else stop
        if self.alternating:
            parts = len(self.before) + 1 + len(self.after)
            return slice(start * block * parts + len(self.before), stop * block * parts, parts)
        return slice(self.offset(sizes) + start * block, self.offset(sizes) + stop * block)

    def offset(self, sizes: Mapping[str, int]) -> int:
        return sum(_product(letters, sizes) for letters in self.before)

    def size(self, sizes: Mapping[str, int]) -> int:
        return sum(
            _product(letters, sizes) for letters in (*self.before, self.letters, *self.after)
        )


def _product(letters: str, sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[letter] for letter in letters)


@dataclass(frozen=True)
class StoredLeaf:
    """Where one leaf is stored, and in which layout.

    `name` is the tensor's name: with `{layer}` in it the leaf is stacked over layers, with
    `{expert}` over layers and experts, with `{block}` over the layers of a tower.  `layout` reads
    `stored -> leaf`, one letter per axis (letters as in `jaxpref.types`), commas between the stored
    axes:

    - letters that share a stored axis are flattened into it, the first one slowest: `NH,D -> DNH`
      is a stored `[N*H, D]` matrix whose leaf is `[D, N, H]`;
    - a stored axis that holds several leaves one behind the other names all parts and brackets the
      leaf's own: `NH+[MH]+MH,D -> DMH` is the keys' part of a fused `[(N+2M)*H, D]` matrix;
    - with `|` in place of `+` their elements alternate: `D,F|[F] -> DF` is every second column;
    - a stored axis 1 that the leaf does not name is left out.
    """

    name: str
    layout: str

    @property
    def stack(self) -> str:
        """Letters of the leaf's leading axes that are spread over stored tensors."""
        return "".join(letter for letter, field in _FIELDS.items() if f"{{{field}}}" in self.name)

    @property
    def stacked(self) -> bool:
        return bool(self.stack)

    def stored_name(self, place: tuple[int, ...]) -> str:
        """Of the tensor at this layer and expert."""
        fields = (_FIELDS[letter] for letter in self.stack)
        return self.name.format(**dict(zip(fields, place, strict=True)))

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
        """A part of one stored tensor's leaf, reading no more than it must.

        Args:
            index: of the part, contiguous, over `leaf_axes`.

        Letters behind the first of a flattened axis are read whole and cut afterwards: a stored
        file offers contiguous ranges only.  So are the elements between those that alternate.
        """
        part = {"1": slice(0, 1), **dict(zip(self.leaf_axes, index, strict=True))}
        stored_index, steps, unflat_shape, cut = [], [], [], []
        for axis in self.stored_axes:
            first, rest = axis.letters[0], axis.letters[1:]
            start, stop, step = part[first].indices(sizes[first])
            assert step == 1, "leaves are read in contiguous slices"
            own = axis.own(sizes, start, stop)
            stored_index.append(slice(own.start, own.stop))
            steps.append(slice(None, None, own.step))
            unflat_shape += [stop - start, *(sizes[a] for a in rest)]
            cut += [slice(None), *(part[a] for a in rest)]
        stored = read_stored(tuple(stored_index))[tuple(steps)]
        unflat = stored.reshape(unflat_shape)[tuple(cut)]
        order = "".join(axis.letters for axis in self.stored_axes)
        left_out = tuple(i for i, a in enumerate(order) if a not in self.leaf_axes)
        kept = "".join(a for a in order if a in self.leaf_axes)
        return unflat.squeeze(left_out).transpose([kept.index(a) for a in self.leaf_axes])

    def stored(self, leaf: np.ndarray) -> np.ndarray:
        """One stored tensor's leaf, whole, in the stored layout: the inverse of `read`.

        Of a fused tensor it is the leaf's own part.
        """
        groups = [axis.letters for axis in self.stored_axes]
        sizes = {"1": 1, **dict(zip(self.leaf_axes, leaf.shape, strict=True))}
        own_shape = [_product(letters, sizes) for letters in groups]
        order = [self.leaf_axes.index(a) for a in "".join(groups) if a in self.leaf_axes]
        return leaf.transpose(order).reshape(own_shape)


def _stored_axis(text: str) -> StoredAxis:
    alternating = "|" in text
    parts = text.split("|" if alternating else "+")
    if len(parts) == 1:
        return StoredAxis(text)
    (own,) = [i for i, part in enumerate(parts) if part.startswith("[")]
    before, after = tuple(parts[:own]), tuple(parts[own + 1 :])
    return StoredAxis(parts[own].strip("[]"), before, after, alternating)


class StoredTensor(NamedTuple):
    """One tensor of a checkpoint and the leaves in it: one, or the parts of a fused tensor."""

    name: str
    at: tuple[int, ...]
    """Layer, among those that have the leaves, and expert: where it lies in the stacked leaves.

    Empty when they are not stacked.
    """
    parts: tuple[tuple[str, StoredLeaf], ...]
    """Path and `StoredLeaf` of every part, in their order."""

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return self.parts[0][1].stored_shape(sizes)

    def build(self, fetch: Callable[[str, tuple[int, ...]], np.ndarray]) -> np.ndarray:
        """The tensor in the stored layout; `fetch(path, at)` gives one leaf's part on the host."""
        own = [leaf.stored(fetch(path, self.at)) for path, leaf in self.parts]
        if len(own) == 1:
            return own[0]
        axes = self.parts[0][1].stored_axes
        (fused,) = [i for i, axis in enumerate(axes) if axis.before or axis.after]
        if axes[fused].alternating:
            return np.stack(own, axis=fused + 1).reshape(_joined(own[0].shape, fused, len(own)))
        return np.concatenate(own, axis=fused)


def _joined(shape: tuple[int, ...], axis: int, parts: int) -> tuple[int, ...]:
    return (*shape[:axis], shape[axis] * parts, *shape[axis + 1 :])


def used_leaves(table: Mapping[str, StoredLeaf], spec: ModelSpec) -> dict[str, StoredLeaf]:
    """Of a family's leaves those that this model has: a tied model has no head of its own."""
    leaves = model_leaves(spec)
    return {path: stored for path, stored in table.items() if path in leaves}


def stored_form(
    names: Collection[str], forms: Sequence[Mapping[str, StoredLeaf]], spec: ModelSpec
) -> Mapping[str, StoredLeaf]:
    """The form of a family's checkpoints that knows most of these stored names."""

    def known(form: Mapping[str, StoredLeaf]) -> int:
        return len(set(names) & stored_shapes(used_leaves(form, spec), spec).keys())

    return max(forms, key=known)


def stored_shapes(table: Mapping[str, StoredLeaf], spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Stored name -> stored shape of every tensor of the model, in file order."""
    sizes = axis_sizes(spec)
    return {tensor.name: tensor.shape(sizes) for tensor in stored_tensors(table, spec)}


def stored_tensors(table: Mapping[str, StoredLeaf], spec: ModelSpec) -> list[StoredTensor]:
    """Every stored tensor of the model in file order: the embedding, layer by layer, the rest."""
    by_name: dict[str, list[tuple[str, StoredLeaf]]] = {}
    for path, leaf in table.items():
        by_name.setdefault(leaf.name, []).append((path, leaf))
    groups = [tuple(sorted(parts, key=_parts_in_front)) for parts in by_name.values()]
    sizes = axis_sizes(spec)
    single = [StoredTensor(parts[0][1].name, (), parts) for parts in groups if not _stack(parts)]
    stacked = [
        tensor
        for layer in range(max(spec.layers, spec.vision.layers if spec.vision else 0))
        for parts in groups
        for tensor in _tensors_of_layer(parts, layer, sizes, spec)
    ]
    return single[:1] + stacked + single[1:]


def _stack(parts: tuple[tuple[str, StoredLeaf], ...]) -> str:
    return parts[0][1].stack


def _parts_in_front(part: tuple[str, StoredLeaf]) -> int:
    return sum(len(axis.before) for axis in part[1].stored_axes)


def _tensors_of_layer(
    parts: tuple[tuple[str, StoredLeaf], ...],
    layer: int,
    sizes: Mapping[str, int],
    spec: ModelSpec,
) -> Iterator[StoredTensor]:
    """One tensor, or one per expert; none where leaves are not stacked or the layer has none."""
    (path, leaf), stack = parts[0], _stack(parts)
    layers = layers_with(path, spec)
    if not stack or layer not in layers:
        return
    for expert in np.ndindex(*(sizes[letter] for letter in stack[1:])):
        at = (layers.index(layer), *expert)
        yield StoredTensor(leaf.stored_name((layer, *expert)), at, parts)
