"""tensorflow-datasets, read and written as ArrayRecord files without TensorFlow.

Its features come out as they went in: text is bytes there, and a list of objects is an object of
lists.  Numbers with a point are kept in 32 bits, whatever the features say.
"""

import contextlib
import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxpref.data.readers import Rows
from jaxpref.data.splits import Part, choose
from jaxpref.data.tables import Table
from jaxpref.errors import InputError, optional_package
from jaxpref.files import check_destination, whole_directory

NAME = "tfds:"
"""Before the name of a data set of tensorflow-datasets."""
_AS_JSON = "JSON"
"""What the features say of a text that holds a value of no fixed form."""
_FEATURES = "features.json"


def _library() -> Any:
    return optional_package("tensorflow_datasets", "data of tensorflow-datasets", "tfds")


# ---- reading


def is_builder(folder: Path) -> bool:
    """Whether a folder is the directory of a builder, or holds those of its versions."""
    return builder_directory(folder) is not None


def builder_directory(folder: Path) -> Path | None:
    """The folder itself, or its latest version; None: it is of something else."""
    if (folder / _FEATURES).is_file():
        return folder
    versions = [path for path in folder.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    versions = [path for path in versions if (path / _FEATURES).is_file()]
    return max(versions, key=lambda path: [*map(int, path.name.split("."))], default=None)


def table_of(path: str, wanted: Part) -> Table:
    """The rows of `tfds:NAME` or of a builder's directory.

    Args:
        path: NAME is as of `tfds.builder`: `name`, `name/config`, `name:1.0.0`.
        wanted: whose split may be a slice or a sum of splits, as `train[:90%]`.
    Errors: InputError for a name, files or a split that cannot be read.
    """
    label = path
    builder = _named(path, wanted) if path.startswith(NAME) else _of_directory(Path(path))
    split = _split(builder, wanted, label)
    try:
        info = _info(builder, split)
        # Of no rows the library would say that it has no paths.
        source = builder.as_data_source(split) if info.num_examples else ()
        files = [Path(file) for file in info.filepaths]
    except Exception as error:  # unknown splits, other file formats: each its own type
        raise _unreadable(f"{label} (split={split!r})", error) from error
    convert = _converter(builder.info.features)

    def rows() -> Rows:
        for index in range(len(source)):
            where = f"{label} ({split}), index {index}"
            try:
                row = convert(source[index])
            except UnicodeDecodeError as error:
                raise InputError(
                    "text in UTF-8", f"{where}: {error}", "write the data set again"
                ) from error
            yield row, where

    if not len(source):
        raise InputError(
            "a dataset with at least one row", f"{label} ({split}), which holds none", "check it"
        )
    return Table(path, rows, (Path(builder.data_dir) / _FEATURES, *files))


def _named(path: str, wanted: Part) -> Any:
    name = path.removeprefix(NAME)
    if wanted.config_name and "/" not in name:
        name = f"{name}/{wanted.config_name}"
    tfds = _library()
    try:
        builder = tfds.builder(name, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:
        raise _unreadable(path, error) from error
    return builder


def _of_directory(folder: Path) -> Any:
    try:
        return _library().builder_from_directory(str(builder_directory(folder)))
    except InputError:
        raise
    except Exception as error:
        raise _unreadable(str(folder), error) from error


def _unreadable(what: str, error: Exception) -> InputError:
    said = shortened_line(str(error)) or type(error).__name__
    return InputError(
        "a data set of tensorflow-datasets in ArrayRecord files, and its split",
        f"{what}: {said}",
        "check name and split; what is in TFRecord files, or needs TensorFlow to be made, "
        'write once with `download_and_prepare` of a builder with file_format="array_record"',
    )


def shortened_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _split(builder: Any, wanted: Part, label: str) -> str:
    """In tensorflow-datasets' own words."""
    if wanted.split is not None and not re.fullmatch(r"[\w.-]+", wanted.split):
        return wanted.split
    if wanted.split == "all" and "all" not in builder.info.splits:
        return "+".join(builder.info.splits)
    [split] = choose({name: name for name in builder.info.splits}, wanted, label)
    return split


def _info(builder: Any, split: str) -> Any:
    """Of a split, or of a part; a sum has the files of all splits."""
    splits = builder.info.splits
    return splits["all"] if "+" in split else splits[split]


def _converter(feature: Any) -> Callable[[Any], Any]:
    """From a feature's values, as tensorflow-datasets gives them, to those of JSON lines."""
    features = _library().features
    if isinstance(feature, features.FeaturesDict):
        return _object({name: _converter(part) for name, part in feature.items()})
    if isinstance(feature, features.Sequence):
        if isinstance(feature.feature, features.FeaturesDict):
            return _objects({name: _converter(part) for name, part in feature.feature.items()})
        convert = _converter(feature.feature)
        return lambda values: [convert(value) for value in values]
    if isinstance(feature, features.Text):
        as_json = feature.doc.desc == _AS_JSON
        return lambda value: json.loads(value) if as_json else value.decode()
    return _plain


def _plain(value: Any) -> Any:
    """Numbers as Python's; bytes that are text, in tensors of strings, as text."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:  # a picture, or the like
        return value


def _object(converters: Mapping[str, Callable]) -> Callable[[Any], Any]:
    return lambda value: {name: convert(value[name]) for name, convert in converters.items()}


def _objects(converters: Mapping[str, Callable]) -> Callable[[Any], Any]:
    def convert(lists: Mapping[str, Any]) -> list[dict]:
        columns = [[one(value) for value in lists[name]] for name, one in converters.items()]
        return [dict(zip(converters, values, strict=True)) for values in zip(*columns, strict=True)]

    return convert


# ---- writing


def write(
    splits: Mapping[str, Callable[[], Iterable[dict]]], directory: str | Path
) -> dict[str, int]:
    """Writes rows as the directory of a builder, in their order.

    A column of one form in all rows is a feature of that form.  Any other is a text that holds
    JSON, and says so: with values left out, of several types, with numbers that 32 bits do not
    hold, or nested more deeply than lists of flat objects.

    Args:
        splits: name -> what gives its rows, from the first, any number of times.
    Returns: name of a split -> how many rows it has.
    Errors: InputError for a directory that exists, and for values that JSON cannot write.
    """
    tfds = _library()
    to = check_destination(directory, "a new directory for the data set")
    forms = _forms(row for rows in splits.values() for row in rows())
    counts = dict.fromkeys(splits, 0)
    features = {name: _feature(form, tfds.features) for name, form in forms.items()}

    def stored(split: str) -> Iterator[tuple[int, dict]]:
        for index, row in enumerate(splits[split]()):
            counts[split] += 1
            yield (
                index,
                {
                    name: _json(row, name, f"{split}, row {index + 1}")
                    if form is None
                    else row[name]
                    for name, form in forms.items()
                },
            )

    class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore
        name = "rows"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,  # rows keep their order
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {name: stored(name) for name in splits}

        def _generate_examples(self) -> None:
            """Not called: the splits are generators already."""

    tfds.display_progress_bar(sys.stderr.isatty())  # elsewhere its bars are a line per state
    with tempfile.TemporaryDirectory() as scratch:
        builder = Written(data_dir=scratch, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):  # which names the scratch directory
            builder.download_and_prepare()
        with whole_directory(to, _FEATURES) as partial:
            shutil.copytree(builder.data_dir, partial, dirs_exist_ok=True)
    return counts


def _json(row: dict, name: str, where: str) -> str:
    try:
        return json.dumps(row.get(name))
    except TypeError as error:
        raise InputError(
            "values that JSON can write",
            f'{where}, key "{name}": {error}',
            "make a text or a number of it in the file, or remove the column there",
        ) from error


Form = Any
"""`str`, `bool`, `int`, `float`; a list of one form; a dict of forms by key."""
_OTHER = object()


def _forms(rows: Iterable[dict]) -> dict[str, Form | None]:
    """Column -> the form of its values; None: they have several."""
    forms: dict[str, Form] = {}
    counts: dict[str, int] = {}
    total = 0
    for row in rows:
        total += 1
        for name, value in row.items():
            counts[name] = counts.get(name, 0) + 1
            form = _form(value)
            forms[name] = form if name not in forms else _joined(forms[name], form)
    whole = {name: form for name, form in forms.items() if counts[name] == total}
    return {name: whole[name] if _is_plain(whole.get(name, _OTHER)) else None for name in forms}


def _form(value: Any) -> Form:
    if isinstance(value, list):
        form: Form = None  # of no item
        for item in value:
            form = _joined(form, _form(item))
        return [form]
    if isinstance(value, dict):
        return {name: _form(item) for name, item in value.items()}
    if isinstance(value, str) and not _is_unicode(value):
        return _OTHER
    if type(value) is float and not _in_32_bits(value):
        return _OTHER
    if type(value) is int and not -(2**63) <= value < 2**63:
        return _OTHER
    return type(value) if type(value) in (str, bool, int, float) else _OTHER


def _in_32_bits(number: float) -> bool:
    with np.errstate(over="ignore"):
        return float(np.float32(number)) == number


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can write a text: not half a surrogate pair, which JSON can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _joined(one: Form, other: Form) -> Form:
    """A form that both have; `_OTHER` where there is none."""
    if one is None or other is None or one == other:
        return other if one is None else one
    if isinstance(one, list) and isinstance(other, list):
        return [_joined(one[0], other[0])]
    if isinstance(one, dict) and isinstance(other, dict) and list(one) == list(other):
        return {name: _joined(one[name], other[name]) for name in one}
    return _OTHER


def _is_plain(form: Form, depth: int = 0) -> bool:
    """Whether there is a feature for it that needs no TensorFlow."""
    if isinstance(form, list):
        return depth == 0 and _is_plain(form[0], 1)
    if isinstance(form, dict):
        return bool(form) and all(part in (str, bool, int, float) for part in form.values())
    return form in (str, bool, int, float)


def _feature(form: Form | None, features: Any) -> Any:
    if form is None:
        return features.Text(doc=_AS_JSON)
    if isinstance(form, list):
        return features.Sequence(_feature(form[0], features))
    if isinstance(form, dict):
        return {name: _feature(part, features) for name, part in form.items()}
    types = {bool: np.bool_, int: np.int64, float: np.float32}
    return features.Text() if form is str else types[form]
