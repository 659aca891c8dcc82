"""Stored pictures -> RGB pixels, or why not.

What is right, for every kind of file: the picture upright (a camera's note on rotation is
followed), transparent parts on white, palettes and CMYK as their colours without colour profiles,
16 bits scaled to 8.  Refused by name are files that are broken or cut off, that hold several
pictures (animations, pages), that have more than `MOST_PIXELS`, which is seen before they are
decoded, and brightness without a known range (floating point, 32 bits).
"""

import hashlib
import io
import struct
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpref.errors import InputError, RowError, optional_package
from jaxpref.storage.local_copies import local_file
from jaxpref.storage.paths import as_path
from jaxpref.types import Picture

if TYPE_CHECKING:
    from PIL import Image

MOST_PIXELS = 2**26
"""Of a picture, 192 MiB of colours: small files can say that they are larger (decompression
bombs)."""
DIGEST = "sha256:"
"""Begins the name of a picture that has no file."""
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Pillow knows more, some of which run other programs."""
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
"""What Pillow raises for broken files."""


def pillow() -> Any:
    """Pillow's module `Image`."""
    return optional_package("PIL.Image", "rows with pictures", "vision")


def stored_bytes(picture: Picture, where: str) -> bytes:
    """The file of a picture.

    Raises:
        RowError: it is not there, cannot be read, or is not what it was when its tokens were made.
    """
    if picture.file is None and picture.data is None:
        raise RowError(
            "picture that is not there",
            "a picture",
            f"{where}: only the digest of its bytes, {named(picture)}",
            "write the file's name, or its bytes, as in the rows that this one was made of",
        )
    if picture.file is None:
        data = bytes(picture.data)
    else:
        try:
            data = local_file(as_path(picture.file)).read_bytes()
        except OSError as error:
            raise RowError(
                "picture that cannot be read",
                "a file that can be read",
                f"{where}: {picture.file} ({error.strerror or error})",
                "copy it there; names that do not begin with / count from the data file's folder",
            ) from error
    if picture.digest and digest_of(data) != picture.digest:
        raise RowError(
            "picture that changed",
            "the picture that was there when the run began",
            f"{where}: other bytes in {picture.file}",
            "put it back, or start a new run",
        )
    return data


def digest_of(data: bytes) -> str:
    """Of a picture's bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def named(picture: Picture) -> str:
    """Which picture it is, in a word: its file, or the digest of its bytes."""
    if picture.file is not None:
        return picture.file
    return DIGEST + (picture.digest or digest_of(picture.data))


def decoded(data: bytes, where: str) -> "Image.Image":
    """An RGB picture.

    Raises:
        RowError: it is refused (see above); `reason` says why.
    """
    with _broken_is_refused(where):
        image = pillow().open(io.BytesIO(data), formats=_FORMATS)
    return as_rgb(image, where)


@contextmanager
def _broken_is_refused(where: str):
    Image = pillow()
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _huge(str(error), where) from error
    except _BROKEN as error:
        if isinstance(error, InputError):
            raise
        raise RowError(
            "broken picture",
            f"a whole picture ({', '.join(_FORMATS)})",
            f"{where}: {error}",
            "copy or download it again, or drop the row",
        ) from error


def _huge(size: str, where: str) -> RowError:
    return RowError(
        "huge picture",
        f"a picture of at most {MOST_PIXELS:,} pixels",
        f"{where}: {size}",
        "make it smaller, or drop the row",
    )


def as_rgb(image: "Image.Image", where: str) -> "Image.Image":
    """An open picture upright, in RGB; errors as of `decoded`."""
    with _broken_is_refused(where):
        _check_one_of_a_size(image, where)
        return _upright_rgb(image, where)


def _check_one_of_a_size(image: "Image.Image", where: str) -> None:
    """Before anything is decoded.  Raises: RowError for a huge picture, and for several in one."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise _huge(f"{width} x {height} pixels", where)
    # A JPEG of several pictures (MPO, as telephones write) has one and its thumbnails.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise RowError(
            "animated picture",
            "one picture in a file",
            f"{where}: {frames} in a {image.format}",
            "store the one that is meant, or drop the row",
        )


def _upright_rgb(image: "Image.Image", where: str) -> "Image.Image":
    from PIL import ImageOps

    Image = pillow()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        grey = np.asarray(upright).astype(np.uint32)
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if upright.mode in ("I", "F"):
        raise RowError(
            "picture without a range",
            "a picture with 8 or 16 bits for a colour",
            f"{where}: {'floating-point numbers' if upright.mode == 'F' else '32-bit integers'}",
            "store it with 8 bits for a colour, or drop the row",
        )
    if "A" in upright.getbands() or "transparency" in upright.info:
        coloured = upright.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return upright.convert("RGB")
