"""What pictures.py trains on: a random model of SmolVLM's shape, and pairs, half with pictures.

    python pictures_side.py '{"work": DIR, "pairs": 16, ...}'

The last line of the output is a JSON object of paths.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

TILES = "<row_{}_col_{}>"
SPECIAL = ["<image>", "<fake_token_around_image>", "<global-img>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = 4000

SIZES = {
    # (vocabulary, width, ffn, layers, heads, key heads, head size), (width, ffn, layers, heads),
    # pixels of a tile, of a patch, tokens of a tile
    "smolvlm-256m": ((49280, 576, 1536, 30, 9, 3, 64), (768, 3072, 12, 12), 512, 16, 64),
    # A sixth of the layers of both, for what takes too long with all of them.
    "smolvlm-256m-sixth": ((49280, 576, 1536, 5, 9, 3, 64), (768, 3072, 2, 12), 512, 16, 64),
    "small": ((8192, 256, 768, 6, 4, 2, 64), (128, 512, 3, 2), 128, 8, 64),
}


def main() -> None:
    job = json.loads(sys.argv[1])
    work = Path(job["work"])
    model = _write_model(work / "model", job["model"], job["tiles"])
    rng = np.random.default_rng(0)
    pictures, texts = [], []
    width, height = _picture_size(job["model"], job["tiles"])
    for i in range(job["pairs"]):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        _save(pixels, work / f"{i}.png")
        answers = {
            key: [{"role": "assistant", "content": _words(rng, job["answer"])}]
            for key in ("chosen", "rejected")
        }
        question = _words(rng, job["question"])
        # As many tokens as the picture with its frame: they stand in the place of the picture.
        longer = f"{question} {_words(rng, _picture_tokens(job['model'], job['tiles']))}"
        pictures.append({"images": [str(work / f"{i}.png")], "prompt": _asked(question), **answers})
        texts.append({"prompt": _asked(longer), **answers})
    print(
        json.dumps(
            {
                "model": str(model),
                "pictures": str(_write(work / "pictures.jsonl", pictures)),
                "texts": str(_write(work / "texts.jsonl", texts)),
                "flops": {"": _flops(job, adapter=False), ", adapter": _flops(job, adapter=True)},
            }
        )
    )


def _flops(job: dict, *, adapter: bool) -> float:
    """Model FLOPs of a pair about a picture, for those of a pair of text with as many tokens."""
    from jaxpref.data.loader import Loader
    from jaxpref.data.pack import Layout
    from jaxpref.runs.flops import step_flops
    from jaxpref.types import EncodedGroup

    ids = lambda n: np.zeros(n, np.int32)
    prompt = 6 + job["question"] + _picture_tokens(job["model"], job["tiles"])
    pair = EncodedGroup(ids(prompt), (ids(job["answer"] + 2),) * 2, 0, "a pair")
    [text] = Loader([pair], batch_size=1, micro_rows=1, layout=Layout(8192)).iterate()
    tower = "frozen" if adapter else "trained"
    costs = [
        step_flops(_spec(job["model"]), step, reference=True, frozen=adapter, tower=tower)
        for step in (replace(text, tiles=job["tiles"]), text)
    ]
    return costs[0] / costs[1]


def _asked(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def _words(rng: np.random.Generator, count: int) -> str:
    return " ".join(f"w{i}" for i in rng.integers(0, WORDS, count))


def _write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _save(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path, compress_level=1)


def _picture_size(name: str, tiles: int) -> tuple[int, int]:
    """Of a picture that is cut into so many tiles, the last of which shows all of it."""
    side = SIZES[name][2]
    return max(tiles - 1, 1) * side, side


def _picture_tokens(name: str, tiles: int) -> int:
    """Tokens of a picture and of what frames it."""
    of_tile = SIZES[name][4]
    return tiles * (of_tile + 2) + 1 + (2 if tiles > 1 else 0)


def _write_model(directory: Path, name: str, tiles: int) -> Path:
    from jaxpref.models.hf import save_pretrained
    from jaxpref.models.parameters import model_shapes, nest

    _, _, tile, _, tokens = SIZES[name]
    tokenizer, spec = _tokenizer(), _spec(name)
    rng = np.random.default_rng(0)

    def leaf(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path.endswith("/scale"):
            return np.ones(shape, np.float32)
        return 0.02 * rng.standard_normal(shape, np.float32)

    params = nest({path: leaf(path, shape) for path, shape in model_shapes(spec).items()})
    about: dict[str, Any] = {"dtype": np.float32, "generation_config": None}
    save_pretrained(directory, spec, params, tokenizer, model_card="For pictures.py.\n", **about)
    processor = {
        "image_processor_type": "Idefics3ImageProcessor",
        "processor_class": "Idefics3Processor",
        "size": {"longest_edge": max(_picture_size(name, tiles))},
        "max_image_size": {"longest_edge": tile},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_image_splitting": tiles > 1,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    about = {"processor_class": "Idefics3Processor", "image_seq_len": tokens}
    (directory / "processor_config.json").write_text(json.dumps(about))
    return directory


def _spec(name: str):
    from jaxpref.models.spec import ModelSpec, VisionSpec

    sizes, tower, tile, patch, tokens = SIZES[name]
    vocab, width, ffn, layers, heads, kv_heads, head_dim = sizes
    vision = VisionSpec(
        image_size=tile,
        patch_size=patch,
        width=tower[0],
        ffn=tower[1],
        layers=tower[2],
        heads=tower[3],
        norm_eps=1e-6,
        activation="gelu_tanh",
        connector="shuffle",
        tile_embeddings=tokens,
        token_id=_tokenizer().convert_tokens_to_ids("<image>"),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    return ModelSpec(
        "idefics3", vocab, width, ffn, layers, heads, kv_heads, head_dim, 8192, 1e5, 1e-5, True,
        vision=vision,
    )  # fmt: skip


def _tokenizer():
    """A word for a token, so that texts have as many tokens as words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tiles = [TILES.format(r, c) for r in range(1, 5) for c in range(1, 5)]
    words = ["<unk>", "\n", "user", "assistant", *(f"w{i}" for i in range(WORDS))]
    tokens = ["<pad>", *SPECIAL, *tiles, *words]
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([*SPECIAL, *tiles])
    end = {"eos_token": "<|im_end|>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **end)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


if __name__ == "__main__":
    main()
