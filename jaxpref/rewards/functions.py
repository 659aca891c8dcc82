"""Rewards that are Python functions of one prompt and one answer."""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxpref.errors import InputError
from jaxpref.objectives.user_code import import_named
from jaxpref.processes.together import first_does
from jaxpref.rewards.reward import Reward
from jaxpref.types import Group


def function_reward(function: Callable[[Any, str], float] | str, name: str | None = None) -> Reward:
    """A reward of a Python function (prompt, answer) -> number.

    The prompt is a text or a list of messages, as in the data.  Scores of a function that is named
    by text may be kept under the bytes of its file; what that file imports is not looked at.  Of
    several processes the first calls it, for the others too: it may draw, or cost money.

    Args:
        function: itself, or where it is: `package.module:function`, or `file.py:function`.
        name: None: the function's.
    Errors: InputError when there is no such function, and for one that cannot be called so.
    """
    if isinstance(function, str):
        judge, label = _find(function), function
    else:
        judge, label = function, getattr(function, "__name__", "reward")
    _check_takes_answers(judge, label)

    def of_one(prompt: Group, answer: str) -> Any:
        try:
            return _plain(judge(prompt.prompt, answer))
        except Exception as error:
            of = f"{prompt.where}, answer {answer[:60]!r}"
            error.add_note(f"in the reward {name or label}, of {of}")
            raise

    def score(prompts: Sequence[Group], answers: Sequence[str]) -> list[float]:
        pairs = zip(prompts, answers, strict=True)
        return first_does(lambda: [of_one(prompt, answer) for prompt, answer in pairs])

    def identity() -> str:
        return f"function {function} {_source_digest(judge)}"

    kept = isinstance(function, str) and _source_file(judge) is not None
    return Reward(name or label, score, identity=identity if kept else None)


def _check_takes_answers(judge: Callable, label: str) -> None:
    """Errors: InputError for what no prompt and answer can be given to, or gives no number.

    Rewards are opened before anything is trained, and called much later.
    """
    try:
        signature = inspect.signature(judge)
    except (TypeError, ValueError):  # of some that are built in nothing is known
        return
    wanted, takes_both = "a function (prompt, answer) -> number", "let it take prompt and answer"
    try:
        signature.bind("prompt", "answer")
    except TypeError as error:
        raise InputError(wanted, f"{label}{signature}: {error}", takes_both) from error
    if inspect.iscoroutinefunction(judge) or inspect.isgeneratorfunction(judge):
        what = "a coroutine" if inspect.iscoroutinefunction(judge) else "a generator"
        raise InputError(wanted, f"{label}: it gives {what}", "let it return the number itself")


def _plain(value: Any) -> Any:
    """A number of numpy, jax or torch as Python's, which JSON can hold; else what it was."""
    return value.item() if getattr(value, "shape", None) == () else value


def _source_file(function: Callable) -> str | None:
    try:
        return inspect.getsourcefile(function)
    except TypeError:  # built in, or an object that can be called
        return None


def _source_digest(function: Callable) -> str:
    return hashlib.sha256(Path(_source_file(function)).read_bytes()).hexdigest()


def _find(where: str) -> Callable[[Any, str], float]:
    function = import_named(where)
    if not callable(function):
        raise InputError(
            "a function (prompt, answer) -> number",
            f"{where!r}: {type(function).__name__}",
            "name a function of that module",
        )
    return function
