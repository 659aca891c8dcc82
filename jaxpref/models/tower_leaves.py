"""The lines of the table of parameters for models that see pictures (`tower.py`)."""

from jaxpref.models import presence as has
from jaxpref.models.leaf import Leaf
from jaxpref.models.spec import ModelSpec

TOWER_PARTS = ("vision/", "connector/")
"""How the paths of leaves begin that only models with pictures have."""


def _norm(path: str, letters: str, present: has.Present) -> tuple[Leaf, Leaf]:
    """The scale of a norm, and its bias where the tower's are LayerNorm."""

    def with_bias(spec: ModelSpec) -> bool:
        return has.layer_normed_tower(spec) and present(spec)

    whole = (None,) * len(letters)
    return (
        Leaf(f"{path}/scale", letters, whole, present, decay=False),
        Leaf(f"{path}/bias", letters, whole, with_bias, decay=False),
    )


_TO_HEADS = (None, "width", "heads", None)
_FROM_HEADS = (None, "heads", None, "width")

TOWER: tuple[Leaf, ...] = (
    Leaf("vision/embed/patch", "ckod", (None, None, None, "width"), has.no_frames, "cko"),
    Leaf("vision/embed/patch", "cykod", (None, None, None, None, "width"), has.frames, "cyko"),
    Leaf("vision/embed/patch_bias", "d", (None,), has.patch_bias, decay=False),
    Leaf("vision/embed/class", "d", (None,), has.class_token),
    Leaf("vision/embed/position", "ad", (None, None), has.learned_patch_positions),
    *_norm("vision/first_norm", "d", has.class_token),
    *_norm("vision/layers/attention_norm", "ld", has.vision),
    Leaf("vision/layers/attention/q", "ldqr", _TO_HEADS, has.vision, "d", True),
    Leaf("vision/layers/attention/k", "ldqr", _TO_HEADS, has.vision, "d", True),
    Leaf("vision/layers/attention/v", "ldqr", _TO_HEADS, has.vision, "d", True),
    Leaf("vision/layers/attention/o", "lqrd", _FROM_HEADS, has.vision, "qr", True),
    Leaf("vision/layers/attention/q_bias", "lqr", (None, "heads", None), has.vision, decay=False),
    Leaf("vision/layers/attention/k_bias", "lqr", (None, "heads", None), has.vision, decay=False),
    Leaf("vision/layers/attention/v_bias", "lqr", (None, "heads", None), has.vision, decay=False),
    Leaf("vision/layers/attention/o_bias", "ld", (None, None), has.vision, decay=False),
    *_norm("vision/layers/mlp_norm", "ld", has.vision),
    Leaf("vision/layers/mlp/up", "ldf", (None, "width", "ffn"), has.vision, "d", True),
    Leaf("vision/layers/mlp/up_bias", "lf", (None, "ffn"), has.vision, decay=False),
    Leaf("vision/layers/mlp/down", "lfd", (None, "ffn", "width"), has.vision, "f", True),
    Leaf("vision/layers/mlp/down_bias", "ld", (None, None), has.vision, decay=False),
    *_norm("vision/final_norm", "d", has.learned_patch_positions),
    Leaf("vision/layers/mlp/gate", "ldf", (None, "width", "ffn"), has.gated_tower, "d", True),
    Leaf("vision/layers/mlp/gate_bias", "lf", (None, "ffn"), has.gated_tower, decay=False),
)
"""Of the tower that sees pictures (`tower.py`)."""

CONNECTOR: tuple[Leaf, ...] = (
    Leaf("connector/norm/scale", "1d", (None, None), has.normed_connector, decay=False),
    Leaf("connector/project", "1wD", (None, None, "width"), has.linear_connector, "w", True),
    Leaf("connector/up", "1du", (None, "width", "ffn"), has.mlp_connector, "d", True),
    Leaf("connector/up_bias", "1u", (None, "ffn"), has.mlp_connector, decay=False),
    Leaf("connector/merge", "1adu", (None, None, "width", "ffn"), has.merge_connector, "ad", True),
    Leaf("connector/merge_bias", "1u", (None, "ffn"), has.merge_connector, decay=False),
    Leaf("connector/down", "1uD", (None, "ffn", "width"), has.two_map_connector, "u", True),
    Leaf("connector/down_bias", "1D", (None, None), has.two_map_connector, decay=False),
)
"""Of what makes embeddings for the decoder of the tower's patches: one layer."""
