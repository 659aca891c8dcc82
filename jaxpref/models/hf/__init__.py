"""Hugging Face model directories, read and written."""

from jaxpref.models.hf.reader import (
    WEIGHTS_FILE,
    load_params,
    load_spec,
    open_safetensors,
    read_json,
)
from jaxpref.models.hf.writer import save_pretrained

__all__ = [
    "WEIGHTS_FILE",
    "load_params",
    "load_spec",
    "open_safetensors",
    "read_json",
    "save_pretrained",
]
