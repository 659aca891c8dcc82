"""Several processes must have the same settings of a run."""

from jaxpref.config import Config
from jaxpref.models.parameters import flatten
from jaxpref.processes.agreement import check_same
from jaxpref.settings import to_dict

_MAY_DIFFER = (
    "log",
    "reference.cache_dir",
    "compilation_cache",
    "data.cache",
    "data.cache_gb",
)
"""Sections and keys: what a process shows, and its own disk."""


def check_same_settings(config: Config) -> None:
    """Errors: InputError on every process where some have other settings, with keys and values."""
    settings = flatten(to_dict(config), ".")
    same = {key: x for key, x in settings.items() if not _may_differ(key)}
    check_same("settings", same, "start every process with the same config file and overrides")


def _may_differ(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in _MAY_DIFFER)
