"""Tiles and tokens, against transformers' processors."""

import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_pictures import PLACES, VISION, make_processor, make_tokenizer, picture, stored, transformers_processor
from transformers import AutoImageProcessor

from jaxpref.data.pictures.processor import KINDS
from jaxpref.errors import InputError, RowError
from jaxpref.types import Picture

WHERE = "train.jsonl, row 3"


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def processor(tmp_path, kind):
    return make_processor(tmp_path, make_tokenizer(kind), kind)


def test_normalised_tiles_are_those_of_transformers(processor, kind, tmp_path):
    theirs = transformers_processor(tmp_path)
    for seed, size in enumerate([(40, 30), (16, 16), (7, 60), (33, 32)]):
        image = picture(seed, *size)
        tiles = processor.tiles(image)
        made = theirs([image], return_tensors="np")
        if kind == "qwen2_5_vl":
            expected = expected_squares(made)
        else:
            expected = np.asarray(made["pixel_values"]).reshape(-1, 3, 16, 16)
        ours = ((tiles / 255 - VISION.mean) / VISION.std).transpose(0, 3, 1, 2)
        assert tiles.dtype == np.uint8 and tiles.std() > 10
        np.testing.assert_allclose(ours, expected, atol=1e-6)


def expected_squares(made):
    """Tiles out of flat patches, window by window: two by two tiles of two by two patches of 8 pixels."""
    _, height, width = made["image_grid_thw"][0] // 2
    patches = np.asarray(made["pixel_values"]).reshape(height, width, 2, 2, 3, 2, 8, 8)
    np.testing.assert_array_equal(patches[:, :, :, :, :, 0], patches[:, :, :, :, :, 1])  # the two frames
    tiles = patches[:, :, :, :, :, 0].transpose(0, 1, 4, 2, 5, 3, 6).reshape(height, width, 3, 16, 16)
    windows = [tiles[r : r + 2, c : c + 2] for r in range(0, height, 2) for c in range(0, width, 2)]
    return np.concatenate([window.reshape(-1, 3, 16, 16) for window in windows])


def test_a_picture_of_any_shape_has_as_many_tiles_as_it_needs(tmp_path):
    """Between 4 and 20 here; one that is 200 times as long as wide is refused."""
    processor, rng, grids = (
        make_processor(tmp_path, make_tokenizer("qwen2_5_vl"), "qwen2_5_vl"),
        random.Random(0),
        set(),
    )
    for n in range(40):
        image = picture(n, rng.randint(1, 150), rng.randint(1, 90))
        read = processor.read(Picture(data=stored(image)), WHERE)
        assert len(processor.tiles(image)) == read.tiles == read.grid[0] * read.grid[1] and 4 <= read.tiles <= 20
        grids.add(read.grid)
    assert len(grids) > 10 and max(map(max, grids)) > 6
    with pytest.raises(RowError, match="row 3: 300 x 1 pixels: absolute aspect ratio"):
        processor.read(Picture(data=stored(picture(0, 300, 1))), WHERE)


def test_the_grid_says_how_many_tiles_there_are(tmp_path):
    rng, grids = random.Random(0), set()
    for n in range(60):
        sizes = {"size": {"longest_edge": rng.choice([16, 32, 48, 64, 37, 51])}}
        processor = make_processor(tmp_path / str(n), make_tokenizer(), **sizes)
        image = picture(n, rng.randint(1, 90), rng.randint(1, 90))
        read = processor.read(Picture(data=stored(image)), WHERE)
        assert len(processor.tiles(image)) == read.tiles
        grids.add(read.grid)
    assert {(0, 0), (3, 3), (1, 2), (2, 1)} <= grids


def _processor_of_transformers(kind, directory, tokenizer):
    from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
    from transformers.models.llava.processing_llava import LlavaProcessor

    image_processor = AutoImageProcessor.from_pretrained(directory, backend="pil")
    if kind == "idefics3":
        return Idefics3Processor(image_processor, tokenizer, image_seq_len=4)
    if kind == "qwen2_5_vl":
        return partial(_tokens_of_qwen, image_processor, tokenizer)
    if kind == "gemma3":
        return Gemma3Processor(image_processor, tokenizer, image_seq_length=4)
    return LlavaProcessor(
        image_processor, tokenizer, 8, "default", image_token="<image>", num_additional_image_tokens=1
    )


def _tokens_of_qwen(image_processor, tokenizer, images, text):
    """Of `Qwen2_5_VLProcessor`, which cannot be made without torchvision, the rule for a picture's tokens."""
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor

    made = image_processor(images[0], return_tensors="np")
    about = SimpleNamespace(image_processor=image_processor, image_token="<|image_pad|>")
    pieces = text[0].split("<|image_pad|>")
    written = [Qwen2_5_VLProcessor.replace_image_token(about, made, i) for i in range(len(images[0]))]
    whole = "".join(map("".join, zip(pieces, [*written, ""], strict=True)))
    return {"input_ids": [tokenizer(whole)["input_ids"]]}


def test_tokens_are_those_of_transformers(processor, kind, tmp_path):
    tokenizer = make_tokenizer(kind)
    place = PLACES.get(kind, "<image>")
    images = [picture(0, 40, 30), picture(1, 16, 10), picture(2, 9, 50)]
    text = f"{place}one{place}\ntwo {place}"
    pictures = [processor.read(Picture(data=stored(image)), WHERE) for image in images]
    theirs = _processor_of_transformers(kind, tmp_path, tokenizer)
    expected = theirs(images=[images], text=[text])["input_ids"][0]
    written = processor.with_tokens(text, pictures, WHERE)
    assert tokenizer(written)["input_ids"] == list(expected)
    count = processor.tile_embeddings * sum(p.tiles for p in pictures)
    assert list(expected).count(processor.token_id) == count > 10


@pytest.mark.parametrize("text", ["no place", "<image><image>"])
def test_as_many_places_as_pictures(text, tmp_path):
    processor = make_processor(tmp_path, make_tokenizer())
    with pytest.raises(RowError, match="row 3") as caught:
        processor.with_tokens(text, [Picture()], WHERE)
    assert caught.value.reason == "not as many pictures as places"


@pytest.mark.parametrize(
    "kind, changes, part",
    [
        ("idefics3", {"max_image_size": {"longest_edge": 24}}, "tiles of 24 x 24 for 16 pixels"),
        ("llava", {"image_mean": [0.4] * 3}, "image_mean"),
        ("llava", {"rescale_factor": 1.0}, "rescale_factor"),
        ("llava", {"do_normalize": False}, "do_normalize=False"),
        ("gemma3", {"do_pan_and_scan": True}, "do_pan_and_scan=true"),
        ("qwen2_5_vl", {"do_resize": False}, "do_resize=false"),
        ("qwen2_5_vl", {"patch_size": 4}, "tiles of 8 x 8 for 16 pixels"),
        ("idefics3", {"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor"),
        ("idefics3", {"image_processor_type": "NoSuchProcessor"}, "preprocessor_config.json"),
    ],
)
def test_a_processor_that_does_not_fit_the_model_is_refused(kind, changes, part, tmp_path):
    with pytest.raises(InputError, match="preprocessor_config.json") as caught:
        make_processor(tmp_path, make_tokenizer(kind), kind, **changes)
    assert part in str(caught.value)
