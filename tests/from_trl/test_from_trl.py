"""Translations of TRL's YAML and commands, and of axolotl's YAML: settings that load, and comments."""

import json
from pathlib import Path

import pytest
from translations import comments, loaded, translated, written

from jaxpref import cli
from jaxpref.errors import InputError
from jaxpref.from_trl.translate import DEFAULTS
from jaxpref.settings import load_config

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/trl_options.json").read_text())["options"]


LOSSES = {
    "trl dpo --rpo_alpha 0.2": [{"name": "dpo", "beta": 0.1}, {"name": "sft", "weight": 0.2}],
    "trl dpo --loss_type robust --label_smoothing 0.1 --beta 0.5": [{"name": "rdpo", "beta": 0.5, "eps": 0.1}],
    "trl dpo --loss_type ipo --ld_alpha 0.5": [
        {"name": "ipo", "beta": 0.1, "transform": {"name": "ld", "alpha": 0.5}},
    ],
    "trl dpo --f_divergence_type alpha_divergence --f_alpha_divergence_coef 1.0": [{"name": "dpo", "beta": 0.1}],
    "trl dpo --use_weighting": [{"name": "wpo", "beta": 0.1}],
    "python cpo.py --loss_type simpo --cpo_alpha 0 --beta 2 --simpo_gamma 1": [
        {"name": "simpo", "beta": 2, "gamma": 1},
    ],
    "python examples/scripts/orpo.py --beta 0.2": [{"name": "orpo_with_prompt", "lam": 0.2}],
    "trl reward --center_rewards_coefficient 0.01": [{"name": "bradley_terry", "centering": 0.01}],
    "trl dpo --loss_type sigmoid bco_pair sft --loss_weights 0.8 0.2 1.0": [
        {"name": "dpo", "beta": 0.1, "weight": 0.8},
        {"name": "bco_pair", "beta": 0.1, "weight": 0.2},
        {"name": "sft"},
    ],
}


@pytest.mark.parametrize("command, wanted", LOSSES.items())
def test_losses(command, wanted):
    assert loaded(translated([*command.split(), "--output_dir", "o"]))["objective"] == wanted


def test_the_devices_of_a_launcher():
    launch = "accelerate launch --num_processes 8 dpo.py --gradient_accumulation_steps=4 --eval_strategy no"
    settings = loaded(translated(launch.split()))
    assert settings["train"]["batch_size"] == 8 * 4 * 8 and settings["mesh"] == {"fsdp": 8}
    settings = loaded(translated("torchrun --nproc_per_node=2 dpo.py --per_device_train_batch_size 1".split()))
    assert settings["train"]["batch_size"] == 2 and settings["mesh"] == {"fsdp": 2}


def test_yaml_of_trls_command(tmp_path):
    text = "model_name_or_path: c/d\ndataset_name: a/b\nlearning_rate: 1e-5\nbeta: 0.2\nuse_peft: true\n"
    settings = loaded(written(tmp_path, "c.yaml", text, trainer="kto"))
    assert settings["objective"] == [{"name": "kto", "beta": 0.2}]
    assert settings["adapter"] == {"rank": 16, "alpha": 32.0, "dropout": 0.05, "targets": ["q_proj", "v_proj"]}
    assert settings["optim"]["learning_rate"] == 1e-5


def test_the_yaml_that_a_command_reads(tmp_path, monkeypatch):
    """The command goes before it; `no_` and lists of datasets are read as TRL reads them."""
    text = "model_name_or_path: c/d\nbeta: 0.2\nlearning_rate: 1e-5\nno_remove_unused_columns: true\n"
    text += "datasets: [{path: a/b, split: 'train[:5%]'}, {path: a/c, split: 'train[:5%]', columns: [chosen]}]\n"
    (tmp_path / "c.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    text = translated("trl cpo --config c.yaml --beta 0.3 --loss_type simpo --cpo_alpha 0".split())
    settings = loaded(text)
    assert settings["objective"] == [{"name": "simpo", "beta": 0.3, "gamma": 0.5}]
    assert settings["data"] == {"train": ["a/b", "a/c"], "train_split": "train[:5%]"}
    assert settings["optim"]["learning_rate"] == 1e-5 and " -- " not in text
    assert "a/c: how its rows are read (columns)" in " ".join(comments(text))
    elsewhere = translated("trl dpo --config other.yaml --model_name_or_path c/d".split())
    assert "other.yaml is not here" in " ".join(comments(elsewhere))


ASSUMED = {
    "model_name_or_path: c/d\n": "dpo is assumed; --trainer",
    "model_name_or_path: c/d\npacking: true\nbeta: 0.2\n": "dpo is assumed (it has beta); --trainer",
    "model_name_or_path: c/d\nbeta: 0.2\ndesirable_weight: 2\n": "kto is assumed (it has desirable_weight); --trainer",
}


@pytest.mark.parametrize("text, said", ASSUMED.items())
def test_a_trainer_that_is_assumed_is_said(tmp_path, capsys, text, said):
    """In the config, and on the terminal where the config is written to a file."""
    source, out = tmp_path / "c.yaml", tmp_path / "ours.yaml"
    source.write_text(text)
    assert cli.main(["from-trl", str(source), "--out", str(out)]) == 0
    remark = comments(out.read_text())[1]
    assert said in remark and remark in capsys.readouterr().out
    assert "assumed" not in written(tmp_path, "c.yaml", text, trainer="dpo")


def test_yaml_of_axolotl(tmp_path):
    text = """
base_model: meta-llama/Llama-3.2-1B
load_in_4bit: true
rl: kto
rl_beta: 0.5
kto_desirable_weight: 0.2
datasets:
  - {path: a/b, type: llama3.ultra, split: train}
val_set_size: 0.05
output_dir: ./out
adapter: qlora
sequence_len: 2048
lora_r: 32
lora_alpha: 64
lora_target_linear: true
wandb_project: mine
wandb_name:
gradient_accumulation_steps: 2
micro_batch_size: 4
num_epochs: 1
optimizer: adamw_8bit
lr_scheduler: cosine
learning_rate: 2e-4
bf16: auto
warmup_ratio: 0.1
saves_per_epoch: 4
flash_attention: true
"""
    text = written(tmp_path, "kto.yml", text)
    assert loaded(text) == {
        "out": "./out",
        "model": {"path": "meta-llama/Llama-3.2-1B"},
        "adapter": {"rank": 32, "alpha": 64.0, "quantize": "nf4"},
        "data": {"train": ["a/b"], "train_split": "train", "max_length": 2048},
        "objective": [{"name": "kto", "beta": 0.5, "desirable_weight": 0.2}],
        "optim": {
            "moment_dtype": "bfloat16",
            "learning_rate": 2e-4,
            "schedule": "cosine",
            "warmup_ratio": 0.1,
        },
        "train": {"batch_size": 8, "epochs": 1.0, "seed": 42, "log_every": 500, "save_every": "epoch/4"},
        "log": {"wandb": True, "project": "mine"},
    }
    said = " ".join(comments(text))
    assert "val_set_size: 0.05 -- name held-out data in data.eval" in said and "flash_attention" in said


def test_adapters_of_axolotl_that_are_none_here(tmp_path):
    given = "base_model: m\nrl: dpo\ndatasets: [{path: d}]\nadapter: llama-adapter\nload_in_8bit: true\n"
    text = written(tmp_path, "axolotl.yaml", given)
    assert "adapter" not in loaded(text)
    said = "\n".join(comments(text))
    assert "adapter: llama-adapter has no counterpart" in said and "load_in_8bit is left out" in said


def test_yaml_of_axolotl_that_holds_data_out(tmp_path):
    text = """
base_model: a/b
rl: simpo
rl_beta: 2.0
simpo_gamma: 1.0
datasets:
  - {path: c/d, type: chat_template.argilla}
  - {data_files: [e.jsonl], ds_type: json, type: chatml.intel, split: "train[:9]"}
test_datasets:
  - {path: c/d, split: "test[:5%]"}
output_dir: o
learning_rate: 8e-6
lr_scheduler: cosine
cosine_min_lr_ratio: 0.1
fsdp: [full_shard]
"""
    translation = written(tmp_path, "simpo.yml", text + "eval_steps: 10\n")
    settings, said = loaded(translation), " ".join(comments(translation))
    assert settings["data"] == {"train": ["c/d", "e.jsonl"], "eval": ["c/d"], "eval_split": "test[:5%]"}
    assert settings["train"]["eval_every"] == 10 and settings["train"]["save_every"] == "epoch"
    # axolotl leaves cpo_alpha at TRL's default
    assert settings["objective"] == [{"name": "cpo_simpo", "beta": 2.0, "gamma": 1.0, "alpha": 1.0}]
    assert "SimPO alone is objective" in said and "e.jsonl: how its rows are read (type)" in said
    assert "split differs among the datasets (None, train[:9])" in said and "fsdp: ['full_shard'] -- set mesh" in said
    assert settings["optim"]["min_ratio"] == 0.1
    settings = loaded(written(tmp_path, "simpo.yml", text + "cpo_alpha: 0\nsave_steps: 7\n"))
    assert settings["objective"] == [{"name": "simpo", "beta": 2.0, "gamma": 1.0}]
    assert settings["train"]["save_every"] == 7 and settings["train"]["eval_every"] == "epoch"


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("a.py", "def broken(:\n", "a.py, line 1"),
        ("a.py", "print('no trainer')\n", "DPOConfig"),
        ("a.yaml", "a: [1,\n", "line"),
        ("a.yaml", "nothing: known\n", "model_name_or_path"),
        ("a.yaml", "base_model: x\nrl: grpo\n", "trainer 'grpo'"),
        ("a.yaml", "output_dir: x\nmax_seq_length: 8\npacking: true\n", "'sft' (it has packing, max_seq_length)"),
        ("a.sh", "trl sft --packing true\n", "trainer 'sft'"),
        ("a.sh", "python trl/scripts/online_dpo.py --beta 0.1\n", "trainer 'online_dpo'"),
        ("a.sh", "echo hello\n", "none"),
        ("a.yaml", "model_name_or_path: x\nloss_type: sigmod\n", "loss_type 'sigmod'"),
        ("a.yaml", "model_name_or_path: x\nlearning_rate: -1\n", "optim.learning_rate"),
    ],
)
def test_what_cannot_be_translated(tmp_path, name, text, said):
    with pytest.raises(InputError) as caught:
        written(tmp_path, name, text)
    assert said in str(caught.value)


def test_the_command_writes_a_config_and_nothing_over_another(tmp_path, capsys):
    out = tmp_path / "ours.yaml"
    arguments = ["from-trl", "--out", str(out), "--", "trl", "dpo", "--model_name_or_path", "c/d"]
    assert cli.main(arguments) == 0
    assert load_config(out).model.path == "c/d"
    assert cli.main(arguments) == 2 and "exists" in capsys.readouterr().err


def test_defaults_are_trls():
    """Of DPOConfig, in the list that was made of TRL; a learning rate of its own has RewardConfig."""
    assert {name: GOLDEN["DPOConfig"][name] for name in DEFAULTS} == DEFAULTS
    assert GOLDEN["RewardConfig"]["learning_rate"] == 1e-4
    assert {key: GOLDEN["ModelConfig"][key] for key in ("lora_r", "lora_alpha", "lora_dropout")} == {
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
    }


@pytest.mark.parametrize("trainer", ["dpo", "kto", "cpo", "orpo", "reward"])
def test_every_option_at_its_default_is_translated_or_asks_for_nothing(tmp_path, trainer):
    """A script may write them all down; then little is left, and each of it is said."""
    names = {"dpo": "DPOConfig", "kto": "KTOConfig", "cpo": "CPOConfig", "orpo": "ORPOConfig", "reward": "RewardConfig"}
    options = {**GOLDEN[names[trainer]], "output_dir": "o", "model_name_or_path": "c/d", "dataset_name": "a/b"}
    text = written(tmp_path, "all.yaml", json.dumps(options), trainer=trainer)
    settings = loaded(text)
    assert settings["objective"] == loaded(translated(["trl", trainer, "--output_dir", "o"]))["objective"]
    left = [line for line in comments(text) if " -- " in line]
    assert not [line for line in left if "has no counterpart" in line]
