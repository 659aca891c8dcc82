"""PEFT adapters in and out: logits and gradients as PEFT's, and directories that PEFT loads."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_families_parity import write

from jaxpref.errors import InputError
from jaxpref.models import lora, peft
from jaxpref.models.decoder import build_model
from jaxpref.models.families import spec_from_hf
from jaxpref.models.lora import LoraSpec
from jaxpref.models.parameters import LORA
from jaxpref.models.peft.writer import _peft_config as peft_config
from jaxpref.models.source import open_checkpoint
from jaxpref.runs.adapters import adapter_at, below_adapter, check_trainable

pytestmark = pytest.mark.usefixtures("quick_compile")

GOLDEN = Path(__file__).parents[1] / "golden"
ADAPTERS = GOLDEN / "peft"
NAMES = ["lora", "rslora", "dora", "patterns"]
FUSED = {"phi3": ("attention", "qkv_proj"), "gpt2": ("attention", "c_attn"), "qwen3_5": ("delta", "in_proj_qkv")}
"""Adapters on weights that are stored in one tensor -> the module of q, k and v, and what it is here."""
IDS = json.loads((ADAPTERS / "versions.json").read_text())["ids"]


@cache
def base():
    source = open_checkpoint(GOLDEN / "llama_tiny")
    return source.spec, source.load_params()


@partial(jax.jit, static_argnums=(1, 2))
def logits(params, spec: LoraSpec | None, model_spec=None):
    model_spec = model_spec or base()[0]
    ids = np.array(IDS, np.int32) % model_spec.vocab
    model = build_model(model_spec, attention_block=16, lora=spec)
    token_RL = np.pad(ids, ((0, 0), (0, 16 - len(IDS[0]))))
    position_RL = np.broadcast_to(np.arange(16, dtype=np.int32), token_RL.shape)
    hidden_RLD = model.hidden(params, token_RL, position_RL, np.full_like(token_RL, 16))
    return jnp.einsum("RLD,VD->RLV", hidden_RLD, model.head(params))[:, : len(IDS[0])]


@partial(jax.jit, static_argnums=(2, 3))
@partial(jax.grad, argnums=0)
def gradient(tree, params, spec: LoraSpec, model_spec=None):
    ids = np.array(IDS) % (model_spec or base()[0]).vocab
    logp_RLV = jax.nn.log_softmax(logits(params | {LORA: tree}, spec, model_spec)[:, :-1])
    return jnp.take_along_axis(logp_RLV, ids[:, 1:, None], axis=-1).sum()


def values(name: str) -> dict[str, np.ndarray]:
    return load_file(ADAPTERS / f"{name}_values.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_pefts(name):
    spec, tree = peft.load_adapter(ADAPTERS / name, base()[0])
    wanted = values(name)["logits"]
    np.testing.assert_allclose(logits(base()[1] | {LORA: tree}, spec), wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(logits(base()[1], None) - wanted).max() > 0.1, "the adapter does nothing"
    unlike = replace(spec, rslora=not spec.rslora)
    assert np.abs(logits(base()[1] | {LORA: tree}, unlike) - wanted).max() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_pefts(name, tmp_path):
    spec, tree = peft.load_adapter(ADAPTERS / name, base()[0])
    slopes = gradient(tree, base()[1], spec)
    peft.save_adapter(tmp_path / "g", slopes, spec, base()[0], base="", model_card="")
    got, wanted = load_file(tmp_path / "g" / peft.WEIGHTS_FILE), values(name)
    assert got.keys() == wanted.keys() - {"logits"}
    for tensor, value in got.items():
        theirs = wanted[tensor]
        own = value[tuple(slice(size) for size in theirs.shape)]  # the rest fills up to the common rank
        np.testing.assert_allclose(own, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())
        assert np.abs(value).sum() == pytest.approx(np.abs(own).sum()), "what fills up is never trained"


def test_ranks_and_scales_by_pattern():
    spec, tree = peft.load_adapter(ADAPTERS / "patterns", base()[0])
    assert spec.rank == 6 and spec.targets == tuple(peft.target_names(base()[0]))
    scales = {target: spec.on(target).scale for target in spec.targets}
    assert scales == {target: 2.0 for target in spec.targets} | {"attention/q": 3.0, "attention/v": 1.5}
    ranks = lambda target: [int((np.abs(a).reshape(-1, 6).max(0) > 0).sum()) for a in leaf(tree, target, "a")]
    assert [ranks(t) for t in ("attention/q", "attention/k", "mlp/up")] == [[2, 2], [6, 6], [4, 2]]


def leaf(tree, target: str, part: str):
    group, name = target.split("/")
    return tree["layers"][group][name][part]


def test_layers_to_transform_and_modules_to_save(tmp_path):
    directory = ADAPTERS / "layers"
    with pytest.raises(InputError, match="brings its own embed/table, head/kernel"):
        peft.load_adapter(directory, base()[0])
    spec, tree = peft.load_adapter(directory, base()[0], modules=True)
    assert spec == LoraSpec(3, 8.0, ("attention/q", "mlp/down"))
    assert not leaf(tree, "attention/q", "a")[0].any() and leaf(tree, "attention/q", "a")[1].any()
    source = below_adapter(open_checkpoint(GOLDEN / "llama_tiny"), directory)
    params, wanted = source.load_params(), values("layers")
    np.testing.assert_allclose(logits(params | {LORA: tree}, spec), wanted["logits"], rtol=1e-4, atol=1e-4)
    assert np.abs(logits(base()[1] | {LORA: tree}, spec) - wanted["logits"]).max() > 0.1, "the modules do nothing"
    slopes = gradient(tree, params, spec)
    assert not leaf(slopes, "attention/q", "a")[0].any() and not leaf(slopes, "mlp/down", "b")[0].any()
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    theirs = wanted[name]
    np.testing.assert_allclose(leaf(slopes, "mlp/down", "b")[1].T, theirs, atol=1e-3 * np.abs(theirs).max())
    with pytest.raises(InputError, match="which PEFT would train too"):
        check_trainable(source)
    assert below_adapter(open_checkpoint(GOLDEN / "llama_tiny"), ADAPTERS / "lora").modules_of is None


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "qwen3_5" else name for name in FUSED]
)
def test_adapters_on_fused_weights(name, tmp_path):
    (tmp_path / "base").mkdir()
    source = open_checkpoint(write(name, tmp_path / "base"))
    model, params = source.spec, source.load_params()
    spec, tree = peft.load_adapter(ADAPTERS / name, model)
    group, module = FUSED[name]
    assert {f"{group}/q", f"{group}/k", f"{group}/v"} <= set(spec.targets)
    wanted = values(name)
    np.testing.assert_allclose(logits(params | {LORA: tree}, spec, model), wanted["logits"], rtol=1e-4, atol=1e-4)
    assert np.abs(logits(params, None, model) - wanted["logits"]).max() > 0.1, "the adapter does nothing"
    slopes = gradient(tree, params, spec, model)
    (fused,) = {n for n in wanted if f"{module}.lora_A" in n and ("layers.1." in n or "h.1." in n)}
    summed = sum(leaf(slopes, f"{group}/{part}", "a")[1] for part in "qkv")  # PEFT's factor A is common to them
    np.testing.assert_allclose(summed.T, wanted[fused], atol=1e-3 * np.abs(wanted[fused]).max())

    # Written with a factor for each, and read again, it is the same function.
    peft.save_adapter(tmp_path / "out", tree, spec, model, base="", model_card="")
    again, written = peft.load_adapter(tmp_path / "out", model)
    assert again.rank == 3 * spec.rank and again.targets == spec.targets
    np.testing.assert_allclose(logits(params | {LORA: written}, again, model), wanted["logits"], rtol=1e-4, atol=1e-4)


def test_dora_on_a_part_of_a_fused_weight_is_no_peft_adapter(tmp_path):
    model = spec_from_hf(PHI3, "config.json")
    with pytest.raises(InputError, match="attention/q alone, which phi3 holds fused"):
        peft.save_adapter(tmp_path, {}, LoraSpec(2, 2.0, ("attention/q",), dora=True), model, base="", model_card="")


@pytest.mark.parametrize("name", ["lora", "rslora", "dora"])
def test_writing_gives_back_what_was_read(name, tmp_path):
    spec, tree = peft.load_adapter(ADAPTERS / name, base()[0])
    peft.save_adapter(tmp_path / "out", tree, spec, base()[0], base="org/base", model_card="# card")
    read, written = (load_file(d / peft.WEIGHTS_FILE) for d in (ADAPTERS / name, tmp_path / "out"))
    assert read.keys() == written.keys() and all(np.array_equal(read[k], written[k]) for k in read)
    assert peft.read_spec(tmp_path / "out", base()[0]) == spec
    header = (tmp_path / "out" / peft.WEIGHTS_FILE).read_bytes()[8:]  # the same bytes each time
    assert header.startswith(b'{"__metadata__": {"format": "pt", "producer": "jaxpref"}')
    config = json.loads((tmp_path / "out" / peft.CONFIG_FILE).read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert set(config["target_modules"]) <= {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }


def test_a_directory_is_replaced_only_when_it_holds_nothing_but_an_adapter_of_ours(tmp_path):
    spec, tree = peft.load_adapter(ADAPTERS / "lora", base()[0])

    def save(directory):
        peft.save_adapter(directory, tree, spec, base()[0], base="", model_card="")

    for _ in range(2):
        save(tmp_path / "out")
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"out holds thesis\.tex\n"):
        save(tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"
    shutil.copytree(ADAPTERS / "lora", tmp_path / "theirs")  # whose adapter PEFT wrote
    with pytest.raises(InputError, match="theirs holds .*adapter_model.safetensors"):
        save(tmp_path / "theirs")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bias": "all"}, "bias = 'all'"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"rank_pattern": {"q_proj": 8}}, "misshaped .*q_proj.lora_A.weight: .3, 32., not .8, 32."),
        ({"rank_pattern": {"q_proj": 0.5}}, "q_proj = 0.5, not a rank"),
        ({"alpha_pattern": {"q_proj": "8"}}, "q_proj = '8', not a number above 0"),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 3}}, "attention/q has another scale in each layer"),
        ({"modules_to_save": ["lm_head"]}, r"missing base_model.model.lm_head.weight .128, 32."),
        ({"modules_to_save": ["norm"]}, "modules_to_save among the embedding and the head.*norm"),
        ({"layers_to_transform": [0]}, "extra .*layers.1.self_attn.q_proj.lora_A"),
        ({"target_modules": ["q_proj", "v_proj", "up_proj"]}, "missing .*mlp.up_proj.lora_A"),
        ({"target_modules": ["lm_head"]}, "no weight is adapted|extra"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"some_new_method": 3}, "some_new_method"),
        ({"r": 5}, "misshaped"),
        ({"r": "8"}, "(?s)r = '8', not a rank.*without quotes"),
        ({"r": True}, "r = True, not"),
        ({"r": -4}, "r = -4, not"),
        ({"r": 10**12}, "misshaped"),
        ({"lora_alpha": "16"}, "lora_alpha = '16', not a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha = nan, not a number"),
        ({"lora_dropout": "0.1"}, "lora_dropout = '0.1', not a number"),
        ({"use_rslora": "false"}, "use_rslora = 'false', neither true nor false"),
        ({"use_dora": True}, "missing .*lora_magnitude_vector"),
    ],
)
def test_what_is_not_implemented_is_named(change, message, tmp_path):
    shutil.copytree(ADAPTERS / "lora", tmp_path / "a")
    path = tmp_path / "a" / peft.CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=f"(?s){message}"):
        peft.load_adapter(tmp_path / "a", base()[0])


def test_an_adapter_that_is_not_finite_is_neither_read_nor_written(tmp_path):
    shutil.copytree(ADAPTERS / "lora", tmp_path / "a")
    spec, tree = peft.load_adapter(tmp_path / "a", base()[0])
    tensors = {name: x.copy() for name, x in load_file(tmp_path / "a" / peft.WEIGHTS_FILE).items()}
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    tensors[name][0, 0] = np.inf
    save_file(tensors, tmp_path / "a" / peft.WEIGHTS_FILE)
    with pytest.raises(InputError, match=f"(?s)finite weights.*{name}"):
        peft.load_adapter(tmp_path / "a", base()[0])
    tree["layers"]["attention"]["q"]["b"][1, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="(?s)finite weights.*layers/attention/q/b"):
        peft.save_adapter(tmp_path / "out", tree, spec, base()[0], base="", model_card="")
    assert not (tmp_path / "out").exists()


def test_missing_and_extra_tensors_are_listed(tmp_path):
    shutil.copytree(ADAPTERS / "lora", tmp_path / "a")
    tensors = load_file(ADAPTERS / "lora" / peft.WEIGHTS_FILE)
    gone = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    extra = {"base_model.model.lm_head.lora_A.weight": np.zeros((3, 32), np.float32)}
    save_file({k: v for k, v in tensors.items() if k != gone} | extra, tmp_path / "a" / peft.WEIGHTS_FILE)
    with pytest.raises(InputError, match="(?s)missing .*layers.1.self_attn.q_proj.lora_B.*extra .*lm_head"):
        peft.load_adapter(tmp_path / "a", base()[0])
    with pytest.raises(InputError, match="adapter_config.json"):
        peft.load_adapter(tmp_path, base()[0])


def test_adapters_loaded_together_are_what_they_are_alone(tmp_path):
    names = ["lora", "rslora"]
    spec, trees = peft.load_adapters({name: ADAPTERS / name for name in names}, base()[0])
    assert spec.scale == 1.0 and spec.rank == 4
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(trees[name] for name in names))
    together = jax.vmap(lambda tree: logits(base()[1] | {LORA: tree}, spec))(stacked)
    for got, name in zip(together, names, strict=True):
        np.testing.assert_allclose(got, values(name)["logits"], rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="DoRA on"):
        peft.load_adapters({name: ADAPTERS / name for name in NAMES}, base()[0])


def test_a_reference_of_another_scale_is_the_same_function():
    spec, tree = peft.load_adapter(ADAPTERS / "rslora", base()[0])
    policy = LoraSpec(8, 16.0, ("attention/q",))
    rescaled = peft.rescaled(tree, spec, policy)
    assert spec.scale != policy.scale
    got = logits(base()[1] | {LORA: rescaled}, policy)
    np.testing.assert_allclose(got, values("rslora")["logits"], rtol=1e-4, atol=1e-4)


PHI3 = {
    "model_type": "phi3", "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "original_max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": False,
}  # fmt: skip


def test_fused_weights_share_the_name_of_their_module():
    names = peft.target_names(spec_from_hf(PHI3, "config.json"))
    assert names["attention/q"] == ("q", "attention/q", "qkv_proj", "self_attn.qkv_proj")
    assert lora.find_targets(["qkv_proj"], names) == ("attention/q", "attention/k", "attention/v")
    assert lora.find_targets(["q", "o_proj"], names) == ("attention/q", "attention/o")


_PEFT_LOGITS = """
import sys, json, torch, peft, transformers
from safetensors.torch import save_file
base = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model = peft.PeftModel.from_pretrained(base, sys.argv[2]).eval()
with torch.no_grad():
    save_file({"logits": model(torch.tensor(json.loads(sys.argv[3]))).logits}, sys.argv[4])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [{}, {"rslora": True}, {"dora": True}, {"kind": "panacea", "objectives": 2}, {"kind": "pblora", "objectives": 2}],
)
def test_peft_loads_what_is_written(kind, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    spec = LoraSpec(3, 5.0, ("attention/q", "attention/o", "mlp/up", "mlp/down"), **kind)
    tree = lora.init(jax.random.key(0), base()[1], spec)
    moved = lambda x: x * 1.1 + 0.05 * jax.random.normal(jax.random.key(1), x.shape)
    tree = jax.tree.map(moved, tree)
    if spec.kind != "lora":
        tree, spec = adapter_at(tree, spec, (0.3, 0.7))
    peft.save_adapter(tmp_path / "out", tree, spec, base()[0], base="", model_card="# card")
    program = [sys.executable, "-c", _PEFT_LOGITS, str(GOLDEN / "llama_tiny"), str(tmp_path / "out"), str(IDS)]
    subprocess.run([*program, str(tmp_path / "logits")], check=True, timeout=600)
    wanted = load_file(tmp_path / "logits")["logits"]
    np.testing.assert_allclose(logits(base()[1] | {LORA: tree}, spec), wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(logits(base()[1], None) - wanted).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "case, kind", [("phi3", {"rslora": True}), ("gpt2", {"dora": True}), ("phi3", {"alphas": True})]
)
def test_peft_loads_what_is_written_for_fused_weights(case, kind, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    (tmp_path / "base").mkdir()
    source = open_checkpoint(write(case, tmp_path / "base"))
    model, params = source.spec, source.load_params()
    targets = ("attention/q", "attention/k", "attention/v", "attention/o", "mlp/down")
    if not kind.get("dora"):
        targets = ("attention/k", "attention/v", "attention/o", "mlp/up")
    alphas = (5.0, 5.0, 2.0, 7.0) if kind.pop("alphas", False) else ()
    spec = LoraSpec(3, 5.0, targets, alphas=alphas, **kind)
    tree = lora.init(jax.random.key(0), params, spec)
    moved = lambda x: x * 1.1 + 0.05 * jax.random.normal(jax.random.key(1), x.shape)
    tree = jax.tree.map(moved, tree)
    peft.save_adapter(tmp_path / "out", tree, spec, model, base="", model_card="# card")
    ids = str((np.array(IDS) % model.vocab).tolist())
    program = [sys.executable, "-c", _PEFT_LOGITS, str(tmp_path / "base"), str(tmp_path / "out"), ids]
    subprocess.run([*program, str(tmp_path / "logits")], check=True, timeout=600)
    wanted = load_file(tmp_path / "logits")["logits"]
    np.testing.assert_allclose(logits(params | {LORA: tree}, spec, model), wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(logits(params, None, model) - wanted).max() > 0.1


def test_the_base_that_an_adapter_names(tmp_path):
    directory = tmp_path / "adapter"
    directory.mkdir()
    write = lambda text: (directory / "adapter_config.json").write_text(text)
    write(json.dumps({"base_model_name_or_path": "org/base", "revision": "abc"}))
    assert peft.base_of(directory) == "org/base@abc"
    written = peft_config(LoraSpec(2, 4.0, ("attention/q",)), base()[0], "org/base@abc")
    assert (written["base_model_name_or_path"], written["revision"]) == ("org/base", "abc")
    write(json.dumps({"base_model_name_or_path": str(tmp_path), "revision": "abc"}))
    assert peft.base_of(directory) == str(tmp_path)
    write("{}")
    with pytest.raises(InputError, match="no base_model_name_or_path"):
        peft.base_of(directory)
    write("[1")
    with pytest.raises(InputError, match="a JSON file"):
        peft.base_of(directory)
