"""Translations of TRL's scripts, YAML and commands, and of axolotl's YAML: settings that load, and comments."""

import json
from pathlib import Path

import pytest
import yaml

from jaxpref import cli
from jaxpref.errors import InputError
from jaxpref.from_trl import command
from jaxpref.from_trl.translate import DEFAULTS
from jaxpref.from_trl.writing import as_yaml
from jaxpref.settings import load_config, make_config

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/trl_options.json").read_text())["options"]


def translated(words, trainer=None):
    return as_yaml(command.translated(words, trainer))


def written(tmp_path, name, text, **options):
    path = tmp_path / name
    path.write_text(text)
    return translated([str(path)], **options)


def loaded(text):
    """The settings of a translation, which must be valid."""
    settings = yaml.safe_load(text)
    make_config(settings)
    return settings


def comments(text):
    joined = text.replace("\n#  ", "")
    return [line[2:] for line in joined.splitlines() if line.startswith("# ")]


SCRIPT = """
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import DPOConfig, DPOTrainer

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
model = AutoModelForCausalLM.from_pretrained(MODEL, quantization_config=quantization)
train = load_dataset("trl-lib/ultrafeedback_binarized", split="train")
test = load_dataset("trl-lib/ultrafeedback_binarized", split="test")
args = DPOConfig(
    output_dir="out/dpo",
    beta=0.3,
    loss_type=["sigmoid", "sft"],
    loss_weights=[1.0, 0.2],
    learning_rate=5e-6,
    lr_scheduler_type="cosine_with_min_lr",
    lr_scheduler_kwargs={"min_lr": 5e-7},
    warmup_steps=0.1,
    num_train_epochs=0.5,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=8,
    optim="paged_adamw_8bit",
    eval_strategy="steps",
    eval_steps=100,
    save_strategy="epoch",
    report_to=["wandb"],
    run_name="qwen-dpo",
    neftune_noise_alpha=5,
    dataloader_num_workers=8,
    logging_dir=get_dir(),
    fp16=False,
)
DPOTrainer(
    model,
    args=args,
    train_dataset=train,
    eval_dataset=test,
    peft_config=LoraConfig(r=32, lora_alpha=64, target_modules=["q_proj", "o_proj"], init_lora_weights="pissa"),
).train()
raise SystemExit("never run")
"""


def test_a_script_with_everything_in_it(tmp_path):
    text = written(tmp_path, "dpo.py", SCRIPT)
    assert loaded(text) == {
        "out": "out/dpo",
        "model": {"path": "Qwen/Qwen2.5-0.5B-Instruct"},
        "adapter": {"rank": 32, "alpha": 64.0, "targets": ["q_proj", "o_proj"], "quantize": "nf4"},
        "data": {
            "train": ["trl-lib/ultrafeedback_binarized"],
            "eval": ["trl-lib/ultrafeedback_binarized"],
            "eval_split": "test",
            "train_split": "train",
        },
        "objective": [{"name": "dpo", "beta": 0.3}, {"name": "sft", "weight": 0.2}],
        "optim": {
            "moment_dtype": "bfloat16",
            "learning_rate": 5e-6,
            "schedule": "cosine",
            "min_ratio": 0.1,
            "warmup_ratio": 0.1,
        },
        "train": {
            "eval_every": 100,
            "batch_size": 16,
            "epochs": 0.5,
            "seed": 42,
            "log_every": 10,
            "neftune_alpha": 5.0,
            "save_every": "epoch",
        },
        "log": {"wandb": True, "name": "qwen-dpo"},
    }
    left = [line for line in comments(text) if " -- " in line]
    assert [line.partition(":")[0] for line in left] == ["logging_dir", "dataloader_num_workers", "init_lora_weights"]
    assert "is known when the script runs" in left[0] and "get_dir()" in left[0]
    assert comments(text)[-1] == "Given, and asking for nothing: fp16" or "fp16" not in loaded(text)


FILES_OF_A_SCRIPT = """
from datasets import load_dataset, load_from_disk
from trl import DPOConfig, DPOTrainer
{}
DPOTrainer("a/b", args=DPOConfig(eval_strategy="steps", eval_steps=5), {})
"""


@pytest.mark.parametrize(
    ("loads", "given"),
    [
        # The trainer says which is which, whatever the splits are called.
        (
            'a = load_dataset("json", data_files="held.jsonl", split="train").select(range(8))\n'
            'b = load_dataset("json", data_files=["one.jsonl"], split="train")',
            "train_dataset=b, eval_dataset=a",
        ),
        (
            'rows = load_dataset("json", data_files={"train": "one.jsonl", "validation": "held.jsonl"})',
            'train_dataset=rows["train"], eval_dataset=rows["validation"]',
        ),
    ],
)
def test_files_that_a_script_trains_on_and_holds_out(tmp_path, loads, given):
    settings = loaded(written(tmp_path, "dpo.py", FILES_OF_A_SCRIPT.format(loads, given)))
    assert settings["data"] == {"train": ["one.jsonl"], "eval": ["held.jsonl"]}
    assert settings["train"]["eval_every"] == 5


def test_files_of_a_script_that_holds_nothing_out(tmp_path):
    loads = 'rows = load_dataset("json", data_files="one.jsonl")\nmore = load_from_disk("two")'
    text = written(tmp_path, "dpo.py", FILES_OF_A_SCRIPT.format(loads, "train_dataset=rows"))
    assert loaded(text)["data"] == {"train": ["one.jsonl"]}
    assert "line 5 reads two too: add it to data.train or .eval" in " ".join(comments(text))


def test_a_script_that_takes_options_from_its_command_line(tmp_path):
    """Those of the first command in the docstring; names that hold them in the script are not values."""
    script = '''"""Full:
    accelerate launch kto.py \\
        --dataset_name a/b --model_name_or_path c/d --learning_rate 5e-7 \\
        --no_remove_unused_columns --desirable_weight 1.33
LoRA:
    python kto.py --use_peft
"""
parser = HfArgumentParser((ScriptArguments, KTOConfig, ModelConfig))
script_args, training_args, model_args = parser.parse_args_into_dataclasses()
model = AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path)
dataset = load_dataset(script_args.dataset_name).map(lambda row: row)
'''
    text = written(tmp_path, "run.py", script)
    settings = loaded(text)
    assert settings["model"] == {"path": "c/d"} and settings["data"] == {"train": ["a/b"]}
    assert settings["objective"] == [{"name": "kto", "beta": 0.1, "desirable_weight": 1.33}]
    assert "adapter" not in settings and settings["train"]["epochs"] == 3.0
    said = " ".join(comments(text))
    assert "first command in its docstring" in said and "changes its rows (line 11" in said


OWN_OPTIONS = """
def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("-d", "--data-file", default="pairs.jsonl")
    parser.add_argument("--beta", type=float, required=True)
    parser.add_argument("--dora", action="store_true")
    return parser.parse_args()

options = parser.parse_args()
rows = load_dataset("json", data_files=options.data_file, split="train").train_test_split(test_size=0.1)
config = DPOConfig(output_dir="mine", beta=options.beta, learning_rate=5e-6, num_train_epochs=2)
DPOTrainer("a/b", args=config, peft_config=LoraConfig(use_dora=options.dora), train_dataset=rows["train"])
"""


def test_options_of_a_scripts_own(tmp_path, monkeypatch):
    """They have their defaults, or what a command says, which is read with the script that it starts."""
    text = written(tmp_path, "train.py", OWN_OPTIONS)
    settings, said = loaded(text), " ".join(comments(text))
    assert settings["data"]["train"] == ["pairs.jsonl"] and settings["train"]["epochs"] == 2
    assert "dora" not in settings["adapter"] and "options.beta -- is known when the script runs" in said
    assert "have their defaults (data_file, beta, dora)" in said and "name them in data.train and data.eval" in said

    monkeypatch.chdir(tmp_path)
    call = "accelerate launch --num_processes 2 train.py --data-file other.jsonl --beta 0.3 --dora"
    text = translated(call.split())
    settings = loaded(text)
    assert settings["data"]["train"] == ["other.jsonl"] and settings["objective"] == [{"name": "dpo", "beta": 0.3}]
    assert settings["adapter"]["dora"] and settings["mesh"] == {"fsdp": 2} and settings["out"] == "mine"
    assert settings["train"]["epochs"] == 2 and "defaults" not in " ".join(comments(text))
    (tmp_path / "shell").mkdir()
    (tmp_path / "shell/run.sh").write_text(call.replace("train.py", "../train.py"))
    assert loaded(translated(["shell/run.sh"])) == settings

    text = translated("python elsewhere.py --dataset_name a/b --model_name_or_path c/d --beta 0.2".split())
    assert "elsewhere.py is not here: its command alone was read" in " ".join(comments(text))


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
