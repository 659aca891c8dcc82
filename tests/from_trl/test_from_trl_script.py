"""Translations of Python scripts: settings that load, and a comment for whatever is not known."""

import pytest
from translations import comments, loaded, translated, written

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


VALUES_OF_A_SCRIPT = """
NAME, SIZE = "a", 0.5
MODEL: str = "org/" + "model"
LR = 5e-7
MORE = {"beta": 0.2, "seed": int(os.environ["SEED"]), "bf16": True}
COMMON = dict(learning_rate=LR * 2, lr_scheduler_kwargs={"min_lr": get_rate()}, lr_scheduler_type="cosine_with_min_lr")
LATER = {"loss_type": "ipo"}
LATER["loss_type"] = "hinge"
rows = load_dataset("a/b", split="train[:10%]")
held = load_dataset("a/b", split=f"train[10%:{12}%]")
args = DPOConfig(output_dir=f"runs/{MODEL}-{LR}", eval_strategy="epoch", **COMMON, **MORE, **LATER)
DPOTrainer(MODEL, ref_model="org/other", args=args, train_dataset=rows, eval_dataset=held,
    max_length=512, callbacks=[EarlyStoppingCallback(3)], optimizers=(mine, None), data_collator=pad)
"""


def test_values_that_a_script_puts_together(tmp_path):
    """Of f-strings, sums and dicts behind **; what is not known of them is said, and nothing is left out."""
    text = written(tmp_path, "dpo.py", VALUES_OF_A_SCRIPT)
    settings = loaded(text)
    assert settings["out"] == "runs/org/model-5e-07" and settings["optim"]["learning_rate"] == 1e-6
    assert settings["objective"] == [{"name": "dpo", "beta": 0.2}] and settings["model"]["compute_dtype"] == "bfloat16"
    assert settings["data"]["train_split"] == "train[:10%]" and settings["data"]["eval_split"] == "train[10%:12%]"
    assert settings["data"]["max_length"] == 512 and settings["reference"] == {"path": "org/other"}
    left = {name: why for name, _, why in (line.partition(": ") for line in comments(text) if " -- " in line)}
    assert set(left) == {"seed", "**LATER", "lr_scheduler_kwargs", "callbacks", "optimizers", "data_collator"}
    assert "jaxpref.EarlyStopping" in left["callbacks"] and "set it by hand" in left["**LATER"]


OF_ONE_DPO = {"objective": [{"name": "dpo", "beta": 0.2}], "model": {"path": "a/model", "compute_dtype": "bfloat16"}}


@pytest.mark.parametrize(
    "text",
    [
        # before DPOConfig
        """
model = AutoModelForCausalLM.from_pretrained("a/model", torch_dtype=torch.bfloat16, load_in_4bit=True)
args = TrainingArguments(output_dir="o", warmup_steps=3)
DPOTrainer(model, None, args=args, beta=0.2, peft_config=LoraConfig(r=4, target_modules="all-linear"))
""",
        # unsloth's
        """
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name="a/model", dtype=torch.bfloat16, load_in_4bit=True)
model = FastLanguageModel.get_peft_model(model, r=4, lora_alpha=8)
DPOTrainer(model=model, args=DPOConfig("o", beta=0.2, learning_rate=5e-5, warmup_steps=3))
""",
    ],
)
def test_scripts_of_other_makes(tmp_path, text):
    settings = loaded(written(tmp_path, "dpo.py", text))
    assert {key: settings[key] for key in OF_ONE_DPO} == OF_ONE_DPO
    assert settings["adapter"] == {"rank": 4, "alpha": 8.0, "quantize": "nf4"}
    assert settings["optim"] == {"learning_rate": 5e-5, "warmup_steps": 3} and settings["out"] == "o"


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


def test_options_that_are_set_once_the_config_is_made(tmp_path):
    """They hold, whatever was said before; under a condition, what holds only the run knows."""
    set_later = """args.beta = 0.7
args.seed = pick()
if debug:
    args.max_steps = 3
model.config.use_cache = False
"""
    script = SCRIPT.replace("DPOTrainer(\n", f"{set_later}DPOTrainer(\n")
    text = written(tmp_path, "dpo.py", script)
    settings = loaded(text)
    assert settings["objective"][0]["beta"] == 0.7 and "max_steps" not in settings["train"]
    said = comments(text)
    assert any("seed" in line and "pick()" in line for line in said)
    assert any("args.max_steps = 3" in line and "condition" in line for line in said)
    assert not any("use_cache" in line for line in said)
