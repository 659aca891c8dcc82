"""Hugging Face model directories, read and written."""

from jaxpref.models.hf.reader import (
    WEIGHTS_FILE,
    load_params,
    load_spec,
    open_safetensors,
    read_json,
)
from jaxpref.models.hf.writer import (
    check_model_directory,
    foreign_files,
    save_pretrained,
    write_safetensors,
)

__all__ = [
    "WEIGHTS_FILE",
    "check_model_directory",
    "foreign_files",
    "load_params",
    "load_spec",
    "open_safetensors",
    "read_json",
    "save_pretrained",
    "write_safetensors",
]
