"""Stored pictures into RGB: every kind of file right, or refused by its reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tiny_pictures import picture, stored

from jaxpref.data.pictures.decode import MOST_PIXELS, as_rgb, decoded, digest_of, stored_bytes
from jaxpref.data.pictures.rows import as_picture
from jaxpref.data.tables import Table
from jaxpref.errors import RowError
from jaxpref.types import Picture

WHERE = "train.jsonl, row 3, picture 1"
RGB = picture()


def pixels(image):
    return np.asarray(decoded(image if isinstance(image, bytes) else stored(image), WHERE))


@pytest.mark.parametrize(
    "format, options", [("png", {}), ("bmp", {}), ("tiff", {}), ("ppm", {}), ("webp", {"lossless": True})]
)
def test_lossless_files(format, options):
    assert np.array_equal(pixels(stored(RGB, format, **options)), np.asarray(RGB))


def test_jpeg():
    assert np.abs(pixels(stored(RGB.resize((400, 300), 0), "jpeg", quality=95)).astype(int).mean((0, 1))
                  - np.asarray(RGB).mean((0, 1))).max() < 3  # fmt: skip


def test_a_camera_that_was_turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = pixels(stored(RGB, exif=exif))
    assert np.array_equal(turned, np.rot90(np.asarray(RGB), -1)) and turned.shape == (40, 30, 3)


def test_grey_and_one_bit():
    grey = RGB.convert("L")
    assert np.array_equal(pixels(grey), np.asarray(grey)[..., None].repeat(3, -1))
    assert set(np.unique(pixels(grey.convert("1")))) <= {0, 255}


def test_sixteen_bits_are_scaled_not_clipped():
    wide = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    grey = pixels(Image.fromarray(wide))[..., 0].astype(float)
    assert np.abs(grey - wide / 257).max() <= 0.5 and grey.max() == 255


def test_transparent_parts_are_white():
    alpha = np.dstack([np.asarray(RGB), np.full((30, 40), 255, np.uint8)])
    alpha[:10, :, 3] = 0
    alpha[10:20, :, 3] = 128
    out = pixels(Image.fromarray(alpha)).astype(float)
    assert (out[:10] == 255).all() and np.array_equal(out[20:], np.asarray(RGB)[20:])
    half = (np.asarray(RGB, float)[10:20] * 128 + 255 * 127) / 255
    assert np.abs(out[10:20] - half).max() <= 1


def test_palettes_with_and_without_transparency():
    few = RGB.quantize(16)
    assert np.array_equal(pixels(few), np.asarray(few.convert("RGB")))
    see_through = stored(few, transparency=int(np.asarray(few)[0, 0]))
    assert (pixels(see_through)[0, 0] == 255).all()


def test_cmyk():
    colour = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    assert pixels(stored(colour, "tiff"))[0, 0].tolist() == [0, 255, 255]
    assert np.abs(pixels(stored(colour, "jpeg"))[0, 0].astype(int) - [0, 255, 255]).max() <= 2


def refused(data, reason, *parts):
    with pytest.raises(RowError) as caught:
        decoded(data, WHERE)
    assert caught.value.reason == reason
    for part in (WHERE, *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", stored(RGB)[:-40], stored(RGB, "jpeg")[:300], stored(RGB)[:50], b"GIF89a" + bytes(20)],
    ids=["empty", "text", "cut", "cut jpeg", "header", "gif"],
)
def test_broken_files(data):
    refused(data, "broken picture")


def test_a_vector_picture_is_not_run():
    refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "broken picture")


@pytest.mark.parametrize("side", [8200, 9600, 60000])
def test_a_small_file_that_says_it_is_huge(side):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    assert side * side > MOST_PIXELS
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))
    refused(bomb, "huge picture")


@pytest.mark.parametrize("format", ["gif", "png", "webp", "tiff"])
def test_animations_and_pages(format):
    data = stored(RGB, format, save_all=True, append_images=[picture(1)])
    refused(data, "animated picture", f"2 in a {format.upper()}")


def test_brightness_without_a_range():
    refused(stored(Image.fromarray(np.ones((4, 4), np.float32)), "tiff"), "picture without a range", "floating")
    refused(stored(Image.fromarray(np.ones((4, 4), np.int32)), "tiff"), "picture without a range", "32-bit")


def test_files_that_are_missing_or_change(tmp_path):
    file = tmp_path / "a.png"
    with pytest.raises(RowError, match="cannot be read|can be read") as caught:
        stored_bytes(Picture(str(file)), WHERE)
    assert caught.value.reason == "picture that cannot be read" and str(file) in str(caught.value)
    RGB.save(file)
    known = Picture(str(file), digest=digest_of(file.read_bytes()))
    assert stored_bytes(known, WHERE) == file.read_bytes()
    picture(1).save(file)
    with pytest.raises(RowError) as caught:
        stored_bytes(known, WHERE)
    assert caught.value.reason == "picture that changed"


def test_a_picture_in_memory_is_the_same_as_its_file():
    assert np.array_equal(np.asarray(as_rgb(RGB.convert("RGBA"), WHERE)), np.asarray(RGB))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (stored(RGB, "gif", save_all=True, append_images=[picture(1)]), "animated picture"),
        (stored(RGB, "jpeg")[:-300], "broken picture"),
    ],
)
def test_an_open_picture_is_refused_as_its_file(data, reason):
    with pytest.raises(RowError) as caught:
        as_picture(Image.open(io.BytesIO(data)), WHERE, "data[0]")
    assert caught.value.reason == reason


def test_a_digest_of_rows_knows_palettes_and_rotations():
    """Pixels and bytes are the same; what is seen of them is not."""

    def digest(image):
        return Table("data", lambda: iter([({"image": image}, "data[0]")])).digest()

    def jpeg(**options):
        return Image.open(io.BytesIO(stored(RGB, "jpeg", **options)))

    few, turned = RGB.quantize(4), Image.Exif()
    other = few.copy()
    other.putpalette(few.getpalette()[::-1])
    turned[0x112] = 6
    assert len({digest(few), digest(other), digest(jpeg()), digest(jpeg(exif=turned))}) == 4
    assert digest(few) == digest(few.copy()) and digest(jpeg()) == digest(jpeg())
