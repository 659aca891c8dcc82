"""What an objective is: a pure function of arrays whose signature says what it needs.

    def dpo(policy: Logps, ref: Logps, weight=None, *, beta: float = 0.1) -> ObjectiveOutput

Positional parameters are arrays: `policy` always; `ref` asks for the reference model; any other name asks for the
data column of that name ([B] or [B, K]), required unless it has a default.  Keyword-only parameters are
hyperparameters: they are the config schema.  `weight_B` of the output must depend on data only (counts, columns),
never on log-probs, for the step divides by its sum over the whole batch before it back-propagates micro-batches.
"""

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from jaxpref.errors import InputError


class ObjectiveOutput(NamedTuple):
    """Unreduced: the objective's value is sum(weight_B * loss_B) / sum(weight_B) over the whole batch."""

    loss_B: jax.Array
    weight_B: jax.Array
    metrics: dict[str, jax.Array]
    """name -> [B], averaged over the batch's pairs for the log."""


@dataclass(frozen=True)
class Part:
    """One objective of a weighted sum, bound to its hyperparameters."""

    name: str
    weight: float
    function: Callable[..., ObjectiveOutput]
    hyperparameters: Mapping[str, Any]
    required: tuple[str, ...]
    optional: tuple[str, ...]

    @property
    def needs_reference(self) -> bool:
        return "ref" in self.required

    @property
    def columns(self) -> tuple[str, ...]:
        """Data columns that must be there."""
        return tuple(name for name in self.required if name not in ("policy", "ref"))

    def __call__(self, policy, ref, columns: Mapping[str, jax.Array]) -> ObjectiveOutput:
        have = {"policy": policy, "ref": ref, **columns}
        arrays = {name: have[name] for name in (*self.required, *self.optional) if name in have}
        return self.function(**arrays, **self.hyperparameters)


def bind(settings: Sequence[Mapping[str, Any] | Callable], registry: Mapping[str, Callable]) -> tuple[Part, ...]:
    """Parts of a weighted sum from the config's list: `[{name: dpo, weight: 1, beta: 0.1}, {name: sft, weight: 0.5}]`.

    A name is one of the registry, or `package.module:function` for a function of one's own; in Python the function
    itself may stand in for the mapping or for its name.
    Errors: InputError listing everything that is wrong with every part.
    """
    parts, problems = [], []
    for position, setting in enumerate(settings):
        try:
            parts.append(_bind_one({"name": setting} if callable(setting) else dict(setting), registry))
        except InputError as error:
            problems.append(f"objective[{position}]: {error.got} ({error.fix})")
    if not settings:
        problems.append("objective: an empty list")
    if problems:
        raise InputError("a list of objectives with known names and hyperparameters", "; ".join(problems), "see above")
    return tuple(_unique(parts))


def _unique(parts: Sequence[Part]) -> Iterator[Part]:
    """The same objective twice is logged as `dpo` and `dpo_2`."""
    seen: dict[str, int] = {}
    for part in parts:
        seen[part.name] = seen.get(part.name, 0) + 1
        yield part if seen[part.name] == 1 else dataclasses.replace(part, name=f"{part.name}_{seen[part.name]}")


def _bind_one(setting: dict[str, Any], registry: Mapping[str, Callable]) -> Part:
    name, weight = setting.pop("name", None), setting.pop("weight", 1.0)
    function = name if callable(name) else _find(name, registry)
    label = getattr(function, "__name__", str(name))
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise InputError("a number", f"weight={weight!r}", "give a number")
    parameters = inspect.signature(function).parameters.values()
    arrays = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    hyper = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    for key, value in setting.items():
        if key not in hyper:
            raise InputError("a hyperparameter", f"{label}.{key} is unknown", _nearest(key, hyper))
        _check_type(label, hyper[key], value)
    missing = [key for key, p in hyper.items() if p.default is p.empty and key not in setting]
    if missing:
        raise InputError("every hyperparameter without a default", f"{label} lacks {missing}", "set them")
    if not arrays or arrays[0].name != "policy":
        raise InputError("a first parameter `policy`", f"{label}{inspect.signature(function)}", "name it `policy`")
    return Part(
        name=label,
        weight=float(weight),
        function=function,
        hyperparameters={key: p.default for key, p in hyper.items() if p.default is not p.empty} | setting,
        required=tuple(p.name for p in arrays if p.default is p.empty),
        optional=tuple(p.name for p in arrays if p.default is not p.empty),
    )


def _find(name: Any, registry: Mapping[str, Callable]) -> Callable:
    if isinstance(name, str) and ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise InputError("an importable module:function", f"{name!r}: {error}", "correct the name") from error
    if name not in registry:
        raise InputError("a known objective", f"name={name!r} is unknown", _nearest(str(name), registry))
    return registry[name]


def _check_type(label: str, parameter: inspect.Parameter, value: Any) -> None:
    wanted = parameter.annotation
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if (wanted is float and not number) or (wanted in (int, str, bool) and type(value) is not wanted):
        raise InputError(f"a {wanted.__name__}", f"{label}.{parameter.name}={value!r}", f"give a {wanted.__name__}")


def _nearest(name: str, known) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(sorted(known)) or 'none'}"


def check_columns(parts: Sequence[Part], have: Sequence[str]) -> tuple[str, ...]:
    """Names of the data columns that the objectives will read.

    Errors: InputError when a required column is missing, with the list of columns that the data has.
    """
    missing = [f"{part.name} needs {column!r}" for part in parts for column in part.columns if column not in have]
    if missing:
        raise InputError(
            "data with every column that the objectives ask for",
            "; ".join(missing) + f"; the data has: {', '.join(sorted(have)) or 'no such columns'}",
            "add the column to the data or choose another objective",
        )
    wanted = {name for part in parts for name in (*part.columns, *part.optional)}
    return tuple(sorted(wanted & set(have)))
