"""TRL's options as settings of ours: each one a key, a comment, or both."""

from typing import Any

from jaxpref.errors import InputError
from jaxpref.from_trl.losses import NoCounterpart, objectives
from jaxpref.from_trl.schedules import schedule_of
from jaxpref.from_trl.source import TRAINERS, Source
from jaxpref.from_trl.translation import Options, Translation
from jaxpref.settings.other_trainers import answer

DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 3.0,
    "learning_rate": 1e-6,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "seed": 42,
    "logging_steps": 10,
    "save_strategy": "steps",
    "save_steps": 500,
    "eval_strategy": "no",
    "report_to": "none",
    "gradient_checkpointing": True,
    "lr_scheduler_type": "linear",
    "optim": "adamw_torch_fused",
}
"""Of the options whose default matters to the translation."""
_REWARD_DEFAULTS = {"learning_rate": 1e-4}
_LORA_DEFAULTS = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}

_OPTIMIZERS = {"adamw": "adamw", "adafactor": "adafactor", "lion": "lion", "sgd": "sgd"}
_OPTIMIZERS |= {"muon": "muon", "paged_adamw": "adamw", "paged_lion": "lion"}
_DTYPES = {"bfloat16": "bfloat16", "float32": "float32", "auto": "auto", "float16": "bfloat16"}
_LOSS_OPTIONS = (
    "beta",
    "loss_type",
    "loss_weights",
    "rpo_alpha",
    "label_smoothing",
    "ld_alpha",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "use_weighting",
    "discopop_tau",
    "desirable_weight",
    "undesirable_weight",
    "cpo_alpha",
    "simpo_gamma",
    "alpha",
    "center_rewards_coefficient",
    "router_aux_loss_coef",
)
_OTHERWISE_HERE = {"fsdp": "set mesh.fsdp, a number of devices; mesh: auto takes all of them"}
"""Options under names that mean something else here."""
_ASKS_FOR_NOTHING = (None, False, "none", "", [])


def translate(source: Source, title: str) -> Translation:
    """The settings that train as the source's options do.

    Errors: InputError for a trainer without counterpart, and for values that TRL refuses too.
    """
    trainer, why = (source.trainer, "") if source.trainer else source.guess_trainer()
    if trainer not in TRAINERS:
        raise InputError(
            f"a config of one of TRL's trainers on preferences ({', '.join(TRAINERS)})",
            f"trainer {trainer!r}{why}",
            "give a config, script or command that learns from preferences, or name its trainer "
            "by --trainer",
        )
    made = Translation(title, remarks=list(source.remarks))
    if source.trainer is None:
        made.remarks.insert(
            0, f"no trainer is named: {trainer} is assumed{why}; --trainer names another"
        )
    own_defaults = _REWARD_DEFAULTS if trainer == "reward" else {}
    options = Options(source.options, made, DEFAULTS | own_defaults)
    _out_and_model(options)
    _adapter(options)
    _reference(options)
    _data(options, trainer)
    _objective(options, trainer)
    _optimizer(options)
    _train(options, devices=source.ours.get("mesh.fsdp", 1))
    _log(options)
    for key, value in source.ours.items():
        made.set(key, value)
    for name, value in options.rest().items():
        if any(value is nothing or value == nothing for nothing in _ASKS_FOR_NOTHING):
            made.nothing.append(name)
        else:
            said = _OTHERWISE_HERE.get(name) or answer(name) or "has no counterpart"
            made.left.append((name, value, said))
    return made


def _out_and_model(options: Options) -> None:
    made = options.made
    options.copy("output_dir", "out", str)
    model, revision = options.take("model_name_or_path"), options.take("model_revision", "main")
    if model is None:
        made.remarks.append("no model was found: set model.path")
    else:
        made.set("model.path", model if revision == "main" else f"{model}@{revision}")
    dtype = str(options.take("dtype") or options.take("torch_dtype") or "").removeprefix("torch.")
    bf16, fp16 = options.take("bf16"), options.take("fp16")
    if bf16 is True or dtype == "bfloat16":
        made.set("model.compute_dtype", "bfloat16", "parameters and moments stay float32")
    elif fp16 is True or dtype == "float16":
        made.set("model.compute_dtype", "bfloat16", "in place of float16, which there is none of")
    elif bf16 is False:
        made.set("model.compute_dtype", "float32")
    if options.take("gradient_checkpointing") is False:
        made.set("model.remat", "none")
    if not options.has("gradient_checkpointing_kwargs"):
        options.take("gradient_checkpointing_kwargs")


def _adapter(options: Options) -> None:
    made, asked = options.made, options.take("use_peft", False)
    names = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora")
    if not asked and not options.has("lora_model_dir"):
        for name in (*names, "use_dora", "lora_task_type", "load_in_4bit", "load_in_8bit"):
            options.leave(name, "has no effect without use_peft")
        return
    if options.has("lora_model_dir"):
        options.copy("lora_model_dir", "adapter.path")
        for name in (*names, "use_dora"):
            options.take(name)
    else:
        rank, alpha = (options.take(n, _LORA_DEFAULTS[n]) for n in ("lora_r", "lora_alpha"))
        made.set("adapter.rank", rank)
        made.set("adapter.alpha", float(alpha))
        dropout = options.take("lora_dropout", _LORA_DEFAULTS["lora_dropout"])
        if dropout:
            made.set("adapter.dropout", dropout)
        targets = options.take("lora_target_modules")
        if targets is None:
            note = "PEFT's default for most models; without this line all weights of the layers"
            made.set("adapter.targets", ["q_proj", "v_proj"], note)
        elif targets not in ("all-linear", ["all-linear"]):
            made.set("adapter.targets", [targets] if isinstance(targets, str) else list(targets))
        for name, key in (("use_rslora", "adapter.rslora"), ("use_dora", "adapter.dora")):
            if options.take(name):
                made.set(key, True)
    options.take("lora_task_type")
    bits = {"load_in_4bit": "nf4", "load_in_8bit": "int8"}
    for name, quantised in bits.items():
        if options.take(name):
            if options.take("bnb_4bit_quant_type", "nf4") == "fp4":
                made.remarks.append("fp4 is not there: nf4 is in its place")
            made.set("adapter.quantize", quantised)


def _reference(options: Options) -> None:
    made = options.made
    options.copy("ref_model", "reference.path")
    if options.take("precompute_ref_log_probs"):
        made.set("reference.mode", "cache")
    if options.take("sync_ref_model"):
        made.set("reference.sync_every", options.take("ref_model_sync_steps", 512))
        made.set("reference.sync_alpha", options.take("ref_model_mixup_alpha", 0.6))
    for name in ("ref_model_sync_steps", "ref_model_mixup_alpha"):
        options.leave(name, "has no effect without sync_ref_model")


def _data(options: Options, trainer: str) -> None:
    made, strategy = options.made, options.take("eval_strategy")
    path = options.take("dataset_name") or options.take("datasets")
    if path is None:
        made.remarks.append("no data was found: set data.train")
    else:
        made.set("data.train", path if isinstance(path, list) else [path])
    # A dataset has a test split, which is what data.eval reads of it; files have none.
    held_out = options.take("test_datasets") or (None if isinstance(path, list) else path)
    split = options.take("dataset_test_split")
    if strategy not in ("no", False) and held_out is not None:
        made.set("data.eval", held_out if isinstance(held_out, list) else [held_out])
        if split is not None:
            made.set("data.eval_split", split)
    options.copy("dataset_config", "data.config_name")
    options.copy("dataset_train_split", "data.train_split")
    options.copy("truncation_mode", "data.truncation")
    if options.has("max_length"):
        length = options.take("max_length")
        made.set("data.max_length", length)
    if trainer == "kto" and not options.has("train_sampling_strategy"):
        made.remarks.append("TRL's KTOTrainer keeps the order of the rows; here they are shuffled")
    sampling = options.take("train_sampling_strategy", "random")
    if sampling == "sequential":
        made.set("data.shuffle", False)
    if "data.eval" not in made.settings:
        later = "set train.eval_every to it, with data.eval"
        without = "has no effect without evaluations (eval_strategy) and data"
        options.leave("eval_steps", later if strategy == "steps" else without)
    elif strategy == "epoch":
        made.set("train.eval_every", "epoch")
    elif strategy == "steps":
        steps = options.take("eval_steps") or options.take("logging_steps")
        _steps(options, "train.eval_every", steps)


def _steps(options: Options, key: str, steps: Any) -> None:
    """An interval of steps; below 1 it is a share of all steps in transformers."""
    if isinstance(steps, float) and not steps.is_integer():
        note = f"{steps:g} of all steps in transformers; here by the epoch"
        options.made.set(key, "epoch", note)
    else:
        options.made.set(key, int(steps))


def _objective(options: Options, trainer: str) -> None:
    made = options.made
    given = {name: options.take(name) for name in _LOSS_OPTIONS if options.has(name)}
    try:
        made.set("objective", objectives(trainer, given))
    except NoCounterpart as why:
        left = {"use_weighting", "ld_alpha"} & given.keys()
        rest = {name: value for name, value in given.items() if name not in left}
        made.set("objective", objectives(trainer, rest))
        made.left += [(name, given[name], str(why)) for name in sorted(left)]


def _optimizer(options: Options) -> None:
    made = options.made
    name = str(options.take("optim")).lower()
    family = next((ours for theirs, ours in _OPTIMIZERS.items() if name.startswith(theirs)), None)
    if family is None:
        made.left.append(("optim", name, "adamw is in its place; see optim.name"))
    elif family != "adamw":
        made.set("optim.name", family)
    if "8bit" in name:
        made.set("optim.moment_dtype", "bfloat16", f"{name}: there are no moments of 8 bits")
    made.set("optim.learning_rate", float(options.take("learning_rate")))
    for theirs, ours in (("adam_beta1", "b1"), ("adam_beta2", "b2"), ("adam_epsilon", "eps")):
        options.copy(theirs, f"optim.{ours}", float)
    options.copy("weight_decay", "optim.weight_decay", float)
    if options.has("max_grad_norm"):
        norm = options.take("max_grad_norm")
        made.set("optim.clip_norm", float(norm) if norm else None)
    settings, left = schedule_of(
        str(options.take("lr_scheduler_type")),
        options.take("lr_scheduler_kwargs") or {},
        peak=made.settings["optim.learning_rate"],
        steps=options.take("max_steps") if options.has("max_steps") else None,
    )
    for key, value in settings.items():
        made.set(key, value)
    made.left += left
    steps, ratio = options.take("warmup_steps"), options.take("warmup_ratio")
    if steps and steps < 1:
        ratio, steps = steps, None
    if steps:
        made.set("optim.warmup_steps", int(steps))
    elif ratio:
        made.set("optim.warmup_ratio", float(ratio))


def _train(options: Options, devices: int) -> None:
    made = options.made
    per_device = options.take("per_device_train_batch_size")
    accumulated = options.take("gradient_accumulation_steps")
    note = f"{per_device} per device * {accumulated} accumulated * {devices} devices"
    if devices == 1:
        note += "; multiply by yours"
    made.set("train.batch_size", int(per_device * accumulated * devices), note)
    epochs = float(options.take("num_train_epochs"))
    if made.settings.get("train.max_steps") is None:
        made.set("train.epochs", epochs)
    made.set("train.seed", options.take("seed"))
    _log_every(options)
    options.copy("neftune_noise_alpha", "train.neftune_alpha", float)
    strategy, steps = options.take("save_strategy"), options.take("save_steps")
    if strategy == "epoch":
        made.set("train.save_every", "epoch")
    elif strategy == "steps":
        _steps(options, "train.save_every", steps)
    elif strategy == "best":
        made.remarks.append("the best checkpoint is kept always: train.best_metric decides it")
    options.copy("save_total_limit", "train.keep", lambda limit: max(int(limit), 1))
    metric = options.take("metric_for_best_model")
    if metric is not None:
        made.set("train.best_metric", metric.replace("eval_", "eval/", 1))
    better = options.take("greater_is_better")
    if better is not None:
        made.set("train.best_mode", "max" if better else "min")
    if options.take("generate_during_eval") and "data.eval" in made.settings:
        made.set("train.samples", 4)
    options.take("load_best_model_at_end")
    options.take("resume_from_checkpoint")


def _log_every(options: Options) -> None:
    every = options.take("logging_steps")
    if options.take("logging_strategy", "steps") == "steps" and float(every) >= 1:
        options.made.set("train.log_every", int(every))


def _log(options: Options) -> None:
    made = options.made
    trackers = options.take("report_to")
    for tracker in [trackers] if isinstance(trackers, str) else trackers:
        if tracker in ("wandb", "trackio"):
            made.set(f"log.{tracker}", True)
        elif tracker == "all":
            made.left.append(("report_to", tracker, "set log.wandb or log.trackio"))
        elif tracker not in ("none", "tensorboard"):
            made.left.append(("report_to", tracker, "log.wandb and log.trackio are the trackers"))
    options.copy("run_name", "log.name")
    options.copy("project", "log.project")
    options.copy("trackio_project", "log.project")
    options.copy("wandb_entity", "log.entity")
    if options.take("disable_tqdm"):
        made.set("log.progress", False)
