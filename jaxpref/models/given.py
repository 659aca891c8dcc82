"""Parameters of the built-in decoder that are in memory already, read as a checkpoint's are."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxpref.errors import InputError
from jaxpref.models.loading import check_finite, check_shapes, whole
from jaxpref.models.parameters import LORA, SCALAR_HEADS, VOCAB_LEAVES, flatten, model_shapes, nest
from jaxpref.models.spec import ModelSpec
from jaxpref.models.stored import ReadSlice

_WHERE = "params="


def load_given(
    params: Mapping[str, Any],
    spec: ModelSpec,
    *,
    dtype: Any = np.float32,
    put: Callable | None = None,
) -> dict[str, Any]:
    """As `loading.load_tree`, of a tree as `jaxpref.train` returns it: `result.params`.

    Errors: InputError for a tree that is not that of the model, and for one with an adapter.
    """
    if beside := sorted({LORA, SCALAR_HEADS} & params.keys()):
        raise InputError(
            "the weights of a model",
            f"params with {' and '.join(beside)}",
            "export that run (`jaxpref.export_run`), and name the directory in model.path or "
            "adapter.path",
        )
    given, shapes = flatten(params), model_shapes(spec)
    cut = {path: x[: spec.vocab] if path in VOCAB_LEAVES else x for path, x in given.items()}
    check_shapes(
        {path: tuple(np.shape(x)) for path, x in cut.items()},
        shapes,
        where=_WHERE,
        fix="give the parameters of the model at model.path",
    )
    leaves = {
        path: (put or whole)(path, shape, np.dtype(dtype), _reader(path, cut[path], dtype))
        for path, shape in shapes.items()
    }
    return nest(leaves)


def _reader(path: str, leaf: Any, dtype: Any) -> ReadSlice:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise InputError(
            "parameters that every process holds whole",
            f"{path} of {_WHERE} is spread over processes",
            "export that run, and name the directory in model.path",
        )
    array = np.asarray(leaf)

    def read(index: tuple[slice, ...]) -> np.ndarray:
        part = array[index].astype(dtype)
        check_finite(part, path, _WHERE)
        return part

    return read
