"""Published configs of models that see pictures, read whole; what is set and not understood is refused."""

import math

import pytest
from test_families_configs import GEMMA3_4B, SMOLVLM, theirs

from jaxpref.errors import InputError
from jaxpref.models.families import WITH_PICTURES, spec_from_hf
from jaxpref.models.parameters import model_shapes
from jaxpref.models.spec import VisionSpec

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

PUBLISHED = {
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
    ],
)  # fmt: skip
def test_refused(config, part, changes, named):
    with pytest.raises(InputError, match=named):
        spec_from_hf(changed(config, part, **changes), "config.json", pictures=True)


def test_a_text_model_sees_no_pictures():
    with pytest.raises(InputError, match="model.pictures=true with model_type = 'llama'"):
        spec_from_hf({"model_type": "llama"}, "config.json", pictures=True)
