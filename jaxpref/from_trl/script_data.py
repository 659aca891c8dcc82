"""What a script trains on and what it holds out, as its calls of `load_dataset` say."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxpref.from_trl.source import Source, Unknown
from jaxpref.from_trl.syntax import called, keywords_of, value_of

_LOADERS = ("load_dataset", "load_from_disk")
_KINDS_OF_FILES = ("json", "parquet", "csv", "text", "arrow")
"""Names that stand for the files in `data_files` rather than for a dataset."""
_HELD_OUT = ("test", "eval", "valid")


@dataclass
class _Loaded:
    """A call of a loader."""

    line: int
    path: Any
    """A dataset, or a list of files."""
    config: Any = None
    split: Any = None
    held_out: bool = False


def add_data(source: Source, tree: ast.AST, values: dict[str, Any]) -> None:
    """The options of the datasets that the script loads; of further ones a remark."""
    held_out_names = _held_out_names(tree)
    names = dict(_names_of_calls(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) in _LOADERS:
            for loaded in _loaded(node, values, names.get(node) in held_out_names):
                _add(source, loaded)


def _loaded(call: ast.Call, values: dict[str, Any], held_out: bool) -> list[_Loaded]:
    """What a call loads: files for training and files to hold out are two."""
    keywords = keywords_of(call, values)
    positional = [value_of(argument, values) for argument in call.args[:2]]
    path, config, *_ = [*positional, None, None]
    path, config = keywords.get("path", path), keywords.get("name", config)
    files = keywords.get("data_files")
    if path in _KINDS_OF_FILES and isinstance(files, Mapping):
        return [
            _Loaded(call.lineno, _listed(f), held_out=_names_held_out(s)) for s, f in files.items()
        ]
    if path in _KINDS_OF_FILES and files is not None:
        return [_Loaded(call.lineno, _listed(files), held_out=held_out)]
    split = keywords.get("split")
    return [_Loaded(call.lineno, path, config, split, held_out or _names_held_out(split))]


def _add(source: Source, loaded: _Loaded) -> None:
    options, path = source.options, loaded.path
    name = "test_datasets" if loaded.held_out else "dataset_name"
    split = "dataset_test_split" if loaded.held_out else "dataset_train_split"
    if isinstance(path, Unknown) and path.text.endswith(".dataset_name") and name in options:
        return  # what the option of that name says
    if options.get(name, path) != path:
        shown = ", ".join(path) if isinstance(path, list) else path
        key = "data.eval" if loaded.held_out else "data.train or .eval"
        source.remarks.append(f"line {loaded.line} reads {shown} too: add it to {key}")
        return
    source.add({name: path})
    if loaded.config is not None:
        source.add({"dataset_config": loaded.config})
    if loaded.split is not None:
        source.add({split: loaded.split})
    if loaded.held_out:
        source.add({"eval_strategy": "end"})


def _listed(files: Any) -> Any:
    return [files] if isinstance(files, str) else files


def _names_held_out(split: Any) -> bool:
    return isinstance(split, str) and any(word in split for word in _HELD_OUT)


def _held_out_names(tree: ast.AST) -> set[str]:
    """Names of datasets that a trainer evaluates on and does not train on."""
    given: dict[str, set[str]] = {"train_dataset": set(), "eval_dataset": set()}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in given:
            inside = ast.walk(node.value)
            given[node.arg] |= {part.id for part in inside if isinstance(part, ast.Name)}
    return given["eval_dataset"] - given["train_dataset"]


def _names_of_calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Each call with the name that its result is given, or what is made of it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            for part in ast.walk(node.value):
                if isinstance(part, ast.Call):
                    yield part, node.targets[0].id
