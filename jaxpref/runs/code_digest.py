"""Digests of Python functions: whether an objective of one's own is the one that it was.

What counts is what a function does: its byte code, defaults, what it closes over, and the functions
and values that it names, however deep.  Comments and line numbers do not.  Of what is installed, as
of jaxpref itself, the name counts.
"""

import dataclasses
import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import jax
import numpy as np

_INSTALLED = [Path(sysconfig.get_path("stdlib")), Path(__file__).parents[1]]
"""Python's own modules and jaxpref's; other packages lie in folders of a fixed name."""


def code_digest(value: Any) -> str:
    """Of a function, or of a value that holds some."""
    digest = hashlib.sha256()
    for piece in _pieces(value, set()):
        digest.update(f"{len(piece)} {piece}".encode())
    return digest.hexdigest()[:32]


def _pieces(x: Any, seen: set[int]) -> Iterator[str]:
    """Texts that tell a value from others, in order.

    Args:
        seen: ids of the objects met so far, which may name each other.
    """
    if x is None or x is ... or isinstance(x, (bool, int, float, complex, str, bytes)):
        yield repr(x)
    elif isinstance(x, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(x)
        yield f"{array.dtype} {array.shape} {array.tobytes().hex()}"
    elif isinstance(x, Mapping):
        yield f"mapping of {len(x)}"
        for key in sorted(x, key=str):
            yield from (*_pieces(key, seen), *_pieces(x[key], seen))
    elif isinstance(x, (set, frozenset)):
        yield from sorted(" ".join(_pieces(item, set())) for item in x)
    elif isinstance(x, (list, tuple)):
        yield f"{type(x).__name__} of {len(x)}"
        for item in x:
            yield from _pieces(item, seen)
    elif id(x) in seen:
        yield "seen"
    else:
        seen.add(id(x))
        yield from _pieces_of_object(x, seen)


def _pieces_of_object(x: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(x, CodeType):
        yield f"{x.co_code.hex()} {x.co_names} {x.co_varnames} {x.co_freevars}"
        yield from _pieces(x.co_consts, seen)
    elif isinstance(x, partial):
        yield from _pieces([x.func, x.args, x.keywords], seen)
    elif isinstance(x, MethodType):
        yield from _pieces([x.__func__, x.__self__], seen)
    elif hasattr(x, "__wrapped__"):  # by jax.jit, for example
        yield from _pieces(x.__wrapped__, seen)
    elif _installed(x):
        name = getattr(x, "__qualname__", getattr(x, "__name__", ""))
        yield f"{type(x).__qualname__} {getattr(x, '__module__', '')} {name}"
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            fields = {field.name: getattr(x, field.name) for field in dataclasses.fields(x)}
            yield from _pieces(fields, seen)
    elif isinstance(x, FunctionType):
        yield from _pieces_of_function(x, seen)
    elif isinstance(x, ModuleType):
        yield x.__name__
    elif isinstance(x, type):
        own = {name: value for name, value in vars(x).items() if isinstance(value, FunctionType)}
        yield from _pieces([x.__qualname__, *x.__bases__, own], seen)
    else:
        yield from _pieces([type(x), getattr(x, "__dict__", None)], seen)


def _pieces_of_function(function: FunctionType, seen: set[int]) -> Iterator[str]:
    closed_over = [cell.cell_contents for cell in function.__closure__ or ()]
    own = [function.__code__, function.__defaults__, function.__kwdefaults__, vars(function)]
    yield from _pieces([*own, closed_over], seen)
    names = _names(function.__code__)
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        yield name
        yield from _pieces(value, seen)
        if isinstance(value, ModuleType) and not _installed(value):
            used = {name: getattr(value, name) for name in names if hasattr(value, name)}
            yield from _pieces(used, seen)


def _names(code: CodeType) -> set[str]:
    """Of globals and attributes, in the functions inside it too."""
    inner = [_names(const) for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*inner)


def _installed(x: Any) -> bool:
    """Whether something comes with a package, or with Python."""
    if isinstance(x, FunctionType):
        file: str | None = x.__code__.co_filename
    else:
        name = x.__name__ if isinstance(x, ModuleType) else getattr(x, "__module__", None)
        module = sys.modules.get(name) if isinstance(name, str) else None
        if module is None or name == "__main__":
            return False
        file = getattr(module, "__file__", None)
        if file is None:  # built into Python
            return True
    path = Path(file)
    packages = {"site-packages", "dist-packages"}
    return not packages.isdisjoint(path.parts) or any(map(path.is_relative_to, _INSTALLED))
