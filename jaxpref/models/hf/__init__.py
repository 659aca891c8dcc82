"""Hugging Face model directories, read and written."""

from jaxpref.models.hf.reader import (
    WEIGHTS_FILE,
    load_params,
    load_spec,
    open_safetensors,
    read_json,
)
from jaxpref.models.hf.writer import (
    METADATA,
    check_model_directory,
    foreign_files,
    save_pretrained,
)

__all__ = [
    "METADATA",
    "WEIGHTS_FILE",
    "check_model_directory",
    "foreign_files",
    "load_params",
    "load_spec",
    "open_safetensors",
    "read_json",
    "save_pretrained",
]
