"""axolotl's YAML: its options under the names that TRL has for them."""

from collections.abc import Mapping
from typing import Any

from jaxpref.from_trl.dataset_lists import add_datasets
from jaxpref.from_trl.source import Source

_NAMES = {
    "base_model": "model_name_or_path",
    "revision_of_model": "model_revision",
    "sequence_len": "max_length",
    "micro_batch_size": "per_device_train_batch_size",
    "num_epochs": "num_train_epochs",
    "optimizer": "optim",
    "lr_scheduler": "lr_scheduler_type",
    "rl_beta": "beta",
    "kto_desirable_weight": "desirable_weight",
    "kto_undesirable_weight": "undesirable_weight",
    "orpo_alpha": "beta",
    "dpo_label_smoothing": "label_smoothing",
    "dpo_use_weighting": "use_weighting",
    "lora_target_modules": "lora_target_modules",
    "peft_use_rslora": "use_rslora",
    "peft_use_dora": "use_dora",
    "wandb_name": "run_name",
    "wandb_project": "project",
    "rl": "trainer",
}
"""axolotl's name -> TRL's."""
_DEFAULTS = {
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 1,
    "logging_steps": 500,
    "learning_rate": None,
    "seed": 42,
    "save_strategy": "epoch",
}
_LOSSES: dict[str, dict[str, Any]] = {
    "ipo": {"loss_type": ["ipo"]},
    "simpo": {"loss_type": "simpo"},
}
_TRAINERS = {"dpo": "dpo", "ipo": "dpo", "kto": "kto", "orpo": "orpo", "simpo": "cpo"}


def is_axolotl(settings: Mapping[str, Any]) -> bool:
    """Whether a YAML file is one of axolotl's."""
    return "base_model" in settings


def read_axolotl(settings: Mapping[str, Any]) -> Source:
    """Options of a YAML file; what is empty there is not set."""
    given = {key: value for key, value in settings.items() if value not in (None, "")}
    source = Source()
    rl = given.pop("rl", None)
    source.trainer = "reward" if given.pop("reward_model", False) else _TRAINERS.get(rl, rl)
    if source.trainer is None:
        source.trainer = "sft"
    options: dict[str, Any] = {**_DEFAULTS, **_LOSSES.get(rl, {})}
    options = {name: value for name, value in options.items() if value is not None}
    adapter = given.pop("adapter", None)
    if adapter in ("lora", "qlora"):
        options |= {"use_peft": True, "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
    else:
        if adapter:
            source.remarks.append(f"adapter: {adapter} has no counterpart; adapter.rank is LoRA's")
        for name in ("load_in_4bit", "load_in_8bit"):
            if given.pop(name, None):
                source.remarks.append(f"{name} is left out: adapter.quantize is for LoRA")
    if given.pop("lora_target_linear", False):
        options["lora_target_modules"] = "all-linear"
    add_datasets(source, options, given.pop("datasets", []), "dataset_name", "dataset_train_split")
    tests = given.pop("test_datasets", [])
    add_datasets(source, options, tests, "test_datasets", "dataset_test_split")
    for key in ("evals_per_epoch", "saves_per_epoch"):
        times = given.pop(key, None)
        if isinstance(times, int) and times > 0:
            interval = "epoch" if times == 1 else f"epoch/{times}"
            source.ours[f"train.{key.removesuffix('s_per_epoch')}_every"] = interval
    if given.get("val_set_size") == 0:
        given.pop("val_set_size")
    if "wandb_project" in given:
        options["report_to"] = "wandb"
    if "cosine_min_lr_ratio" in given:
        options["lr_scheduler_kwargs"] = {"min_lr_rate": given.pop("cosine_min_lr_ratio")}
    if given.get("save_steps"):
        options["save_strategy"] = "steps"
    for name, value in given.items():
        options[_NAMES.get(name, name)] = value
    if "test_datasets" in options and "eval_strategy" not in given:
        options["eval_strategy"] = "steps" if given.get("eval_steps") else "epoch"
    if rl == "simpo" and "cpo_alpha" not in given:
        source.remarks.append(
            "axolotl's simpo adds the likelihood, as TRL's cpo_alpha is 1 by default; SimPO alone "
            "is objective: [{name: simpo}]"
        )
    source.options = options
    if "train.eval_every" in source.ours and "test_datasets" not in options:
        del source.ours["train.eval_every"]
        source.remarks.append("name held-out data in data.eval, then set train.eval_every: epoch")
    return source
