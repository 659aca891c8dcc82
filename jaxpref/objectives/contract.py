"""What an objective is: a pure function of arrays whose signature says what it needs.

    @needs(groups=PAIRS)
    def dpo(policy: Logps, ref: Logps, weight=None, *, beta: float = 0.1) -> ObjectiveOutput

Positional parameters are arrays, found by name:
    policy       Logps of the policy, always first
    ref          Logps of the reference model, constant
    extra_refs   [B, K, N] summed log-probs under the models of `reference.extra`
    running      {name: scalar}, statistics carried from step to step (`needs(running=...)`)
    uniform      [B] numbers in [0, 1), drawn anew every step by the data loader
    any other    the data column of that name, [B] or [B, K], required unless it has a default
Keyword-only parameters are hyperparameters: they are the config schema.

`weight_B` of an objective that is not coupled must depend on data only (counts, columns), never on
log-probs, for the step divides by its sum over the whole batch before it back-propagates
micro-batches.
"""

import dataclasses
import difflib
import importlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import TypeAdapter, ValidationError

from jaxpref.errors import InputError

PAIRS = ("pair", "triple")
"""Kinds of groups whose completion 0 is chosen and 1 rejected."""
JUDGED = ("judged", "judged_other")
"""Kinds of groups whose completion 0 has a label; in `judged_other`, completion 1 answers another
prompt."""
KINDS = {
    "pair": "chosen, rejected",
    "triple": "chosen, rejected, gold answer",
    "single": "one completion",
    "judged": "one completion with a label, 1 desirable or 0 undesirable",
    "judged_other": "a judged completion, and an answer to another prompt",
    "ranked": "completions, best first",
}
"""What the completions of a group are, in order."""

_NOT_COLUMNS = ("policy", "ref", "extra_refs", "running", "uniform")


@dataclass(frozen=True)
class Needs:
    """What an objective asks for besides its arrays."""

    groups: tuple[str, ...] = tuple(KINDS)
    """Kinds of groups it is defined on."""
    logps: tuple[str, ...] = ()
    """Optional fields of `Logps` that it reads."""
    coupled: bool = False
    """Whether a pair's loss depends on the other pairs of the batch; then it is given the whole
    batch."""
    transformable: bool = False
    """Whether transforms make sense before it: a function of the summed log-ratios of a pair and of
    token counts."""
    running: Mapping[str, float] = field(default_factory=dict)
    """Initial values of statistics that it carries from step to step; for coupled objectives."""

    def __post_init__(self) -> None:
        assert self.coupled or not self.running, "statistics need the whole batch: set coupled=True"


def needs(**kwargs: Any) -> Callable[[Callable], Callable]:
    """Decorator that states an objective's `Needs`; without it: any groups, plain log-probs, not
    coupled."""

    def attach(function: Callable) -> Callable:
        function.needs = Needs(**kwargs)
        return function

    return attach


class Term(NamedTuple):
    """A part of a loss with weights of its own: sum(weight_B * loss_B) / sum(weight_B) over the
    whole batch."""

    loss_B: jax.Array
    weight_B: jax.Array


class ObjectiveOutput(NamedTuple):
    """Unreduced: the objective's value is sum(weight_B * loss_B) / sum(weight_B) over the whole
    batch."""

    loss_B: jax.Array
    weight_B: jax.Array
    metrics: dict[str, jax.Array | Term]
    """name -> [B], averaged over the batch's groups for the log, or a Term with weights of its
    own."""
    plus: tuple[Term, ...] = ()
    """Terms that are added, each averaged with its own weights (a token mean beside a mean over
    pairs)."""
    running: Mapping[str, jax.Array] | None = None
    """The statistics after this batch, when the objective carries some."""

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term(self.loss_B, self.weight_B), *self.plus)


@dataclass(frozen=True)
class Transform:
    """A change of the log-probs before an objective (`objectives/transforms.py`), bound to its
    hyperparameters."""

    function: Callable
    """(policy, ref) -> (policy, ref); ref may be None where a later transform drops it."""
    logps: tuple[str, ...] = ()
    """Optional fields of `Logps` that it reads."""
    shortens: bool = False
    """It leaves out tokens; only one such, and before anything that replaces the log-ratios."""
    drops_reference: bool = False


@dataclass(frozen=True)
class Part:
    """One objective of a weighted sum, bound to its hyperparameters."""

    name: str
    weight: float
    function: Callable[..., ObjectiveOutput]
    hyperparameters: Mapping[str, Any]
    required: tuple[str, ...]
    optional: tuple[str, ...]
    sources: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    """Array parameter -> the data column (or columns, stacked on a last axis) that it reads instead
    of its own name."""
    transforms: tuple[Transform, ...] = ()
    """Applied in order before the objective."""

    @property
    def needs(self) -> Needs:
        own = getattr(self.function, "needs", Needs())
        asked = (name for transform in self.transforms for name in transform.logps)
        return dataclasses.replace(own, logps=tuple(dict.fromkeys((*own.logps, *asked))))

    @property
    def needs_reference(self) -> bool:
        dropped = any(transform.drops_reference for transform in self.transforms)
        return ("ref" in self.required and not dropped) or "kl" in self.needs.logps

    @property
    def columns(self) -> tuple[str, ...]:
        """Data columns that must be there: of required arrays, and those that the config names."""
        wanted = [
            self._source(name)
            for name in (*self.required, *self.sources)
            if name not in _NOT_COLUMNS
        ]
        return tuple(dict.fromkeys(column for columns in wanted for column in columns))

    @property
    def all_columns(self) -> tuple[str, ...]:
        """Those, and the ones that are read where the data has them."""
        optional = (
            column
            for name in self.optional
            if name not in _NOT_COLUMNS
            for column in self._source(name)
        )
        return tuple(dict.fromkeys((*self.columns, *optional)))

    def _source(self, name: str) -> tuple[str, ...]:
        source = self.sources.get(name, name)
        return (source,) if isinstance(source, str) else tuple(source)

    def _array(self, name: str, have: Mapping[str, Any]) -> Any:
        source = self.sources.get(name, name)
        return (
            have[source]
            if isinstance(source, str)
            else jnp.stack([have[column] for column in source], axis=-1)
        )

    def __call__(self, policy, ref, columns: Mapping[str, Any]) -> ObjectiveOutput:
        """Args: `columns` holds data columns, and `extra_refs`, `running`, `uniform` where they are
        asked for."""
        for transform in self.transforms:
            policy, ref = transform.function(policy, ref)
        have = {"policy": policy, "ref": ref, **columns}
        present = [
            name
            for name in (*self.required, *self.optional)
            if all(c in have for c in self._source(name))
        ]
        return self.function(
            **{name: self._array(name, have) for name in present}, **self.hyperparameters
        )


def bind(
    settings: Sequence[Mapping[str, Any] | Callable],
    registry: Mapping[str, Callable],
    transforms: Mapping[str, Transform] = {},
) -> tuple[Part, ...]:
    """Parts of a weighted sum from the config's list: `[{name: dpo, weight: 1, beta: 0.1}, {name:
    sft, weight: 0.5}]`.

    A name is one of the registry, or `package.module:function` for a function of one's own; in
    Python the function itself may stand in for the mapping or for its name.  Besides
    hyperparameters a part may have
        columns      {array parameter: column, or list of columns to stack}, where the data calls them otherwise
        transform    a change of the log-probs before the objective: {name: ld, alpha: 0.5}, its name, or a list
    Errors: InputError listing everything that is wrong with every part, or parts that cannot share
        groups.
    """
    parts, problems = [], []
    for position, setting in enumerate(settings):
        try:
            parts.append(
                _bind_one(
                    {"name": setting} if callable(setting) else dict(setting), registry, transforms
                )
            )
        except InputError as error:
            problems.append(f"objective[{position}]: {error.got} ({error.fix})")
    if not settings:
        problems.append("objective: an empty list")
    if not problems and not group_kinds(parts):
        each = "; ".join(
            f"{part.name} is defined on {' or '.join(part.needs.groups)}" for part in parts
        )
        problems.append(f"objective: these cannot be summed over the same groups: {each}")
    if problems:
        raise InputError(
            "a list of objectives with known names and hyperparameters",
            "; ".join(problems),
            "see above",
        )
    return tuple(_unique(parts))


def group_kinds(parts: Sequence[Part]) -> tuple[str, ...]:
    """Kinds of groups on which every part is defined, in the order of `KINDS`."""
    return tuple(kind for kind in KINDS if all(kind in part.needs.groups for part in parts))


def asked_logps(parts: Sequence[Part]) -> tuple[str, ...]:
    """Optional fields of `Logps` that some part reads."""
    return tuple(sorted({name for part in parts for name in part.needs.logps}))


def _unique(parts: Sequence[Part]) -> Iterator[Part]:
    """The same objective twice is logged as `dpo` and `dpo_2`."""
    seen: dict[str, int] = {}
    for part in parts:
        seen[part.name] = seen.get(part.name, 0) + 1
        yield (
            part
            if seen[part.name] == 1
            else dataclasses.replace(part, name=f"{part.name}_{seen[part.name]}")
        )


def _bind_one(
    setting: dict[str, Any], registry: Mapping[str, Callable], transforms: Mapping[str, Transform]
) -> Part:
    name, weight = setting.pop("name", None), setting.pop("weight", 1.0)
    sources, chain = setting.pop("columns", {}), setting.pop("transform", [])
    function = name if callable(name) else _find(name, registry, "objective")
    label = getattr(function, "__name__", str(name))
    if (
        isinstance(weight, bool)
        or not isinstance(weight, (int, float))
        or not math.isfinite(weight)
    ):
        raise InputError("a number", f"weight={weight!r}", "give a finite number")
    arrays, hyperparameters = _signature(function, label, setting)
    if not arrays or arrays[0].name != "policy":
        raise InputError(
            "a first parameter `policy`",
            f"{label}{inspect.signature(function)}",
            "name it `policy`",
        )
    _check_sources(label, sources, [p.name for p in arrays if p.name not in _NOT_COLUMNS])
    chain = chain if isinstance(chain, (list, tuple)) else [chain]
    return Part(
        name=label,
        weight=float(weight),
        function=function,
        hyperparameters=hyperparameters,
        required=tuple(p.name for p in arrays if p.default is p.empty),
        optional=tuple(p.name for p in arrays if p.default is not p.empty),
        sources=sources,
        transforms=_bind_transforms(label, function, chain, transforms),
    )


def _bind_transforms(
    label: str, function: Callable, chain: Sequence, registry: Mapping[str, Transform]
) -> tuple:
    if chain and not getattr(function, "needs", Needs(transformable=True)).transformable:
        raise InputError(
            "a transform before a function of the log-ratios of pairs",
            f"{label} does not take one: it reads more than the summed log-probs",
            "leave the transform out; ld_dpo, sampo and f_dpo_* are objectives of their own",
        )
    bound = []
    for setting in chain:
        setting = dict(setting) if isinstance(setting, Mapping) else {"name": setting}
        found = _find(setting.pop("name", None), registry, "transform")
        _, hyperparameters = _signature(found.function, found.function.__name__, setting)
        bound.append(
            dataclasses.replace(found, function=partial(found.function, **hyperparameters))
        )
    kinds = [transform.shortens for transform in bound]
    if kinds not in ([], [True], [False], [True, False]):
        raise InputError(
            "a chain of transforms that makes sense",
            f"{label}.transform={list(chain)}",
            "at most one transform that leaves out tokens (ld, sampled), then at most one of the others",
        )
    return tuple(bound)


def _signature(
    function: Callable, label: str, given: Mapping[str, Any]
) -> tuple[list[inspect.Parameter], dict]:
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
    """The value in the type of the annotation, which may hold bounds: `beta: Annotated[float,
    Gt(0)]`."""
    if parameter.annotation is parameter.empty:
        return value
    try:
        return TypeAdapter(parameter.annotation).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise InputError(
            "a valid value", f"{label}.{parameter.name}={value!r}: {reason}", "correct it"
        ) from error


def _check_sources(label: str, sources: Any, arrays: Sequence[str]) -> None:
    if not isinstance(sources, Mapping):
        raise InputError("a mapping", f"{label}.columns={sources!r}", "write {parameter: column}")
    for key in sources:
        if key not in arrays:
            raise InputError(
                "an array parameter", f"{label}.columns.{key} is unknown", _nearest(key, arrays)
            )


def _find(name: Any, registry: Mapping[str, Callable], what: str) -> Callable:
    if isinstance(name, str) and ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise InputError(
                "an importable module:function", f"{name!r}: {error}", "correct the name"
            ) from error
    if name not in registry:
        raise InputError(
            f"a known {what}", f"name={name!r} is unknown", _nearest(str(name), registry)
        )
    return registry[name]


def _nearest(name: str, known) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(sorted(known)) or 'none'}"


def check_columns(parts: Sequence[Part], have: Sequence[str]) -> tuple[str, ...]:
    """Names of the data columns that the objectives will read.

    Errors: InputError when a required column is missing, with the list of columns that the data
        has.
    """
    missing = [
        f"{part.name} needs {column!r}"
        for part in parts
        for column in part.columns
        if column not in have
    ]
    if missing:
        raise InputError(
            "data with every column that the objectives ask for",
            "; ".join(missing) + f"; the data has: {', '.join(sorted(have)) or 'no such columns'}",
            "add the column to the data, name another in the objective's `columns`, or choose another objective",
        )
    return tuple(sorted({column for part in parts for column in part.all_columns} & set(have)))
