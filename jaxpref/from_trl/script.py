"""Python scripts that train with TRL: parsed, never run."""

import ast
from collections.abc import Iterator
from typing import Any

from jaxpref.errors import InputError
from jaxpref.from_trl.command_line import commands_in, read_command
from jaxpref.from_trl.source import Source, Unknown

CONFIGS = {
    "DPOConfig": "dpo",
    "KTOConfig": "kto",
    "CPOConfig": "cpo",
    "ORPOConfig": "orpo",
    "RewardConfig": "reward",
}
"""TRL's class of options -> trainer."""

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
_MODELS = ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoPeftModelForCausalLM")
_PARSERS = ("HfArgumentParser", "TrlParser")
_CHANGES_ROWS = ("map", "filter", "shuffle", "select", "train_test_split", "rename_column")


def read_script(text: str, where: str) -> Source:
    """Options of a script, or of the first command in its docstring where they come from one.

    Errors: InputError for text that is no Python, and a script in which no trainer is found.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise InputError(
            "a Python script", f"{where}, line {error.lineno}: {error.msg}", "mend that line"
        ) from error
    source, values = Source(), dict(_assigned(tree))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    parsed = False
    for call in calls:
        name = _called(call)
        if name in CONFIGS:
            source.trainer = CONFIGS[name]
            source.add(_keywords(call, values))
        elif name in _PARSERS:
            parsed = True
            classes = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
            source.trainer = next((CONFIGS[c] for c in CONFIGS if c in classes), source.trainer)
    for call in calls:
        _read_call(call, source, values)
    if parsed or _called_somewhere(calls, "ArgumentParser"):
        _add_command(source, ast.get_docstring(tree) or "", where)
    trainers = {f"{name.removesuffix('Config')}Trainer": t for name, t in CONFIGS.items()}
    if source.trainer is None:
        named = (trainers.get(_called(call)) for call in calls)
        source.trainer = next(filter(None, named), None)
    if source.trainer is None:
        raise InputError(
            f"a script with one of {', '.join(CONFIGS)}",
            f"{where}: none",
            "give the script that makes the trainer's config, or the command that starts it",
        )
    return source


def _read_call(call: ast.Call, source: Source, values: dict[str, Any]) -> None:
    """What a single call says of model, data and adapter."""
    name, keywords = _called(call), _keywords(call, values)
    first = _value(call.args[0], values) if call.args else None
    if name == "LoraConfig":
        known = {_PEFT.get(key, f"peft {key}"): value for key, value in keywords.items()}
        source.add({"use_peft": True, **_PEFT_DEFAULTS, **known})
    elif name == "BitsAndBytesConfig":
        source.add({key: value for key, value in keywords.items() if key.startswith("load_in")})
    elif name == "from_pretrained" and _owner(call) in _MODELS:
        _add_model(source, keywords.get("pretrained_model_name_or_path", first), keywords)
    elif name == "load_dataset":
        _add_data(source, keywords.get("path", first), keywords, call, values)
    elif name.endswith("Trainer"):
        model = keywords.get("model", first)
        if isinstance(model, str):
            source.add({"model_name_or_path": model})
        for own in ("beta", "max_length", "max_prompt_length"):  # of older versions
            if own in keywords:
                source.add({own: keywords[own]})
    elif name in _CHANGES_ROWS and isinstance(call.func, ast.Attribute):
        source.remarks.append(
            f"the script changes its rows (line {call.lineno}: {ast.unparse(call.func)}): write "
            "the rows that come out into a file, and name it in data.train"
        )


def _add_model(source: Source, model: Any, keywords: dict[str, Any]) -> None:
    before = source.options.get("model_name_or_path")
    if before is None and model is not None:
        source.add({"model_name_or_path": model})
    elif before is not None and model != before and isinstance(model, str):
        source.add({"ref_model": model})
    for theirs, ours in (("revision", "model_revision"), ("attn_implementation",) * 2):
        if theirs in keywords:
            source.add({ours: keywords[theirs]})


def _add_data(
    source: Source, path: Any, keywords: dict[str, Any], call: ast.Call, values: dict[str, Any]
) -> None:
    config = keywords.get("name") or (_value(call.args[1], values) if len(call.args) > 1 else None)
    if path == "json" and "data_files" in keywords:
        path = keywords["data_files"]
    split = keywords.get("split")
    held_out = isinstance(split, str) and any(word in split for word in ("test", "eval", "valid"))
    which = "dataset_test_split" if held_out else "dataset_train_split"
    if "dataset_name" in source.options and path != source.options["dataset_name"]:
        source.remarks.append(f"line {call.lineno} reads {path} too: add it to data.train or .eval")
        return
    source.add({"dataset_name": path})
    if config is not None:
        source.add({"dataset_config": config})
    if split is not None:
        source.add({which: split})
        if held_out:
            source.add({"eval_strategy": "end"})


def _add_command(source: Source, docstring: str, where: str) -> None:
    """Options of the first command in the docstring, where the script takes them from one."""
    commands = commands_in(docstring)
    if not commands:
        source.remarks.append("the script takes options from its command line: give the command")
        return
    read = read_command(commands[0], where)
    source.add(read.options)
    source.ours |= read.ours
    source.remarks += read.remarks
    source.remarks.append(
        f"the script takes its options from the command line; these are of the first command in "
        f"its docstring: {' '.join(commands[0].split()):.200}"
    )


# ---- the syntax tree


def _assigned(tree: ast.AST) -> Iterator[tuple[str, Any]]:
    """Names that are given a constant once."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(node.value)
    for name, given in found.items():
        if len(given) == 1:
            try:
                yield name, ast.literal_eval(given[0])
            except ValueError:
                continue


def _called(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _called_somewhere(calls: list[ast.Call], name: str) -> bool:
    return any(_called(call) == name for call in calls)


def _owner(call: ast.Call) -> str:
    """The class of a class method that is called."""
    return ast.unparse(call.func).split(".")[-2] if isinstance(call.func, ast.Attribute) else ""


def _keywords(call: ast.Call, values: dict[str, Any]) -> dict[str, Any]:
    return {item.arg: _value(item.value, values) for item in call.keywords if item.arg}


def _value(node: ast.expr, values: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name) and node.id in values:
        return values[node.id]
    try:
        return ast.literal_eval(node)
    except ValueError:
        text = ast.unparse(node)
        return text if text.startswith("torch.") else Unknown(text)
