"""Hugging Face model directories, read: config.json and safetensors."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes  # before safetensors reads: its numpy side knows bfloat16 only once it is imported
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxpref.errors import InputError
from jaxpref.models.families import family_module, forms, quantised, spec_from_hf
from jaxpref.models.hf.ranges import RangedFile
from jaxpref.models.loading import Put, TensorSource, load_tree
from jaxpref.models.spec import ModelSpec
from jaxpref.models.stored import Index, stored_form
from jaxpref.storage.paths import as_path, is_bucket

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
# dtype -> its name in the header of a safetensors file.
DTYPE_CODES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
}

# What GPTQ, AWQ and ModelOpt write beside a config.json that may say nothing of it.
_QUANTISED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_log = logging.getLogger(__name__)
_NAME_ONE = "name a directory written by save_pretrained"


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


def load_spec(directory: str | Path, *, pictures: bool = False) -> ModelSpec:
    """The spec in a directory's config.json.

    Args:
        pictures: as of `families.spec_from_hf`.

    Errors: InputError when there is none, it is refused, or the weights are quantised.
    """
    path = as_path(directory) / "config.json"
    if not path.is_file():
        raise _not_a_checkpoint(as_path(directory), ["config.json"], _NAME_ONE)
    for name in _QUANTISED_FILES:
        if (path.parent / name).is_file():
            raise quantised(f"{name} in {directory}")
    return spec_from_hf(read_json(path), str(path), pictures=pictures)


def load_params(
    directory: str | Path, spec: ModelSpec, *, dtype: Any = np.float32, put: Put | None = None
) -> dict[str, Any]:
    """The parameter tree of a Hugging Face directory, streamed from its safetensors files.

    Args:
        directory: with model.safetensors, or model.safetensors.index.json and the shards that it
            names.
        spec: the model, usually `load_spec(directory)`.
        dtype: of the returned leaves; float32, float16 and bfloat16 files are read.
        put: makes one leaf, for example a sharded one; see `loading.load_tree`.

    A tied model may store its head as well (older torch exports do): it is compared with the
    embedding and left out.  The rotary buffers of old checkpoints are left out too.

    Returns: nested dict of arrays, the tree of `parameters.LEAVES`.
    Errors: InputError for a directory without safetensors, missing or damaged shards, shards in
        other places, tensors in two of them, tensors that are not floats or not finite, a tied head
        that differs from the embedding, and one that lists all missing, extra and misshaped
        tensors.
    """
    ignored = family_module(spec.family).IGNORED_TENSORS
    with open_safetensors(as_path(directory), ignored) as source:
        table = stored_form(source.shapes, forms(spec.family), spec)
        head, embedding = table["head/kernel"].name, table["embed/table"].name
        if spec.tied and {head, embedding} <= source.shapes.keys():
            _check_tied_head(source, head, embedding)
            ignored += "|" + head.replace(".", r"\.")
        return load_tree(source, table, spec, dtype=dtype, put=put, ignored=ignored)


@contextmanager
def open_safetensors(directory: Path, ignored: str = r"(?!)") -> Iterator[TensorSource]:
    """All tensors of a directory's safetensors files; they stay where they are until read.

    Args:
        ignored: regular expression of names that may be of any dtype, for they are not read.
    """
    with ExitStack() as stack:
        slices: dict[str, Any] = {}
        for path in _weight_files(directory):
            in_file = _slices_of(path, stack)
            twice = sorted(slices.keys() & in_file.keys())
            if twice:
                raise InputError(
                    "every tensor in one file",
                    f"in {path} and in another file of {directory}: {', '.join(twice)}",
                    "keep the files of one copy of the model, as its author published it",
                )
            slices |= in_file
        dtypes = {name: s.get_dtype() for name, s in slices.items()}
        _check_floats({n: d for n, d in dtypes.items() if not re.fullmatch(ignored, n)}, directory)
        shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}

        def read(name: str, index: Index) -> np.ndarray:
            return slices[name][index]

        yield TensorSource(str(directory), shapes, read)


def _slices_of(path: Path, stack: ExitStack) -> dict[str, Any]:
    """Name -> tensor of a file, of which parts may be taken until the stack is left."""
    if is_bucket(path):
        ranged = RangedFile(path)
        stack.callback(_tell_share, ranged)
        return ranged.slices()
    try:
        file = stack.enter_context(safe_open(path, framework="numpy"))
    except SafetensorError as error:
        raise InputError(
            "a complete safetensors file",
            f"{path} ({path.stat().st_size} bytes): {error}",
            "copy or download the file again",
        ) from error
    return {name: file.get_slice(name) for name in file.keys()}


def _tell_share(file: RangedFile) -> None:
    _log.info("%s: %d of its %d bytes read", file.path, file.bytes_read, file.size)


def _check_floats(dtypes: Mapping[str, str], directory: Path) -> None:
    known = {*DTYPE_CODES.values(), "F64"}
    other = [f"{name} {dtype}" for name, dtype in dtypes.items() if dtype not in known]
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        raise quantised(f"in {directory}: {', '.join(other[:3])}{more}")


def _weight_files(directory: Path) -> list[Path]:
    if (directory / WEIGHTS_FILE).is_file():  # where both are, transformers reads this one too
        return [directory / WEIGHTS_FILE]
    if (directory / INDEX_FILE).is_file():
        names = _shard_names(directory / INDEX_FILE)
        missing = [name for name in names if not (directory / name).is_file()]
        if missing or not names:
            raise InputError(
                f"the files that {INDEX_FILE} names",
                f"missing in {directory}: {', '.join(missing) or 'all, its weight_map is empty'}",
                "copy or download the missing files",
            )
        return [directory / name for name in names]
    # Of a Hub repository .bin files are not downloaded, so they need not be here to be meant.
    convert = "convert the .bin files: load them with transformers and torch, then save_pretrained"
    fix = f"{_NAME_ONE}, or {convert}"
    raise _not_a_checkpoint(directory, [WEIGHTS_FILE, INDEX_FILE], fix)


def _shard_names(index: Path) -> list[str]:
    """Names of the files beside an index that it names; it may point to no other place."""
    weight_map = read_json(index).get("weight_map", {})
    values = list(weight_map.values()) if isinstance(weight_map, dict) else [weight_map]
    other = [value for value in values if not isinstance(value, str) or Path(value).name != value]
    if other:
        raise InputError(
            "a weight_map from names of tensors to names of files in the same directory",
            f"{index}: {', '.join(map(repr, dict.fromkeys(map(str, other))))}",
            "copy or download the index again; it should name the files beside it",
        )
    return sorted(set(values))


def _not_a_checkpoint(directory: Path, wanted: list[str], fix: str) -> InputError:
    content = "no such directory"
    if directory.is_dir():
        names = sorted(path.name for path in directory.iterdir())[:20]
        content = f"it holds {', '.join(names) or 'nothing'}"
    return InputError(" or ".join(wanted), f"{directory}: {content}", fix)


def _check_tied_head(source: TensorSource, head: str, table: str) -> None:
    if not _equal_tensors(source, head, table):
        raise InputError(
            f"{head} equal to {table}, since the config says tie_word_embeddings",
            f"different values in {source.where}",
            "set tie_word_embeddings to false in config.json to use both",
        )


def _equal_tensors(source: TensorSource, one: str, other: str) -> bool:
    """Whether two matrices are equal, without holding either whole."""
    if source.shapes[one] != source.shapes[other]:
        return False
    rows = source.shapes[one][0]
    for first in range(0, rows, 8192):
        part = slice(first, min(first + 8192, rows)), slice(None)
        if not np.array_equal(source.read(one, part), source.read(other, part)):
            return False
    return True
