"""Python scripts that train with TRL: parsed, never run."""

import ast
from typing import Any

from jaxpref.errors import InputError
from jaxpref.from_trl.command_line import commands_in, read_command
from jaxpref.from_trl.script_data import add_data
from jaxpref.from_trl.script_options import own_options, values_of_own
from jaxpref.from_trl.source import Source
from jaxpref.from_trl.syntax import (
    assigned,
    called,
    keywords_of,
    owner_of,
    value_of,
)

CONFIGS = {
    "DPOConfig": "dpo",
    "KTOConfig": "kto",
    "CPOConfig": "cpo",
    "ORPOConfig": "orpo",
    "RewardConfig": "reward",
}
"""TRL's class of options -> trainer."""
_TRAINERS = {name.removesuffix("Config"): trainer for name, trainer in CONFIGS.items()}

_PEFT = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "modules_to_save": "lora_modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "task_type": "lora_task_type",
    "bias": "lora_bias",
    "init_lora_weights": "init_lora_weights",
}
"""PEFT's name -> TRL's option."""
_PEFT_DEFAULTS = {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
_UNSLOTH_DEFAULTS = {
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "lora_target_modules": "all-linear",
}
_MODELS = (
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoPeftModelForCausalLM",
    "FastLanguageModel",
)
_MODEL = {name: name for name in ("attn_implementation", "load_in_4bit", "load_in_8bit")}
_MODEL |= {"revision": "model_revision", "torch_dtype": "dtype", "dtype": "dtype"}
"""transformers' name -> TRL's option."""
_BITS = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type")
_GIVEN_ELSEWHERE = (
    "args",
    "train_dataset",
    "eval_dataset",
    "tokenizer",
    "processing_class",
    "peft_config",
    "quantization_config",
)
"""Arguments of trainers that are read where the script makes them, or that have nothing to say."""
_PARSERS = ("HfArgumentParser", "TrlParser")
_PARSED = ("parse_args_and_config", "parse_args_into_dataclasses")
_CHANGES_ROWS = ("map", "filter", "shuffle", "select", "rename_column")


def read_script(text: str, where: str, command: Source | None = None) -> Source:
    """Options of a script, and of the command that starts it, which go before.

    Args:
        command: None: the first in the script's docstring, where it takes options from one.
    Errors: InputError for text that is no Python, and a script in which no trainer is found.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise InputError(
            "a Python script", f"{where}, line {error.lineno}: {error.msg}", "mend that line"
        ) from error
    source, values = command or Source(), assigned(tree)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    own = own_options(tree)
    if command is None and (own or any(called(call) in _PARSERS for call in calls)):
        _add_command(source, ast.get_docstring(tree) or "", where, own)
    values |= values_of_own(tree, own, source.options)
    for call in calls:
        name = called(call)
        if name in CONFIGS:
            source.trainer = CONFIGS[name]
            source.add(_first(call, values) | keywords_of(call, values))
        elif name in _PARSERS:
            classes = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
            source.trainer = next((CONFIGS[c] for c in CONFIGS if c in classes), source.trainer)
    for call in calls:
        _read_call(call, source, values)
    _set_later(tree, source, values)
    add_data(source, tree, values)
    if source.trainer is None:
        named = (_TRAINERS.get(called(call).removesuffix("Trainer")) for call in calls)
        source.trainer = next(filter(None, named), None)
    if source.trainer is None and command is None:
        raise InputError(
            f"a script with one of {', '.join(CONFIGS)}",
            f"{where}: none",
            "give the script that makes the trainer's config, or the command that starts it",
        )
    return source


def _first(call: ast.Call, values: dict[str, Any]) -> dict[str, Any]:
    """The one option that scripts give by its place."""
    return {"output_dir": value_of(call.args[0], values)} if call.args else {}


def _set_later(tree: ast.AST, source: Source, values: dict[str, Any]) -> None:
    """Options that are set on a config once it is made, which then hold whatever was said before.

    One under a condition is a remark.
    """
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    makers = (*CONFIGS, "TrainingArguments", *_PARSED)
    configs = {
        name.id
        for node in nodes
        if isinstance(node.value, ast.Call) and called(node.value) in makers
        for name in ast.walk(node.targets[0])
        if isinstance(name, ast.Name)
    }
    branches = [node for node in ast.walk(tree) if isinstance(node, ast.If | ast.Try | ast.For)]
    conditional = {id(inner) for branch in branches for inner in ast.walk(branch)}
    for node in nodes:
        [target, *_] = node.targets
        if not isinstance(target, ast.Attribute) or ast.unparse(target.value) not in configs:
            continue
        if id(node) in conditional:
            source.remarks.append(
                f"line {node.lineno} ({ast.unparse(node)}) depends on a condition: set it by hand"
            )
        else:
            source.options[target.attr] = value_of(node.value, values)


def _read_call(call: ast.Call, source: Source, values: dict[str, Any]) -> None:
    """What a single call says of model and adapter."""
    name, keywords = called(call), keywords_of(call, values)
    first = value_of(call.args[0], values) if call.args else None
    unsloth = name == "get_peft_model" and owner_of(call) == "FastLanguageModel"
    if name == "LoraConfig" or unsloth:
        keywords.pop("model", None)
        known = {_PEFT.get(key, f"peft {key}"): value for key, value in keywords.items()}
        defaults = _UNSLOTH_DEFAULTS if unsloth else _PEFT_DEFAULTS
        source.add({"use_peft": True, **defaults, **known})
    elif name == "BitsAndBytesConfig":
        source.add({key: value for key, value in keywords.items() if key in _BITS})
    elif name == "from_pretrained" and owner_of(call) in _MODELS:
        named = keywords.get("pretrained_model_name_or_path", keywords.get("model_name", first))
        _add_model(source, named, keywords)
    elif name.removesuffix("Trainer") in _TRAINERS:
        _add_trainer(source, keywords, first)
    elif name == "TrainingArguments":  # of versions that had no configs of their own
        source.add({"learning_rate": 5e-5} | _first(call, values) | keywords)
    elif name == "train_test_split":
        source.remarks.append(
            f"the script holds out a part of its rows (line {call.lineno}: "
            f"{ast.unparse(call.func)}): write both parts into files, and name them in data.train "
            "and data.eval"
        )
    elif name in _CHANGES_ROWS and isinstance(call.func, ast.Attribute):
        source.remarks.append(
            f"the script changes its rows (line {call.lineno}: {ast.unparse(call.func)}): write "
            "the rows that come out into a file, and name it in data.train"
        )


def _add_trainer(source: Source, keywords: dict[str, Any], first: Any) -> None:
    """What a trainer is given: models by name, options of older versions, and what is Python."""
    model = keywords.pop("model", first)
    if isinstance(model, str):
        source.add({"model_name_or_path": model})
    reference = keywords.pop("ref_model", None)
    if isinstance(reference, str):
        source.add({"ref_model": reference})
    source.add({key: v for key, v in keywords.items() if key not in _GIVEN_ELSEWHERE})


def _add_model(source: Source, model: Any, keywords: dict[str, Any]) -> None:
    before = source.options.get("model_name_or_path")
    if before is None and model is not None:
        source.add({"model_name_or_path": model})
    elif before is not None and model != before and isinstance(model, str):
        source.add({"ref_model": model})
    source.add({_MODEL[key]: value for key, value in keywords.items() if key in _MODEL})


def _add_command(source: Source, docstring: str, where: str, own: dict[str, Any]) -> None:
    """Options of the first command in the docstring, where the script takes them from one."""
    commands = commands_in(docstring)
    if not commands:
        defaults = f"; those of its own have their defaults ({', '.join(own)})" if own else ""
        source.remarks.append(
            f"the script takes options from its command line{defaults}: for others give the "
            f"command, jaxpref from-trl -- python {where} --option value"
        )
        return
    read = read_command(commands[0], where)
    source.add(read.options)
    source.ours |= read.ours
    source.remarks += read.remarks
    source.remarks.append(
        f"the script takes its options from the command line; these are of the first command in "
        f"its docstring: {' '.join(commands[0].split()):.200}"
    )
