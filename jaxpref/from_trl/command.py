"""`jaxpref from-trl`: a config of TRL or axolotl as one of ours."""

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from jaxpref.errors import InputError
from jaxpref.from_trl.axolotl import is_axolotl, read_axolotl
from jaxpref.from_trl.command_line import commands_in, read_command
from jaxpref.from_trl.dataset_lists import add_datasets
from jaxpref.from_trl.script import read_script
from jaxpref.from_trl.source import TRAINERS, Source
from jaxpref.from_trl.translate import translate
from jaxpref.from_trl.translation import Translation
from jaxpref.from_trl.writing import as_yaml
from jaxpref.from_trl.yaml_text import read_yaml

EPILOG = """examples:
  jaxpref from-trl dpo.py --out dpo.yaml        a script; it is read, not run
  jaxpref from-trl config.yaml --trainer kto    the file of `trl kto --config`
  jaxpref from-trl qlora-dpo.yml                axolotl's
  jaxpref from-trl run.sh                       the command in it
  jaxpref from-trl -- accelerate launch dpo.py --learning_rate 5e-7
                                                with its script, if it is there

What has no counterpart is a comment that says what to do instead;
docs/from_trl.md has all options.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="+",
        metavar="SCRIPT.py|CONFIG.yaml|RUN.sh|COMMAND",
        help="what to translate; a command stands behind --",
    )
    parser.add_argument("--out", metavar="FILE", help="where to write; otherwise it is printed")
    parser.add_argument(
        "--trainer",
        choices=TRAINERS,
        help="of a file that does not name it; otherwise the one whose options it has, or dpo",
    )


def run(options: argparse.Namespace, console: Console) -> None:
    translation = translated(options.source, options.trainer)
    text = as_yaml(translation)
    if options.out is None:
        console.print(text, end="", highlight=False, markup=False, soft_wrap=True)
        return
    out = Path(options.out)
    if out.exists():
        raise InputError(
            "a file that is not there yet, for --out", f"{out} exists", "name another, or remove it"
        )
    out.write_text(text, encoding="utf-8")
    for remark in translation.remarks:
        console.print(remark, highlight=False, markup=False, soft_wrap=True)
    console.print(f"written to {out}; next: jaxpref data {out}", highlight=False)


def translated(words: list[str], trainer: str | None = None) -> Translation:
    """The translation of a file, or of a command in words.

    Errors: InputError for what cannot be read, or has no counterpart at all.
    """
    path = Path(words[0])
    name = path.name if len(words) == 1 else shlex.join(words)
    if len(words) == 1:
        source = _read(path)
    else:
        source = _with_files(read_command(words, "the command"), Path())
    if trainer is not None:
        source.trainer = trainer
    return translate(source, f"translated from {name} by jaxpref from-trl")


def _read(path: Path) -> Source:
    if not path.is_file():
        raise InputError(
            "a script, a YAML file, a shell script, or a command behind --",
            f"{path}: no such file",
            "check the path's spelling",
        )
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return read_script(text, str(path))
    if path.suffix in (".yaml", ".yml"):
        return _read_yaml(text, str(path))
    commands = commands_in(text)
    if not commands:
        raise InputError(
            "a shell script with a command that starts a trainer",
            f"{path}: none",
            "name the script's files .py, .yaml or .sh, or give the command behind --",
        )
    source = _with_files(read_command(commands[0], str(path)), path.parent)
    if len(commands) > 1:
        source.remarks.append(f"the first of {len(commands)} commands in {path.name}")
    return source


def _with_files(command: Source, folder: Path) -> Source:
    """With what its config and its script say, where those are here or in `folder`.

    The command goes before its config, and that before the script.
    """
    if command.config is not None:
        config = _found(command.config, folder)
        if config is None:
            command.remarks.append(f"{command.config} is not here: the command reads it first")
        else:
            settings = _mapping(config.read_text(encoding="utf-8"), str(config))
            command.add(_trls_options(settings, command))
    if command.script is None:
        return command
    script = _found(command.script, folder)
    if script is not None:
        return read_script(script.read_text(encoding="utf-8"), str(script), command)
    if command.trainer is None:
        command.remarks.append(f"{command.script} is not here: its command alone was read")
    return command


def _found(name: str, folder: Path) -> Path | None:
    return next((path for path in (Path(name), folder / name) if path.is_file()), None)


def _read_yaml(text: str, where: str) -> Source:
    settings = _mapping(text, where)
    if is_axolotl(settings):
        return read_axolotl(settings)
    source = Source()
    source.options = _trls_options(settings, source)
    if not {"model_name_or_path", "dataset_name", "output_dir"} & source.options.keys():
        raise InputError(
            "a YAML file of TRL's (model_name_or_path, dataset_name) or axolotl's (base_model)",
            f"{where}: {', '.join(map(str, settings)) or 'nothing'}",
            "give the file that the trainer is started with",
        )
    return source


def _trls_options(settings: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Those of a YAML file of TRL's; lists of datasets and `no_` are read as its command does."""
    given = {key: value for key, value in settings.items() if key not in ("config", "env")}
    options: dict[str, Any] = {}
    datasets = given.pop("datasets", None)
    for name, value in given.items():
        positive = str(name).removeprefix("no_")
        options[positive] = value if positive == name else not value
    add_datasets(source, options, datasets, "dataset_name", "dataset_train_split")
    return options


def _mapping(text: str, where: str) -> Mapping[str, Any]:
    try:
        settings = read_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(
            "valid YAML", f"{where}: {error}", "mend the file at that line and column"
        ) from error
    if not isinstance(settings, Mapping):
        raise InputError("a YAML mapping", f"{where}: a list or nothing", "write option: value")
    return settings
