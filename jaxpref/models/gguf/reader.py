"""llama.cpp model files (GGUF): config, tokenizer and weights in one file, dequantised with numpy.

The header is parsed here because `gguf.GGUFReader` makes an array object for every element of every
list: 4 seconds for a vocabulary of 49,152 tokens.  Block formats and dequantisation are the `gguf`
package's.
"""

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from jaxpref.errors import InputError
from jaxpref.models.families import spec_from_hf
from jaxpref.models.gguf.families import (
    ROPE_TENSORS,
    Architecture,
    find_architecture,
    hf_config,
    stored_leaves,
)
from jaxpref.models.loading import Put, TensorSource, load_tree
from jaxpref.models.spec import ModelSpec
from jaxpref.models.stored import Index
from jaxpref.storage.paths import as_path

_SCALARS = {
    GGUFValueType.UINT8: "u1",
    GGUFValueType.INT8: "i1",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}

_DEEPEST_LIST = 8
"""Lists in lists are read so deep; the format has no bound, and no metadata of a model has any."""


class Tensor(NamedTuple):
    shape: tuple[int, ...]
    """Rows first, as in numpy (the file has it reversed)."""
    kind: GGMLQuantizationType
    blocks: np.ndarray
    """uint8 view of the file, [rows, bytes of a row] (one axis fewer for a vector)."""


@dataclass(frozen=True)
class GgufFile:
    """An opened GGUF file."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    architecture: Architecture
    spec: ModelSpec

    @property
    def generation_config(self) -> dict[str, Any]:
        """The special token ids, as in generation_config.json.

        An end-of-turn id joins the end-of-text id.
        """
        keys = ("bos", "eos", "eot", "padding")
        bos, eos, eot, padding = (
            self.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in keys
        )
        if eos is None:
            eos = eot
        elif eot not in (None, eos):
            eos = [eos, eot]
        return {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": padding}

    def load_params(self, *, dtype: Any = np.float32, put: Put | None = None) -> dict[str, Any]:
        """The parameter tree, dequantised; arguments and errors as in `loading.load_tree`."""
        table = stored_leaves(self.architecture, self.spec)
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        source = TensorSource(str(self.path), shapes, self._read)
        ignored = "|".join(re.escape(name) for name in ROPE_TENSORS)
        return load_tree(source, table, self.spec, dtype=dtype, put=put, ignored=ignored)

    def load_tokenizer(self) -> Any:
        """The tokenizer as a transformers fast tokenizer; see tokenizer.py."""
        # Imported here: the weights do not need transformers, which takes seconds to import.
        from jaxpref.models.gguf.tokenizer import build_tokenizer

        return build_tokenizer(self.metadata, str(self.path))

    def _read(self, name: str, index: Index) -> np.ndarray:
        tensor = self.tensors[name]
        # A vector's one axis is that of the blocks, so it is cut afterwards.
        vector = len(tensor.shape) == 1
        blocks = tensor.blocks if vector else tensor.blocks[index[0]]
        rows = _dequantised(tensor._replace(blocks=blocks), f"{name} in {self.path}")
        if self.architecture.permuted and re.search(r"\.attn_[qk]\.", name):
            rows = _unpermute(rows, self.spec.head_dim)
        if self.architecture.norm_offset and name.endswith("norm.weight"):
            rows = rows - np.float32(self.architecture.norm_offset)
        return rows[index] if vector else rows[(slice(None), *index[1:])]


def open_gguf(path: str | Path) -> GgufFile:
    """Reads a file's header; weights stay on disk until read.

    Errors: InputError for a file that is not GGUF, is damaged or split, or whose architecture is
        not supported; unknown metadata of the model is refused by name.
    """
    path = as_path(path)
    metadata, tensors = _parse(path)
    if metadata.get("split.count", 1) not in (0, 1):
        raise InputError(
            "a GGUF file in one piece",
            f"{path} is one of {metadata['split.count']}",
            "merge them with llama-gguf-split",
        )
    architecture = find_architecture(metadata, str(path))
    vectors = {}
    for name in ROPE_TENSORS:
        if name in tensors:
            vectors[name] = _dequantised(tensors[name], str(path)).astype(np.float64)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    config = hf_config(architecture, metadata, shapes, vectors)
    return GgufFile(path, metadata, tensors, architecture, spec_from_hf(config, str(path)))


def _dequantised(tensor: Tensor, where: str) -> np.ndarray:
    """float32, rows first."""
    try:
        return np.array(gguf.dequantize(tensor.blocks, tensor.kind))
    except NotImplementedError as error:
        raise InputError(
            "a quantisation that the gguf package reads",
            f"{tensor.kind.name} for {where}",
            "use a file in another format, for example Q8_0 or F16",
        ) from error


def _unpermute(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of whole heads from llama.cpp's order to Hugging Face's.

    llama.cpp rotates neighbouring rows (0,1), (2,3), ...; Hugging Face rotates row i with row i +
    H/2.
    """
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


# ---- the file format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md


class _Cursor:
    """Reads the header's values one after another."""

    def __init__(self, data: np.ndarray):
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        part = self.data[self.at : self.at + size].tobytes()
        if len(part) < size:
            raise EOFError(f"the header ends at byte {len(self.data)}")
        self.at += size
        return part

    def u32(self) -> int:
        return struct.unpack("<I", self.take(4))[0]

    def u64(self) -> int:
        return struct.unpack("<Q", self.take(8))[0]

    def string(self) -> str:
        return self.take(self.u64()).decode()

    def value(self, kind: GGUFValueType, depth: int = 0) -> Any:
        """Args: depth: how many lists the value is in."""
        if kind in _SCALARS:
            return self.scalars(kind, 1)[0]
        if kind == GGUFValueType.STRING:
            return self.string()
        if depth == _DEEPEST_LIST:
            raise ValueError(f"a list in {depth} lists")
        inner, count = GGUFValueType(self.u32()), self.u64()
        if inner in _SCALARS:
            return self.scalars(inner, count)
        return [self.value(inner, depth + 1) for _ in range(count)]

    def scalars(self, kind: GGUFValueType, count: int) -> list:
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    size = path.stat().st_size
    # As a plain array, whose slices cost a tenth of a memmap's.
    data = np.memmap(path, mode="r").view(np.ndarray) if size else np.empty(0, np.uint8)
    cursor = _Cursor(data)
    try:
        magic, version = cursor.take(4), cursor.u32()
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it begins with {magic!r}, version {version}")
        tensor_count, metadata_count = cursor.u64(), cursor.u64()
        metadata: dict[str, Any] = {}
        for _ in range(metadata_count):
            key = cursor.string()
            if key in metadata:
                raise ValueError(f"it has {key} twice")
            metadata[key] = cursor.value(GGUFValueType(cursor.u32()))
        infos = [_tensor_info(cursor) for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 8 or alignment % 8:
            raise ValueError(f"general.alignment {alignment!r} is no multiple of 8")
        start = -(-cursor.at // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        for name, shape, kind, offset in infos:
            if name in tensors:
                raise ValueError(f"it has the tensor {name} twice")
            tensors[name] = _view(data, start + offset, shape, kind)
    # Undecodable text and unknown types are ValueErrors too.
    except (EOFError, ValueError) as error:
        raise InputError(
            "a complete little-endian GGUF file, version 2 or 3",
            f"{path} ({size} bytes): {error}",
            "copy or download the file again",
        ) from error
    return metadata, tensors


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    name, dims = cursor.string(), cursor.u32()
    shape = tuple(cursor.u64() for _ in range(dims))[::-1]
    return name, shape, GGMLQuantizationType(cursor.u32()), cursor.u64()


def _view(
    data: np.ndarray, start: int, shape: tuple[int, ...], kind: GGMLQuantizationType
) -> Tensor:
    if not shape:
        raise ValueError("a tensor without axes")
    byte_shape = gguf.quant_shape_to_byte_shape(shape, kind)
    end = start + math.prod(byte_shape)
    if end > len(data):
        raise EOFError(f"the tensors end at byte {end} or later, the file at {len(data)}")
    return Tensor(shape, kind, data[start:end].reshape(byte_shape))
