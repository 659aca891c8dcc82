"""How a checkpoint's model is given pictures: tiles of pixels, and the tokens that stand for them.

The pixels are those of the checkpoint's own image processor (`preprocessor_config.json`), in
transformers' version for Pillow and numpy, which needs no torch; they stay bytes, for the model
itself scales and normalises them.  Which tokens stand for a picture is the processor's rule too:

    idefics3   SmolVLM too: the picture in tiles with their rows and columns, then all of it in one
    llava      its tokens, one for each patch
    gemma3     its tokens between two that begin and end it
    qwen2_5_vl a token for each of its squares, of which it has as many as its size needs
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpref.data.pictures.decode import decoded, digest_of, pillow, stored_bytes
from jaxpref.data.pictures.windows import Grid, tiles_by_window
from jaxpref.data.truncation import Dropped, Parts
from jaxpref.errors import InputError, RowError
from jaxpref.types import Group, Picture

if TYPE_CHECKING:
    from PIL import Image

FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class Tokens:
    """What a kind of model reads where a picture stands."""

    place: str
    """What the chat template writes there."""
    written: Callable[[Grid], str]
    """In its place, by the picture's grid."""


@dataclass(frozen=True)
class PictureProcessor:
    """Pictures as tiles, and prompts with the tokens that stand for them.  It is picklable."""

    image_processor: Any
    """Of transformers."""
    kind: str
    """One of `KINDS`."""
    image_size: int
    """Of a side of a tile, in pixels."""
    tile_embeddings: int
    """Tokens that stand for a tile."""
    token_id: int
    """Their id."""
    token: str
    """Their text."""
    begin: str = ""
    """Gemma's: before the tokens of a picture."""
    end: str = ""
    window: int = 0
    """Tiles along a side of a window, if the model reads pictures of any shape; 0: it does not."""

    # ---- tokens

    def with_tokens(self, text: str, pictures: Sequence[Picture], where: str) -> str:
        """A text with what stands for its pictures.

        Raises:
            RowError: it has not as many places as there are pictures.
        """
        tokens = KINDS[self.kind].tokens(self)
        pieces = text.split(tokens.place)
        if len(pieces) - 1 != len(pictures):
            raise RowError(
                "not as many pictures as places",
                f"a picture for every {tokens.place} of the text",
                f"{where}: {len(pieces) - 1} places, {len(pictures)} pictures",
                f"mend or drop the row; {tokens.place} cannot stand in a text otherwise",
            )
        written = [tokens.written(picture.grid) for picture in pictures]
        return "".join(map("".join, zip(pieces, [*written, ""], strict=True)))

    def cut(self, group: Group, whole: Parts, kept: Parts) -> Dropped | RowError | None:
        """Why a group is not used: tokens of its pictures would be lost, or there are others.

        Args:
            whole: its parts before the length limit; `kept`: those after it.
        """
        (prompt, completions), (kept_prompt, _) = whole, kept
        needed = sum(picture.tiles for picture in group.pictures) * self.tile_embeddings
        tokens = prompt.count(self.token_id)
        if tokens != needed or any(self.token_id in ids for ids in completions):
            return RowError(
                "tokens of pictures that are none",
                f"{self.token} where a picture stands in the prompt, and nowhere else",
                f"{group.where}: {tokens} in the prompt for {needed} of its pictures, or some in "
                "an answer",
                f"remove {self.token} from the texts, or drop the row",
            )
        if kept_prompt.count(self.token_id) != needed:
            return Dropped("picture beyond max_length", group.where)
        return None

    # ---- pixels

    def read(self, picture: Picture, where: str) -> Picture:
        """The picture with its digest and grid, decoded once to see that it can be.

        Raises: RowError as of `decode.py`, and for a shape that the image processor refuses.
        """
        data = stored_bytes(picture, where)
        image = decoded(data, where)
        try:
            grid = KINDS[self.kind].grid(self.image_processor, *image.size)
        except ValueError as error:
            raise RowError(
                "pictures of a refused shape",
                "a picture of a shape that the model's image processor takes",
                f"{where}: {image.width} x {image.height} pixels: {error}",
                "cut the picture, or drop the row",
            ) from error
        return replace(picture, digest=digest_of(data), grid=grid, whole=not self.window)

    def tiles(self, image: "Image.Image") -> np.ndarray:
        """[tiles, H, W, 3] uint8 of an RGB picture, in the order in which the model reads them."""
        made = self.image_processor(
            [image], do_rescale=False, do_normalize=False, do_convert_rgb=False, return_tensors="np"
        )
        pixels = made["pixel_values"]
        if self.window:
            pixels = tiles_by_window(self.image_processor, made, self.window)
        pixels = pixels.reshape(-1, *pixels.shape[-3:])
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1), dtype=np.uint8)


# ---- kinds


@dataclass(frozen=True)
class Kind:
    image_processors: tuple[str, ...]
    """Names of transformers' classes, without what tells its versions apart."""
    tokens: Callable[[PictureProcessor], Tokens]
    grid: Callable[[Any, int, int], Grid]
    """(image processor, width, height)."""
    plain: tuple[str, ...] = ()
    """Options of the image processor that must be off."""


def _idefics3_tokens(processor: PictureProcessor) -> Tokens:
    around, whole = "<fake_token_around_image>", "<global-img>"
    tile = processor.token * processor.tile_embeddings

    def written(grid: Grid) -> str:
        rows, columns = grid
        lines = [
            "".join(f"{around}<row_{r}_col_{c}>{tile}" for c in range(1, columns + 1)) + "\n"
            for r in range(1, rows + 1)
        ]
        before = "".join(lines) + "\n" if lines else ""
        return f"{before}{around}{whole}{tile}{around}"

    return Tokens(processor.token, written)


def _idefics3_grid(image_processor: Any, width: int, height: int) -> Grid:
    """As its image processor cuts, which resizes twice and rounds each time.

    Not `get_number_of_image_patches`, which is wrong for some longest edges that are no multiple of
    a tile (transformers 5.24).
    """
    if not image_processor.do_image_splitting:
        return 0, 0
    tile = image_processor.max_image_size["longest_edge"]
    width, height = _longest_edge(width, height, image_processor.size["longest_edge"])
    ratio = width / height
    if width >= height:
        columns = math.ceil(width / tile)
        rows = math.ceil(int(columns * tile / ratio) / tile)
    else:
        rows = math.ceil(height / tile)
        columns = math.ceil(int(rows * tile * ratio) / tile)
    return (rows, columns) if rows * columns > 1 else (0, 0)


_MOST_SIDE = 4096
"""Of a picture before Idefics3 cuts it."""


def _longest_edge(width: int, height: int, wanted: int) -> tuple[int, int]:
    """Width and height with the longer one as wanted; the other keeps the shape and is even."""
    ratio = width / height
    if width >= height:
        width, height = wanted, int(wanted / ratio)
        height = max(height + height % 2, 1)
    else:
        width, height = int(wanted * ratio), wanted
        width = max(width + width % 2, 1)
    ratio = width / height
    if width >= height and width > _MOST_SIDE:
        width, height = _MOST_SIDE, max(int(_MOST_SIDE / ratio), 1)
    elif height > width and height > _MOST_SIDE:
        width, height = max(int(_MOST_SIDE * ratio), 1), _MOST_SIDE
    return width, height


def _one_tile(image_processor: Any, width: int, height: int) -> Grid:
    return 0, 0


def _llava_tokens(processor: PictureProcessor) -> Tokens:
    return Tokens(processor.token, lambda grid: processor.token * processor.tile_embeddings)


def _gemma3_tokens(processor: PictureProcessor) -> Tokens:
    tokens = processor.token * processor.tile_embeddings
    text = f"\n\n{processor.begin}{tokens}{processor.end}\n\n"
    return Tokens(processor.begin, lambda grid: text)


def _qwen_grid(image_processor: Any, width: int, height: int) -> Grid:
    """Raises: ValueError for a picture that is more than 200 times as long as it is wide."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    square, size = image_processor.patch_size * image_processor.merge_size, image_processor.size
    limits = size["shortest_edge"], size["longest_edge"]  # of pixels in all, named as edges
    height, width = smart_resize(height, width, square, *limits)
    return height // square, width // square


def _qwen_tokens(processor: PictureProcessor) -> Tokens:
    return Tokens(processor.token, lambda grid: processor.token * (grid[0] * grid[1]))


KINDS = {
    "idefics3": Kind(
        ("Idefics3ImageProcessor", "SmolVLMImageProcessor"), _idefics3_tokens, _idefics3_grid
    ),
    "llava": Kind(("CLIPImageProcessor", "LlavaImageProcessor"), _llava_tokens, _one_tile),
    "qwen2_5_vl": Kind(("Qwen2VLImageProcessor",), _qwen_tokens, _qwen_grid),
    "gemma3": Kind(("Gemma3ImageProcessor",), _gemma3_tokens, _one_tile, ("do_pan_and_scan",)),
}
"""Model type in `config.json` -> its rules."""

_SAME = {"smolvlm": "idefics3"}


def open_processor(
    directory: Path, model_type: str, vision: Any, tokenizer: Any
) -> PictureProcessor:
    """The processor of a checkpoint.

    Args:
        directory: with `preprocessor_config.json`.
        model_type: of its `config.json`.
        vision: a `models.spec.VisionSpec`, the sizes that the model takes.
    Errors: InputError for a processor that is missing, not known, or does not fit the model.
    """
    pillow()
    kind = _SAME.get(model_type, model_type)
    image_processor = _image_processor(directory, kind)
    processor = PictureProcessor(
        image_processor,
        kind,
        vision.image_size,
        vision.tile_embeddings,
        vision.token_id,
        tokenizer.convert_ids_to_tokens(vision.token_id),
        getattr(tokenizer, "boi_token", ""),
        getattr(tokenizer, "eoi_token", ""),
        vision.window,
    )
    _check_fits(processor, vision, directory)
    return processor


def _image_processor(directory: Path, kind: str) -> Any:
    from transformers import AutoImageProcessor

    file = directory / FILE
    if not file.is_file():
        raise InputError(
            f"a checkpoint with {FILE}, which says how pictures are cut",
            f"{file}: not there",
            "copy it from where the model came from, or set model.pictures=false",
        )
    try:
        image_processor = AutoImageProcessor.from_pretrained(directory, backend="pil")
    except (ValueError, OSError, ImportError) as error:
        raise InputError(
            "an image processor that transformers knows",
            f"{file}: {error}",
            "take the file that belongs to the model",
        ) from error
    name = re.sub("(Pil|Fast)$", "", type(image_processor).__name__)
    if name not in KINDS[kind].image_processors:
        raise InputError(
            f"the image processor of {kind}: {' or '.join(KINDS[kind].image_processors)}",
            f"{file}: {name}",
            "take the file that belongs to the model",
        )
    return image_processor


def _check_fits(processor: PictureProcessor, vision: Any, directory: Path) -> None:
    """Errors: InputError where what comes out is not what the model takes."""
    own, file, problems = processor.image_processor, directory / FILE, []
    scales = own.rescale_factor if own.do_rescale else 1.0
    if not own.do_normalize or not math.isclose(scales, 1 / 255, rel_tol=1e-6):
        problems.append(f"do_normalize={own.do_normalize}, rescale_factor={scales:.4g} for 1/255")
    for name in ("mean", "std"):
        theirs, ours = getattr(own, f"image_{name}"), getattr(vision, name)
        if not np.allclose(theirs, ours, rtol=1e-5):
            problems.append(f"image_{name}={list(theirs)} for {list(ours)}")
    problems += [f"{option}=true" for option in KINDS[processor.kind].plain if getattr(own, option)]
    if processor.window and not own.do_resize:
        problems.append("do_resize=false")
    if not problems:
        _, height, width, _ = processor.tiles(pillow().new("RGB", (37, 23))).shape
        if height != vision.image_size or width != vision.image_size:
            problems.append(f"tiles of {width} x {height} for {vision.image_size} pixels")
    if problems:
        raise InputError(
            "an image processor that makes what the model takes",
            f"{file}: {'; '.join(problems)}",
            "take the file that belongs to the model",
        )


def with_read_pictures(group: Group, processor: PictureProcessor | None) -> Group:
    """The group with its pictures read, each to see that it can be decoded; without, as it is.

    Raises:
        RowError: one that cannot.
    """
    if processor is None or not group.pictures:
        return group
    named = ((f"{group.where}, picture {i + 1}", p) for i, p in enumerate(group.pictures))
    return replace(group, pictures=tuple(processor.read(picture, at) for at, picture in named))
