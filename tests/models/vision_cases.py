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
    "qwen2_5_vl": (
        "Qwen2_5_VLConfig",
        dict(
            text_config={
                **{key: value for key, value in _TEXT.items() if key not in ("model_type", "rope_theta")},
                "hidden_size": 40, "use_sliding_window": True, "sliding_window": 15, "max_window_layers": 2,
                "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "mrope_section": [1, 2, 2]},
            },
            vision_config=dict(
                depth=4, hidden_size=24, intermediate_size=28, num_heads=2, patch_size=5, spatial_merge_size=2,
                temporal_patch_size=2, window_size=25, out_hidden_size=40, fullatt_block_indexes=[1, 3],
            ),
            image_token_id=TOKEN, video_token_id=65, vision_start_token_id=66, vision_end_token_id=67,
        ),
    ),
}  # fmt: skip
"""Name -> transformers' config class, and what it is called with."""
EMBEDDINGS = {"idefics3": 4, "smolvlm": 1, "llava": 4, "gemma3": 9, "qwen2_5_vl": 1}
"""Of a tile."""
ANY_SHAPE = ("qwen2_5_vl",)
WINDOW = 2
"""Tiles along a side of a window of these."""
GRIDS = [[(3, 5), (2, 1)], [], [(1, 4)]]
"""Of the pictures of every group, where they have a shape: rows and columns of their tiles."""


def side(case: str) -> int:
    """Pixels of a tile's side."""
    return 10 if case in ANY_SHAPE else CASES[case][1]["vision_config"]["image_size"]


def groups(case: str) -> list[tuple[list[int], list[list[int]], int]]:
    """Prompt, its two completions, and how many tiles stand in the prompt."""
    tiles = [1, 1, 1] if case not in ANY_SHAPE else [rows * columns for of in GRIDS for rows, columns in of]
    one, other, third = ([TOKEN] * (n * EMBEDDINGS[case]) for n in tiles)
    return [
        ([7, 3, *one, 60, *other, 5, 19], [[8, 30, 1, 55], [8, 31, 44, 6, 27]], tiles[0] + tiles[1]),
        ([16, 23, 4, 58, 35], [[29, 10, 47], [13, 63, 0, 38]], 0),
        ([2, *third, 41], [[12, 12, 9, 33], [50, 21]], tiles[2]),
    ]


def pixels(case: str, group: int) -> np.ndarray:
    """uint8 [tiles, side, side, 3] of the group's tiles, row by row."""
    shape = (groups(case)[group][2], side(case), side(case), 3)
    unit = family_cases.draw(f"{case}/pixels/{group}", shape) / 3**0.5
    return np.clip(128 + 127 * unit, 0, 255).astype(np.uint8)


def flat_patches(tiles, grids: list[tuple[int, int]]) -> dict[str, Any]:
    """What Qwen2.5-VL is given in transformers of a group's pictures.

    Args:
        tiles: torch tensor [tiles, 3, side, side] of normalised pixels, row by row.
    """
    split = tiles.reshape(-1, 3, 2, 5, 2, 5).permute(0, 2, 4, 1, 3, 5)
    twice = split[:, :, :, :, None].expand(-1, -1, -1, -1, 2, -1, -1)  # a picture stands in both frames
    grid_thw = tiles.new_tensor([[1, 2 * rows, 2 * columns] for rows, columns in grids]).long()
    return {"pixel_values": twice.reshape(-1, 3 * 2 * 5 * 5), "image_grid_thw": grid_thw}


WEIGHTS = (1.0, -0.7, 0.5, -0.4, 0.8, -0.9)
"""The loss is the weighted sum of the completions' log-probabilities, group by group."""
