"""GGUF files of every family, written here as llama.cpp's converter does it, against the Hugging Face form."""

import re

import gguf
import numpy as np
import pytest
from gguf import MODEL_ARCH as Arch

from jaxpref.errors import InputError
from jaxpref.models.families import FAMILIES, forms, spec_from_hf
from jaxpref.models.gguf.families import ARCHITECTURES
from jaxpref.models.gguf.reader import open_gguf
from jaxpref.models.leaf import axis_sizes
from jaxpref.models.parameters import flatten, model_shapes
from jaxpref.models.stored import stored_tensors, used_leaves

SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False, rope_theta=500.0,
)  # fmt: skip
SIZE_KEYS = {
    "embedding_length": 32, "feed_forward_length": 48, "block_count": 4, "attention.head_count": 4,
    "attention.head_count_kv": 2, "context_length": 128, "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 500.0,
}  # fmt: skip
SHORT, LONG = [1.0, 1.1, 2.5], [2.0, 4.0, 9.0]
GPT2 = dict(vocab_size=64, n_embd=32, n_inner=128, n_layer=2, n_head=4, n_positions=40, layer_norm_epsilon=1e-5)
GPT2_KEYS = {
    "embedding_length": 32, "feed_forward_length": 128, "block_count": 2, "attention.head_count": 4,
    "context_length": 40, "attention.layer_norm_epsilon": 1e-5,
}  # fmt: skip
MIXTURE = {"num_experts_per_tok": 2, "head_dim": 12}
# name: family, architecture, (Hugging Face config, metadata) beside the sizes, or all of both
CASES = {
    "llama": ("llama", Arch.LLAMA, {"attention_bias": True}, {"rope.dimension_count": 8}),
    "llama linear": (
        "llama", Arch.LLAMA, {"head_dim": 12, "rope_scaling": {"rope_type": "linear", "factor": 2.5}},
        {"attention.key_length": 12, "attention.value_length": 12, "rope.scaling.type": "linear",
         "rope.scaling.factor": 2.5},
    ),
    "mixtral": (
        "mixtral", Arch.LLAMA, MIXTURE | {"num_local_experts": 3},
        {"expert_count": 3, "expert_used_count": 2, "attention.key_length": 12},
    ),
    "granite": (
        "granite", Arch.GRANITE,
        {"attention_multiplier": 0.0078125, "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
         "logits_scaling": 16.0, "tie_word_embeddings": True},
        {"attention.scale": 0.0078125, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 16.0,
         "rope.dimension_count": 8},
    ),
    "qwen2": ("qwen2", Arch.QWEN2, {"tie_word_embeddings": True}, {}),
    "qwen3": ("qwen3", Arch.QWEN3, {"head_dim": 12}, {"attention.key_length": 12, "attention.value_length": 12}),
    "qwen3_moe": (
        "qwen3_moe", Arch.QWEN3MOE,
        MIXTURE | {"num_experts": 3, "moe_intermediate_size": 24, "norm_topk_prob": True},
        {"expert_count": 3, "expert_used_count": 2, "expert_feed_forward_length": 24, "attention.key_length": 12},
    ),
    "gpt_oss": (
        "gpt_oss", Arch.GPT_OSS,
        MIXTURE | {
            "num_local_experts": 3, "sliding_window": 7,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
                             "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
        },
        {"expert_count": 3, "expert_used_count": 2, "expert_feed_forward_length": 48, "attention.key_length": 12,
         "attention.value_length": 12, "attention.sliding_window": 7, "rope.scaling.type": "yarn",
         "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32, "rope.scaling.yarn_beta_fast": 8.0,
         "rope.scaling.yarn_beta_slow": 2.0},
    ),
    "gpt_oss, not rescaled": (
        "gpt_oss", Arch.GPT_OSS, MIXTURE | {"num_local_experts": 3, "rope_scaling": {"rope_type": "default"}},
        {"expert_count": 3, "expert_used_count": 2, "attention.key_length": 12, "attention.sliding_window": 128},
    ),
    "gemma2": (
        "gemma2", Arch.GEMMA2,
        {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 7, "attn_logit_softcapping": 1.5,
         "final_logit_softcapping": 4.0, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True},
        {"attention.key_length": 12, "attention.value_length": 12, "attention.sliding_window": 7,
         "attn_logit_softcapping": 1.5, "final_logit_softcapping": 4.0},
    ),
    "gemma2 27b": (
        "gemma2", Arch.GEMMA2,
        {"head_dim": 12, "query_pre_attn_scalar": 8, "sliding_window": 7, "num_hidden_layers": 46,
         "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "tie_word_embeddings": True},
        {"attention.key_length": 12, "attention.sliding_window": 7, "block_count": 46,
         "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3": (
        "gemma3_text", Arch.GEMMA3,
        {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 7, "num_hidden_layers": 7,
         "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "tie_word_embeddings": True},
        {"attention.key_length": 12, "attention.value_length": 12, "attention.sliding_window": 7, "block_count": 7,
         "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "phi3": (
        "phi3", Arch.PHI3, {"sliding_window": 9, "original_max_position_embeddings": 128},
        {"rope.dimension_count": 8, "attention.sliding_window": 9, "rope.scaling.original_context_length": 128},
    ),
    "phi4_mini": (
        "phi3", Arch.PHI3,
        {"original_max_position_embeddings": 64, "partial_rotary_factor": 0.75, "tie_word_embeddings": True,
         "rope_scaling": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}},
        {"rope.dimension_count": 6, "attention.sliding_window": 0, "rope.scaling.original_context_length": 64,
         "rope.scaling.attn_factor": 1.0801234},
    ),
    "phi4_mini, another amplitude": (
        "phi3", Arch.PHI3,
        {"original_max_position_embeddings": 64,
         "rope_scaling": {"rope_type": "longrope", "short_factor": SHORT + [3.0], "long_factor": LONG + [9.5],
                          "attention_factor": 1.25}},
        {"rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.25},
    ),
    "olmo2": ("olmo2", Arch.OLMO2, {}, {}),
    "olmo3": (
        "olmo3", Arch.OLMO2,
        {"sliding_window": 7, "layer_types": ["sliding_attention"] * 2 + ["full_attention", "sliding_attention"],
         "rope_parameters": {"sliding_attention": {"rope_theta": 500.0}}},
        {"attention.sliding_window": 7, "attention.sliding_window_pattern": [True, True, False, True]},
    ),
    "olmo3, where its code says which layers slide": (
        "olmo3", Arch.OLMO2,
        {"sliding_window": 7, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
         "rope_parameters": {"sliding_attention": {"rope_theta": 500.0}}},
        {"attention.sliding_window": 7, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "smollm3": ("smollm3", Arch.SMOLLM3, {"tie_word_embeddings": True}, {"rope.dimension_count": 8}),
    "gpt2": ("gpt2", Arch.GPT2, GPT2, GPT2_KEYS),
}  # fmt: skip


def converted(case, spec, params):
    """Stored tensors as conversion/*.py of llama.cpp turns them, {name: array}."""
    family, arch, _, _ = CASES[case]
    leaves, experts, out = flatten(params), {}, {}
    names = gguf.get_tensor_name_map(arch, spec.layers)
    for tensor in stored_tensors(used_leaves(forms(family)[0], spec), spec):
        name, value = tensor.name, tensor.build(lambda path, at: leaves[path][at])
        if arch in (Arch.LLAMA, Arch.GRANITE, Arch.SMOLLM3) and (found := re.search(r"\.([qk])_proj\.", name)):
            heads = spec.heads if found[1] == "q" else spec.kv_heads
            halves = value.reshape(heads, 2, spec.head_dim // 2, *value.shape[1:])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        if arch in (Arch.GEMMA2, Arch.GEMMA3) and name.endswith("norm.weight"):
            value = value + 1
        if arch == Arch.GPT2 and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            value = value.T
        if arch == Arch.GPT_OSS and ".mlp.experts." in name:  # turned around, gate and up apart
            weight = "bias" if name.endswith("_bias") else "weight"
            value = value if weight == "bias" else value.swapaxes(-1, -2)
            axis = value.ndim - 1 if weight == "bias" else 1
            parts = {"down": value}
            if "gate_up_proj" in name:
                parts = {
                    part: value.take(range(i, value.shape[axis], 2), axis) for i, part in enumerate(("gate", "up"))
                }
            block = name.split(".")[2]
            out |= {f"blk.{block}.ffn_{part}_exps.{weight}": value for part, value in parts.items()}
            continue
        if ".experts." in name:  # merged, w1 is the gate and w3 the other factor
            merged = re.sub(r"\.experts\.\d+\.", ".experts.", name)
            experts.setdefault(
                merged.replace("model.layers", "layers") if "w1" in name or "w2" in name or "w3" in name else merged, []
            ).append(value)
            continue
        name = name + ".weight" if name.endswith(".sinks") else name
        out[names.get_name(name, try_suffixes=(".weight", ".bias"))] = value
    for name, parts in experts.items():
        name = name.replace("block_sparse_moe.", "feed_forward.")
        out[names.get_name(name, try_suffixes=(".weight",))] = np.stack(parts)
    if "LongRope" in str(spec.rope_scaling):
        kinds = ("short", "long")
        out |= {f"rope_factors_{x}.weight": np.float32(getattr(spec.rope_scaling, f"{x}_factor")) for x in kinds}
    return out


def write(path, arch, metadata, tensors):
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    for key, value in metadata.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        add[type(value)](f"{gguf.MODEL_ARCH_NAMES[arch]}.{key}", value)
    for name, value in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def build(case, tmp_path):
    """The Hugging Face spec, random parameters, and the file that the converter would make of them."""
    family, arch, config, metadata = CASES[case]
    sizes, keys = ({}, {}) if family == "gpt2" else (SIZES, SIZE_KEYS)
    spec = spec_from_hf({"model_type": family} | sizes | config, "config.json")
    rng = np.random.default_rng(0)
    shapes = model_shapes(spec)
    # Multiples of 1/64 below 1, to which 1 is added and taken away without rounding.
    params = {path: np.float32(rng.integers(-63, 64, shape) / 64) for path, shape in shapes.items()}
    write(tmp_path / "m.gguf", arch, keys | metadata, converted(case, spec, params))
    return spec, params, tmp_path / "m.gguf"


@pytest.mark.parametrize("case", CASES)
def test_every_family(case, tmp_path):
    spec, params, path = build(case, tmp_path)
    opened = open_gguf(path)
    assert opened.spec == spec
    found = flatten(opened.load_params())
    assert found.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)


@pytest.mark.parametrize("case", ["llama", "phi3", "qwen3_moe", "gpt2"])
def test_parts_of_leaves(case, tmp_path):
    """Permuted, fused, of experts, turned around: a slice is that slice of the leaf."""
    _, params, path = build(case, tmp_path)

    def put(leaf, shape, dtype, read_slice):
        part = tuple(slice(size // 3, size // 3 + max(1, size // 2)) for size in shape)
        np.testing.assert_array_equal(read_slice(part), params[leaf][part], err_msg=leaf)

    open_gguf(path).load_params(put=put)


def test_every_architecture_is_tested():
    assert {(arch, family) for family, arch, _, _ in CASES.values()} == {(a.arch, a.model_type) for a in ARCHITECTURES}
    # A Mistral is converted as a Llama; of Qwen3.5 no file is read.
    assert {a.model_type for a in ARCHITECTURES} == FAMILIES.keys() - {"mistral", "qwen3_5_text"}


@pytest.mark.parametrize(
    "case, change, named",
    [
        ("qwen2", {"attention.sliding_window": 4096}, "qwen2.attention.sliding_window = 4096"),
        ("qwen3_moe", {"expert_weights_scale": 2.5}, "qwen3moe.expert_weights_scale = 2.5"),
        ("phi3", {"rope.scaling.attn_factor": 1.2}, "phi3.rope.scaling.attn_factor"),
        ("olmo2", {"attention.sliding_window": 4096, "mystery": 3}, "(?s)OLMo 3 config.*olmo2.mystery = 3"),
        ("gemma2", {"embedding_length": 0}, "hidden_size = 0"),
    ],
)
def test_unknown_metadata_is_refused(case, change, named, tmp_path):
    _, arch, _, metadata = CASES[case]
    write(tmp_path / "m.gguf", arch, SIZE_KEYS | metadata | change, {})
    with pytest.raises(InputError, match=named):
        open_gguf(tmp_path / "m.gguf")


def test_every_wrong_tensor_of_a_fused_file_in_one_error(tmp_path):
    spec, params, path = build("qwen3_moe", tmp_path)
    family, arch, _, metadata = CASES["qwen3_moe"]
    tensors = converted("qwen3_moe", spec, params)
    del tensors["blk.1.ffn_gate_exps.weight"]
    tensors["blk.2.ffn_up_exps.weight"] = tensors["blk.2.ffn_up_exps.weight"][:2]
    tensors["blk.0.ffn_gate_shexp.weight"] = np.zeros((24, 32), np.float32)
    write(path, arch, SIZE_KEYS | metadata, tensors)
    with pytest.raises(InputError) as error:
        open_gguf(path).load_params()
    for line in (
        "missing blk.1.ffn_gate_exps.weight [3, 24, 32]",
        "misshaped blk.2.ffn_up_exps.weight: [2, 24, 32], not [3, 24, 32]",
        "extra blk.0.ffn_gate_shexp.weight [24, 32]",
    ):
        assert line in str(error.value)
    assert axis_sizes(spec)["E"] == 3
