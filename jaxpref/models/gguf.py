"""llama.cpp model files (GGUF): config, tokenizer and weights in one file, dequantised with numpy.

The header is parsed here because `gguf.GGUFReader` makes an array object for every element of every list: 4
seconds for a vocabulary of 49,152 tokens.  Block formats and dequantisation are the `gguf` package's.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from jaxpref.errors import InputError
from jaxpref.models.families import FAMILIES, spec_from_hf
from jaxpref.models.spec import ModelSpec
from jaxpref.models.weights import Index, Put, TensorSource, Weight, load_tree

# Leaf path -> tensor name.  The layout is Hugging Face's, but for the row order of q and k (`_unpermute`).
_NAMES = {
    "embed/table": "token_embd.weight",
    "layers/attention_norm/scale": "blk.{layer}.attn_norm.weight",
    "layers/attention/q": "blk.{layer}.attn_q.weight",
    "layers/attention/k": "blk.{layer}.attn_k.weight",
    "layers/attention/v": "blk.{layer}.attn_v.weight",
    "layers/attention/o": "blk.{layer}.attn_output.weight",
    "layers/mlp_norm/scale": "blk.{layer}.ffn_norm.weight",
    "layers/mlp/gate": "blk.{layer}.ffn_gate.weight",
    "layers/mlp/up": "blk.{layer}.ffn_up.weight",
    "layers/mlp/down": "blk.{layer}.ffn_down.weight",
    "final_norm/scale": "output_norm.weight",
    "head/kernel": "output.weight",
}
_ROPE_FACTORS = "rope_freqs.weight"

# Metadata key (after `llama.`) -> Hugging Face config key.
_CONFIG = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
_CHECKED = {"attention.value_length", "rope.dimension_count", "rope.scaling.type"}

_SCALARS = {
    GGUFValueType.UINT8: "u1", GGUFValueType.INT8: "i1", GGUFValueType.BOOL: "?",
    GGUFValueType.UINT16: "<u2", GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4", GGUFValueType.INT32: "<i4", GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.UINT64: "<u8", GGUFValueType.INT64: "<i8", GGUFValueType.FLOAT64: "<f8",
}  # fmt: skip


class Tensor(NamedTuple):
    shape: tuple[int, ...]
    """Rows first, as in numpy (the file has it reversed)."""
    kind: GGMLQuantizationType
    blocks: np.ndarray
    """uint8 view of the file, [rows, bytes of a row] (one axis fewer for a vector)."""


@dataclass(frozen=True)
class GgufFile:
    """An opened GGUF file of the Llama architecture."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    spec: ModelSpec

    @property
    def generation_config(self) -> dict[str, Any]:
        """The special token ids, as in generation_config.json; an end-of-turn id joins the end-of-text id."""
        ids = {key: self.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos", "eot", "padding")}
        ends = list(dict.fromkeys(i for i in (ids["eos"], ids["eot"]) if i is not None))
        eos = ends if len(ends) > 1 else next(iter(ends), None)
        return {"bos_token_id": ids["bos"], "eos_token_id": eos, "pad_token_id": ids["padding"]}

    def load_params(self, *, dtype: Any = np.float32, put: Put | None = None) -> dict[str, Any]:
        """The parameter tree, dequantised; arguments and errors as in `jaxpref.models.weights.load_tree`."""
        table = {path: Weight(_NAMES[path], w.layout) for path, w in FAMILIES[self.spec.family].WEIGHTS.items()}
        source = TensorSource(str(self.path), {name: t.shape for name, t in self.tensors.items()}, self._read)
        ignored = _ROPE_FACTORS.replace(".", r"\.")  # read by `open_gguf` into the spec
        return load_tree(source, table, self.spec, dtype=dtype, put=put, ignored=ignored)

    def load_tokenizer(self) -> Any:
        """The tokenizer as a transformers fast tokenizer; see `jaxpref.models.gguf_tokenizer`."""
        # Imported here: the weights do not need transformers, which takes seconds to import.
        from jaxpref.models.gguf_tokenizer import build_tokenizer

        return build_tokenizer(self.metadata, str(self.path))

    def _read(self, name: str, index: Index) -> np.ndarray:
        tensor = self.tensors[name]
        vector = len(tensor.shape) == 1  # its one axis is that of the blocks, so it is cut afterwards
        try:
            rows = np.array(gguf.dequantize(tensor.blocks if vector else tensor.blocks[index[0]], tensor.kind))
        except NotImplementedError as error:
            raise InputError(
                "a quantisation that the gguf package reads",
                f"{tensor.kind.name} for {name} in {self.path}",
                "use a file in another format, for example Q8_0 or F16",
            ) from error
        if name.endswith((".attn_q.weight", ".attn_k.weight")):
            rows = _unpermute(rows, self.spec.head_dim)
        return rows[index] if vector else rows[(slice(None), *index[1:])]


def open_gguf(path: str | Path) -> GgufFile:
    """Reads a file's header; weights stay on disk until read.

    Errors: InputError for a file that is not GGUF, is damaged or split, or whose model is not a Llama;
        unknown metadata of the model is refused by name.
    """
    path = Path(path)
    metadata, tensors = _parse(path)
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise InputError("general.architecture llama", f"{architecture!r} in {path}", "use a Llama model's file")
    if metadata.get("split.count", 1) > 1:
        raise InputError(
            "a GGUF file in one piece",
            f"{path} is one of {metadata['split.count']}",
            "merge them with llama-gguf-split",
        )
    return GgufFile(path, metadata, tensors, spec_from_hf(_hf_config(path, metadata, tensors), str(path)))


def _hf_config(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    model = {key.removeprefix("llama."): v for key, v in metadata.items() if key.startswith("llama.")}
    config = {"model_type": "llama", "tie_word_embeddings": _NAMES["head/kernel"] not in tensors}
    config |= {_CONFIG[key]: value for key, value in model.items() if key in _CONFIG}
    # Unknown keys keep their name, so the family refuses them unless they are off.
    config |= {f"llama.{key}": value for key, value in model.items() if key not in _CONFIG and key not in _CHECKED}
    # Stored as float32: take the decimal that was meant, 1e-05 and not 9.999999747378752e-06.
    for key in ("rms_norm_eps", "rope_theta"):
        if key in config:
            config[key] = float(str(np.float32(config[key])))
    if _NAMES["embed/table"] in tensors:  # `vocab_size` is optional, and does not count padding rows
        config["vocab_size"] = tensors[_NAMES["embed/table"]].shape[0]
    if not isinstance(config.get("num_attention_heads"), int) or not isinstance(config.get("hidden_size"), int):
        return config  # the family says what is missing
    head_dim = config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    for key, wanted in (("attention.value_length", head_dim), ("rope.dimension_count", head_dim)):
        if model.get(key, wanted) != wanted:
            raise InputError(f"llama.{key} = {wanted}, the head size", f"{model[key]} in {path}", "use another model")
    if model.get("rope.scaling.type", "none") != "none":
        config["rope_scaling"] = {"rope_type": model["rope.scaling.type"]}
    elif _ROPE_FACTORS in tensors:
        config["rope_scaling"] = _llama3_rope(path, tensors[_ROPE_FACTORS], head_dim, config.get("rope_theta", 1e4))
    return config


def _llama3_rope(path: Path, tensor: Tensor, head_dim: int, theta: float) -> dict[str, Any]:
    """Llama 3.1's rescaling from the per-frequency divisors that llama.cpp keeps instead of it.

    Every Llama 3 model has low 1, high 4 and length 8192, and differs in the factor only, which is the
    divisor of the lowest frequency; the others must follow from it.
    """
    divisor = np.array(gguf.dequantize(tensor.blocks, tensor.kind), np.float64)
    factor, low, high, length = float(divisor.max(initial=1.0)), 1.0, 4.0, 8192
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = length / wavelength  # rotations within the length
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if divisor.shape != expected.shape or not np.allclose(divisor, expected, rtol=1e-4):
        raise InputError(
            "rope divisors of Llama 3.1's rescaling (low 1, high 4, length 8192)",
            f"others in {_ROPE_FACTORS} of {path}",
            "use the model's Hugging Face directory",
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }


def _unpermute(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of whole heads from llama.cpp's order to Hugging Face's.

    llama.cpp rotates neighbouring rows (0,1), (2,3), ...; Hugging Face rotates row i with row i + H/2.
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

    def value(self, kind: GGUFValueType) -> Any:
        if kind in _SCALARS:
            return self.scalars(kind, 1)[0]
        if kind == GGUFValueType.STRING:
            return self.string()
        inner, count = GGUFValueType(self.u32()), self.u64()
        return self.scalars(inner, count) if inner in _SCALARS else [self.value(inner) for _ in range(count)]

    def scalars(self, kind: GGUFValueType, count: int) -> list:
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    size = path.stat().st_size
    data = np.memmap(path, mode="r") if size else np.empty(0, np.uint8)
    cursor = _Cursor(data)
    try:
        magic, version = cursor.take(4), cursor.u32()
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it begins with {magic!r}, version {version}")
        tensor_count, metadata_count = cursor.u64(), cursor.u64()
        metadata = {cursor.string(): cursor.value(GGUFValueType(cursor.u32())) for _ in range(metadata_count)}
        infos = [_tensor_info(cursor) for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        start = -(-cursor.at // alignment) * alignment
        tensors = {name: _view(data, start + offset, shape, kind) for name, shape, kind, offset in infos}
    except (EOFError, ValueError) as error:  # undecodable text and unknown types are ValueErrors too
        raise InputError(
            "a complete little-endian GGUF file, version 2 or 3", f"{path} ({size} bytes): {error}",
            "copy or download the file again",
        ) from error  # fmt: skip
    return metadata, tensors


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    name, dims = cursor.string(), cursor.u32()
    shape = tuple(cursor.u64() for _ in range(dims))[::-1]
    return name, shape, GGMLQuantizationType(cursor.u32()), cursor.u64()


def _view(data: np.ndarray, start: int, shape: tuple[int, ...], kind: GGMLQuantizationType) -> Tensor:
    byte_shape = gguf.quant_shape_to_byte_shape(shape, kind)
    end = start + int(np.prod(byte_shape))
    if end > len(data):
        raise EOFError(f"the tensors end at byte {end} or later, the file at {len(data)}")
    return Tensor(shape, kind, data[start:end].reshape(byte_shape))
