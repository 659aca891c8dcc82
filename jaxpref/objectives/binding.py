"""From the config's list of objectives to bound parts, with everything checked that can be."""

import dataclasses
import difflib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jaxpref.errors import InputError
from jaxpref.fields import objective_list
from jaxpref.objectives.contract import NOT_DATA, Needs, Transform
from jaxpref.objectives.part import Part, group_kinds
from jaxpref.objectives.user_code import import_named


def bind(
    settings: Sequence[Mapping[str, Any] | Callable] | Callable,
    registry: Mapping[str, Callable],
    transforms: Mapping[str, Transform] = {},
) -> tuple[Part, ...]:
    """Parts of a weighted sum from the config's list.

    The list may be `[{name: dpo, weight: 1, beta: 0.1}, {name: sft, weight: 0.5}]`.  A name is one
    of the registry, or `package.module:function` for a function of one's own; in Python the
    function itself may stand in for the list, the mapping or its name.  Besides hyperparameters a
    part may have
        columns      {array parameter: column, or list of columns to stack}, where the data has
                     other names
        transform    a change of the log-probs before the objective: its name,
                     {name: ld, alpha: 0.5}, or a list of these

    Errors: InputError listing everything that is wrong with every part, in lines, or parts that
        cannot share groups.
    """
    parts, problems = [], []
    listed = objective_list(settings)
    for position, setting in enumerate(listed):
        given = {"name": setting} if callable(setting) else dict(setting)
        try:
            parts.append(_bind_one(given, registry, transforms))
        except InputError as error:
            line = f"objective[{position}]: {error.got} ({error.fix})"
            problems.append(" ".join(line.split()))
    if not listed:
        problems.append("objective: an empty list")
    if not problems and not group_kinds(parts):
        each = "; ".join(
            f"{part.name} is defined on {' or '.join(part.needs.groups)}" for part in parts
        )
        problems.append(f"objective: these cannot be summed over the same groups: {each}")
    if problems:
        raise InputError(
            "a list of objectives with known names and hyperparameters",
            "\n".join(problems),
            "change each entry as its brackets say; docs/objectives.md lists every objective "
            "with its hyperparameters and groups",
        )
    return _unique(parts)


def _unique(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The same objective twice is logged as `dpo` and `dpo_2`."""
    seen: dict[str, int] = {}
    unique = []
    for part in parts:
        seen[part.name] = count = seen.get(part.name, 0) + 1
        unique.append(
            part if count == 1 else dataclasses.replace(part, name=f"{part.name}_{count}")
        )
    return tuple(unique)


def _bind_one(
    setting: dict[str, Any], registry: Mapping[str, Callable], transforms: Mapping[str, Transform]
) -> Part:
    name, weight = setting.pop("name", None), setting.pop("weight", 1.0)
    sources, chain = setting.pop("columns", {}), setting.pop("transform", [])
    function = name if callable(name) else _named(name, registry, "objective")
    label = getattr(function, "__name__", str(name))
    if not _is_finite_number(weight) or weight <= 0:
        raise InputError(
            "a weight above 0",
            f"{label}.weight={weight!r}",
            "give a finite number above 0, or remove the objective",
        )
    arrays, hyperparameters = _signature(function, label, setting)
    if not arrays or arrays[0].name != "policy":
        raise InputError(
            "a first parameter `policy`",
            f"{label}{inspect.signature(function)}",
            "name it `policy`",
        )
    _check_sources(label, sources, [p.name for p in arrays if p.name not in NOT_DATA])
    return Part(
        name=label,
        weight=float(weight),
        function=function,
        hyperparameters=hyperparameters,
        required=tuple(p.name for p in arrays if p.default is p.empty),
        optional=tuple(p.name for p in arrays if p.default is not p.empty),
        sources=sources,
        transforms=_bind_transforms(
            label, function, chain if isinstance(chain, (list, tuple)) else [chain], transforms
        ),
    )


def _is_finite_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def _bind_transforms(
    label: str, function: Callable, chain: Sequence, registry: Mapping[str, Transform]
) -> tuple[Transform, ...]:
    if chain and not getattr(function, "needs", Needs(transformable=True)).transformable:
        raise InputError(
            "a transform before a function of the log-ratios of pairs",
            f"{label} does not take one: it reads more than the summed log-probs",
            "remove `transform`; ld_dpo, sampo and f_dpo_* are objectives of their own",
        )
    bound = []
    for setting in chain:
        given = dict(setting) if isinstance(setting, Mapping) else {"name": setting}
        transform = _named(given.pop("name", None), registry, "transform")
        _, hyperparameters = _signature(transform.function, transform.function.__name__, given)
        bound.append(
            dataclasses.replace(transform, function=partial(transform.function, **hyperparameters))
        )
    if [transform.shortens for transform in bound] not in ([], [True], [False], [True, False]):
        raise InputError(
            "a chain of transforms that makes sense",
            f"{label}.transform={list(chain)}",
            "name at most one transform that leaves out tokens (ld, sampled), "
            "then at most one of the others",
        )
    return tuple(bound)


def _signature(
    function: Callable, label: str, given: Mapping[str, Any]
) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """Array parameters of a function, and all its hyperparameters with the given values checked."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    hyper = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    for key in given:
        if key not in hyper:
            raise InputError("a hyperparameter", f"{label}.{key} is unknown", _nearest(key, hyper))
    missing = [key for key, p in hyper.items() if p.default is p.empty and key not in given]
    if missing:
        raise InputError(
            "every hyperparameter without a default", f"{label} lacks {missing}", "set them"
        )
    defaults = {key: p.default for key, p in hyper.items() if p.default is not p.empty}
    checked = {key: _checked(label, hyper[key], value) for key, value in given.items()}
    return [p for p in parameters if p.kind is not p.KEYWORD_ONLY], defaults | checked


def _checked(label: str, parameter: inspect.Parameter, value: Any) -> Any:
    """The value in the type of the annotation, which may hold bounds: `Annotated[float, Gt(0)]`."""
    if parameter.annotation is parameter.empty:
        return value
    try:
        return TypeAdapter(parameter.annotation).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise InputError(
            "a valid value",
            f"{label}.{parameter.name}={value!r}: {reason}",
            "give a value of the type and within the bounds named",
        ) from error


def _check_sources(label: str, sources: Any, arrays: Sequence[str]) -> None:
    if not isinstance(sources, Mapping):
        raise InputError("a mapping", f"{label}.columns={sources!r}", "write {parameter: column}")
    for key in sources:
        if key not in arrays:
            raise InputError(
                "an array parameter", f"{label}.columns.{key} is unknown", _nearest(key, arrays)
            )


def _named(name: Any, registry: Mapping[str, Any], what: str) -> Any:
    """The entry of the registry, or what `package.module:attribute` names."""
    if isinstance(name, str) and ":" in name:
        return import_named(name)
    if name not in registry:
        raise InputError(
            f"a known {what}",
            f"name={name!r:.60} is unknown",
            _nearest(str(name), registry, listed=what == "objective"),
        )
    return registry[name]


def _nearest(name: str, known: Iterable[str], *, listed: bool = False) -> str:
    """The known name that is meant, and the others.

    Args:
        listed: the names are many, and a command lists them.
    """
    close = difflib.get_close_matches(name, list(known), 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if listed:
        return f"{hint}`jaxpref objectives` lists them all"
    return f"{hint}known: {', '.join(sorted(known)) or 'none'}"
