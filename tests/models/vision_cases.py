"""Tiny models that see pictures, for the parity tests: configs, pictures from a formula, prompts with picture tokens.

Imports neither torch nor jax, as family_cases.py, whose weights these models have too.
"""

from pathlib import Path
from typing import Any

import family_cases
import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden" / "vision"

TOKEN = 64
"""In whose place embeddings of pictures stand."""
SIDE = 33
"""Pixels of a tile, of which patches of 5 cover 30."""

_TEXT: dict[str, Any] = dict(
    model_type="llama", vocab_size=72, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5,
    tie_word_embeddings=False, rope_theta=300.0, bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip
_TOWER: dict[str, Any] = dict(
    hidden_size=20, intermediate_size=28, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE, patch_size=5
)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "idefics3": (
        "Idefics3Config",
        dict(text_config={**_TEXT, "head_dim": 12}, vision_config=_TOWER, scale_factor=3, image_token_id=TOKEN),
    ),
    "smolvlm": (
        "SmolVLMConfig",
        dict(
            text_config={**_TEXT, "tie_word_embeddings": True}, vision_config={**_TOWER, "image_size": 56},
            scale_factor=11, image_token_id=TOKEN, tie_word_embeddings=True,
        ),
    ),
    "llava": (
        "LlavaConfig",
        dict(
            text_config=_TEXT, vision_config={**_TOWER, "model_type": "clip_vision_model", "image_size": 12},
            image_token_index=TOKEN, image_seq_length=4,
        ),
    ),
    "gemma3": (
        "Gemma3Config",
        dict(
            text_config={
                **{key: value for key, value in _TEXT.items() if key not in ("model_type", "rope_theta")},
                "num_hidden_layers": 4, "head_dim": 12, "tie_word_embeddings": True, "sliding_window": 10,
                "query_pre_attn_scalar": 7, "sliding_window_pattern": 3,
            },
            vision_config={**_TOWER, "image_size": 46, "model_type": "siglip_vision_model", "vision_use_head": False},
            mm_tokens_per_image=9, image_token_index=TOKEN, boi_token_index=65, eoi_token_index=66,
        ),
    ),
}  # fmt: skip
"""Name -> transformers' config class, and what it is called with."""
EMBEDDINGS = {"idefics3": 4, "smolvlm": 1, "llava": 4, "gemma3": 9}
"""Of a tile."""


def side(case: str) -> int:
    """Pixels of a tile's side."""
    return CASES[case][1]["vision_config"]["image_size"]


def groups(case: str) -> list[tuple[list[int], list[list[int]], int]]:
    """Prompt, its two completions, and how many tiles stand in the prompt."""
    picture = [TOKEN] * EMBEDDINGS[case]
    return [
        ([7, 3, *picture, 60, *picture, 5, 19], [[8, 30, 1, 55], [8, 31, 44, 6, 27]], 2),
        ([16, 23, 4, 58, 35], [[29, 10, 47], [13, 63, 0, 38]], 0),
        ([2, *picture, 41], [[12, 12, 9, 33], [50, 21]], 1),
    ]


def pixels(case: str, group: int) -> np.ndarray:
    """uint8 [tiles, side, side, 3] of the group's tiles."""
    shape = (groups(case)[group][2], side(case), side(case), 3)
    unit = family_cases.draw(f"{case}/pixels/{group}", shape) / 3**0.5
    return np.clip(128 + 127 * unit, 0, 255).astype(np.uint8)


WEIGHTS = (1.0, -0.7, 0.5, -0.4, 0.8, -0.9)
"""The loss is the weighted sum of the completions' log-probabilities, group by group."""
