"""Models that are small enough to train in seconds on a CPU: for notebooks, first tries and demos.

They have random weights and a tokenizer made of the texts that they are given, so they say nothing
before they are trained, and only such texts after.  What jaxpref does with them is what it does
with any other.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jaxpref.data.pictures.processor import FILE as PROCESSOR_FILE
from jaxpref.models.decoder import build_model
from jaxpref.models.hf import save_pretrained
from jaxpref.models.spec import ModelSpec, VisionSpec

_SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>"]
_OF_PICTURES = ["<image>", "<fake_token_around_image>", "<global-img>"]
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CHATML_WITH_PICTURES = _CHATML.replace(
    "{{ m['content'] }}",
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}",
)


def write_tiny_model(
    directory: str | Path,
    texts: Iterable[str],
    *,
    vocabulary: int = 1024,
    width: int = 64,
    layers: int = 2,
    seed: int = 0,
) -> Path:
    """Writes a Hugging Face directory of a Llama of random weights, with a chat template.

    Args:
        texts: of which the tokenizer is made.
        vocabulary: most tokens; bytes that are no part of others among them.
        width: of the model, a multiple of 16: heads of 16 numbers, and an MLP twice as wide.
    Returns: the directory.
    """
    tokenizer = _tokenizer(texts, vocabulary)
    tokenizer.chat_template = _CHATML
    return _write(directory, _decoder(len(tokenizer), width, layers), tokenizer, seed)


def write_tiny_vision_model(
    directory: str | Path,
    texts: Iterable[str],
    *,
    image_size: int = 32,
    patch_size: int = 8,
    vocabulary: int = 512,
    width: int = 64,
    layers: int = 3,
    tower_layers: int = 2,
    seed: int = 0,
) -> Path:
    """The same of a SmolVLM, which sees a picture as one tile and four patches as one token.

    Args:
        image_size: pixels of a tile's side, to which every picture is resized.
        patch_size: pixels of a patch's side; two patches, side by side, divide a tile.
        width: of the decoder and of the tower.
    """
    tokenizer = _tokenizer(texts, vocabulary)
    tokenizer.chat_template = _CHATML_WITH_PICTURES
    tokenizer.add_special_tokens({"additional_special_tokens": _OF_PICTURES})
    vision = VisionSpec(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        ffn=2 * width,
        layers=tower_layers,
        heads=width // 16,
        norm_eps=1e-6,
        activation="gelu_tanh",
        connector="shuffle",
        tile_embeddings=(image_size // patch_size // 2) ** 2,
        token_id=tokenizer.get_vocab()[_OF_PICTURES[0]],
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    spec = _decoder(len(tokenizer), width, layers, family="idefics3", vision=vision)
    directory = _write(directory, spec, tokenizer, seed)
    processor = {
        "image_processor_type": "Idefics3ImageProcessor",
        "do_image_splitting": False,
        "size": {"longest_edge": image_size},
        "max_image_size": {"longest_edge": image_size},
        "image_mean": vision.mean,
        "image_std": vision.std,
    }
    (directory / PROCESSOR_FILE).write_text(json.dumps(processor, indent=1) + "\n")
    return directory


def _decoder(vocab: int, width: int, layers: int, **more: Any) -> ModelSpec:
    return ModelSpec(
        **{"family": "llama", **more},
        vocab=vocab,
        width=width,
        ffn=2 * width,
        layers=layers,
        heads=width // 16,
        kv_heads=width // 16,
        head_dim=16,
        max_positions=1024,
        rope_theta=10_000.0,
        norm_eps=1e-6,
        tied=True,
    )


def _write(
    directory: str | Path, spec: ModelSpec, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Path:
    params = build_model(spec).init(jax.random.key(seed))
    save_pretrained(
        directory,
        spec,
        params,
        tokenizer,
        dtype=np.float32,
        generation_config=None,
        model_card="# A tiny model of random weights\n",
    )
    return Path(directory)


def _tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<pad>"
    )
