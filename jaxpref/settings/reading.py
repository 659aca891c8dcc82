"""Configs as people write them: YAML and overrides, read, checked and written."""

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from jaxpref.config import Config
from jaxpref.errors import InputError
from jaxpref.fields import AUTO, objective_list
from jaxpref.settings.contradictions import contradictions
from jaxpref.settings.problems import described, location
from jaxpref.storage.paths import as_path

_OF_FUNCTIONS = (
    "a function may be an objective alone; one that rewards answers is named FILE.py:FUNCTION"
)

# ---- reading a config


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Config of a YAML file with `section.key=value` overrides.

    Errors: InputError listing every unknown key (with the nearest valid one), wrong type, value out
    of range and contradiction, all at once.
    """
    where = str(path) if path else "configuration"
    return make_config(merged_settings(path, overrides), where=where)


def merged_settings(path: str | Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """What stands in a YAML file, with overrides, not yet checked.

    Errors: InputError if it cannot be read.
    """
    if isinstance(overrides, str):
        raise InputError(
            "a list of overrides", f"overrides={overrides!r}", f"write overrides=[{overrides!r}]"
        )
    raw = {} if path is None else _read(path)
    bare = [item for item in overrides if "=" not in item]
    if bare:
        raise InputError("overrides like optim.learning_rate=1e-6", f"{bare}", "write key=value")
    if any(item.startswith("objective.") for item in overrides):  # reaches into the list
        raw = {**raw, "objective": objective_list(raw.get("objective", Config().objective))}
    try:
        merged = OmegaConf.create(raw)
        for item in overrides:
            key, _, text = item.partition("=")
            parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
            # `update` reaches into lists: objective.0.beta=0.3.
            merge = key != "data.eval"  # named sets are not added to others
            if key.startswith("mesh.") and merged.get("mesh") == AUTO:
                merged.mesh = {"fsdp": AUTO}  # what is short is written out, or it would be lost
            OmegaConf.update(merged, key, parsed["value"], merge=merge, force_add=True)
        settings: Any = OmegaConf.to_container(merged, resolve=True)
        return settings
    except OmegaConfBaseException as error:
        raise InputError(
            "overrides that fit the configuration",
            f"{overrides}: {error}",
            "set single keys, as optim.learning_rate=1e-6 (`jaxpref train --help` lists them)",
        ) from error


def _read(path: str | Path) -> dict[str, Any]:
    if not as_path(path).is_file():
        what = "a directory" if as_path(path).is_dir() else "no such file"
        raise InputError("a YAML file", f"{path}: {what}", "check the path's spelling")
    try:
        with as_path(path).open(encoding="utf-8") as file:
            raw: Any = OmegaConf.load(file)
    except Exception as error:  # yaml's own errors carry line and column
        raise InputError(
            "valid YAML", f"{path}: {error}", "mend the file at that line and column"
        ) from error
    if not OmegaConf.is_dict(raw):
        raise InputError(
            "a YAML mapping", f"{path}: a list or nothing", "write section: {key: value}"
        )
    read: Any = OmegaConf.to_container(raw)
    return read


def make_config(raw: Mapping[str, Any], *, where: str = "configuration") -> Config:
    """Config of a nested mapping; errors as in `load_config`.

    Paths, tuples and numpy's numbers and arrays count as the text, lists and numbers that they
    stand for.  An objective may be a function, or its name alone.
    """
    adapter = TypeAdapter(Config)
    problems: list[str] = []
    check_mapping(raw, "make_config")
    raw, functions = _without_functions(raw)
    raw = _with_todays_names(as_json(raw, where, _OF_FUNCTIONS))
    try:
        config = adapter.validate_json(json.dumps(raw))
    except ValidationError as error:
        problems = described(error)
        # The other keys may hold contradictions, and all problems are told at once.
        others = _without(raw, [location(item) for item in error.errors()])
        try:
            config = adapter.validate_json(json.dumps(others))
        except ValidationError:
            config = None
    if config is not None:
        config = _with_functions(config, functions)
        problems += contradictions(config)
    if problems:
        raise InputError(
            "a valid configuration",
            f"{where}:\n  - " + "\n  - ".join(problems),
            "change or remove the keys listed; `jaxpref train --help` says what each key means",
        )
    return config


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """A config with other values.

    Args:
        settings: key as in overrides, which reaches into lists too: `objective.0.beta`.
    Errors: InputError for an unknown key or a value that does not fit.
    """
    raw = to_dict(config)
    for key, value in settings.items():
        *parents, last = key.split(".")
        try:
            node: Any = raw
            for name in parents:
                node = node[int(name) if isinstance(node, list) else name]
            node[int(last) if isinstance(node, list) else last] = value
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise InputError(
                "the key of a setting",
                key,
                "correct it (`jaxpref train --help` lists them); objectives are counted from 0",
            ) from error
    return make_config(raw, where=", ".join(f"{key}={value}" for key, value in settings.items()))


def _without_functions(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[int, Callable]]:
    """The settings with names in place of the objectives' functions, and these by position."""
    parts, functions = raw.get("objective"), {}
    if callable(parts) or isinstance(parts, Mapping):
        parts = [parts]
    if not isinstance(parts, list | tuple):
        return dict(raw), {}
    named = []
    for position, part in enumerate(parts):
        given = {"name": part} if callable(part) else part
        if isinstance(given, Mapping) and callable(given.get("name")):
            functions[position] = given["name"]
            given = {**given, "name": getattr(given["name"], "__name__", "function")}
        named.append(given)
    return {**raw, "objective": named}, functions


def _with_functions(config: Config, functions: Mapping[int, Callable]) -> Config:
    parts = list(config.objective)
    for position, function in functions.items():
        parts[position] = {**parts[position], "name": function}
    return dataclasses.replace(config, objective=parts)


def check_mapping(raw: Any, function: str) -> None:
    """Errors: InputError for what is no mapping of settings; `function` wants one."""
    if not isinstance(raw, Mapping):
        raise InputError(
            f"settings as a dict, for {function}",
            f"{raw!r:.200} of {type(raw).__name__}",
            f"give {{'out': ..., ...}}; {function.replace('make_', 'load_')} reads a YAML file",
        )


def check_made(config: Any, cls: type, function: str) -> None:
    """Errors: InputError for what is no config of this class; `function` makes them."""
    if not isinstance(config, cls):
        got = f"{' '.join(repr(config).split()):.100} of {type(config).__name__}"
        fix = f"make one with {function}({{...}}), or with {function.replace('make_', 'load_')}"
        raise InputError(f"a {cls.__name__}", got, f"{fix} from a YAML file")


def as_json(raw: Mapping[str, Any], where: str, of_functions: str) -> dict[str, Any]:
    """The settings as a YAML file would hold them.

    Args:
        of_functions: where a function may stand, for the error.
    Errors: InputError for what none can hold.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray):
            return value.tolist()
        raise InputError(
            "settings of text, numbers, lists and mappings",
            f"{where}: {value!r:.200} of {type(value).__name__}",
            f"give what a YAML file could hold; {of_functions}",
        )

    return json.loads(json.dumps(raw, default=plain))


def _with_todays_names(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings with `margins` under the name that it has today, `other_rewards`.

    It stands in the section data, and in modpo's `columns: {margins: ...}`.

    Errors: InputError where both names are given.
    """
    renamed: list[str] = []

    def with_todays_name(section: Any, where: str) -> Any:
        if not isinstance(section, Mapping) or "margins" not in section:
            return section
        if "other_rewards" in section:
            raise InputError(
                f"{where}.other_rewards alone",
                f"{where}.margins, its former name, beside it",
                f"remove {where}.margins",
            )
        renamed.append(f"{where}.margins")
        return {
            ("other_rewards" if key == "margins" else key): value for key, value in section.items()
        }

    raw = dict(raw)
    if "data" in raw:
        raw["data"] = with_todays_name(raw["data"], "data")
    if isinstance(raw.get("objective"), list):
        objectives = list(raw["objective"])
        for i, part in enumerate(objectives):
            if isinstance(part, Mapping) and "columns" in part:
                columns = with_todays_name(part["columns"], f"objective.{i}.columns")
                objectives[i] = {**part, "columns": columns}
        raw["objective"] = objectives
    if renamed:
        message = f"{', '.join(renamed)}: `margins` is called `other_rewards` now, and is read so"
        warnings.warn(message, FutureWarning, stacklevel=3)
    return raw


def _without(raw: Mapping[str, Any], locations: list[list[str | int]]) -> dict[str, Any]:
    kept = json.loads(json.dumps(raw))
    for place in locations:
        node = kept
        for part in place[:-1]:
            node = node.get(part, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict):
            node.pop(place[-1], None)
    return kept


# ---- writing a config


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dict, as it may be written to YAML."""
    return dataclasses.asdict(config)


def save_config(config: Config, path: str | Path) -> None:
    """Writes a config as YAML, every key of it."""
    OmegaConf.save(OmegaConf.create(to_dict(config)), path)
