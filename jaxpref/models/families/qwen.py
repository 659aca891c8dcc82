"""What the Qwen families share: how a config says which layers have a sliding window."""

from typing import Any

from jaxpref.models.families.hf_config import (
    FULL,
    SLIDING,
    ConfigReader,
    layer_kinds,
    shared_window,
    written_layer_types,
)
from jaxpref.models.spec import LayerKind, ModelSpec


def read_window(read: ConfigReader) -> int | None:
    """`sliding_window`, which is in force only where `use_sliding_window` says so."""
    window = read.optional_size("sliding_window")
    return window if read.flag("use_sliding_window") else None


def read_kinds(read: ConfigReader, layers: int) -> tuple[LayerKind, ...]:
    """`layer_types`; configs older than it slide in the layers from `max_window_layers` on."""
    window, first = read_window(read), read.get("max_window_layers", 0)
    if type(first) is not int or first < 0:
        read.problems.append(f"max_window_layers = {first!r} is not a number of layers")
        first = 0
    default = [
        SLIDING if window is not None and layer >= first else FULL for layer in range(layers)
    ]
    return layer_kinds(read, read.layer_types(layers, default), window)


def written_kinds(spec: ModelSpec) -> dict[str, Any]:
    """Both ways of saying it, for readers of any age."""
    layer_types, window = written_layer_types(spec), shared_window(spec)
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": layer_types.index(SLIDING) if window is not None else spec.layers,
        "layer_types": layer_types,
    }
