"""Pictures, a tokenizer and image processors small enough for tests: tiles of 16 pixels, 4 tokens for each."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tiny
from PIL import Image
from transformers import AutoImageProcessor

from jaxpref.data.pictures.processor import open_processor
from jaxpref.models.families.towers import CLIP
from jaxpref.models.hf import save_pretrained
from jaxpref.models.parameters import model_shapes, nest
from jaxpref.models.spec import ModelSpec, VisionSpec, Windows

VISION = SimpleNamespace(image_size=16, tile_embeddings=4, mean=(0.5,) * 3, std=(0.5,) * 3, window=0)
"""What is read of a `VisionSpec`."""
WINDOWS = Windows(2, (1,), 1e4)
ANY_SHAPE = SimpleNamespace(**vars(VISION) | {"tile_embeddings": 1, "window": WINDOWS.side})
"""The same of Qwen2.5-VL: tiles are squares of 16 pixels, windows two of them wide and high."""

IDEFICS3_TOKENS = ["<image>", "<fake_token_around_image>", "<global-img>"]
PLACES = {"gemma3": "<start_of_image>", "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>"}
"""What a template writes where a picture stands; `<image>` otherwise."""
QWEN_TOKENS = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]
GEMMA_TOKENS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}PLACE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As those of models that see pictures: contents are parts, and a text would be left out."""

PROCESSORS = {
    "idefics3": {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": 48},
        "max_image_size": {"longest_edge": 16},
    },
    "llava": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 16},
        "crop_size": {"height": 16, "width": 16},
    },
    "gemma3": {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 16, "width": 16}},
    "qwen2_5_vl": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 4 * 16**2,
        "max_pixels": 20 * 16**2,
        "patch_size": 8,
        "merge_size": 2,
        "temporal_patch_size": 2,
    },
}
"""Kind -> what stands in `preprocessor_config.json`, but for mean and deviation."""


def make_tokenizer(kind: str = "idefics3"):
    """That of the other tests, with the tokens that stand for pictures."""
    tokenizer = tiny.make_tokenizer()
    if kind == "gemma3":
        tokenizer.add_special_tokens({"additional_special_tokens": [*GEMMA_TOKENS.values()]})
        for name, token in GEMMA_TOKENS.items():
            setattr(tokenizer, name, token)
            setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    elif kind == "qwen2_5_vl":
        tokenizer.add_special_tokens({"additional_special_tokens": QWEN_TOKENS})
    else:
        tiles = [f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)]
        tokenizer.add_special_tokens({"additional_special_tokens": [*IDEFICS3_TOKENS, *tiles]})
    tokenizer.chat_template = TEMPLATE.replace("PLACE", PLACES.get(kind, "<image>"))
    return tokenizer


def write_processor(directory: Path, kind: str = "idefics3", **changes) -> Path:
    """`preprocessor_config.json` of a checkpoint."""
    directory.mkdir(parents=True, exist_ok=True)
    about = PROCESSORS[kind] | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} | changes
    (directory / "preprocessor_config.json").write_text(json.dumps(about))
    return directory


def make_processor(directory: Path, tokenizer, kind: str = "idefics3", **changes):
    """As a run opens it."""
    token = {"gemma3": "<image_soft_token>", "qwen2_5_vl": "<|image_pad|>"}.get(kind, "<image>")
    sizes = vars(ANY_SHAPE if kind == "qwen2_5_vl" else VISION)
    vision = SimpleNamespace(**sizes, token_id=tokenizer.convert_tokens_to_ids(token))
    return open_processor(write_processor(directory, kind, **changes), kind, vision, tokenizer)


SPEC = ModelSpec(
    "idefics3", 128, 16, 24, 2, 4, 2, 4, 256, 1e4, 1e-5, False,
    vision=VisionSpec(
        image_size=16, patch_size=4, width=12, ffn=16, layers=2, heads=2, norm_eps=1e-6, activation="gelu_tanh",
        connector="shuffle", tile_embeddings=4, token_id=make_tokenizer().convert_tokens_to_ids("<image>"),
        mean=VISION.mean, std=VISION.std,
    ),
)  # fmt: skip


QWEN_PLACE = make_tokenizer("qwen2_5_vl").convert_tokens_to_ids("<|image_pad|>")
QWEN = ModelSpec(
    "qwen2_5_vl", 128, 16, 24, 2, 2, 1, 8, 256, 1e4, 1e-5, False, qkv_bias=True, rope_sections=(1, 1, 2),
    vision=VisionSpec(
        image_size=16, patch_size=8, width=16, ffn=16, layers=2, heads=2, norm_eps=1e-6, activation="silu",
        connector="merge", tile_embeddings=1, token_id=QWEN_PLACE,
        mean=CLIP["mean"], std=CLIP["std"], norm="rms", gated=True, frames=2, windows=WINDOWS,
    ),
)  # fmt: skip
SPECS = {"idefics3": SPEC, "qwen2_5_vl": QWEN}


def write_model(directory: Path, seed: int = 0, kind: str = "idefics3") -> Path:
    """One of random weights, so large that pictures matter."""
    spec = SPECS[kind]
    rng, shapes = np.random.default_rng(seed), model_shapes(spec)
    flat = {path: rng.normal(size=shape, scale=0.3).astype(np.float32) for path, shape in shapes.items()}
    params = nest({path: x + (1.0 if path.endswith("scale") else 0.0) for path, x in flat.items()})
    about = {"dtype": np.float32, "generation_config": None, "model_card": "# tiny\n"}
    save_pretrained(directory, spec, params, make_tokenizer(kind), **about)
    normalised = {"image_mean": spec.vision.mean, "image_std": spec.vision.std}
    return write_processor(directory, kind, **normalised)


def config(out: Path, model_dir: Path, rows_file: Path, *, objective=({"name": "dpo"},), **changes):
    """A run on pictures; `changes` as of `tiny.settings`."""
    of_model = {"pictures": True, "attention_block": 16, **changes.pop("model", {})}
    data = {"cache": "none", **changes.pop("data", {})}
    return tiny.config(
        out, model_dir, rows_file, rows_file, model=of_model, data=data, objective=list(objective), **changes
    )


def transformers_processor(directory: Path):
    return AutoImageProcessor.from_pretrained(directory, backend="pil")


def picture(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
    """Blocks of random colours, so that neither cuts nor turns leave it as it is."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (-(-height // 5), -(-width // 5), 3), np.uint8)
    return Image.fromarray(colours.repeat(5, 0).repeat(5, 1)[:height, :width])


def stored(image: Image.Image, format: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def row(i: int, **more) -> dict:
    """A pair about a picture, as TRL writes it."""
    return {
        "images": [f"{i}.png"],
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"what {i}"}]}],
        "chosen": [{"role": "assistant", "content": "a" + "b" * (i * 5 % 9)}],
        "rejected": [{"role": "assistant", "content": "no" + "z" * (i * 3 % 7)}],
        **more,
    }


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Rows, and beside them the pictures that they may name: of two shapes."""
    for i in range(max(len(rows), 2)):
        size = (40, 30) if i % 2 else (20, 60)
        picture(i, *size).save(path.parent / f"{i}.png")
    return tiny.write_rows(path, rows)
