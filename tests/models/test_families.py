"""Llama's configs, and what holds for every family: the layouts of stored tensors and the table of the tree."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from jaxpref.errors import InputError
from jaxpref.models import lora, parameters
from jaxpref.models.decoder import build_model
from jaxpref.models.families import FAMILIES, forms, spec_from_hf
from jaxpref.models.families.llama import from_hf, to_hf
from jaxpref.models.leaf import axis_sizes
from jaxpref.models.loading import TensorSource, load_tree
from jaxpref.models.parameters import flatten
from jaxpref.models.placement import param_specs
from jaxpref.models.spec import (
    ClampedSwiglu,
    DeltaNet,
    LayerKind,
    LinearRope,
    Llama3Rope,
    ModelSpec,
    VisionSpec,
    Windows,
)
from jaxpref.models.stored import StoredLeaf, stored_form, stored_shapes, stored_tensors, used_leaves
from jaxpref.sharding import AXES, LOGICAL

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


def test_biases_and_linear_rope():
    spec = from_hf(dict(SMALL, attention_bias=True, rope_scaling={"type": "linear", "factor": 2}))
    assert (spec.qkv_bias, spec.o_bias, spec.rope_scaling) == (True, True, LinearRope(2.0))
    assert not from_hf(SMALL).qkv_bias and from_hf(SMALL).rope_scaling is None


LINEAR = dict(SMALL, attention_bias=True, rope_scaling={"rope_type": "linear", "factor": 2.5})


@pytest.mark.parametrize("config", [SMALL, LLAMA31_8B, dict(SMALL, head_dim=10, rope_theta=5.0), LINEAR])
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
        ({"attention_bias": 1}, "attention_bias = 1 is neither true nor false"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"rope_scaling": {"type": "linear"}}, "rope_type linear without factor"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4}}, "rope_type = 'longrope'"),
        ({"rope_parameters": {"rope_type": "ntk", "factor": 2.0, "rope_theta": 1e4}}, "rope_type = 'ntk'"),
        ({"rope_theta": 1.0}, "rope_theta = 1.0 is not a number above 1"),
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
    config = {**SMALL, "mlp_bias": True, "sliding_window": 8}
    del config["vocab_size"]
    with pytest.raises(InputError) as error:
        from_hf(config)
    for named in ("mlp_bias", "sliding_window", "vocab_size is missing"):
        assert named in str(error.value)


def test_unknown_attribute_that_is_off_passes():
    assert from_hf({**SMALL, "rope_interleaved": False, "sliding_window": None}) == from_hf(SMALL)


def test_unknown_model_type():
    with pytest.raises(InputError, match="among gemma2, .*, llama, ") as error:
        spec_from_hf({**SMALL, "model_type": "llama4"}, "x/config.json")
    assert "llama4 is multimodal" in str(error.value) and "x/config.json" in str(error.value)


# ---- stored tensors

SIZES = {"D": 6, "F": 5, "V": 7, "N": 4, "M": 2, "H": 3, "P": 8, "E": 3, "Y": 2, "1": 1}
SIZES |= {"g": 2, "m": 2, "n": 4, "h": 3, "v": 5, "t": 3}
LAYOUTS = {(w.name, w.layout): w for family in FAMILIES for form in forms(family) for w in form.values()}


@pytest.mark.parametrize("weight", LAYOUTS.values(), ids=lambda w: f"{w.name} {w.layout}")
def test_layout_inverts_and_slices(weight):
    stored = np.arange(np.prod(weight.stored_shape(SIZES))).reshape(weight.stored_shape(SIZES))
    leaf = weight.read(SIZES, (slice(None),) * len(weight.leaf_axes), lambda index: stored[index])
    assert leaf.shape == weight.leaf_shape(SIZES)
    own = stored[tuple(axis.own(SIZES) for axis in weight.stored_axes)]
    np.testing.assert_array_equal(weight.stored(leaf), own)
    part = tuple(slice(1, size) for size in leaf.shape)
    np.testing.assert_array_equal(weight.read(SIZES, part, lambda index: stored[index]), leaf[part])


def test_layout_means_what_it_says():
    stored = np.arange(12 * 6).reshape(12, 6)
    leaf = StoredLeaf("q", "NH,D -> DNH").read(SIZES, (slice(None),) * 3, lambda index: stored[index])
    assert leaf[5, 2, 1] == stored[2 * 3 + 1, 5]
    fused = np.arange((12 + 6 + 6) * 6).reshape(24, 6)
    leaf = StoredLeaf("v", "NH+MH+[MH],D -> DMH").read(SIZES, (slice(None),) * 3, lambda index: fused[index])
    assert leaf[5, 1, 2] == fused[12 + 6 + 1 * 3 + 2, 5]
    alternating = np.arange(6 * 10).reshape(6, 10)
    leaf = StoredLeaf("w", "D,[F]|F -> DF").read(SIZES, (slice(None),) * 2, lambda index: alternating[index])
    assert leaf[3, 4] == alternating[3, 8]


@pytest.mark.parametrize(
    "layout, asked, stored",
    [
        ("NH,D -> DNH", (slice(2, 4), slice(1, 3), slice(None)), (slice(3, 9), slice(2, 4))),
        ("NH+[MH]+MH,D -> DMH", (slice(2, 4), slice(1, 2), slice(None)), (slice(15, 18), slice(2, 4))),
        ("D,NH+MH+[MH] -> DMH", (slice(2, 4), slice(0, 1), slice(None)), (slice(2, 4), slice(18, 21))),
        ("F+[F],D -> DF", (slice(0, 6), slice(1, 3)), (slice(6, 8), slice(0, 6))),
        ("E,F+[F],D -> EDF", (slice(2, 3), slice(0, 6), slice(1, 3)), (slice(2, 3), slice(6, 8), slice(0, 6))),
        ("E,D,F|[F] -> EDF", (slice(2, 3), slice(0, 6), slice(1, 3)), (slice(2, 3), slice(0, 6), slice(3, 6))),
    ],
)
def test_slices_read_no_more_than_needed(layout, asked, stored):
    weight, reads = StoredLeaf("w", layout), []

    def read(index):
        reads.append(index)
        return np.zeros(weight.stored_shape(SIZES))[index]

    weight.read(SIZES, asked, read)
    assert reads == [stored]


# ---- every family

TOWER = dict(image_size=13, patch_size=3, width=10, ffn=14, layers=4, heads=2, norm_eps=1e-6, token_id=19,
             mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))  # fmt: skip
SPECS = {
    "llama": ModelSpec("llama", 20, 8, 12, 3, 4, 2, 6, 32, 1e4, 1e-5, False),
    "gpt2": ModelSpec("gpt2", 20, 8, 12, 3, 4, 4, 2, 32, 1e4, 1e-5, True, gated=False, norm="layer", qkv_bias=True,
                      o_bias=True, mlp_bias=True, learned_positions=True),
    "phi3": ModelSpec("phi3", 20, 8, 12, 3, 4, 2, 6, 32, 1e4, 1e-5, False),
    "qwen3_5": ModelSpec("qwen3_5_text", 20, 8, 12, 3, 4, 2, 6, 32, 1e4, 1e-5, True, norm="rms_plus_one",
                         qk_norm="head", attention_gate=True, delta=DeltaNet(2, 4, 3, 5, 3),
                         kinds=(LayerKind(mixer="delta"), LayerKind(), LayerKind(mixer="delta"))),
    "qwen3": ModelSpec("qwen3", 20, 8, 12, 3, 4, 2, 6, 32, 1e4, 1e-5, True, qk_norm="head", qkv_bias=True, o_bias=True),
    "olmo2": ModelSpec("olmo2", 20, 8, 12, 3, 4, 2, 6, 32, 1e4, 1e-5, True, norm_at="post", qk_norm="whole"),
    "gemma2": ModelSpec("gemma2", 20, 8, 12, 3, 4, 2, 6, 32, 1e4, 1e-5, True, norm="rms_plus_one", norm_at="both"),
    "gpt_oss": ModelSpec("gpt_oss", 20, 8, 12, 3, 4, 2, 6, 32, 1e4, 1e-5, False, qkv_bias=True, o_bias=True,
                         attention_sinks=True, experts=5, experts_per_token=2, expert_bias=True,
                         activation=ClampedSwiglu(1.7, 7.0)),
    "mixtral": ModelSpec("mixtral", 20, 8, 12, 3, 4, 2, 6, 32, 1e4, 1e-5, False, experts=5, experts_per_token=2),
    "idefics3": ModelSpec("idefics3", 20, 8, 12, 3, 4, 2, 6, 32, 1e4, 1e-5, False,
                          vision=VisionSpec(connector="shuffle", activation="gelu_tanh", tile_embeddings=4, **TOWER)),
    "llava": ModelSpec("llava", 20, 8, 12, 3, 4, 2, 6, 32, 1e4, 1e-5, False,
                       vision=VisionSpec(connector="mlp", activation="quick_gelu", tile_embeddings=16, layers_run=3,
                                         class_token=True, **TOWER)),
    "qwen2_5_vl": ModelSpec("qwen2_5_vl", 20, 8, 12, 3, 4, 2, 6, 32, 1e4, 1e-6, True, qkv_bias=True,
                            rope_sections=(1, 1, 1), vision=VisionSpec(
                                connector="merge", activation="silu", tile_embeddings=1, norm="rms", gated=True,
                                frames=2, windows=Windows(2, (1,), 1e4),
                                **TOWER | {"image_size": 6, "width": 8, "norm_eps": 1e-6})),
}  # fmt: skip


# With the leaves that no family has.
MODELS = SPECS | {
    "layer norms everywhere": replace(SPECS["gpt2"], norm_at="both", tied=False),
    "a connector that pools": replace(
        SPECS["idefics3"], vision=replace(SPECS["idefics3"].vision, connector="pool", tile_embeddings=4)
    ),
}


@cache
def decoder_shapes(spec):
    """Path -> shape of what the decoder's blocks make, beside the table."""
    shapes = jax.eval_shape(build_model(spec, attention_block=8).init, jax.random.key(0))
    return {path: leaf.shape for path, leaf in flatten(shapes).items()}


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_the_table_is_the_decoders_tree(spec):
    assert parameters.model_shapes(spec) == decoder_shapes(spec)


def test_a_line_too_few_or_too_many_is_caught(monkeypatch):
    wrong = lambda: [name for name, spec in MODELS.items() if parameters.model_shapes(spec) != decoder_shapes(spec)]
    lines = parameters.LEAVES
    assert wrong() == []
    for line in lines:
        monkeypatch.setattr(parameters, "LEAVES", tuple(other for other in lines if other is not line))
        assert wrong(), f"no model has {line}"
    monkeypatch.setattr(parameters, "LEAVES", (*lines, parameters.Leaf("layers/attention/gate", "YD", (None, None))))
    assert wrong() == list(MODELS)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_stored_tensors_are_the_tables_leaves(spec):
    leaves = parameters.model_leaves(spec)
    for form in forms(spec.family):
        assert {p: w.stack + w.leaf_axes for p, w in used_leaves(form, spec).items()} == {
            path: leaf.letters for path, leaf in leaves.items()
        }


def test_families_store_no_other_leaves():
    leaves = [leaf for family in FAMILIES for form in forms(family) for leaf in form.items()]
    stored = {(path, w.stack + w.leaf_axes) for path, w in leaves}
    assert stored <= {(leaf.path, leaf.letters) for leaf in parameters.LEAVES}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_load_undoes_build_in_every_form(spec):
    for number, form in enumerate(forms(spec.family)):
        weights, rng = used_leaves(form, spec), np.random.default_rng(0)
        stored = {name: rng.normal(size=shape) for name, shape in stored_shapes(weights, spec).items()}
        assert stored_form(stored, forms(spec.family), spec) is form
        reads = []

        def read(name, index, stored=stored, reads=reads):
            reads.append(stored[name][index].size)
            return stored[name][index]

        source = TensorSource("memory", {name: value.shape for name, value in stored.items()}, read)
        leaves = flatten(load_tree(source, form, spec, dtype=np.float64))
        if spec.family != "gpt_oss":  # of elements that alternate, those between are read too
            assert sum(reads) == sum(value.size for value in stored.values()), "everything is read once"
        for tensor in stored_tensors(weights, spec):
            built = tensor.build(lambda path, at, leaves=leaves: leaves[path][at])
            np.testing.assert_array_equal(built, stored[tensor.name], err_msg=f"{tensor.name}, form {number}")


def test_an_experts_part_reads_that_expert_alone():
    spec, reads = SPECS["mixtral"], []
    stored = {
        name: np.ones(shape)
        for name, shape in stored_shapes(used_leaves(FAMILIES["mixtral"].TENSORS, spec), spec).items()
    }

    def read(name, index):
        reads.append((name, stored[name][index].shape))
        return stored[name][index]

    def put(path, shape, dtype, read_slice):
        if path == "layers/experts/up":
            reads.clear()
            assert read_slice((slice(1, 2), slice(3, 5), slice(0, 4), slice(6, 12))).shape == (1, 2, 4, 6)
            assert reads == [(f"model.layers.1.block_sparse_moe.experts.{e}.w3.weight", (6, 4)) for e in (3, 4)]
        return path

    source = TensorSource("memory", {name: value.shape for name, value in stored.items()}, read)
    load_tree(source, FAMILIES["mixtral"].TENSORS, spec, put=put)


def test_lines_are_distinct_and_fit_together():
    lines = (*parameters.LEAVES, *parameters.SCALAR_HEAD_LEAVES)
    assert len({(leaf.path, len(leaf.letters)) for leaf in lines}) == len(lines)
    for leaf in lines:
        assert len(leaf.axes) == len(leaf.letters) and set(leaf.summed) <= set(leaf.letters), leaf
        assert not leaf.adaptable or leaf.letters == leaf.stack + leaf.summed + leaf.outputs, leaf
        assert not leaf.adaptable or leaf.stack, leaf
        assert {axis for axis in leaf.axes if axis} <= LOGICAL.keys(), leaf


def test_axis_sizes_have_every_letter():
    letters = {letter for leaf in parameters.LEAVES for letter in leaf.letters}
    assert letters <= axis_sizes(SPECS["idefics3"]).keys()


def test_adapters_and_scalar_heads_lie_as_the_table_says():
    layers = parameters.nest({path: np.zeros(shape) for path, shape in parameters.model_shapes(SPECS["llama"]).items()})
    targets = tuple(target for target in lora.TARGETS if f"layers/{target}" in parameters.model_leaves(SPECS["llama"]))
    adapter = lora.init(jax.random.key(0), layers, lora.LoraSpec(2, 2.0, targets, dora=True))
    heads = {"reward": np.zeros((1, 8)), "value": np.zeros((1, 8))}
    mesh = AbstractMesh((2, 2, 2, 2), AXES)
    specs = flatten(param_specs({parameters.LORA: adapter, parameters.SCALAR_HEADS: heads}, mesh))
    assert len(specs) == 3 * 7 + 2
    wanted = {
        "lora/layers/attention/q/a": P(None, ("fsdp", "context"), None),
        "lora/layers/attention/q/b": P(None, None, "tensor", None),
        "lora/layers/attention/q/m": P(None, "tensor", None),
        "lora/layers/attention/o/a": P(None, "tensor", None, None),
        "lora/layers/attention/o/b": P(None, None, ("fsdp", "context")),
        "lora/layers/attention/o/m": P(None, ("fsdp", "context")),
        "lora/layers/mlp/down/a": P(None, "tensor", None),
        "lora/layers/mlp/up/b": P(None, None, "tensor"),
        "scalar_heads/value": P(None, None),
    }
    assert {path: specs[path] for path in wanted} == wanted


def test_no_factor_of_an_adapter_lies_whole_where_it_is_divisible():
    """Those between the rank and heads or ffn: the first axis that is divisible."""
    shapes = {
        "attention/q/b": (3, 2, 4, 8),
        "attention/o/a": (3, 4, 8, 2),
        "mlp/up/b": (3, 2, 48),
        "mlp/up/m": (3, 48),
        "mlp/up/gain": (3,),
    }
    tree = parameters.nest({f"lora/layers/{path}": np.zeros(shape) for path, shape in shapes.items()})
    over = ("fsdp", "context")

    def specs(*sizes):
        of_paths = flatten(param_specs(tree, AbstractMesh(sizes, AXES)))
        return [of_paths[f"lora/layers/{path}"] for path in shapes]

    assert specs(1, 2, 2, 2) == [
        P(None, None, "tensor", over),
        P(None, "tensor", over, None),
        P(None, None, ("tensor", *over)),
        P(None, "tensor"),
        P(None),
    ]
    first_two_axes = [spec[1:3] for spec in specs(2, 2, 1, 1)[:3]]
    assert first_two_axes == [(over, "tensor"), (("tensor", *over), None), (over, "tensor")]


def test_what_follows_from_the_table():
    assert list(lora.TARGETS.items()) == [
        ("attention/q", ("D", "NH")), ("attention/k", ("D", "MH")), ("attention/v", ("D", "MH")),
        ("attention/o", ("NH", "D")), ("mlp/gate", ("D", "F")), ("mlp/up", ("D", "F")), ("mlp/down", ("F", "D")),
        ("attention/q_gate", ("D", "NgH")), ("delta/q", ("D", "mh")), ("delta/k", ("D", "mh")),
        ("delta/v", ("D", "nv")), ("delta/z", ("D", "nv")), ("delta/beta", ("D", "n")), ("delta/decay", ("D", "n")),
        ("delta/o", ("nv", "D")), ("vision/layers/attention/q", ("d", "qr")),
        ("vision/layers/attention/k", ("d", "qr")), ("vision/layers/attention/v", ("d", "qr")),
        ("vision/layers/attention/o", ("qr", "d")),
        ("vision/layers/mlp/up", ("d", "f")), ("vision/layers/mlp/down", ("f", "d")),
        ("vision/layers/mlp/gate", ("d", "f")), ("connector/project", ("w", "D")), ("connector/up", ("d", "u")),
        ("connector/merge", ("ad", "u")), ("connector/down", ("u", "D")),
    ], "and in this order, by which a new adapter's numbers are drawn"  # fmt: skip
    assert parameters.ADAPTABLE["layers/attention/o"].summed_axes == (1, 2)
    assert parameters.VOCAB_LEAVES == ("embed/table", "head/kernel")
    assert parameters.CAST_BY_PRODUCTS == {
        "embed/table", "head/kernel", "vision/embed/patch", *map(lora.path_of, lora.TARGETS),
        *(f"layers/experts/{name}" for name in ("router", "gate", "up", "down")),
    }  # fmt: skip
