"""A translation as YAML, with a comment for whatever has no counterpart."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import yaml

from jaxpref.config import Config
from jaxpref.from_trl.translation import Translation
from jaxpref.settings import make_config

_WIDTH = 100


def nested(translation: Translation) -> dict[str, Any]:
    """The settings as a config's nested mapping, in the order of its fields."""
    settings: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        of_section = {
            key.partition(".")[2]: value
            for key, value in translation.settings.items()
            if key.partition(".")[0] == field.name
        }
        if "" in of_section:
            settings[field.name] = of_section[""]
        elif of_section:
            settings[field.name] = of_section
    return settings


def as_yaml(translation: Translation) -> str:
    """The config, checked.

    Errors: InputError for values that the config refuses.
    """
    settings = nested(translation)
    make_config(settings, where=translation.title)
    return "\n".join(_lines(translation, settings)) + "\n"


def _lines(translation: Translation, settings: dict[str, Any]) -> Iterator[str]:
    yield f"# {translation.title}"
    for remark in translation.remarks:
        yield from _comment(remark)
    for section, value in settings.items():
        if isinstance(value, dict):
            yield f"{section}:"
            for key, inner in value.items():
                note = translation.notes.get(f"{section}.{key}")
                yield f"  {key}: {_inline(inner)}" + (f"  # {note}" if note else "")
        elif isinstance(value, list):
            yield f"{section}:"
            yield from (f"  - {_inline(item)}" for item in value)
        else:
            yield f"{section}: {_inline(value)}"
    if translation.left:
        yield ""
        yield "# Without a counterpart:"
        for name, value, why in translation.left:
            yield from _comment(f"{name}: {_short(value)} -- {why}")
    if translation.nothing:
        yield from _comment(f"Given, and asking for nothing: {', '.join(translation.nothing)}")


def _comment(text: str) -> Iterator[str]:
    """A comment, whose long lines go on indented."""
    words, line = text.split(), "#"
    for word in words:
        if len(line) + 1 + len(word) > _WIDTH and line.strip("# "):
            yield line
            line = "#  "
        line += f" {word}"
    yield line


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    return " ".join(text.split())[:120]


def _inline(value: Any) -> str:
    """A value in one line of YAML."""
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, str) and _reads_as_itself(value):
        return value
    return json.dumps(value)


def _reads_as_itself(text: str) -> bool:
    """Whether it needs no quotes, as `train` and unlike `train[:10%]` and `no`."""
    try:
        return yaml.safe_load(f"[{text}]") == [text]
    except yaml.YAMLError:
        return False


def _number(value: float) -> str:
    """As a config is written by hand: 1.0e-6, which every reader of YAML takes for a number."""
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return text
