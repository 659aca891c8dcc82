"""YAML as TRL and axolotl read it: 1e-6 is a number, which YAML 1.1 takes for a text."""

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_yaml(text: str) -> Any:
    """Errors: yaml.YAMLError, with line and column."""
    return yaml.load(text, Loader=_Loader)
