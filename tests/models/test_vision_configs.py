"""Published configs of models that see pictures, read whole; what is set and not understood is refused."""

import math

import pytest
from test_families_configs import GEMMA3_4B, SMOLVLM, theirs

from jaxpref.errors import InputError
from jaxpref.models.families import WITH_PICTURES, spec_from_hf
from jaxpref.models.parameters import model_shapes
from jaxpref.models.spec import VisionSpec, Windows

HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
SIGLIP_BASE = dict(image_size=512, patch_size=16, width=768, ffn=3072, layers=12, heads=12, norm_eps=1e-6,
                   activation="gelu_tanh", **HALF)  # fmt: skip
SMOLVLM_256M = SMOLVLM | {
    "vision_config": {
        "hidden_size": 768, "image_size": 512, "max_image_size": {"longest_edge": 512}, "model_type": "idefics3",
        "num_attention_heads": 12, "patch_size": 16, "tie_word_embeddings": False, "use_base_siglip": True,
    }
}  # fmt: skip
SMOLVLM_500M = SMOLVLM_256M | {
    "architectures": ["SmolVLMForConditionalGeneration"], "model_type": "smolvlm",
    "text_config": SMOLVLM["text_config"] | {
        "hidden_size": 960, "intermediate_size": 2560, "num_attention_heads": 15, "num_hidden_layers": 32,
        "num_key_value_heads": 5,
    },
    "vision_config": SMOLVLM_256M["vision_config"] | {
        "model_type": "smolvlm_vision", "size": {"longest_edge": 2048}, "use_base_siglip": False,
    },
}  # fmt: skip
LLAVA_7B = {
    "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000,
    "model_type": "llava", "pad_token_id": 32001, "projector_hidden_act": "gelu", "tie_word_embeddings": False,
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096,
        "model_type": "llama", "rms_norm_eps": 1e-5, "torch_dtype": "float16", "vocab_size": 32064,
    },
    "torch_dtype": "float16", "transformers_version": "4.36.0.dev0",
    "vision_config": {
        "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vocab_size": 32064,
}  # fmt: skip
GEMMA3 = GEMMA3_4B | {
    "vision_config": {
        "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
    }
}  # fmt: skip

QWEN_3B = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653, "vision_token_id": 151654,
    "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 128000, "max_window_layers": 70,
    "model_type": "qwen2_5_vl", "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": True, "use_sliding_window": False,
    "vision_config": {
        "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "in_chans": 3, "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 151936,
}  # fmt: skip
QWEN_7B = QWEN_3B | {
    "hidden_size": 3584, "intermediate_size": 18944, "max_window_layers": 28, "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "tie_word_embeddings": False, "vocab_size": 152064,
    "vision_config": QWEN_3B["vision_config"] | {"out_hidden_size": 3584},
}  # fmt: skip
QWEN_TOWER = VisionSpec(
    image_size=28, patch_size=14, width=1280, ffn=3420, layers=32, heads=16, norm_eps=1e-6, activation="silu",
    connector="merge", tile_embeddings=1, token_id=151655, norm="rms", gated=True, frames=2,
    windows=Windows(4, (7, 15, 23, 31), 1e4),
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711),
)  # fmt: skip

PUBLISHED = {
    "Qwen2.5-VL-3B-Instruct": (QWEN_3B, QWEN_TOWER, 3754.6e6),
    "Qwen2.5-VL-7B-Instruct": (QWEN_7B, QWEN_TOWER, 8292.2e6),
    "SmolVLM-256M-Instruct": (
        SMOLVLM_256M, VisionSpec(connector="shuffle", tile_embeddings=64, token_id=49190, **SIGLIP_BASE), 256.5e6,
    ),
    "SmolVLM2-500M-Video-Instruct": (
        SMOLVLM_500M, VisionSpec(connector="shuffle", tile_embeddings=64, token_id=49190, **SIGLIP_BASE), 507.5e6,
    ),
    "llava-1.5-7b-hf": (
        LLAVA_7B,
        VisionSpec(
            image_size=336, patch_size=14, width=1024, ffn=4096, layers=24, heads=16, norm_eps=1e-5,
            activation="quick_gelu", connector="mlp", tile_embeddings=576, token_id=32000, layers_run=23,
            class_token=True, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711),
        ),
        7063.4e6,
    ),
    "gemma-3-4b-it": (
        GEMMA3,
        VisionSpec(
            image_size=896, patch_size=14, width=1152, ffn=4304, layers=27, heads=16, norm_eps=1e-6,
            activation="gelu_tanh", connector="pool", tile_embeddings=256, token_id=262144, mutual=True,
            around_ids=(255999, 256000), **HALF,
        ),
        4300.1e6,
    ),
}  # fmt: skip
"""Name -> config.json, the tower that it means, and the parameters that the hub counts."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_as_they_are(name):
    config, vision, parameters = PUBLISHED[name]
    spec = spec_from_hf(config, "config.json", pictures=True)
    assert spec.vision == vision and spec.family == config["model_type"]
    assert sum(map(math.prod, model_shapes(spec).values())) == pytest.approx(parameters, rel=1e-4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_written_configs_are_read_alike(name):
    """By us, and as transformers fills them up."""
    spec = spec_from_hf(PUBLISHED[name][0], "config.json", pictures=True)
    written = WITH_PICTURES[spec.family].to_hf(spec)
    assert spec_from_hf(written, "written", pictures=True) == spec
    assert spec_from_hf(theirs(written).to_dict(), "theirs", pictures=True) == spec


def changed(config, part, **changes):
    return {**config, part: {**config[part], **changes}} if part else {**config, **changes}


@pytest.mark.parametrize(
    "config, part, changes, named",
    [
        (SMOLVLM_256M, "vision_config", {"mystery": 3}, "vision_config of config.json: mystery = 3"),
        (SMOLVLM_256M, "vision_config", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        (SMOLVLM_256M, "vision_config", {"model_type": "clip_vision_model"}, "clip_vision_model"),
        (SMOLVLM_256M, "vision_config", {"image_size": 400}, "25 patches along a tile, whose positions"),
        (SMOLVLM_256M, None, {"scale_factor": 5}, "no multiple of scale_factor = 5"),
        (SMOLVLM_256M, None, {"image_token_id": 49280}, "image_token_id = 49280 with a vocabulary of 49280"),
        (LLAVA_7B, None, {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy = 'full'"),
        (LLAVA_7B, None, {"vision_feature_layer": [-2, -5]}, r"vision_feature_layer = \[-2, -5\]"),
        (LLAVA_7B, None, {"projector_hidden_act": "relu"}, "projector_hidden_act = 'relu'"),
        (LLAVA_7B, None, {"image_seq_length": 144}, "image_seq_length = 144 for 576 patches"),
        (LLAVA_7B, None, {"image_token_id": 7}, "image_token_index and image_token_id disagree"),
        (GEMMA3, None, {"mm_tokens_per_image": 250}, r"mm_tokens_per_image = 250 of 64 \* 64"),
        (GEMMA3, "text_config", {"sliding_window": 128}, "mm_tokens_per_image = 256, beyond sliding_window"),
        (GEMMA3, "text_config", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (QWEN_3B, "vision_config", {"mystery": 3}, "vision_config of config.json: mystery = 3"),
        (QWEN_3B, "vision_config", {"fullatt_block_indexes": [7, 32]}, r"fullatt_block_indexes = \[7, 32\]"),
        (QWEN_3B, "vision_config", {"fullatt_block_indexes": 7}, "fullatt_block_indexes = 7"),
        (QWEN_3B, "vision_config", {"window_size": 27}, "window_size = 27 is less than 28"),
        (QWEN_3B, "vision_config", {"hidden_size": 1288}, r"hidden_size = 1288 is no multiple of 4 \* num_heads"),
        (QWEN_3B, "vision_config", {"out_hidden_size": 3584}, "out_hidden_size = 3584"),
        (QWEN_3B, "vision_config", {"rope_parameters": {"rope_type": "yarn"}}, "only 'axial'"),
        (QWEN_3B, "vision_config", {"hidden_act": "quick_gelu"}, "hidden_act = 'quick_gelu'"),
        (QWEN_3B, "rope_scaling", {"mrope_section": [16, 24, 23]}, r"mrope_section = \[16, 24, 23\] of 64"),
        (QWEN_3B, "rope_scaling", {"mrope_section": [64]}, r"mrope_section = \[64\] is not three numbers"),
        (QWEN_3B, "rope_scaling", {"mystery": 3}, "rope parameter mystery"),
        (QWEN_3B, None, {"head_dim": 64}, "head_dim = 64, not hidden_size / num_attention_heads"),
        (QWEN_3B, None, {"mystery": 3}, "text part of config.json: mystery = 3"),
        (QWEN_3B, None, {"image_token_id": 151936}, "image_token_id = 151936 with a vocabulary of 151936"),
    ],
)  # fmt: skip
def test_refused(config, part, changes, named):
    with pytest.raises(InputError, match=named):
        spec_from_hf(changed(config, part, **changes), "config.json", pictures=True)


def test_attributes_of_the_text_may_stand_in_both_places():
    """As transformers 4.52 to 4.57 write them."""
    outside = {"vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"}
    inside = {k: v for k, v in QWEN_3B.items() if k not in outside} | {"model_type": "qwen2_5_vl_text"}
    expected = spec_from_hf(QWEN_3B, "config.json", pictures=True)
    for both in (QWEN_3B | {"text_config": inside}, {"text_config": inside, **{k: QWEN_3B[k] for k in outside}}):
        assert spec_from_hf({"model_type": "qwen2_5_vl", **both}, "config.json", pictures=True) == expected
    with pytest.raises(InputError, match="config.json: rms_norm_eps = 1e-05 is unknown"):
        spec_from_hf(QWEN_3B | {"text_config": inside, "rms_norm_eps": 1e-5}, "config.json", pictures=True)


def test_the_text_part_of_qwen_is_a_qwen2():
    """For in a text M-RoPE is RoPE."""
    spec = spec_from_hf(QWEN_7B, "config.json")
    assert (spec.family, spec.width, spec.rope_theta, spec.rope_scaling) == ("qwen2", 3584, 1e6, None)
    assert spec.vision is None and spec.rope_sections is None and spec.qkv_bias


def test_a_text_model_sees_no_pictures():
    with pytest.raises(InputError, match="model.pictures=true with model_type = 'llama'"):
        spec_from_hf({"model_type": "llama"}, "config.json", pictures=True)
