"""Tiny models of every family for the parity tests: configs with all special features on, weights from a formula.

Imports neither torch nor jax: tests/golden/make_families.py runs the models in transformers, test_families_parity.py
runs them here.
"""

import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden" / "families"

PROMPTS_AND_COMPLETIONS = (
    (([7, 3, 11, 60, 2, 2, 41, 5, 19]), ([8, 30, 1, 55, 12, 12, 9, 33], [8, 31, 44, 6, 27, 50])),
    (([16, 23, 4, 58, 35]), ([29, 10, 47, 20], [13, 63, 0, 38, 21, 3, 52])),
)
"""Token ids: one entry a group, the prompt and its two completions.  Longer than the windows below."""
SLOT_WEIGHTS = (1.0, -0.7, 0.5, -0.4)
"""The loss is the weighted sum of the completions' log-probabilities, in this order."""
VOCAB_COLUMNS = (0, 3, 8, 12, 21, 38, 50, 63)
"""Columns of the logits that the golden files keep."""

_BASE: dict[str, Any] = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False,
    bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip
_ROPE = dict(rope_type="default", rope_theta=300.0)
_LONGROPE = dict(_ROPE, rope_type="longrope", short_factor=[1.0, 1.4, 2.5], long_factor=[2.0, 4.0, 9.0])
_YARN = dict(_ROPE, rope_type="yarn", factor=3.5, original_max_position_embeddings=64, beta_fast=4.0, beta_slow=1.0)


@dataclass(frozen=True)
class Case:
    config_class: str
    """Of transformers."""
    config: dict[str, Any]
    without: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Feature -> the config that has it off or otherwise; the logits must notice."""


def _case(name: str, without: dict[str, dict[str, Any]], **config: Any) -> Case:
    return Case(name + "Config", {**_BASE, "rope_parameters": _ROPE, **config}, without)


CASES: dict[str, Case] = {
    "llama": _case(
        "Llama", {"linear rope": dict(rope_parameters=_ROPE)},
        attention_bias=True, head_dim=12, rope_parameters=dict(_ROPE, rope_type="linear", factor=2.5),
    ),
    "mistral": _case("Mistral", {"window": dict(sliding_window=None)}, sliding_window=5, head_dim=12),
    "qwen2": _case(
        "Qwen2", {"window": dict(use_sliding_window=False), "where": dict(max_window_layers=2)},
        use_sliding_window=True, sliding_window=4, max_window_layers=1, tie_word_embeddings=True,
    ),
    "qwen2_yarn": _case(
        "Qwen2",
        {
            "frequencies": dict(rope_parameters=dict(_YARN, factor=1.0, attention_factor=1.13)),
            "amplitude": dict(rope_parameters=dict(_YARN, attention_factor=1.0)),
            "band": dict(rope_parameters=dict(_YARN, beta_fast=32.0, beta_slow=0.1)),
            "whole frequencies": dict(rope_parameters=dict(_YARN, truncate=False)),
        },
        head_dim=24, rope_parameters=_YARN,
    ),
    "qwen3": _case(
        "Qwen3", {"where": dict(layer_types=["full_attention", "sliding_attention", "sliding_attention"])},
        attention_bias=True, head_dim=12, use_sliding_window=True, sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gemma2": _case(
        "Gemma2",
        {
            "attention cap": dict(attn_logit_softcapping=None),
            "logit cap": dict(final_logit_softcapping=None),
            "scale": dict(query_pre_attn_scalar=12),
            "window": dict(sliding_window=100),
        },
        attention_bias=True, head_dim=12, tie_word_embeddings=True, query_pre_attn_scalar=7, sliding_window=4,
        final_logit_softcapping=4.0, attn_logit_softcapping=1.5,
    ),
    "gemma3": _case(
        "Gemma3Text",
        {
            "window": dict(sliding_window=100),
            "scale": dict(query_pre_attn_scalar=12),
            "logit cap": dict(final_logit_softcapping=None),
            "local theta": dict(rope_parameters=dict(
                full_attention=dict(_ROPE, rope_type="linear", factor=2.0), sliding_attention=_ROPE,
            )),
            "global linear rope": dict(rope_parameters=dict(
                full_attention=_ROPE, sliding_attention=dict(_ROPE, rope_theta=20.0),
            )),
        },
        num_hidden_layers=4, head_dim=12, tie_word_embeddings=True, query_pre_attn_scalar=7, sliding_window=5,
        sliding_window_pattern=3, final_logit_softcapping=5.0,
        rope_parameters=dict(
            full_attention=dict(_ROPE, rope_type="linear", factor=2.0), sliding_attention=dict(_ROPE, rope_theta=20.0),
        ),
    ),
    "gemma3_multimodal": Case(
        "Gemma3Config",
        dict(
            text_config={
                **_BASE, "num_hidden_layers": 4, "head_dim": 12, "tie_word_embeddings": True, "sliding_window": 5,
                "query_pre_attn_scalar": 7, "sliding_window_pattern": 3,
                "rope_scaling": dict(rope_type="linear", factor=8.0), "rope_theta": 300.0, "rope_local_base_freq": 20.0,
            },
            vision_config=dict(
                hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28,
                patch_size=14,
            ),
            mm_tokens_per_image=4, image_token_index=64, boi_token_index=62, eoi_token_index=63,
        ),
    ),
    "smolvlm": Case(
        "Idefics3Config",
        dict(
            text_config={**_BASE, "model_type": "llama", "rope_theta": 300.0, "head_dim": 12},
            vision_config=dict(
                hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32,
                patch_size=8,
            ),
            scale_factor=2, image_token_id=64,
        ),
    ),
    "llava": Case(
        "LlavaConfig",
        dict(
            text_config={**_BASE, "model_type": "llama", "num_key_value_heads": 4, "rope_theta": 300.0},
            vision_config=dict(
                model_type="clip_vision_model", hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                num_attention_heads=2, image_size=28, patch_size=14,
            ),
            image_token_index=64, image_seq_length=4,
        ),
    ),
    "qwen2_5_vl": Case(
        "Qwen2_5_VLConfig",
        dict(
            text_config={
                **_BASE, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1,
                "rope_parameters": dict(_ROPE, mrope_section=[1, 1, 2]),
            },
            vision_config=dict(
                depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32,
                fullatt_block_indexes=[0],
            ),
            image_token_id=64,
        ),
    ),
    "phi3": _case("Phi3", {"window": dict(sliding_window=None)}, sliding_window=6),
    "phi4_mini": _case(
        "Phi3",
        {
            "part": dict(rope_parameters=dict(_ROPE, partial_rotary_factor=0.5)),
            "divisors": dict(rope_parameters=dict(_LONGROPE, short_factor=[1.0] * 3, partial_rotary_factor=0.75)),
            "amplitude": dict(rope_parameters=dict(_LONGROPE, attention_factor=1.0, partial_rotary_factor=0.75)),
        },
        original_max_position_embeddings=64, rope_parameters=dict(_LONGROPE, partial_rotary_factor=0.75),
        tie_word_embeddings=True,
    ),
    "olmo2": _case("Olmo2", {}, attention_bias=True),
    "olmo3": _case(
        "Olmo3",
        {
            "window": dict(sliding_window=100),
            "where": dict(layer_types=["sliding_attention"] * 5),
            "local theta": dict(rope_parameters=dict(
                full_attention=_YARN, sliding_attention=_ROPE,
            )),
            "global yarn": dict(rope_parameters=dict(
                full_attention=_ROPE, sliding_attention=dict(_ROPE, rope_theta=20.0),
            )),
        },
        attention_bias=True, num_hidden_layers=5, sliding_window=5,
        rope_parameters=dict(
            full_attention=_YARN, sliding_attention=dict(_ROPE, rope_theta=20.0),
        ),
    ),
    "granite": _case(
        "Granite",
        {
            "embedding": dict(embedding_multiplier=1.0),
            "attention": dict(attention_multiplier=12**-0.5),
            "residual": dict(residual_multiplier=1.0),
            "logits": dict(logits_scaling=1.0),
        },
        attention_bias=True, head_dim=12, tie_word_embeddings=True, embedding_multiplier=3.0,
        attention_multiplier=0.15, residual_multiplier=0.7, logits_scaling=0.6,
    ),
    "smollm3": _case(
        "SmolLM3",
        {"window": dict(use_sliding_window=False), "rope": dict(no_rope_layers=[1, 1, 1, 1])},
        num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0], use_sliding_window=True, sliding_window=5,
        attention_bias=True, tie_word_embeddings=True,
    ),
    "gpt2": Case(
        "GPT2Config",
        dict(
            vocab_size=64, n_positions=40, n_embd=32, n_layer=3, n_head=4, n_inner=48, bos_token_id=None,
            eos_token_id=None, pad_token_id=None,
        ),
        {"scale": dict(scale_attn_weights=False), "activation": dict(activation_function="relu")},
    ),
    "gpt_oss": _case(
        "GptOss",
        {
            "window": dict(sliding_window=100),
            "where": dict(layer_types=["full_attention", "sliding_attention", "sliding_attention"]),
            "second expert": dict(num_experts_per_tok=1),
            "alpha": dict(swiglu_alpha=1.0),
            "limit": dict(swiglu_limit=7.0),
            "yarn": dict(rope_parameters=_ROPE),
        },
        head_dim=12, sliding_window=5, num_local_experts=4, num_experts_per_tok=2, intermediate_size=24,
        swiglu_limit=0.8, rope_parameters=dict(_YARN, truncate=False),
    ),
    "mixtral": _case(
        "Mixtral", {"window": dict(sliding_window=None), "second expert": dict(num_experts_per_tok=1)},
        sliding_window=6, num_local_experts=4, num_experts_per_tok=2, head_dim=12,
    ),
    "qwen3_5": _case(
        "Qwen3_5Text",
        {
            "part": dict(rope_parameters=dict(_ROPE, partial_rotary_factor=0.25)),
            "theta": dict(rope_parameters=dict(_ROPE, partial_rotary_factor=0.75, rope_theta=20.0)),
        },
        num_hidden_layers=6, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=6,
        linear_value_head_dim=10, linear_conv_kernel_dim=4, full_attention_interval=3,
        rope_parameters=dict(_ROPE, partial_rotary_factor=0.75),
    ),
    "qwen3_5_multimodal": Case(
        "Qwen3_5Config",
        dict(
            text_config={
                **_BASE, "num_hidden_layers": 4, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 6,
                "linear_key_head_dim": 6, "linear_value_head_dim": 5, "linear_conv_kernel_dim": 3,
                "tie_word_embeddings": True,
                "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"],
                "rope_parameters": dict(
                    _YARN, partial_rotary_factor=0.5, mrope_section=[2, 1, 1], mrope_interleaved=True,
                ),
            },
            vision_config=dict(
                hidden_size=16, intermediate_size=16, depth=1, num_heads=2, patch_size=4, out_hidden_size=32,
                num_position_embeddings=4,
            ),
            image_token_id=63, video_token_id=62, vision_start_token_id=60, vision_end_token_id=61,
            tie_word_embeddings=True,
        ),
    ),
    "qwen3_moe": _case(
        "Qwen3Moe", {"window": dict(use_sliding_window=False), "probabilities as they are": dict(norm_topk_prob=True)},
        attention_bias=True, head_dim=12, use_sliding_window=True, sliding_window=5, moe_intermediate_size=24,
        num_experts=4, num_experts_per_tok=2, norm_topk_prob=False,
    ),
}  # fmt: skip


def sequences() -> list[tuple[list[int], int]]:
    """Every prompt with each of its completions, as token ids, and the prompt's length."""
    return [(p + c, len(p)) for p, completions in PROMPTS_AND_COMPLETIONS for c in completions]


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of mean 0 and variance 1 that follow from the name: uniform, by the splitmix64 hash."""
    with np.errstate(over="ignore"):
        z = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(zlib.crc32(name.encode())) << np.uint64(32)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    unit = ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return ((2 * unit - 1) * 3**0.5).reshape(shape)


def text_name(name: str) -> str | None:
    """A stored name of a multimodal model as its text model's checkpoint has it; None: it is of images."""
    if re.match(r"vision_tower|multi_modal_projector|visual|model\.(visual|vision_model|connector)", name):
        return None
    return re.sub(r"^model\.(language|text)_model\.", "model.", name.removeprefix("language_model."))


def text_tensors(stored: dict[str, list[int]]) -> dict[str, list[int]]:
    """Of all stored tensors' shapes those of the text model, by their names in its checkpoint."""
    return {text: shape for name, shape in stored.items() if (text := text_name(name)) is not None}


def tensor(case: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A stored tensor, float32: no bias is 0, no norm is 1 (or 0, where the model adds 1)."""
    name = text_name(name) or name
    drawn = draw(f"{case}/{name}", shape)
    kind = name.split(".")[-2]
    if "norm" in kind or kind.startswith("ln_"):
        one_is_added = case.startswith(("gemma", "qwen3_5")) and "linear_attn" not in name
        centre = 0.0 if one_is_added or name.endswith("bias") else 1.0
        return np.float32(centre + 0.3 * drawn)
    if name.endswith("A_log"):  # so that states last for some tokens
        return np.float32(-1.5 + 0.7 * drawn)
    if name.endswith(("bias", "sinks")):
        return np.float32(0.4 * drawn)
    if kind in ("embed_tokens", "wte", "wpe", "lm_head"):
        return np.float32(0.5 * drawn)
    if kind in ("gate", "router"):  # of experts: its choices must not be close
        return np.float32(0.6 * drawn)
    return np.float32(1.3 * np.prod(shape) ** -0.25 * drawn)  # about 1 / sqrt(inputs)


def digest(case: str, name: str, gradient: np.ndarray) -> dict[str, Any]:
    """What a golden file keeps of a tensor's gradient: its size, four random projections, eight elements."""
    gradient = np.asarray(gradient, np.float64)
    flat = gradient.reshape(-1)
    at = (np.abs(draw(f"{case}/{name}/at", (8,))) * 1e9).astype(np.int64) % flat.size
    return {
        "largest": float(np.abs(flat).max()),
        "norm": float(np.linalg.norm(flat)),
        "projections": [float(flat @ draw(f"{case}/{name}/{i}", flat.shape)) for i in range(4)],
        "elements": flat[at].tolist(),
    }
