"""Rewards that are Python functions of one prompt and one answer."""

import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxpref.errors import InputError
from jaxpref.rewards.reward import Reward


def function_reward(function: Callable[[Any, str], float] | str, name: str | None = None) -> Reward:
    """A reward of a function (prompt, answer) -> number; the prompt is a text or a list of
    messages, as in the data.

    Args:
        function: itself, or where it is: `package.module:function`, or `file.py:function`.
        name: otherwise the function's.
    Errors: InputError when there is no such function.

    Of one named by text, scores may be kept under the bytes of its file; what that file imports is
    not looked at.
    """
    found = _find(function) if isinstance(function, str) else function
    label = name or (
        function if isinstance(function, str) else getattr(found, "__name__", "reward")
    )
    score = lambda prompts, answers: [
        found(p.prompt, answer) for p, answer in zip(prompts, answers, strict=True)
    ]
    identity = (
        (lambda: f"function {function} {_source_digest(found)}")
        if isinstance(function, str)
        else None
    )
    return Reward(label, score, identity=identity if _source_file(found) else None)


def _source_file(function: Callable) -> str | None:
    try:
        return inspect.getsourcefile(function)
    except TypeError:  # built in, or an object that can be called
        return None


def _source_digest(function: Callable) -> str:
    return hashlib.sha256(Path(_source_file(function)).read_bytes()).hexdigest()


def _find(where: str) -> Callable[[Any, str], float]:
    module, _, attribute = where.rpartition(":")
    try:
        found = getattr(
            _file(module) if module.endswith(".py") else importlib.import_module(module), attribute
        )
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise InputError(
            "module:function of an importable module, or FILE.py:function",
            f"{where!r}: {error}",
            "correct the name",
        ) from error
    if not callable(found):
        raise InputError(
            "a function (prompt, answer) -> number",
            f"{where!r}: {type(found).__name__}",
            "name another",
        )
    return found


def _file(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
