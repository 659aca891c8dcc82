"""Configs of published models: what is read, what is written, what transformers makes of it, what is refused."""

import json
from copy import deepcopy
from dataclasses import fields, replace

import pytest

from jaxpref.errors import InputError
from jaxpref.models.families import FAMILIES, spec_from_hf
from jaxpref.models.families.attributes import NO_EFFECT
from jaxpref.models.spec import ClampedSwiglu, DeltaNet, LayerKind, LinearRope, LongRope, ModelSpec, YarnRope

FULL, SLIDING = "full_attention", "sliding_attention"


def kinds(pattern: str, window: int | None, *, local: bool = False, nope: bool = False) -> tuple[LayerKind, ...]:
    """One letter a layer: `s` slides, `f` does not; local: sliding layers have the local rope; nope: `n` has none."""
    rope = {"s": "local" if local else "global", "f": "global", "n": None}
    return tuple(LayerKind(window if kind == "s" else None, rope[kind]) for kind in pattern)


_COMMON = {"attention_dropout": 0.0, "initializer_range": 0.02, "torch_dtype": "bfloat16", "use_cache": True}
_SHORT = [1.0 + 0.01 * i for i in range(48)]
_LONG = [1.0 + i for i in range(48)]

# name -> (config.json as published, but for long lists of factors; its spec)
PUBLISHED = {
    "Mistral-7B-v0.1": (
        {
            **_COMMON, "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
            "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
            "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
            "transformers_version": "4.34.0.dev0", "vocab_size": 32000,
        },
        ModelSpec("mistral", 32000, 4096, 14336, 32, 32, 8, 128, 32768, 1e4, 1e-5, False, kinds=kinds("s" * 32, 4096)),
    ),
    "Qwen2.5-0.5B": (
        {
            **_COMMON, "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151643,
            "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768,
            "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
            "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
            "tie_word_embeddings": True, "transformers_version": "4.40.1", "use_mrope": False,
            "use_sliding_window": False, "vocab_size": 151936,
        },
        ModelSpec("qwen2", 151936, 896, 4864, 24, 14, 2, 64, 32768, 1e6, 1e-6, True, qkv_bias=True),
    ),
    "Qwen3.5-27B": (  # its text part
        {
            **_COMMON, "architectures": ["Qwen3_5ForCausalLM"], "attention_bias": False, "attn_output_gate": True,
            "eos_token_id": 248044, "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu",
            "hidden_size": 5120, "intermediate_size": 17408, "layer_types": [*["linear_attention"] * 3, FULL] * 16,
            "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16,
            "linear_num_value_heads": 48, "linear_value_head_dim": 128, "mamba_ssm_dtype": "float32",
            "max_position_embeddings": 262144, "mlp_only_layers": [], "model_type": "qwen3_5_text",
            "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False, "num_attention_heads": 24,
            "num_hidden_layers": 64, "num_key_value_heads": 4, "output_gate_type": "swish", "rms_norm_eps": 1e-06,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25},
            "tie_word_embeddings": False, "vocab_size": 248320,
        },
        ModelSpec(
            "qwen3_5_text", 248320, 5120, 17408, 64, 24, 4, 256, 262144, 1e7, 1e-6, False, norm="rms_plus_one",
            qk_norm="head", attention_gate=True, partial_rotary=0.25, delta=DeltaNet(16, 48, 128, 128, 4),
            kinds=(*[LayerKind(mixer="delta")] * 3, LayerKind()) * 16,
        ),
    ),
    "Qwen3-0.6B": (
        {
            **_COMMON, "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "bos_token_id": 151643,
            "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
            "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
            "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
            "tie_word_embeddings": True, "transformers_version": "4.51.0", "use_sliding_window": False,
            "vocab_size": 151936,
        },
        ModelSpec("qwen3", 151936, 1024, 3072, 28, 16, 8, 128, 40960, 1e6, 1e-6, True, qk_norm="head"),
    ),
    "gemma-2-2b": (
        {
            **_COMMON, "architectures": ["Gemma2ForCausalLM"], "attention_bias": False,
            "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
            "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216,
            "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8,
            "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
            "transformers_version": "4.42.4", "vocab_size": 256000,
        },
        ModelSpec(
            "gemma2", 256000, 2304, 9216, 26, 8, 4, 256, 8192, 1e4, 1e-6, True, activation="gelu_tanh",
            norm="rms_plus_one", norm_at="both", attention_softcap=50.0, logit_softcap=30.0, attention_scale=1 / 16,
            embed_scale=48.0, kinds=kinds("sf" * 13, 4096),
        ),
    ),
    "gemma-3-1b-it": (
        {
            **_COMMON, "architectures": ["Gemma3ForCausalLM"], "attention_bias": False,
            "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid",
            "eos_token_id": [1, 106], "final_logit_softcapping": None, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
            "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
            "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
            "sliding_window": 512, "sliding_window_pattern": 6, "transformers_version": "4.50.0.dev0",
            "vocab_size": 262144,
        },
        ModelSpec(
            "gemma3_text", 262144, 1152, 6912, 26, 4, 1, 256, 32768, 1e6, 1e-6, True, activation="gelu_tanh",
            norm="rms_plus_one", norm_at="both", qk_norm="head", attention_scale=1 / 16, embed_scale=1152**0.5,
            rope_local_theta=1e4, kinds=kinds(("sssssf" * 5)[:26], 512, local=True),
        ),
    ),
    "Phi-3-mini-4k-instruct": (
        {
            **_COMMON, "_name_or_path": "Phi-3-mini-4k-instruct", "architectures": ["Phi3ForCausalLM"],
            "attention_bias": False, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 1,
            "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
            "intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "phi3",
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
            "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0,
            "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047,
            "tie_word_embeddings": False, "transformers_version": "4.40.2", "vocab_size": 32064,
        },
        ModelSpec("phi3", 32064, 3072, 8192, 32, 32, 32, 96, 4096, 1e4, 1e-5, False, kinds=kinds("s" * 32, 2047)),
    ),
    "Phi-4-mini-instruct": (
        {
            **_COMMON, "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "bos_token_id": 199999,
            "embd_pdrop": 0.0, "eos_token_id": 199999, "full_attn_mod": 1, "hidden_act": "silu", "hidden_size": 3072,
            "intermediate_size": 8192, "interpolate_factor": 1, "lm_head_bias": False,
            "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "phi3", "num_attention_heads": 24,
            "num_hidden_layers": 32, "num_key_value_heads": 8, "original_max_position_embeddings": 4096,
            "pad_token_id": 199999, "partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
            "rope_scaling": {"long_factor": _LONG, "short_factor": _SHORT, "type": "longrope"},
            "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": True,
            "transformers_version": "4.45.0", "vocab_size": 200064,
        },
        ModelSpec(
            "phi3", 200064, 3072, 8192, 32, 24, 8, 128, 131072, 1e4, 1e-5, True,
            rope_scaling=LongRope(tuple(_SHORT), tuple(_LONG), 4096, None), partial_rotary=0.75,
            kinds=kinds("s" * 32, 262144),
        ),
    ),
    "OLMo-2-0425-1B": (
        {
            **_COMMON, "architectures": ["Olmo2ForCausalLM"], "attention_bias": False, "eos_token_id": 100257,
            "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 4096,
            "model_type": "olmo2", "num_attention_heads": 16, "num_hidden_layers": 16, "num_key_value_heads": 16,
            "pad_token_id": 100277, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 500000,
            "tie_word_embeddings": False, "transformers_version": "4.47.0", "vocab_size": 100352,
        },
        ModelSpec(
            "olmo2", 100352, 2048, 8192, 16, 16, 16, 128, 4096, 5e5, 1e-6, False, norm_at="post", qk_norm="whole"
        ),
    ),
    "Olmo-3-1025-7B": (
        {
            **_COMMON, "architectures": ["Olmo3ForCausalLM"], "attention_bias": False, "eos_token_id": 100257,
            "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 65536,
            "layer_types": [SLIDING, SLIDING, SLIDING, FULL] * 8, "model_type": "olmo3", "num_attention_heads": 32,
            "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 100277, "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0,
                "original_max_position_embeddings": 8192, "rope_type": "yarn",
            },
            "rope_theta": 500000, "sliding_window": 4096, "tie_word_embeddings": False,
            "transformers_version": "4.57.0", "vocab_size": 100278,
        },
        ModelSpec(
            "olmo3", 100278, 4096, 11008, 32, 32, 32, 128, 65536, 5e5, 1e-6, False, norm_at="post", qk_norm="whole",
            rope_scaling=YarnRope(8.0, 8192, attention_factor=1.2079441541679836), rope_local_theta=5e5,
            kinds=kinds("sssf" * 8, 4096, local=True),
        ),
    ),
    "granite-3.3-8b-instruct": (
        {
            **_COMMON, "architectures": ["GraniteForCausalLM"], "attention_bias": False,
            "attention_multiplier": 0.0078125, "bos_token_id": 0, "embedding_multiplier": 12.0, "eos_token_id": 0,
            "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 12800, "logits_scaling": 16.0,
            "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "granite", "num_attention_heads": 32,
            "num_hidden_layers": 40, "num_key_value_heads": 8, "pad_token_id": 0, "residual_multiplier": 0.22,
            "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000000.0, "tie_word_embeddings": True,
            "transformers_version": "4.49.0", "vocab_size": 49159,
        },
        ModelSpec(
            "granite", 49159, 4096, 12800, 40, 32, 8, 128, 131072, 1e7, 1e-5, True, attention_scale=1 / 128,
            embed_scale=12.0, residual_scale=0.22, logit_divisor=16.0,
        ),
    ),
    "SmolLM3-3B": (
        {
            **_COMMON, "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False, "bos_token_id": 128000,
            "eos_token_id": 128012, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 11008,
            "layer_types": [FULL] * 36, "max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": False,
            "model_type": "smollm3", "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9,
            "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4, "pad_token_id": 128004,
            "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000.0,
            "sliding_window": None, "transformers_version": "4.53.0.dev0", "use_sliding_window": False,
            "vocab_size": 128256,
        },
        ModelSpec(
            "smollm3", 128256, 2048, 11008, 36, 16, 4, 128, 65536, 5e6, 1e-6, True, kinds=kinds("fffn" * 9, None)
        ),
    ),
    "gpt2": (
        {
            "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
            "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
            "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None,
            "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
            "summary_use_proj": True, "vocab_size": 50257,
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        },
        ModelSpec(
            "gpt2", 50257, 768, 3072, 12, 12, 12, 64, 1024, 1e4, 1e-5, True, activation="gelu_tanh", gated=False,
            norm="layer", qkv_bias=True, o_bias=True, mlp_bias=True, learned_positions=True,
        ),
    ),
    "Mixtral-8x7B-v0.1": (
        {
            **_COMMON, "architectures": ["MixtralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
            "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
            "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
            "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False, "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None,
            "tie_word_embeddings": False, "transformers_version": "4.36.0.dev0", "vocab_size": 32000,
        },
        ModelSpec(
            "mixtral", 32000, 4096, 14336, 32, 32, 8, 128, 32768, 1e6, 1e-5, False, experts=8, experts_per_token=2
        ),
    ),
    "gpt-oss-20b, not quantised": (
        {
            **_COMMON, "architectures": ["GptOssForCausalLM"], "attention_bias": True, "eos_token_id": 200002,
            "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
            "initial_context_length": 4096, "intermediate_size": 2880, "layer_types": [SLIDING, FULL] * 12,
            "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64,
            "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
            "output_router_logits": False, "pad_token_id": 199999, "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
                "rope_type": "yarn", "truncate": False,
            },
            "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
            "tie_word_embeddings": False, "transformers_version": "4.55.0.dev0", "vocab_size": 201088,
        },
        ModelSpec(
            "gpt_oss", 201088, 2880, 2880, 24, 64, 8, 64, 131072, 150000, 1e-5, False, qkv_bias=True, o_bias=True,
            attention_sinks=True, experts=32, experts_per_token=4, expert_bias=True,
            activation=ClampedSwiglu(1.702, 7.0), rope_scaling=YarnRope(32.0, 4096, truncate=False),
            kinds=kinds("sf" * 12, 128),
        ),
    ),
    "Qwen3-30B-A3B": (
        {
            **_COMMON, "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "bos_token_id": 151643,
            "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
            "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960,
            "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
            "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
            "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06,
            "rope_scaling": None, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None,
            "tie_word_embeddings": False, "transformers_version": "4.51.0", "use_sliding_window": False,
            "vocab_size": 151936,
        },
        ModelSpec(
            "qwen3_moe", 151936, 2048, 768, 48, 32, 4, 128, 40960, 1e6, 1e-6, False, qk_norm="head", experts=128,
            experts_per_token=8,
        ),
    ),
}  # fmt: skip


def published(name: str, **changes) -> dict:
    return {**deepcopy(PUBLISHED[name][0]), **changes}


def theirs(config: dict):
    """The config as transformers understands it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[config["model_type"]].from_dict(deepcopy(config))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published(name):
    config, wanted = PUBLISHED[name]
    assert spec_from_hf(config, "config.json") == wanted
    written = FAMILIES[wanted.family].to_hf(wanted)
    assert spec_from_hf(written, "config.json") == wanted


# What `spec` does not hold, or what has no effect (see the families).
NOT_WRITTEN = {
    "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "transformers_version", "use_cache",
    "cache_implementation", "_name_or_path", "auto_map", "pretraining_tp", "router_aux_loss_coef",
    "max_window_layers", "use_mrope", "no_rope_layer_interval", "attn_pdrop", "embd_pdrop", "resid_pdrop",
    "summary_first_dropout", "task_specific_params", "hidden_act", "intermediate_size", "sliding_window_pattern",
    "_sliding_window_pattern", "initial_context_length", "experts_per_token", "full_attn_mod",
    "attn_output_gate", "full_attention_interval", "mamba_ssm_dtype", "mlp_only_layers", "mtp_num_hidden_layers",
    "mtp_use_dedicated_embeddings", "output_gate_type",
    "interpolate_factor", "lm_head_bias", "mlp_bias", "attention_bias",
    "head_dim", "n_inner", "n_ctx", "rope_local_base_freq", "rope_scaling", "rope_theta", "partial_rotary_factor",
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_reads_what_we_write(name):
    config, wanted = PUBLISHED[name]
    original, ours = theirs(config).to_dict(), theirs(FAMILIES[wanted.family].to_hf(wanted)).to_dict()
    for key in (original.keys() | ours.keys()) - NOT_WRITTEN:
        assert original.get(key) == ours.get(key), key
    for key in ("intermediate_size", "attention_bias", "mlp_bias", "hidden_act", "head_dim", "n_inner"):
        if ours.get(key) and original.get(key):
            assert original[key] == ours[key], key


@pytest.mark.parametrize("name", PUBLISHED)
def test_we_read_what_transformers_writes(name):
    config, wanted = PUBLISHED[name]
    assert spec_from_hf(theirs(config).to_dict(), "config.json") == wanted
    assert spec_from_hf(theirs(config).to_diff_dict(), "config.json") == wanted


SIZES = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_experts")


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_left_out_is_what_transformers_takes(name):
    """`DEFAULTS`, and what is read without an entry in it."""
    bare = {key: value for key, value in published(name).items() if key in SIZES}
    bare |= {} if name == "gpt2" else {"num_attention_heads": 32}  # a multiple of every default of key/value heads
    assert spec_from_hf(bare, "bare") == spec_from_hf(theirs(bare).to_dict(), "full")


@pytest.mark.parametrize("window, first, wanted", [(8, 2, "ffss"), (8, 0, "ssss"), (8, 4, ""), (None, 0, "")])
@pytest.mark.parametrize("name", ["Qwen2.5-0.5B", "Qwen3-0.6B"])
def test_qwen_windows(name, window, first, wanted):
    config = published(
        name, num_hidden_layers=4, use_sliding_window=window is not None, sliding_window=window, max_window_layers=first
    )
    spec = spec_from_hf(config, "config.json")
    assert spec.kinds == kinds(wanted, window)
    family = FAMILIES[spec.family]
    assert family.from_hf(family.to_hf(spec)) == spec
    assert spec_from_hf(theirs(config).to_dict(), "x") == spec


def test_gemma3_rescales_its_global_layers_only():
    old = published("gemma-3-1b-it", rope_scaling={"rope_type": "linear", "factor": 8.0})
    spec = spec_from_hf(old, "config.json")
    assert spec == replace(PUBLISHED["gemma-3-1b-it"][1], rope_scaling=LinearRope(8.0))
    new = {key: value for key, value in old.items() if not key.startswith("rope_")} | {
        "rope_parameters": {
            FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        }
    }
    assert spec_from_hf(new, "config.json") == spec
    assert spec_from_hf(theirs(old).to_dict(), "x") == spec


# config.json of gemma-3-4b-it and gemma-3-27b-it, the encoder's attributes cut short.
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
    "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "image_size": 896, "model_type": "siglip_vision_model", "patch_size": 14},
}  # fmt: skip
GEMMA3_27B = GEMMA3_4B | {
    "text_config": {
        "head_dim": 128, "hidden_size": 5376, "intermediate_size": 21504, "model_type": "gemma3_text",
        "num_attention_heads": 32, "num_hidden_layers": 62, "num_key_value_heads": 16, "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    }
}  # fmt: skip


def test_gemma3_multimodal_is_read_as_its_text_part():
    spec = spec_from_hf(GEMMA3_4B, "config.json")
    assert spec == ModelSpec(
        "gemma3_text", 262208, 2560, 10240, 34, 8, 4, 256, 131072, 1e6, 1e-6, True, activation="gelu_tanh",
        norm="rms_plus_one", norm_at="both", qk_norm="head", attention_scale=1 / 16, embed_scale=2560**0.5,
        rope_scaling=LinearRope(8.0), rope_local_theta=1e4, kinds=kinds(("sssssf" * 6)[:34], 1024, local=True),
    )  # fmt: skip
    large = spec_from_hf(GEMMA3_27B, "config.json")
    assert (large.heads, large.kv_heads, large.head_dim, large.attention_scale) == (32, 16, 128, 168**-0.5)


@pytest.mark.parametrize("config", [GEMMA3_4B, GEMMA3_27B], ids=["4b", "27b"])
def test_a_text_part_is_what_transformers_makes_of_it(config):
    spec, full = spec_from_hf(config, "config.json"), theirs(config)
    assert spec_from_hf(full.to_dict(), "full") == spec_from_hf(full.to_diff_dict(), "difference") == spec
    original, ours = full.text_config.to_dict(), theirs(FAMILIES[spec.family].to_hf(spec)).to_dict()
    for key in (original.keys() | ours.keys()) - NOT_WRITTEN - {"architectures"}:
        assert original.get(key) == ours.get(key), key


@pytest.mark.parametrize(
    "change, named",
    [
        ({"text_config": None}, "text_config is missing"),
        ({"text_config": {"model_type": "gemma3_text", "mystery": 3}}, "in text_config of config.json: mystery = 3"),
        ({"text_config": {"model_type": "llama"}}, "text_config of model_type 'llama'"),
        ({"audio_config": {"hidden_size": 8}}, "audio_config"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, "disagree"),
        ({"architectures": ["Gemma3ForSequenceClassification"]}, "Gemma3ForSequenceClassification"),
    ],
)
def test_refused_of_a_multimodal_model(change, named):
    with pytest.raises(InputError) as error:
        spec_from_hf({**GEMMA3_4B, **change}, "config.json")
    assert named in str(error.value)


SMOLVLM = {
    "architectures": ["Idefics3ForConditionalGeneration"], "image_token_id": 49190, "model_type": "idefics3",
    "scale_factor": 4, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 49280,
    "text_config": {
        "_flash_attn_2_enabled": True, "_name_or_path": "None", "architectures": ["VLlama3ForCausalLM"], "head_dim": 64,
        "hidden_size": 576, "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192,
        "model_type": "llama", "neftune_noise_alpha": 0.0, "num_attention_heads": 9, "num_hidden_layers": 30,
        "num_key_value_heads": 3, "pad_token_id": 2, "pixel_shuffle_factor": 4, "qk_layer_norms": False,
        "perceiver_config": {"model_type": "vllama3", "resampler_depth": 6, "attention_dropout": 0.0},
        "rms_norm_eps": 1e-5, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
        "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}, "use_resampler": False, "vocab_size": 49280,
    },
    "vision_config": {"hidden_size": 768, "image_size": 512, "model_type": "idefics3", "patch_size": 16},
}  # fmt: skip


@pytest.mark.parametrize("outer", [{}, {"model_type": "smolvlm", "architectures": ["SmolVLMForConditionalGeneration"]}])
def test_smolvlm_is_read_as_its_text_part(outer):
    expected = ModelSpec("llama", 49280, 576, 1536, 30, 9, 3, 64, 8192, 1e5, 1e-5, False)
    assert spec_from_hf({**SMOLVLM, **outer}, "config.json") == expected


@pytest.mark.parametrize("switch", ["qk_layer_norms", "use_resampler"])
def test_what_smolvlm_was_not_published_with_is_refused(switch):
    text = {**SMOLVLM["text_config"], switch: True}
    with pytest.raises(InputError, match=f"in text_config of config.json: {switch} = True"):
        spec_from_hf({**SMOLVLM, "text_config": text}, "config.json")


def test_llava_is_read_as_its_text_part():
    vicuna = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32064, "rms_norm_eps": 1e-5,
              "max_position_embeddings": 4096, "torch_dtype": "float16"}  # fmt: skip
    llava = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": vicuna,
             "ignore_index": -100, "image_token_index": 32000, "pad_token_id": 32001, "projector_hidden_act": "gelu",
             "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vision_config": {}}  # fmt: skip
    sizes = 4096, 11008, 32, 32, 32, 128, 4096
    assert spec_from_hf(llava, "config.json") == ModelSpec("llama", 32064, *sizes, 1e4, 1e-5, False)


def test_an_untied_head_is_said_outside():
    untied = spec_from_hf({**GEMMA3_4B, "tie_word_embeddings": False}, "config.json")
    assert not untied.tied


def test_longrope_with_its_factor_or_amplitude_given():
    rope = published("Phi-4-mini-instruct")["rope_scaling"]
    read = lambda **more: (
        spec_from_hf(published("Phi-4-mini-instruct", rope_scaling={**rope, **more}), "x").rope_scaling
    )
    assert read().attention_factor is None
    assert read(attention_factor=1.25).attention_factor == 1.25
    assert read(factor=32.0).attention_factor == pytest.approx((1 + 5 / 12) ** 0.5)
    assert read(type="su") == read()
    spec = replace(PUBLISHED["Phi-4-mini-instruct"][1], rope_scaling=read(factor=32.0))
    assert FAMILIES["phi3"].from_hf(FAMILIES["phi3"].to_hf(spec)) == spec


def test_smollm3_interval():
    config = published("SmolLM3-3B", num_hidden_layers=6, no_rope_layer_interval=3)
    del config["no_rope_layers"], config["layer_types"]
    spec = spec_from_hf(config, "config.json")
    assert spec.kinds == kinds("ffnffn", None)
    everywhere = spec_from_hf({**config, "no_rope_layers": [1] * 6}, "config.json")
    assert everywhere.kinds == ()
    assert FAMILIES["smollm3"].from_hf(FAMILIES["smollm3"].to_hf(everywhere)) == everywhere


@pytest.mark.parametrize(
    "name, change, named",
    [
        ("Mistral-7B-v0.1", {"layer_types": [FULL] * 32}, "layer_types = "),
        ("Mistral-7B-v0.1", {"sliding_window": 0}, "sliding_window = 0"),
        ("Qwen2.5-0.5B", {"rope_scaling": {"type": "yarn"}}, "rope_type yarn without factor"),
        ("Qwen2.5-0.5B", {"rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 1}}, "yarn with beta_fast = 1"),
        ("Qwen2.5-0.5B", {"rope_scaling": {"type": "yarn", "factor": 4, "truncate": 3}}, "truncate = 3"),
        ("Qwen2.5-0.5B", {"rope_scaling": {"type": "yarn", "factor": 4, "mystery": 3}}, "parameter mystery = 3"),
        ("Qwen2.5-0.5B", {"rope_scaling": {"type": "dynamic", "factor": 2, "alpha": 9}}, "parameter alpha = 9"),
        ("Qwen2.5-0.5B", {"rope_scaling": {"type": "dynamic", "factor": -2}}, "rope_type dynamic with"),
        ("Qwen2.5-0.5B", {"rope_scaling": {"type": "proportional", "factor": 2}}, "rope_type = 'proportional'"),
        ("Qwen2.5-0.5B", {"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk_attention_config"),
        ("Qwen2.5-0.5B", {"use_mrope": True}, "use_mrope = True"),
        ("Qwen2.5-0.5B", {"is_causal": False}, "is_causal = False"),
        ("Qwen2.5-0.5B", {"layer_types": [FULL] * 23}, "23 layer_types for num_hidden_layers = 24"),
        ("Qwen2.5-0.5B", {"layer_types": ["chunked_attention"] * 24}, "layer_types with chunked_attention"),
        ("Qwen3-0.6B", {"layer_types": [SLIDING] * 28}, "no sliding_window is in force"),
        ("Qwen3-0.6B", {"attention_bias": "yes"}, "attention_bias = 'yes' is neither true nor false"),
        ("gemma-2-2b", {"hidden_activation": "gelu"}, "hidden_activation = 'gelu'"),
        ("gemma-2-2b", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("gemma-2-2b", {"attn_logit_softcapping": -1.0}, "attn_logit_softcapping = -1.0"),
        ("gemma-2-2b", {"query_pre_attn_scalar": "256"}, "query_pre_attn_scalar = '256'"),
        ("gemma-3-1b-it", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ("gemma-3-1b-it", {"rope_parameters": {"rope_theta": 1e6}}, "not with full_attention and sliding_attention"),
        ("gemma-3-1b-it", {"rope_scaling": {"rope_type": "yarn"}}, "rope_type = 'yarn'"),
        ("gemma-3-1b-it", {"rope_parameters": {SLIDING: {"rope_theta": 1e5}}}, "rope_local_base_freq and rope_p"),
        ("gemma-3-1b-it", {"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}}}, "on local layers"),
        ("Qwen3-0.6B", {"rope_scaling": 8}, "rope_scaling = 8 is not an object"),
        ("Qwen3-0.6B", {"use_sliding_window": True, "max_window_layers": "all"}, "max_window_layers = 'all'"),
        ("gemma-3-1b-it", {"vision_config": {"hidden_size": 8}}, "vision_config"),
        ("Phi-4-mini-instruct", {"partial_rotary_factor": 0.5}, "48 numbers in short_factor, not 32"),
        ("Phi-4-mini-instruct", {"partial_rotary_factor": 1.5}, "partial_rotary_factor = 1.5"),
        ("Phi-4-mini-instruct", {"full_attn_mod": 2}, "full_attn_mod = 2"),
        ("Phi-4-mini-instruct", {"lm_head_bias": True}, "lm_head_bias = True"),
        ("Phi-3-mini-4k-instruct", {"resid_pdrop": 0.1}, "resid_pdrop = 0.1"),
        ("Phi-3-mini-4k-instruct", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'linear'"),
        ("OLMo-2-0425-1B", {"sliding_window": 4096}, "sliding_window = 4096"),
        ("Olmo-3-1025-7B", {"rope_theta": 1e4}, "transformers 4 and 5 differ"),
        ("granite-3.3-8b-instruct", {"mlp_bias": True}, "mlp_bias = True"),
        ("granite-3.3-8b-instruct", {"logits_scaling": 0}, "logits_scaling = 0"),
        ("SmolLM3-3B", {"no_rope_layers": [1, 0]}, "no_rope_layers = [1, 0]"),
        ("SmolLM3-3B", {"mlp_bias": True}, "mlp_bias = True"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
        ("gpt2", {"activation_function": "relu"}, "activation_function = 'relu'"),
        ("gpt2", {"n_head": 7}, "n_embd = 768 is not a multiple of n_head = 7"),
        ("Mixtral-8x7B-v0.1", {"router_jitter_noise": 0.1}, "router_jitter_noise = 0.1"),
        ("Mixtral-8x7B-v0.1", {"num_experts_per_tok": 9}, "num_experts_per_tok = 9 of 8 experts"),
        ("gpt-oss-20b, not quantised", {"experts_per_token": 2}, "experts_per_token and num_experts_per_tok disagree"),
        ("gpt-oss-20b, not quantised", {"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
        ("gpt-oss-20b, not quantised", {"swiglu_limit": 0}, "swiglu_limit = 0"),
        ("Qwen3-30B-A3B", {"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        ("Qwen3-30B-A3B", {"mlp_only_layers": [0]}, "mlp_only_layers = [0]"),
        ("Qwen3-30B-A3B", {"num_local_experts": 64}, "num_experts and num_local_experts disagree"),
    ],
)
def test_refused(name, change, named):
    with pytest.raises(InputError, match="my/config.json") as error:
        spec_from_hf(published(name, **change), "my/config.json")
    assert named in str(error.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_family_refuses_what_it_does_not_know(name):
    with pytest.raises(InputError, match="mystery = 3 is unknown"):
        spec_from_hf(published(name, mystery=3), "config.json")
    assert spec_from_hf(published(name, mystery=None), "config.json") == PUBLISHED[name][1]


# Of base classes, old and new, and of programs that repeat what is in force under a name of their own.
LEFTOVERS = {
    "tokenizer_class": "LlamaTokenizer", "max_length": 20, "temperature": 0.7, "do_sample": True, "torchscript": True,
    "output_attentions": True, "output_hidden_states": True, "output_past": True, "num_labels": 1, "_num_labels": 1,
    "finetuning_task": "chat", "problem_type": "regression", "gradient_checkpointing": True, "is_decoder": True,
    "chunk_size_feed_forward": 64, "attn_implementation": "sdpa", "_commit_hash": "abc", "use_bfloat16": True,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_leftovers_without_effect(name):
    assert spec_from_hf(published(name, **LEFTOVERS), "config.json") == PUBLISHED[name][1]


def test_all_that_transformers_base_class_defines_is_without_effect_or_refused():
    from transformers import GenerationConfig, PretrainedConfig

    defined = {field.name for field in fields(PretrainedConfig)} | PretrainedConfig().to_dict().keys()
    generation = GenerationConfig._get_default_generation_params().keys()
    changes_the_function = {"architectures", "is_encoder_decoder", "model_type"}
    assert (defined | generation) - changes_the_function <= NO_EFFECT
    for key in ("is_encoder_decoder", "pruned_heads", "per_layer_config"):
        with pytest.raises(InputError, match=f"{key} = .* is unknown"):
            spec_from_hf(published("Mistral-7B-v0.1", **{key: {"0": [1]}}), "config.json")


@pytest.mark.parametrize(
    "name, repeated, other",
    [
        ("Mistral-7B-v0.1", {"max_sequence_length": 32768}, {"max_sequence_length": 4096}),
        ("Mistral-7B-v0.1", {"n_heads": 32, "num_kv_heads": 8}, {"num_kv_heads": 32}),
        ("gemma-2-2b", {"sliding_window_size": 4096}, {"sliding_window_size": 1024}),
        ("gpt2", {"hidden_size": 768, "max_position_embeddings": 1024}, {"hidden_size": 1024}),
        ("gpt2", {"predict_special_tokens": True, "n_special": 1}, {"layer_norm_eps": 1e-6}),
        ("Qwen3-0.6B", {"use_qk_norm": True, "kv_channels": 128}, {"use_qk_norm": False}),
        ("Qwen3-30B-A3B", {"use_qk_norm": True, "qkv_bias": False}, {"qkv_bias": True}),
    ],
)
def test_what_repeats_what_is_in_force_passes_and_nothing_else(name, repeated, other):
    assert spec_from_hf(published(name, **repeated), "config.json") == PUBLISHED[name][1]
    ((key, value),) = other.items()
    with pytest.raises(InputError, match=f"{key} = {value!r}"):
        spec_from_hf(published(name, **other), "config.json")


def test_llama_1_has_the_length_of_transformers_default():
    """Its first conversions say `max_sequence_length`, which transformers does not read."""
    config = {
        "model_type": "llama", "architectures": ["LLaMAForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
        "num_attention_heads": 32, "num_hidden_layers": 1, "max_sequence_length": 2048, "vocab_size": 32000,
    }  # fmt: skip
    spec = spec_from_hf(config, "config.json")
    assert (spec.max_positions, spec.norm_eps) == (2048, 1e-6)
    with pytest.raises(InputError, match="max_sequence_length = 4096, but max_position_embeddings = 2048"):
        spec_from_hf({**config, "max_sequence_length": 4096}, "config.json")


def test_vicuna_16k_says_what_rope_makes_of_its_length():
    config = {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
        "num_hidden_layers": 32, "vocab_size": 32000, "max_position_embeddings": 4096, "max_sequence_length": 16384,
        "rope_scaling": {"factor": 4.0, "type": "linear"},
    }  # fmt: skip
    assert spec_from_hf(config, "config.json").rope_scaling == LinearRope(4.0)
    with pytest.raises(InputError, match="max_sequence_length = 16384"):
        spec_from_hf({**config, "rope_scaling": None}, "config.json")


def test_real_configs_are_read(shared_dir):
    files = sorted((shared_dir / "cases" / "configs").glob("*.json"))
    assert files
    for file in files:
        config = json.loads(file.read_text())
        spec = spec_from_hf(config, file.name)
        assert spec == spec_from_hf(theirs(config).to_dict(), file.name)
        assert spec_from_hf(FAMILIES[spec.family].to_hf(spec), file.name) == spec


@pytest.mark.parametrize(
    "quantised",
    [
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
        {"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}},
        {"compression_config": {"quant_method": "compressed-tensors"}},
        {"quantization": {"group_size": 64, "bits": 4}},
    ],
)
def test_quantised_weights_are_named_alone(quantised):
    (how,) = quantised.values()
    with pytest.raises(InputError, match="use the checkpoint that is not quantised") as error:
        spec_from_hf(published("Qwen3-0.6B", mystery=3, **quantised), "my/config.json")
    assert str(how.get("quant_method", how)) in str(error.value) and "mystery" not in str(error.value)


def test_qwen3_5_multimodal_is_read_as_its_text_part():
    text = published("Qwen3.5-27B", architectures=None)
    text["rope_parameters"] |= {"mrope_interleaved": True, "mrope_section": [11, 11, 10]}
    config = {
        "architectures": ["Qwen3_5ForConditionalGeneration"], "image_token_id": 248056, "model_type": "qwen3_5",
        "text_config": text, "tie_word_embeddings": False, "transformers_version": "4.57.0.dev0",
        "video_token_id": 248057, "vision_config": {"depth": 27, "model_type": "qwen3_5"},
        "vision_end_token_id": 248054, "vision_start_token_id": 248053,
    }  # fmt: skip
    assert spec_from_hf(config, "config.json") == PUBLISHED["Qwen3.5-27B"][1]
    assert spec_from_hf(theirs(config).to_dict(), "config.json") == PUBLISHED["Qwen3.5-27B"][1]


def test_qwen3_5_without_a_word_on_its_layers_and_rotation():
    config = {"model_type": "qwen3_5_text", "num_hidden_layers": 8, "full_attention_interval": 2}
    spec = spec_from_hf(config, "config.json")
    assert spec.mixers == ("delta", "attention") * 4 and spec.partial_rotary == 0.25
    assert spec == spec_from_hf(theirs(config).to_dict(), "config.json")


@pytest.mark.parametrize(
    "change, named",
    [
        ({"linear_num_key_heads": 32}, "linear_num_value_heads = 48 is not a multiple of linear_num_key_heads = 32"),
        ({"layer_types": ["sliding_attention"] * 64}, "only full_attention and linear_attention are implemented"),
        ({"attn_output_gate": False}, "attn_output_gate = False, only True is implemented"),
        ({"num_experts": 8}, "num_experts = 8 is unknown"),
    ],
)
def test_qwen3_5_refused(change, named):
    with pytest.raises(InputError, match="my/config.json") as error:
        spec_from_hf(published("Qwen3.5-27B", **change), "my/config.json")
    assert named in str(error.value)


@pytest.mark.parametrize(
    "config, said",
    [
        (
            {"model_type": "llava_next", "text_config": {"model_type": "llama"}},
            "multimodal; its text part, llama, is sup",
        ),
        ({"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text"}}, "its text part is not supported"),
        ({"model_type": "qwen2_vl", "hidden_size": 8}, "qwen2_vl is multimodal"),
        ({"model_type": "new_vl", "vision_config": {"hidden_size": 8}}, "new_vl is multimodal"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "t5 is an encoder with a decoder"),
        ({"model_type": "bert"}, "bert is an encoder and does not generate"),
        ({"model_type": "mamba2"}, "mamba2 has recurrent layers"),
        ({"model_type": "qwen3_5_moe_text", "layer_types": ["linear_attention", FULL]}, "has the layers of qwen3_5_te"),
        ({"model_type": "qwen3_5_moe", "text_config": {"model_type": "qwen3_5_moe_text"}}, "use a dense Qwen3.5"),
        ({"model_type": "lfm2", "layer_types": ["conv", FULL]}, "lfm2 has recurrent layers"),
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512, "n_routed_experts": 256}, "latent attention"),
        ({"model_type": "olmoe", "num_experts": 64}, "mixture of experts; near in kind are mixtral and qwen3_moe"),
        ({"model_type": "gpt_neox"}, "gpt2, its nearest"),
        ({"model_type": "gemini", "vocab_size": 8}, "gemini is not known here"),
        ({}, "this config names none"),
    ],
)
def test_an_unknown_model_type_is_told_by_its_kind(config, said):
    with pytest.raises(InputError, match=r"(?s)among gemma2, .*x/config\.json") as error:
        spec_from_hf(config, "x/config.json")
    assert said in str(error.value)
