"""Model directories: written and read back bit for bit, and every way in which they can be wrong."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpref.errors import InputError
from jaxpref.models.hf import load_params, load_spec, save_pretrained
from jaxpref.models.parameters import VOCAB_LEAVES, flatten, model_shapes, nest
from jaxpref.models.source import open_checkpoint
from jaxpref.models.spec import Llama3Rope, ModelSpec

GOLDEN = Path(__file__).parent.parent / "golden" / "llama_tiny"
SPEC = ModelSpec(
    family="llama", vocab=20, width=8, ffn=12, layers=3, heads=4, kv_heads=2, head_dim=6, max_positions=32,
    rope_theta=1e4, norm_eps=1e-5, tied=False, rope_scaling=Llama3Rope(8.0, 1.0, 4.0, 16),
)  # fmt: skip
BF16 = np.dtype(ml_dtypes.bfloat16)


def random_params(spec, dtype=np.float32):
    rng = np.random.default_rng(0)
    return nest({path: rng.normal(size=shape).astype(dtype) for path, shape in model_shapes(spec).items()})


def save(directory, spec=SPEC, params=None, **options):
    options = dict(dtype=np.float32, generation_config=None, model_card="# tiny\n") | options
    save_pretrained(directory, spec, params or random_params(spec), options.pop("tokenizer", None), **options)
    return directory


def assert_trees_equal(left, right):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_array_equal(np.asarray(left[path]), np.asarray(right[path]), err_msg=path, strict=True)


def tiny_tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={chr(97 + i): i for i in range(18)} | {"<s>": 18, "</s>": 19}, merges=[]))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{{ messages[0]['content'] }}",
    )


# ---- round trips


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BF16], ids=str)
@pytest.mark.parametrize("max_shard_bytes", [2**30, 800], ids=["single", "sharded"])
def test_round_trip(tmp_path, tied, dtype, max_shard_bytes):
    spec = replace(SPEC, tied=tied)
    params = random_params(spec, dtype)
    directory = save(tmp_path / "model", spec, params, dtype=dtype, max_shard_bytes=max_shard_bytes)
    assert load_spec(directory) == spec
    assert_trees_equal(load_params(directory, spec, dtype=dtype), params)
    shards = list(directory.glob("*.safetensors"))
    assert (len(shards) > 3) == (max_shard_bytes == 800)
    assert max(sum(x.nbytes for x in load_file(s).values()) for s in shards) <= max_shard_bytes
    assert not list(tmp_path.glob(".*")), "the partial directory is gone"


def test_bfloat16_file_read_as_float32(tmp_path):
    params = random_params(SPEC, BF16)
    directory = save(tmp_path / "model", params=params, dtype=BF16)
    wanted = nest({path: leaf.astype(np.float32) for path, leaf in flatten(params).items()})
    assert_trees_equal(load_params(directory, SPEC), wanted)


def test_float16_file(tmp_path):
    params = random_params(SPEC, np.float16)
    directory = save(tmp_path / "model", params=params, dtype=np.float16)
    assert_trees_equal(load_params(directory, SPEC, dtype=np.float16), params)


def test_jax_params_and_safetensors_library(tmp_path):
    params = random_params(SPEC)
    directory = save(tmp_path / "model", params=jax.tree.map(jax.numpy.asarray, params))
    stored = load_file(directory / "model.safetensors")  # the library reads the file that we lay out by hand
    q_DNH = params["layers"]["attention"]["q"][1]
    np.testing.assert_array_equal(stored["model.layers.1.self_attn.q_proj.weight"], q_DNH.reshape(8, 24).T)
    assert stored["lm_head.weight"].shape == (20, 8)


def test_reads_what_transformers_wrote():
    spec = load_spec(GOLDEN)
    assert (spec.head_dim, spec.kv_heads, spec.tied, spec.rope_scaling.original_length) == (12, 2, False, 32)
    params, stored = load_params(GOLDEN, spec), load_file(GOLDEN / "model.safetensors")
    assert sum(leaf.size for leaf in flatten(params).values()) == sum(x.size for x in stored.values())
    o_NHD = params["layers"]["attention"]["o"][1]
    np.testing.assert_array_equal(stored["model.layers.1.self_attn.o_proj.weight"], o_NHD.reshape(48, 32).T)


# ---- put: parts of leaves


def test_read_slice_equals_full(tmp_path):
    params = random_params(SPEC)
    directory = save(tmp_path / "model", params=params, max_shard_bytes=800)

    def put(path, shape, dtype, read_slice):
        full = flatten(params)[path]
        assert (shape, dtype) == (full.shape, np.float32)
        part = tuple(slice(size // 3, size // 3 + max(1, size // 2)) for size in shape)
        np.testing.assert_array_equal(read_slice(part), full[part])
        assert read_slice(part).flags.c_contiguous
        return path

    paths = flatten(load_params(directory, SPEC, put=put))
    assert all(path == value for path, value in paths.items())


def test_put_builds_sharded_arrays(tmp_path):
    params = random_params(SPEC)
    directory = save(tmp_path / "model", params=params)
    devices = jax.devices()[: 2 if len(jax.devices()) > 1 else 1]
    mesh = jax.sharding.Mesh(np.array(devices), ("x",))

    def put(path, shape, dtype, read_slice):
        axis = next((i for i, size in enumerate(shape) if size % len(devices) == 0), None)
        spec = jax.P(*("x" if i == axis else None for i in range(len(shape))))
        return jax.make_array_from_callback(shape, jax.sharding.NamedSharding(mesh, spec), read_slice)

    assert_trees_equal(load_params(directory, SPEC, put=put), params)


# ---- what is knowingly ignored


def add_tensors(directory, **tensors):
    stored = load_file(directory / "model.safetensors")
    save_file(stored | tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_tied_checkpoint_with_equal_head(tmp_path):
    spec = replace(SPEC, tied=True)
    params = random_params(spec)
    directory = save(tmp_path / "model", spec, params)
    add_tensors(directory, **{"lm_head.weight": params["embed"]["table"].copy()})
    assert_trees_equal(load_params(directory, spec), params)
    add_tensors(directory, **{"lm_head.weight": params["embed"]["table"] + 1})
    with pytest.raises(InputError, match="tie_word_embeddings"):
        load_params(directory, spec)


def test_rotary_buffers_are_ignored(tmp_path):
    directory = save(tmp_path / "model")
    add_tensors(directory, **{f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(3) for i in range(3)})
    assert_trees_equal(load_params(directory, SPEC), random_params(SPEC))


# ---- errors of reading


def test_every_wrong_tensor_in_one_error(tmp_path):
    directory = save(tmp_path / "model")
    stored = load_file(directory / "model.safetensors")
    del stored["model.layers.2.mlp.up_proj.weight"]
    stored["model.layers.0.self_attn.q_proj.bias"] = np.zeros(24, np.float32)
    stored["model.norm.weight"] = np.zeros(9, np.float32)
    save_file(stored, directory / "model.safetensors")
    with pytest.raises(InputError) as error:
        load_params(directory, SPEC)
    for line in (
        "missing model.layers.2.mlp.up_proj.weight [12, 8]",
        "extra model.layers.0.self_attn.q_proj.bias [24]",
        "misshaped model.norm.weight: [9], not [8]",
    ):
        assert line in str(error.value)


def test_every_wrong_tensor_of_a_mixture_and_of_fused_projections(tmp_path):
    """One tensor an expert, and one for queries, keys and values together: named as they are stored."""
    sizes = replace(SPEC, rope_scaling=None)
    mixture = replace(sizes, family="mixtral", experts=3, experts_per_token=2)
    wrong = {
        "block_sparse_moe.experts.2.w3.weight": None,
        "block_sparse_moe.experts.0.w2.weight": np.zeros((8, 13), np.float32),
        "block_sparse_moe.experts.3.w1.weight": np.zeros((12, 8), np.float32),
    }
    said = errors_of(tmp_path / "mixture", mixture, wrong)
    assert "missing model.layers.1.block_sparse_moe.experts.2.w3.weight [12, 8]" in said
    assert "misshaped model.layers.1.block_sparse_moe.experts.0.w2.weight: [8, 13], not [8, 12]" in said
    assert "extra model.layers.1.block_sparse_moe.experts.3.w1.weight [12, 8]" in said
    wrong = {"self_attn.qkv_proj.weight": np.zeros((47, 8), np.float32), "mlp.gate_up_proj.weight": None}
    said = errors_of(tmp_path / "fused", replace(sizes, family="phi3"), wrong)
    assert "misshaped model.layers.1.self_attn.qkv_proj.weight: [47, 8], not [48, 8]" in said
    assert "missing model.layers.1.mlp.gate_up_proj.weight [24, 8]" in said


def errors_of(directory, spec, wrong):
    """What loading says after tensors of layer 1 were replaced, added or (None) deleted."""
    save(directory, spec)
    stored = load_file(directory / "model.safetensors")
    for name, value in wrong.items():
        stored |= {f"model.layers.1.{name}": value}
    stored = {name: value for name, value in stored.items() if value is not None}
    save_file(stored, directory / "model.safetensors")
    with pytest.raises(InputError) as error:
        load_params(directory, spec)
    return str(error.value)


def test_quantised_tensors(tmp_path):
    directory = save(tmp_path / "model")
    add_tensors(directory, **{"model.norm.weight": np.zeros(8, np.int8)})
    with pytest.raises(InputError, match="model.norm.weight I8"):
        load_params(directory, SPEC)
    add_tensors(directory, **{f"model.layers.{i}.qweight": np.zeros(8, np.int32) for i in range(1000)})
    with pytest.raises(InputError, match="and 998 more\\n.*the checkpoint that is not quantised"):
        load_params(directory, SPEC)


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_quantised_weights_are_known_by_the_files_beside_them(name, tmp_path):
    directory = save(tmp_path / "model")
    (directory / name).write_text("{}")
    with pytest.raises(InputError, match=f"{name} in .*\\n.*the checkpoint that is not quantised"):
        load_spec(directory)


@pytest.mark.parametrize("keep", [0, 4, 100, -5])
def test_truncated_file(tmp_path, keep):
    directory = save(tmp_path / "model")
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match="a complete safetensors file"):
        load_params(directory, SPEC)


def test_missing_shards(tmp_path):
    directory = save(tmp_path / "model", max_shard_bytes=800)
    shards = sorted(directory.glob("model-*"))
    shards[0].unlink(), shards[2].unlink()
    with pytest.raises(InputError, match=f"{shards[0].name}, {shards[2].name}"):
        load_params(directory, SPEC)


def rewrite_index(directory, change):
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    index["weight_map"] = change(index["weight_map"])
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("place", ["../outside.safetensors", "{absolute}", "inside/x.safetensors", 3])
def test_index_names_files_beside_it_only(tmp_path, place):
    directory = save(tmp_path / "model", max_shard_bytes=800)
    last = sorted(directory.glob("model-*"))[-1]
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(last.read_bytes())  # it would be read
    name = place.format(absolute=outside) if isinstance(place, str) else place
    rewrite_index(directory, lambda names: {k: name if v == last.name else v for k, v in names.items()})
    with pytest.raises(InputError, match="in the same directory") as caught:
        load_params(directory, SPEC)
    assert str(name) in caught.value.got and "model-0" not in caught.value.got


@pytest.mark.parametrize("weight_map", [[], "model.safetensors", {"a": ["b"]}])
def test_index_of_another_shape(tmp_path, weight_map):
    directory = save(tmp_path / "model", max_shard_bytes=800)
    rewrite_index(directory, lambda _: weight_map)
    with pytest.raises(InputError, match=r"index.json"):
        load_params(directory, SPEC)


def test_tensor_in_two_shards(tmp_path):
    directory = save(tmp_path / "model", max_shard_bytes=800)
    first, second, *_ = sorted(directory.glob("model-*"))
    tensors = load_file(second)
    name, tensor = next(iter(load_file(first).items()))
    save_file(tensors | {name: tensor + 1}, second)
    with pytest.raises(InputError, match=rf"(?s)every tensor in one file.*{second.name} and in another.*{name}"):
        load_params(directory, SPEC)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_not_read(tmp_path, number):
    directory = save(tmp_path / "model", dtype=BF16)
    tensors = load_file(directory / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][3, 2] = number
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(InputError, match=rf"(?s)finite weights.*{name}"):
        load_params(directory, SPEC)


@pytest.mark.parametrize(
    ("value", "dtype", "got"),
    [(np.nan, np.float32, "NaN or infinite in"), (-np.inf, BF16, "NaN or infinite in"), (7e4, np.float16, "too large")],
)
def test_weights_that_are_not_finite_are_not_written(tmp_path, value, dtype, got):
    params = random_params(SPEC)
    params["layers"]["attention"]["k"][2, 1, 1, 1] = value
    with pytest.raises(InputError, match=rf"(?s)finite weights.*{got}.*model.layers.2.self_attn.k_proj.weight"):
        save(tmp_path / "model", params=params, dtype=dtype)
    assert not any(tmp_path.iterdir())
    save(tmp_path / "model", params=random_params(SPEC), dtype=dtype)


def test_not_a_checkpoint(tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        load_spec(tmp_path / "absent")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"config.json(.|\n)*notes.txt"):
        load_spec(tmp_path)
    with pytest.raises(InputError, match=r"model.safetensors or model.safetensors.index.json(.|\n)*notes.txt"):
        load_params(tmp_path, SPEC)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match="convert the .bin files"):
        load_params(tmp_path, SPEC)


def test_broken_config(tmp_path):
    directory = save(tmp_path / "model")
    (directory / "config.json").write_text("{")
    with pytest.raises(InputError, match="a JSON file"):
        load_spec(directory)


# ---- writing


def test_files_written(tmp_path):
    generation = {"eos_token_id": [19, 3], "temperature": 0.7}
    directory = save(tmp_path / "new" / "model", tokenizer=tiny_tokenizer(), generation_config=generation)
    config = json.loads((directory / "config.json").read_text())
    assert config["dtype"] == "float32" and config["model_type"] == "llama"
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (18, [19, 3], None)
    assert json.loads((directory / "generation_config.json").read_text()) == generation
    assert (directory / "README.md").read_text() == "# tiny\n"

    opened = open_checkpoint(directory)
    assert opened.spec == SPEC and opened.generation_config == generation
    tokenizer = opened.load_tokenizer()
    assert tokenizer("abc").input_ids == [0, 1, 2]
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert_trees_equal(opened.load_params(), random_params(SPEC))


def test_wrong_params(tmp_path):
    params = flatten(random_params(SPEC))
    del params["final_norm/scale"]
    params["layers/mlp/up"] = params["layers/mlp/up"].swapaxes(1, 2)
    params["layers/mlp/lora"] = np.zeros(1, np.float32)
    with pytest.raises(InputError) as error:
        save(tmp_path / "model", params=nest(params))
    for line in ("missing final_norm/scale", "misshaped layers/mlp/up", "extra layers/mlp/lora"):
        assert line in str(error.value)
    assert not list(tmp_path.iterdir())


def test_padded_vocabulary_is_cut(tmp_path):
    params = flatten(random_params(SPEC))
    padded = {path: np.pad(leaf, ((0, 4), (0, 0))) if path in VOCAB_LEAVES else leaf for path, leaf in params.items()}
    assert_trees_equal(load_params(save(tmp_path / "model", params=nest(padded)), SPEC), nest(params))
    padded["head/kernel"][22, 3] = 1e-9
    with pytest.raises(InputError, match=r"misshaped head/kernel: \[24, 8\], not \[20, 8\]"):
        save(tmp_path / "other", params=nest(padded))


def test_tokenizer_too_large_and_dtype(tmp_path):
    with pytest.raises(InputError, match="(?s)model's 19.*'eos_token_id': 19"):
        save(tmp_path / "model", replace(SPEC, vocab=19), tokenizer=tiny_tokenizer())
    with pytest.raises(InputError, match="int8"):
        save(tmp_path / "model", dtype=np.int8)


def test_overwriting(tmp_path):
    directory = save(tmp_path / "model", dtype=BF16)
    save(directory)  # our own export is replaced
    assert load_file(directory / "model.safetensors")["model.norm.weight"].dtype == np.float32

    (directory / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="notes.txt"):
        save(directory)
    assert (directory / "notes.txt").exists()
    (directory / "notes.txt").rename(directory / "notes.json")
    with pytest.raises(InputError, match="notes.json"):
        save(directory)
    (directory / "notes.json").unlink()

    save_file({"x": np.zeros(1)}, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="an earlier export"):
        save(directory)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file exists"):
        save(tmp_path / "file")


def test_failed_export_leaves_the_old_one(tmp_path, monkeypatch):
    directory = save(tmp_path / "model")

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxpref.models.hf.writer._write_weights", fail)
    with pytest.raises(KeyboardInterrupt):
        save(directory)
    assert_trees_equal(load_params(directory, SPEC), random_params(SPEC))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# ---- where models come from


def test_no_tokenizer():
    with pytest.raises(InputError, match="tokenizer.json"):
        open_checkpoint(GOLDEN).load_tokenizer()


@pytest.mark.parametrize("path", ["absent.gguf", "a/b/c", "./org/name", "gpt2"])
def test_no_such_path(path):
    with pytest.raises(InputError, match="no such file"):
        open_checkpoint(path)


def test_wrong_kind_of_file(tmp_path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(InputError, match="directory that holds config.json"):
        open_checkpoint(tmp_path / "model.bin")


def test_package_paths(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="pip install --no-deps no-such-package"):
        open_checkpoint("pkg://no_such_package/model.gguf")
    package = tmp_path / "weights_only_package"
    save(package / "inner")
    (package / "__init__.py").write_text("raise ImportError('never imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert open_checkpoint("pkg://weights_only_package/inner").spec == SPEC
    with pytest.raises(InputError, match="holds inner/config.json"):
        open_checkpoint("pkg://weights_only_package/other.gguf")


def test_hub(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    directory, asked = save(tmp_path / "model"), {}

    def download(repository, **options):
        asked.update(options, repository=repository)
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_checkpoint("some-org/Model-1.5@v2").spec == SPEC
    assert (asked["repository"], asked["revision"]) == ("some-org/Model-1.5", "v2")
    assert "*.safetensors" in asked["allow_patterns"] and "*.bin" not in asked["allow_patterns"]

    def offline(repository, **options):
        raise LocalEntryNotFoundError("cannot reach the Hub\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(InputError, match="hf download some-org/model"):
        open_checkpoint("some-org/model")


def hub_of(repository, monkeypatch):
    """A Hub with one repository: downloads are copies of the files of a directory that match the patterns."""
    import huggingface_hub

    def download(_, *, revision, allow_patterns, ignore_patterns):
        names = [str(p.relative_to(repository)) for p in repository.rglob("*") if p.is_file()]
        target = repository.with_name("snapshot")
        patterns = {"allow_patterns": allow_patterns, "ignore_patterns": ignore_patterns}
        for name in huggingface_hub.utils.filter_repo_objects(names, **patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, target / name)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return repository.with_name("snapshot")


def test_what_is_taken_of_a_hub_repository(tmp_path, monkeypatch):
    repository = save(tmp_path / "repository", tokenizer=tiny_tokenizer(), max_shard_bytes=500)
    needed = {str(p.relative_to(repository)) for p in repository.rglob("*") if p.is_file()} - {"README.md"}
    assert sum(name.startswith("model-0") for name in needed) > 1
    (repository / "additional_chat_templates").mkdir()
    needed.add("additional_chat_templates/tool_use.jinja")
    (repository / "additional_chat_templates/tool_use.jinja").write_text("{{ tools[0]['name'] }}")
    for copy in (
        "consolidated.safetensors",
        "consolidated-00001-of-00002.safetensors",
        "model.fp16.safetensors",
        "model.fp16-00001-of-00002.safetensors",
        "pytorch_model.bin",
        "original/model.safetensors",
        "onnx/config.json",
    ):
        (repository / copy).parent.mkdir(exist_ok=True)
        (repository / copy).write_bytes(b"a copy")
    snapshot = hub_of(repository, monkeypatch)
    checkpoint = open_checkpoint("some-org/model")
    assert {str(p.relative_to(snapshot)) for p in snapshot.rglob("*") if p.is_file()} == needed
    assert_trees_equal(checkpoint.load_params(), random_params(SPEC))
    tokenizer, messages = checkpoint.load_tokenizer(), [{"role": "user", "content": "abc"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "abc"
    assert tokenizer.apply_chat_template(messages, tools=[{"name": "f"}], tokenize=False) == "f"
    export = save(tmp_path / "export", tokenizer=tokenizer)
    assert open_checkpoint(export).load_tokenizer().chat_template == tokenizer.chat_template


def test_a_hub_repository_of_bin_files(tmp_path, monkeypatch):
    repository = save(tmp_path / "repository", tokenizer=tiny_tokenizer())
    (repository / "model.safetensors").rename(repository / "pytorch_model.bin")
    hub_of(repository, monkeypatch)
    checkpoint = open_checkpoint("some-org/model")
    assert checkpoint.load_tokenizer().eos_token == "</s>"
    with pytest.raises(InputError, match="convert the .bin files"):
        checkpoint.load_params()


def test_tensors_that_are_not_read_may_be_of_any_kind(tmp_path):
    """Old checkpoints of GPT-2 carry the causal mask, in bytes or booleans."""
    spec = ModelSpec(
        family="gpt2", vocab=20, width=8, ffn=32, layers=2, heads=2, kv_heads=2, head_dim=4, max_positions=16,
        rope_theta=1e4, norm_eps=1e-5, tied=True, learned_positions=True, activation="gelu_tanh", gated=False,
        norm="layer", qkv_bias=True, o_bias=True, mlp_bias=True,
    )  # fmt: skip
    directory = save(tmp_path / "model", spec)
    tensors = load_file(directory / "model.safetensors")
    mask = {
        "transformer.h.0.attn.bias": np.ones((1, 1, 16, 16), bool),
        "h.1.attn.bias": np.ones((1, 1, 16, 16), np.uint8),
    }
    save_file({**tensors, **mask}, directory / "model.safetensors")
    load_params(directory, spec)
    save_file(
        {**tensors, "transformer.h.0.mlp.c_fc.weight": np.ones((8, 32), np.uint8)}, directory / "model.safetensors"
    )
    with pytest.raises(InputError, match="c_fc.weight U8"):
        load_params(directory, spec)


def test_special_tokens_without_a_generation_config(tmp_path):
    directory = save(tmp_path / "model")
    (directory / "generation_config.json").unlink()
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"eos_token_id": [1, 2]}))
    assert open_checkpoint(directory).generation_config["eos_token_id"] == [1, 2]
