"""The family specs: config dicts in, ModelSpec out, and back."""

import numpy as np
import pytest

from jaxpref.errors import InputError
from jaxpref.models.families import FAMILIES, spec_from_hf
from jaxpref.models.families.llama import from_hf, to_hf
from jaxpref.models.spec import Llama3Rope, ModelSpec
from jaxpref.models.weights import Weight

SMALL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True,
}  # fmt: skip
# config.json of Llama-3.1-8B-Instruct.
LLAMA31_8B = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip


def test_llama31():
    assert spec_from_hf(LLAMA31_8B, "config.json") == ModelSpec(
        family="llama", vocab=128256, width=4096, ffn=14336, layers=32, heads=32, kv_heads=8, head_dim=128,
        max_positions=131072, rope_theta=500000.0, norm_eps=1e-5, tied=False,
        rope_scaling=Llama3Rope(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192),
    )  # fmt: skip


def test_rope_forms_agree():
    scaling = LLAMA31_8B["rope_scaling"]
    new = {k: v for k, v in LLAMA31_8B.items() if not k.startswith("rope_")}
    new["rope_parameters"] = {**scaling, "rope_theta": 500000.0}
    old_spelling = dict(LLAMA31_8B, rope_scaling={**scaling, "type": "llama3"})
    del old_spelling["rope_scaling"]["rope_type"]
    assert from_hf(new) == from_hf(LLAMA31_8B) == from_hf(old_spelling)


def test_defaults():
    spec = from_hf({k: v for k, v in SMALL.items() if k not in ("num_key_value_heads", "tie_word_embeddings")})
    assert (spec.kv_heads, spec.head_dim, spec.rope_theta, spec.tied) == (4, 8, 10000.0, False)
    assert spec.rope_scaling is None
    assert from_hf(dict(SMALL, head_dim=16)).head_dim == 16


@pytest.mark.parametrize("config", [SMALL, LLAMA31_8B, dict(SMALL, head_dim=10, rope_theta=5.0)])
def test_round_trip(config):
    spec = from_hf(config)
    assert from_hf(to_hf(spec)) == spec


def test_transformers_reads_what_we_write():
    transformers = pytest.importorskip("transformers")
    written = to_hf(from_hf(LLAMA31_8B))
    ours = transformers.LlamaConfig.from_dict(written)
    original = transformers.LlamaConfig.from_dict(LLAMA31_8B)
    assert ours.rope_parameters == original.rope_parameters
    assert ours.rope_parameters["rope_theta"] == 500000.0
    # ... and we read what it writes, in full and as a difference from its defaults.
    assert from_hf(original.to_dict()) == from_hf(original.to_diff_dict()) == from_hf(LLAMA31_8B)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "rope_type = 'yarn'"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "without low_freq_factor, high_freq_factor",
        ),
        ({"rope_parameters": {"rope_theta": 1e4, "mystery": 3}}, "mystery = 3"),
        ({"rope_parameters": {"rope_theta": 1e4}, "rope_theta": 5e5}, "disagree"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"sliding_window": 1024}, "sliding_window = 1024"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3"),
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"head_dim": 7}, "head_dim = 7"),
        ({"hidden_size": "32"}, "hidden_size = '32'"),
        ({"rms_norm_eps": None}, "rms_norm_eps is missing"),
    ],
)
def test_refused(change, named):
    with pytest.raises(InputError, match="my/config.json") as error:
        from_hf({**SMALL, **change}, "my/config.json")
    assert named in str(error.value)


def test_all_problems_in_one_error():
    config = {**SMALL, "attention_bias": True, "sliding_window": 8}
    del config["vocab_size"]
    with pytest.raises(InputError) as error:
        from_hf(config)
    for named in ("attention_bias", "sliding_window", "vocab_size is missing"):
        assert named in str(error.value)


def test_unknown_attribute_that_is_off_passes():
    assert from_hf({**SMALL, "rope_interleaved": False, "sliding_window": None}) == from_hf(SMALL)


def test_unknown_model_type():
    with pytest.raises(InputError, match="among llama") as error:
        spec_from_hf({**SMALL, "model_type": "llama4"}, "x/config.json")
    assert "nearest name is 'llama'" in str(error.value) and "x/config.json" in str(error.value)


@pytest.mark.parametrize("weight", [w for f in FAMILIES.values() for w in f.WEIGHTS.values()], ids=lambda w: w.name)
def test_layout_inverts_and_slices(weight):
    sizes = {"D": 6, "F": 5, "V": 7, "N": 4, "M": 2, "H": 3}
    stored = np.arange(np.prod(weight.stored_shape(sizes))).reshape(weight.stored_shape(sizes))
    leaf = weight.read(sizes, (slice(None),) * len(weight.leaf_axes), lambda index: stored[index])
    assert leaf.shape == weight.leaf_shape(sizes)
    np.testing.assert_array_equal(weight.stored(leaf), stored)
    part = tuple(slice(1, size) for size in leaf.shape)
    np.testing.assert_array_equal(weight.read(sizes, part, lambda index: stored[index]), leaf[part])


def test_layout_means_what_it_says():
    sizes = {"D": 6, "N": 4, "H": 3}
    stored = np.arange(12 * 6).reshape(12, 6)
    leaf = Weight("q", "NH,D -> DNH").read(sizes, (slice(None),) * 3, lambda index: stored[index])
    assert leaf[5, 2, 1] == stored[2 * 3 + 1, 5]


def test_slices_read_no_more_than_needed():
    sizes, asked = {"D": 6, "N": 4, "H": 3}, []
    weight = Weight("q", "NH,D -> DNH")

    def read(index):
        asked.append(index)
        return np.zeros((12, 6))[index]

    weight.read(sizes, (slice(2, 4), slice(1, 3), slice(None)), read)
    assert asked == [(slice(3, 9), slice(2, 4))]
