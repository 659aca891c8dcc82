"""PEFT adapters in and out: logits and gradients as PEFT's, and directories that PEFT loads."""

import json
import shutil
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpref.errors import InputError
from jaxpref.models import lora, peft
from jaxpref.models.decoder import build_model
from jaxpref.models.families import spec_from_hf
from jaxpref.models.lora import LoraSpec
from jaxpref.models.parameters import LORA
from jaxpref.models.peft.writer import _peft_config as peft_config
from jaxpref.models.source import open_checkpoint

pytestmark = pytest.mark.usefixtures("quick_compile")

GOLDEN = Path(__file__).parents[1] / "golden"
ADAPTERS = GOLDEN / "peft"
NAMES = ["lora", "rslora", "dora"]
IDS = json.loads((ADAPTERS / "versions.json").read_text())["ids"]


@cache
def base():
    source = open_checkpoint(GOLDEN / "llama_tiny")
    return source.spec, source.load_params()


@partial(jax.jit, static_argnums=1)
def logits(params, spec: LoraSpec | None):
    model = build_model(base()[0], attention_block=16, lora=spec)
    token_RL = np.pad(np.array(IDS, np.int32), ((0, 0), (0, 16 - len(IDS[0]))))
    position_RL = np.broadcast_to(np.arange(16, dtype=np.int32), token_RL.shape)
    hidden_RLD = model.hidden(params, token_RL, position_RL, np.full_like(token_RL, 16))
    return jnp.einsum("RLD,VD->RLV", hidden_RLD, model.head(params))[:, : len(IDS[0])]


@partial(jax.jit, static_argnums=1)
@partial(jax.grad, argnums=0)
def gradient(tree, spec: LoraSpec):
    logp_RLV = jax.nn.log_softmax(logits(base()[1] | {LORA: tree}, spec)[:, :-1])
    return jnp.take_along_axis(logp_RLV, np.array(IDS)[:, 1:, None], axis=-1).sum()


def values(name: str) -> dict[str, np.ndarray]:
    return load_file(ADAPTERS / f"{name}_values.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_pefts(name):
    spec, tree = peft.load_adapter(ADAPTERS / name, base()[0])
    wanted = values(name)["logits"]
    np.testing.assert_allclose(logits(base()[1] | {LORA: tree}, spec), wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(logits(base()[1], None) - wanted).max() > 0.1, "the adapter does nothing"
    unlike = LoraSpec(spec.rank, spec.alpha, spec.targets, rslora=not spec.rslora)
    assert np.abs(logits(base()[1] | {LORA: tree}, unlike) - wanted).max() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_pefts(name, tmp_path):
    spec, tree = peft.load_adapter(ADAPTERS / name, base()[0])
    peft.save_adapter(tmp_path / "g", gradient(tree, spec), spec, base()[0], base="", model_card="")
    got, wanted = load_file(tmp_path / "g" / peft.WEIGHTS_FILE), values(name)
    assert got.keys() == wanted.keys() - {"logits"}
    for tensor, value in got.items():
        np.testing.assert_allclose(value, wanted[tensor], rtol=1e-3, atol=1e-3 * np.abs(wanted[tensor]).max())


@pytest.mark.parametrize("name", NAMES)
def test_writing_gives_back_what_was_read(name, tmp_path):
    spec, tree = peft.load_adapter(ADAPTERS / name, base()[0])
    peft.save_adapter(tmp_path / "out", tree, spec, base()[0], base="org/base", model_card="# card")
    read, written = (load_file(d / peft.WEIGHTS_FILE) for d in (ADAPTERS / name, tmp_path / "out"))
    assert read.keys() == written.keys() and all(np.array_equal(read[k], written[k]) for k in read)
    assert peft.read_spec(tmp_path / "out", base()[0]) == spec
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
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"some_new_method": 3}, "some_new_method"),
        ({"r": 5}, "misshaped"),
        ({"use_dora": True}, "missing .*lora_magnitude_vector"),
    ],
)
def test_what_is_not_implemented_is_named(change, message, tmp_path):
    shutil.copytree(ADAPTERS / "lora", tmp_path / "a")
    path = tmp_path / "a" / peft.CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        peft.load_adapter(tmp_path / "a", base()[0])


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
    rescaled = peft.rescaled(tree, spec.scale / policy.scale)
    assert spec.scale != policy.scale
    got = logits(base()[1] | {LORA: rescaled}, policy)
    np.testing.assert_allclose(got, values("rslora")["logits"], rtol=1e-4, atol=1e-4)


PHI3 = {
    "model_type": "phi3", "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "original_max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": False,
}  # fmt: skip


def test_fused_weights_have_names_of_their_own_only_and_no_peft_directory(tmp_path):
    model = spec_from_hf(PHI3, "config.json")
    names = peft.target_names(model)
    assert names["attention/q"] == ("q", "attention/q") and "o_proj" in names["attention/o"]
    with pytest.raises(InputError, match="qkv_proj"):
        lora.find_targets(["qkv_proj"], names)
    targets = lora.find_targets(["q", "o_proj"], names)
    assert targets == ("attention/q", "attention/o")
    with pytest.raises(InputError, match="attention/q, which phi3 holds fused"):
        peft.save_adapter(tmp_path / "out", {}, LoraSpec(2, 2.0, targets), model, base="", model_card="")


_PEFT_LOGITS = """
import sys, json, torch, peft, transformers
from safetensors.torch import save_file
base = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model = peft.PeftModel.from_pretrained(base, sys.argv[2]).eval()
with torch.no_grad():
    save_file({"logits": model(torch.tensor(json.loads(sys.argv[3]))).logits}, sys.argv[4])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{}, {"rslora": True}, {"dora": True}])
def test_peft_loads_what_is_written(kind, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    spec = LoraSpec(3, 5.0, ("attention/q", "attention/o", "mlp/up", "mlp/down"), **kind)
    tree = lora.init(jax.random.key(0), base()[1]["layers"], spec)
    moved = lambda x: x * 1.1 + 0.05 * jax.random.normal(jax.random.key(1), x.shape)
    tree = jax.tree.map(moved, tree)
    peft.save_adapter(tmp_path / "out", tree, spec, base()[0], base="", model_card="# card")
    program = [sys.executable, "-c", _PEFT_LOGITS, str(GOLDEN / "llama_tiny"), str(tmp_path / "out"), str(IDS)]
    subprocess.run([*program, str(tmp_path / "logits")], check=True, timeout=600)
    wanted = load_file(tmp_path / "logits")["logits"]
    np.testing.assert_allclose(logits(base()[1] | {LORA: tree}, spec), wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(logits(base()[1], None) - wanted).max() > 0.1


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
