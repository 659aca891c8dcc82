"""A model that is small enough to train in seconds on a CPU: for notebooks and first tries.

It has random weights and a tokenizer made of the texts that it is given, so it says nothing before
it is trained, and only such texts after.  What jaxpref does with it is what it does with any other.
"""

from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jaxpref.models.decoder import build_model
from jaxpref.models.hf import save_pretrained
from jaxpref.models.spec import ModelSpec

_SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>"]
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
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
    spec = ModelSpec(
        family="llama",
        vocab=len(tokenizer),
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
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<pad>"
    )
    tokenizer.chat_template = _CHATML
    return tokenizer
