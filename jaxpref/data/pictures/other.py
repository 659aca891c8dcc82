"""Other pictures for the same prompt: what mDPO compares the chosen answer with.

cropped   a part of the picture at random, of 1 to 20 % of its area, in the picture's size.
          mDPO's paper says that it crops 0 to 20 %, and its released code does this
          (`RandomResizedCrop(scale=(0.01, 0.2))`, in a function whose flag is called
          `mask_visual_tokens`, though nothing is masked there).  Theirs is drawn anew each
          time; here a row has the same one in every epoch and run, so that log-probs of the
          reference can be kept.
masked    no picture: its tokens keep embeddings of their own, as if the model were blind
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from jaxpref.data.columns import padded
from jaxpref.data.pictures.decode import pillow
from jaxpref.types import EncodedGroup

if TYPE_CHECKING:
    from PIL import Image

CROPPED, MASKED = "cropped", "masked"
OTHER_PICTURES = {"pair_cropped": CROPPED, "pair_masked": MASKED}
"""Kind of group -> how the pictures of its last completion differ from those of the others."""

_AREA = 0.01, 0.2
_SHAPE = 3 / 4, 4 / 3
"""Of the part: width by height, before it is stretched to the picture's own."""
_TRIES = 10


def with_other_pictures(group: EncodedGroup, how: str) -> EncodedGroup:
    """A pair with its chosen answer once more, after other pictures; one without as it is."""
    if not group.pictures:
        return group
    completions = (*group.completion_ids, group.completion_ids[0])
    columns = padded(group.columns, len(completions))
    return replace(group, completion_ids=completions, columns=columns, other_pictures=how)


def cropped(image: "Image.Image", rng: np.random.Generator) -> "Image.Image":
    """A random part of a picture, in the picture's size."""
    bilinear = pillow().Resampling.BILINEAR
    return image.resize(image.size, bilinear, box=_random_box(*image.size, rng))


def _random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a part."""
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*_AREA)
        shape = math.exp(rng.uniform(math.log(_SHAPE[0]), math.log(_SHAPE[1])))
        w, h = max(round(math.sqrt(area * shape)), 1), max(round(math.sqrt(area / shape)), 1)
        if w <= width and h <= height:
            break
    else:  # a picture so long that no such part fits: a square in its middle
        w = h = min(width, height)
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    return left, top, left + w, top + h
