"""One leaf of the parameter tree: its axes and their sizes, and what its product sums over."""

from dataclasses import dataclass
from typing import get_args

from jaxpref.models import presence as has
from jaxpref.models.spec import DeltaNet, Mixer, ModelSpec

MIXERS = get_args(Mixer)
"""Groups below `layers` that only some layers have, where a model's layers mix in several ways."""

LAYERS = ("Y", "l", "1")
"""Letters of layers over which leaves are stacked: the decoder's, the tower's, the connector's."""


@dataclass(frozen=True)
class Leaf:
    """One leaf of the parameter tree."""

    path: str
    letters: str
    """Its axes, letters as in `jaxpref.types`.

    Below `layers` leaves are stacked over the layers that have them, Y (`layers_with`).
    """
    axes: tuple[str | None, ...]
    """The logical axis of every letter (`sharding.LOGICAL`); None: whole on every device."""
    present: has.Present = has.always
    """Whether a model has this leaf."""
    summed: str = ""
    """Letters that its product with an activation sums over; empty: not a factor of a product."""
    adaptable: bool = False
    """Whether an adapter may lie on it and, frozen below one, it may be quantised.

    Its axes are then the layers', those summed over, and the output's, in this order.
    """
    decay: bool = True
    """Whether weight decay applies: not to norm scales and biases, as in Hugging Face's Trainer."""

    def shape(self, spec: ModelSpec, rank: int = 0) -> tuple[int, ...]:
        """Args: rank: of the adapter whose leaf it is."""
        sizes = axis_sizes(spec) | {"Y": len(layers_with(self.path, spec)), "Z": rank}
        return tuple(sizes[letter] for letter in self.letters)

    @property
    def outputs(self) -> str:
        """Letters of the output of an adaptable leaf's product."""
        return self.letters.removeprefix(self.stack + self.summed)

    @property
    def stack(self) -> str:
        """The letter of the layers that the leaf is stacked over; empty: it is no part of one."""
        return self.letters[0] if self.letters[0] in LAYERS else ""

    @property
    def summed_axes(self) -> tuple[int, ...]:
        """Numbers of the axes that its product sums over."""
        return tuple(self.letters.index(letter) for letter in self.summed)

    @property
    def output_axes(self) -> tuple[int, ...]:
        """Numbers of the axes of its product's output."""
        kept = set(self.letters) - set(self.summed) - {*LAYERS, "E"}
        return tuple(self.letters.index(letter) for letter in self.letters if letter in kept)

    @property
    def is_matrix(self) -> bool:
        """Whether it holds the layers' matrices, from activations to activations.

        Embedding, LM head and router are none: they come from tokens or end in choices.
        """
        return bool(self.summed) and self.stack == "Y" and bool(self.output_axes)


def axis_sizes(spec: ModelSpec) -> dict[str, int]:
    """Letter -> size, for the letters of `LEAVES`; Y of all layers."""
    delta = spec.delta or DeltaNet(0, 0, 0, 0, 0)
    return _tower_sizes(spec) | {
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
        "g": 2,
        "m": delta.key_heads,
        "n": delta.value_heads,
        "h": delta.key_size,
        "v": delta.value_size,
        "t": delta.taps,
    }


def _tower_sizes(spec: ModelSpec) -> dict[str, int]:
    vision = spec.vision
    if vision is None:
        return {}
    return {
        "c": 3,
        "k": vision.patch_size,
        "o": vision.patch_size,
        "a": vision.patches + int(vision.class_token),
        "d": vision.width,
        "f": vision.ffn,
        "l": vision.layers,
        "q": vision.heads,
        "r": vision.head_dim,
        "w": vision.width * (vision.square**2 if vision.connector == "shuffle" else 1),
        "u": vision.width * vision.patches if vision.connector == "merge" else spec.width,
        "y": vision.frames or 0,
    }


def layers_with(path: str, spec: ModelSpec) -> tuple[int, ...]:
    """Numbers of the layers that have the leaf at a path, below `layers` or an adapter's.

    Of a leaf of the tower its own layers, of one of the connector its only one.
    """
    if "vision" in path.split("/"):
        return tuple(range(spec.vision.layers if spec.vision else 0))
    if "connector" in path.split("/"):
        return (0,)
    (group,) = [part for part in path.split("/") if part in MIXERS][:1] or [None]
    return tuple(y for y, mixer in enumerate(spec.mixers) if group in (None, mixer))
