"""PEFT adapter directories, read and written."""

from jaxpref.models.peft.reader import (
    base_of,
    is_adapter,
    load_adapter,
    read_spec,
    saved_modules,
)
from jaxpref.models.peft.tensors import CONFIG_FILE, WEIGHTS_FILE, target_names
from jaxpref.models.peft.together import load_adapters, rescaled
from jaxpref.models.peft.writer import check_adapter_directory, save_adapter

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "base_of",
    "check_adapter_directory",
    "is_adapter",
    "load_adapter",
    "load_adapters",
    "read_spec",
    "rescaled",
    "save_adapter",
    "saved_modules",
    "target_names",
]
