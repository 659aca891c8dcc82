"""Hugging Face model directories, written: config.json, safetensors, tokenizer, model card."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxpref.errors import InputError
from jaxpref.files import check_destination, whole_directory
from jaxpref.models.families import family_module
from jaxpref.models.finite import is_finite
from jaxpref.models.hf.ranges import RangedFile
from jaxpref.models.hf.reader import DTYPE_CODES, INDEX_FILE, WEIGHTS_FILE, read_json
from jaxpref.models.leaf import axis_sizes
from jaxpref.models.loading import check_shapes
from jaxpref.models.parameters import SCALAR_HEADS, VOCAB_LEAVES, flatten, model_shapes
from jaxpref.models.spec import ModelSpec
from jaxpref.models.stored import StoredLeaf, StoredTensor, stored_tensors, used_leaves
from jaxpref.storage.paths import as_path, is_bucket

# transformers asks for "format"; by "producer" a later export knows that it may replace the
# directory.
METADATA = {"format": "pt", "producer": "jaxpref"}
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""How a model's processor makes tiles of pictures, and tokens for them."""
_OUR_FILES = (
    "config.json",
    "generation_config.json",
    "README.md",
    WEIGHTS_FILE,
    "model-*-of-*.safetensors",
    INDEX_FILE,
    # of tokenizers
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    *PROCESSOR_FILES,
    "additional_chat_templates",
)
_REWARD = f"{SCALAR_HEADS}/reward"
_STORED_REWARD = StoredLeaf("score.weight", "1,D -> 1D")


def save_pretrained(
    directory: str | Path,
    spec: ModelSpec,
    params: Mapping[str, Any],
    tokenizer: Any,
    *,
    dtype: Any,
    generation_config: dict[str, Any] | None,
    model_card: str,
    processor: Path | None = None,
    max_shard_bytes: int = 5 * 2**30,
) -> None:
    """Writes a model directory that transformers loads.

    A crash never leaves half a model under its name (`files.whole_directory`).

    Args:
        directory: where to; parents are made.
        params: the parameter tree, numpy or (on this process fully addressable) jax arrays; one
            tensor at a time is brought to the host.  Rows of zeros behind the vocabulary
            (`sharding.vocab_ways`) are left out.  With a reward head it becomes a sequence
            classifier of one label.
        tokenizer: a fast one, written with its chat template; None writes no tokenizer files.
        dtype: stored: float32, bfloat16 or float16.
        generation_config: written to generation_config.json; None takes the special ids from the
            tokenizer.
        model_card: text of README.md.
        processor: a directory whose files on how pictures are processed are copied; None: none.
        max_shard_bytes: largest safetensors file; a single tensor larger than this gets its own.

    Errors: InputError for parameters that do not fit the spec (all listed), a tokenizer larger than
        the vocabulary, an unsupported dtype, numbers that are not finite or not in that dtype, and
        a directory that holds something else.
    """
    directory, dtype = as_path(directory), np.dtype(dtype)
    if dtype not in DTYPE_CODES:
        raise InputError(
            f"dtype among {', '.join(str(d) for d in DTYPE_CODES)}",
            f"dtype = {dtype}",
            "choose one of them",
        )
    table = used_leaves(family_module(spec.family).TENSORS, spec)
    leaves = flatten(params)
    rewards = _REWARD in leaves
    if rewards:  # a sequence classifier has no language-modelling head
        table.pop("head/kernel", None)
        leaves.pop("head/kernel", None)
        table[_REWARD] = _STORED_REWARD
    _check_addressable(leaves)
    for path in VOCAB_LEAVES:
        if path in leaves:
            leaves[path] = _without_padding(leaves[path], spec.vocab)
    shapes = model_shapes(spec) | {_REWARD: (1, spec.width)}
    check_shapes(
        {path: tuple(leaf.shape) for path, leaf in leaves.items()},
        {path: shapes[path] for path in table},
        where="the parameters",
        fix="pass the parameters of this model, with adapters merged",
    )
    ids = _special_ids(tokenizer)
    _check_special_ids(ids, spec.vocab)
    check_model_directory(directory)

    generation = ids if generation_config is None else generation_config
    config = family_module(spec.family).to_hf(spec) | ids
    config |= {key: generation[key] for key in ids if key in generation}
    if rewards:
        config |= {"architectures": [_classifier_class(config["model_type"])], "num_labels": 1}
    with whole_directory(directory) as partial:
        _write_json(partial / "config.json", {**config, "dtype": str(dtype)})
        _write_json(partial / "generation_config.json", generation)
        (partial / "README.md").write_text(model_card, encoding="utf-8")
        if tokenizer is not None:
            _write_tokenizer(partial, tokenizer)
        for name in PROCESSOR_FILES if processor is not None else ():
            if (processor / name).is_file():
                (partial / name).write_bytes((processor / name).read_bytes())
        _write_weights(partial, leaves, table, spec, dtype, max_shard_bytes)


def _check_special_ids(ids: Mapping[str, int | None], vocab: int) -> None:
    beyond = {name: token for name, token in ids.items() if token is not None and token >= vocab}
    if beyond:
        raise InputError(
            f"a tokenizer whose special tokens are among the model's {vocab}",
            f"{beyond}",
            "save the tokenizer that the model was trained with",
        )


def _classifier_class(model_type: str) -> str:
    """The name of transformers' sequence classifier of a family.

    Errors: InputError when it has none.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSES,
    )

    if model_type not in CLASSES:
        raise InputError(
            "a family with a sequence classifier in transformers, since there is a reward head",
            f"model_type {model_type}",
            "export the policy without its reward head, or train a reward model of another family",
        )
    return CLASSES[model_type]


def _without_padding(leaf: Any, vocab: int) -> Any:
    """A leaf of the vocabulary without the rows of zeros by which it was padded for a mesh.

    Rows that hold something are no padding: they stay, and are refused with the other wrong shapes.
    """
    if leaf.shape[0] <= vocab or np.asarray(leaf[vocab:]).any():
        return leaf
    return leaf[:vocab]


def _check_addressable(leaves: Mapping[str, Any]) -> None:
    remote = [
        path
        for path, leaf in leaves.items()
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    ]
    if remote:
        raise InputError(
            "parameters whose every shard lies on this process",
            f"shards on other processes: {', '.join(remote)}",
            "write a checkpoint, and export it from one process",
        )


def check_model_directory(directory: str | Path, sources: Iterable[str | Path] = ()) -> None:
    """Errors: InputError unless a model may be written here, which replaces the whole directory.

    Args:
        sources: what must not be replaced, as `files.check_destination` takes them.
    """
    check_destination(
        directory,
        "a new or empty directory, or one that an earlier export wrote",
        sources=sources,
        foreign=lambda path: foreign_files(path, _OUR_FILES),
    )


def foreign_files(path: Path, own: Sequence[str]) -> list[str]:
    """Names of what lies at a path and is not of an earlier export.

    Args:
        own: names and patterns of what an export writes; its weights name their producer.
    """
    if not path.is_dir():
        return [path.name]
    content = sorted(path.iterdir())
    others = [file.name for file in content if not any(fnmatch(file.name, name) for name in own)]
    if others or _written_by_us(path):
        return others
    return [file.name for file in content]


def _written_by_us(directory: Path) -> bool:
    """Whether there are safetensors files and jaxpref wrote all of them."""
    files = sorted(directory.glob("*.safetensors"))
    try:
        metadata = [_metadata(path) for path in files]
    except (SafetensorError, InputError):
        return False
    producers = {entry.get("producer") for entry in metadata}
    return producers == {METADATA["producer"]}


def _metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself."""
    if is_bucket(path):
        return RangedFile(path).metadata
    return safe_open(path, framework="numpy").metadata() or {}


def _special_ids(tokenizer: Any) -> dict[str, int | None]:
    # Written even when None: transformers' Llama defaults (bos 1, eos 2) would stand in for a
    # missing key.
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: getattr(tokenizer, key, None) for key in keys}


def _write_tokenizer(directory: Path, tokenizer: Any) -> None:
    """Names the class that takes tokenizer.json as it is, as transformers 4 and 5 both call it.

    Others may rebuild what the file says (see `tokenizer.py`).  For some model types, Qwen2 among
    them, transformers 5 passes over the name and takes a class of its own all the same.
    """
    tokenizer.save_pretrained(directory)
    file = directory / "tokenizer_config.json"
    _write_json(file, read_json(file) | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(
    directory: Path,
    leaves: Mapping[str, Any],
    table: Mapping[str, StoredLeaf],
    spec: ModelSpec,
    dtype: np.dtype,
    max_shard_bytes: int,
) -> None:
    sizes = axis_sizes(spec)
    nbytes = lambda tensor: math.prod(tensor.shape(sizes)) * dtype.itemsize
    shards = _shards(stored_tensors(table, spec), nbytes, max_shard_bytes)
    if len(shards) == 1:
        _write_shard(directory / WEIGHTS_FILE, shards[0], leaves, sizes, dtype)
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(directory / name, shard, leaves, sizes, dtype)
        weight_map |= {tensor.name: name for tensor in shard}
    total = sum(nbytes(tensor) for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(directory / INDEX_FILE, index)


def _shards(
    tensors: Sequence[StoredTensor], nbytes: Callable[[StoredTensor], int], largest: int
) -> list[list[StoredTensor]]:
    """The tensors in their order, in groups of at most `largest` bytes or of one tensor."""
    shards: list[list[StoredTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + nbytes(tensor) > largest:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += nbytes(tensor)
    return shards


def _write_shard(
    path: Path,
    shard: Sequence[StoredTensor],
    leaves: Mapping[str, Any],
    sizes: Mapping[str, int],
    dtype: np.dtype,
) -> None:
    def fetch(leaf: str, at: tuple[int, ...]) -> np.ndarray:
        return np.asarray(jax.device_get(leaves[leaf][at] if at else leaves[leaf]))

    shapes = {tensor.name: tensor.shape(sizes) for tensor in shard}
    built = (_cast(tensor.build(fetch), dtype, tensor.name) for tensor in shard)
    write_safetensors(path, shapes, dtype, built)


def write_safetensors(
    path: Path, shapes: Mapping[str, Sequence[int]], dtype: np.dtype, tensors: Iterable[np.ndarray]
) -> None:
    """One safetensors file: the header's length in 8 bytes, the header as JSON, the tensors' bytes.

    Written here because the library's writers take all tensors of a file at once, which for a 5 GiB
    shard is 5 GiB of host memory; this takes one tensor.  And they write the entries of the
    metadata in another order each time, so that equal models would be unequal files.

    Args:
        shapes: name -> shape, in the order of `tensors`.
    """
    assert sys.byteorder == "little", "safetensors is little-endian"
    header: dict[str, Any] = {"__metadata__": METADATA}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": DTYPE_CODES[dtype],
            "shape": shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(np.ascontiguousarray(tensor).view(np.uint8).data)


def _cast(tensor: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """Errors: InputError for numbers that are not finite, or not in this dtype."""
    with np.errstate(over="ignore"):
        cast = tensor.astype(dtype, copy=False)
    if not is_finite(cast):
        fits = is_finite(tensor)
        raise InputError(
            "finite weights",
            f"numbers too large for {dtype} in {name}" if fits else f"NaN or infinite in {name}",
            "export with dtype bfloat16 or float32" if fits else "export an earlier checkpoint",
        )
    return cast
