"""Hugging Face model directories, read and written: config.json, safetensors, tokenizer, model
card."""

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # before safetensors reads: its numpy side knows bfloat16 only once ml_dtypes is imported
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxpref.errors import InputError
from jaxpref.files import whole_directory
from jaxpref.models.families import FAMILIES, forms, spec_from_hf
from jaxpref.models.spec import SCALAR_HEADS, ModelSpec
from jaxpref.models.weights import (
    Index,
    Put,
    StoredTensor,
    TensorSource,
    Weight,
    axis_sizes,
    check_shapes,
    flatten,
    load_tree,
    stored_form,
    stored_tensors,
    tree_shapes,
    used_weights,
)
from jaxpref.sharding import VOCAB_LEAVES

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_CODES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
}
# transformers asks for "format"; by "producer" a later export knows that it may replace the
# directory.
_METADATA = {"format": "pt", "producer": "jaxpref"}
_OUR_FILES = ("*.safetensors", "*.json", "*.jinja", "README.md", "tokenizer.model", "merges.txt")


# ---- reading


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.  Errors: InputError when the file is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            "a JSON file", f"{path}: {error}", "copy or download the file again"
        ) from error
    if not isinstance(value, dict):
        raise InputError(
            "a JSON object",
            f"{path} holds a {type(value).__name__}",
            "copy or download the file again",
        )
    return value


def load_spec(directory: str | Path) -> ModelSpec:
    """The spec in a directory's config.json.  Errors: InputError when there is none or it is
    refused."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise _not_a_checkpoint(
            Path(directory), ["config.json"], "name a directory written by save_pretrained"
        )
    return spec_from_hf(read_json(path), str(path))


def load_params(
    directory: str | Path, spec: ModelSpec, *, dtype: Any = np.float32, put: Put | None = None
) -> dict[str, Any]:
    """The parameter tree of a Hugging Face directory, streamed from its safetensors files.

    Args:
        directory: with model.safetensors, or model.safetensors.index.json and the shards that it
            names.
        spec: the model, usually `load_spec(directory)`.
        dtype: of the returned leaves; float32, float16 and bfloat16 files are read.
        put: makes one leaf, for example a sharded one; see `jaxpref.models.weights.load_tree`.

    A tied model may store its head as well (older torch exports do): it is compared with the
    embedding and left out.  The rotary buffers of old checkpoints are left out too.

    Returns: nested dict of arrays, the tree that `ModelSpec` documents.
    Errors: InputError for a directory without safetensors, missing or damaged shards, tensors that
        are not floats, a tied head that differs from the embedding, and one that lists all missing,
        extra and misshaped tensors.
    """
    ignored = FAMILIES[spec.family].IGNORED_TENSORS
    with open_safetensors(Path(directory), ignored) as source:
        table = stored_form(source.shapes, forms(spec.family), spec)
        head, embedding = table["head/kernel"].name, table["embed/table"].name
        if spec.tied and {head, embedding} <= source.shapes.keys():
            _check_tied_head(source, head, embedding)
            ignored += "|" + head.replace(".", r"\.")
        return load_tree(source, table, spec, dtype=dtype, put=put, ignored=ignored)


@contextmanager
def open_safetensors(directory: Path, ignored: str = r"(?!)") -> Iterator[TensorSource]:
    """All tensors of a directory's safetensors files; they stay on disk until read.

    Args:
        ignored: regular expression of names that may be of any dtype, for they are not read.
    """
    with ExitStack() as stack:
        slices = {}
        for path in _weight_files(directory):
            try:
                file = stack.enter_context(safe_open(path, framework="numpy"))
            except SafetensorError as error:
                raise InputError(
                    "a complete safetensors file",
                    f"{path} ({path.stat().st_size} bytes): {error}",
                    "copy or download the file again",
                ) from error
            slices |= {name: file.get_slice(name) for name in file.keys()}
        known = {*_CODES.values(), "F64"}
        odd = {
            name: part.get_dtype()
            for name, part in slices.items()
            if not re.fullmatch(ignored, name)
        }
        other = [f"{name} {dtype}" for name, dtype in odd.items() if dtype not in known]
        if other:
            raise InputError(
                "tensors of floats",
                f"in {directory}: {', '.join(other)}",
                "use the checkpoint that is not quantised",
            )

        def read(name: str, index: Index) -> np.ndarray:
            return slices[name][index]

        yield TensorSource(
            str(directory), {name: tuple(s.get_shape()) for name, s in slices.items()}, read
        )


def _weight_files(directory: Path) -> list[Path]:
    if (directory / WEIGHTS_FILE).is_file():  # where both are, transformers reads this one too
        return [directory / WEIGHTS_FILE]
    if (directory / INDEX_FILE).is_file():
        names = sorted(set(read_json(directory / INDEX_FILE).get("weight_map", {}).values()))
        missing = [name for name in names if not (directory / name).is_file()]
        if missing or not names:
            raise InputError(
                f"the files that {INDEX_FILE} names",
                f"missing in {directory}: {', '.join(missing) or 'all, its weight_map is empty'}",
                "copy or download the missing files",
            )
        return [directory / name for name in names]
    fix = "name a directory written by save_pretrained"
    if directory.is_dir() and any(directory.glob("*.bin")):
        fix = "convert the .bin files to safetensors (load with transformers and torch, then save_pretrained)"
    raise _not_a_checkpoint(directory, [WEIGHTS_FILE, INDEX_FILE], fix)


def _not_a_checkpoint(directory: Path, wanted: list[str], fix: str) -> InputError:
    found = "no such directory"
    if directory.is_dir():
        found = "it holds " + (
            ", ".join(sorted(path.name for path in directory.iterdir())[:20]) or "nothing"
        )
    return InputError(" or ".join(wanted), f"{directory}: {found}", fix)


def _check_tied_head(source: TensorSource, head: str, table: str) -> None:
    rows = source.shapes[table][0]
    equal = source.shapes[head] == source.shapes[table] and all(
        np.array_equal(source.read(head, part), source.read(table, part))
        for part in (
            (slice(row, min(row + 8192, rows)), slice(None)) for row in range(0, rows, 8192)
        )
    )
    if not equal:
        raise InputError(
            f"{head} equal to {table}, since the config says tie_word_embeddings",
            f"different values in {source.where}",
            "set tie_word_embeddings to false in config.json to use both",
        )


# ---- writing

_REWARD_LEAF, _REWARD_WEIGHT = f"{SCALAR_HEADS}/reward", Weight("score.weight", "1,D -> 1D")


def save_pretrained(
    directory: str | Path,
    spec: ModelSpec,
    params: Mapping[str, Any],
    tokenizer: Any,
    *,
    dtype: Any,
    generation_config: dict[str, Any] | None,
    model_card: str,
    max_shard_bytes: int = 5 * 2**30,
    overwrite: bool = False,
) -> None:
    """Writes a model directory that transformers loads.

    A crash never leaves half a model under its name (`files.whole_directory`).

    Args:
        directory: where to; parents are made.
        params: the parameter tree, numpy or (on this process fully addressable) jax arrays; one
            tensor at a time is brought to the host.  Rows of zeros behind the vocabulary
            (`sharding.vocab_ways`) are left out.  With a reward head it becomes a sequence
            classifier of one label.
        tokenizer: written with its chat template; None writes no tokenizer files.
        dtype: stored: float32, bfloat16 or float16.
        generation_config: written to generation_config.json; None takes the special ids from the
            tokenizer.
        model_card: text of README.md.
        max_shard_bytes: largest safetensors file; a single tensor larger than this gets its own.
        overwrite: replace a non-empty directory even when an earlier export did not write it.

    Errors: InputError for parameters that do not fit the spec (all listed), a tokenizer larger than
        the vocabulary, an unsupported dtype, and a directory that holds something else.
    """
    directory, dtype = Path(directory).absolute(), np.dtype(dtype)
    if dtype not in _CODES:
        raise InputError(
            f"dtype among {', '.join(str(d) for d in _CODES)}",
            f"dtype = {dtype}",
            "choose one of them",
        )
    weights = used_weights(FAMILIES[spec.family].WEIGHTS, spec)
    leaves = flatten(params)
    rewards = _REWARD_LEAF in leaves
    if rewards:  # a sequence classifier has no language-modelling head
        weights = {path: w for path, w in weights.items() if path != "head/kernel"} | {
            _REWARD_LEAF: _REWARD_WEIGHT
        }
        leaves = {path: leaf for path, leaf in leaves.items() if path != "head/kernel"}
    _check_addressable(leaves)
    unpadded = lambda path, leaf: (
        _without_padding(leaf, spec.vocab) if path in VOCAB_LEAVES else leaf
    )
    leaves = {path: unpadded(path, leaf) for path, leaf in leaves.items()}
    check_shapes(
        {path: tuple(leaf.shape) for path, leaf in leaves.items()},
        tree_shapes(weights, spec),
        where="the parameters",
        fix="pass the parameters of this model, with adapters merged",
    )
    ids = _special_ids(tokenizer)
    if beyond := {
        name: number for name, number in ids.items() if number is not None and number >= spec.vocab
    }:
        raise InputError(
            f"a tokenizer whose special tokens are among the model's {spec.vocab}",
            f"{beyond}",
            "save the tokenizer that the model was trained with",
        )
    _check_replaceable(directory, overwrite)

    generation = ids if generation_config is None else generation_config
    config = {
        **FAMILIES[spec.family].to_hf(spec),
        **ids,
        **{k: generation[k] for k in ids if k in generation},
    }
    if rewards:
        config |= {"architectures": [_classifier_class(config["model_type"])], "num_labels": 1}
    with whole_directory(directory) as partial:
        _write_json(partial / "config.json", {**config, "dtype": str(dtype)})
        _write_json(partial / "generation_config.json", generation)
        (partial / "README.md").write_text(model_card, encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        _write_weights(partial, leaves, weights, spec, dtype, max_shard_bytes)


def _classifier_class(model_type: str) -> str:
    """The name of transformers' sequence classifier of a family.  Errors: InputError when it has
    none."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSES,
    )

    if model_type not in CLASSES:
        raise InputError(
            "a family for which transformers has a sequence classifier, since the model has a reward head",
            f"model_type {model_type}",
            "export the policy without its reward head, or train the reward model from another family",
        )
    return CLASSES[model_type]


def _without_padding(leaf: Any, vocab: int) -> Any:
    """A leaf of the vocabulary without the rows of zeros by which it was padded for a mesh.

    Rows that hold something are no padding: they stay, and are refused with the other wrong shapes.
    """
    return leaf[:vocab] if leaf.shape[0] > vocab and not np.asarray(leaf[vocab:]).any() else leaf


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


def _check_replaceable(directory: Path, overwrite: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise InputError("a directory to write", f"{directory} is a file", "choose another name")
    if overwrite or not directory.exists():
        return
    names = sorted(path.name for path in directory.iterdir())
    foreign = [
        path.name
        for path in directory.iterdir()
        if not any(path.match(p) for p in _OUR_FILES) or path.is_dir()
    ]
    if foreign or (names and not _written_by_us(directory)):
        raise InputError(
            "a new or empty directory, or one that an earlier export wrote",
            f"{directory} holds {', '.join(sorted(foreign)[:20] or names[:20])}",
            "choose a new directory, or pass overwrite",
        )


def _written_by_us(directory: Path) -> bool:
    files = sorted(directory.glob("*.safetensors"))
    try:
        return bool(files) and all(
            (safe_open(path, framework="numpy").metadata() or {}).get("producer")
            == _METADATA["producer"]
            for path in files
        )
    except SafetensorError:
        return False


def _special_ids(tokenizer: Any) -> dict[str, int | None]:
    # Written even when None: transformers' Llama defaults (bos 1, eos 2) would stand in for a
    #     missing key.
    return {
        key: getattr(tokenizer, key, None)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(
    directory: Path,
    leaves: Mapping[str, Any],
    weights: Mapping[str, Weight],
    spec: ModelSpec,
    dtype: np.dtype,
    max_shard_bytes: int,
) -> None:
    sizes = axis_sizes(spec)
    shards: list[list[StoredTensor]] = [[]]
    filled = total = 0
    for tensor in stored_tensors(weights, spec):
        nbytes = math.prod(tensor.shape(sizes)) * dtype.itemsize
        if shards[-1] and filled + nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled, total = filled + nbytes, total + nbytes
    if len(shards) == 1:
        return _write_shard(directory / WEIGHTS_FILE, shards[0], leaves, sizes, dtype)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(directory / name, shard, leaves, sizes, dtype)
        weight_map |= {tensor.name: name for tensor in shard}
    _write_json(
        directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map}
    )


def _write_shard(
    path: Path,
    shard: Sequence[StoredTensor],
    leaves: Mapping[str, Any],
    sizes: Mapping[str, int],
    dtype: np.dtype,
) -> None:
    """One safetensors file: the header's length in 8 bytes, the header as JSON, the tensors' bytes.

    Written here because the library's writers take all tensors of a file at once, which for a 5 GiB
    shard is 5 GiB of host memory; this takes one tensor.
    """
    assert sys.byteorder == "little", "safetensors is little-endian"
    header: dict[str, Any] = {"__metadata__": _METADATA}
    offset = 0
    for tensor in shard:
        shape = tensor.shape(sizes)
        end = offset + math.prod(shape) * dtype.itemsize
        header[tensor.name] = {
            "dtype": _CODES[dtype],
            "shape": shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin aligned

    def fetch(leaf: str, at: tuple[int, ...]) -> np.ndarray:
        return np.asarray(jax.device_get(leaves[leaf][at] if at else leaves[leaf]))

    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in shard:
            file.write(np.ascontiguousarray(tensor.build(fetch), dtype=dtype).view(np.uint8).data)
