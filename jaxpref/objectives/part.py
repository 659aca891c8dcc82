"""One objective of a run, bound to its hyperparameters, and what all of them need together."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp

from jaxpref.errors import InputError
from jaxpref.objectives.contract import (
    KINDS,
    NOT_DATA,
    Needs,
    ObjectiveOutput,
    Transform,
    check_output,
)

_PACKAGE = __name__.partition(".")[0] + "."


@dataclass(frozen=True)
class Part:
    """One objective of a weighted sum, bound to its hyperparameters."""

    name: str
    weight: float
    function: Callable[..., ObjectiveOutput]
    hyperparameters: Mapping[str, Any]
    required: tuple[str, ...]
    """Array parameters without a default."""
    optional: tuple[str, ...]
    """Array parameters that are passed where the data has them."""
    sources: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    """Array parameter -> the data column (or columns, stacked on a last axis) that it reads instead
    of the one of its own name."""
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
        return self._columns_of((*self.required, *self.sources))

    @property
    def all_columns(self) -> tuple[str, ...]:
        """Those, and the ones that are read where the data has them."""
        return self._columns_of((*self.required, *self.sources, *self.optional))

    @property
    def weight_columns(self) -> tuple[str, ...]:
        """Those that weigh the groups in the loss."""
        return self._columns_of([n for n in (*self.required, *self.optional) if n == "weight"])

    @property
    def numbers(self) -> dict[str, Any]:
        """Its weight and those hyperparameters that may be traced, as the config names them.

        They are floats and tuples of floats.  A function of the user's own may ask Python about
        its hyperparameters, so it gets them as they are.
        """
        traced = {"weight": self.weight}
        if getattr(self.function, "__module__", "").startswith(_PACKAGE):
            for name, value in self.hyperparameters.items():
                if name not in self.needs.constants and _all_floats(value):
                    traced[name] = value
        return traced

    def with_numbers(self, values: Mapping[str, Any]) -> "Part":
        """With another weight or other hyperparameters, which may be traced."""
        hyperparameters = {**self.hyperparameters, **values}
        weight = hyperparameters.pop("weight", self.weight)
        return dataclasses.replace(self, weight=weight, hyperparameters=hyperparameters)

    def _columns_of(self, arrays: Sequence[str]) -> tuple[str, ...]:
        """The data columns behind these array parameters, each once."""
        columns: dict[str, None] = {}
        for name in arrays:
            if name not in NOT_DATA:
                columns |= dict.fromkeys(self._source(name))
        return tuple(columns)

    def _source(self, name: str) -> tuple[str, ...]:
        source = self.sources.get(name, name)
        return (source,) if isinstance(source, str) else tuple(source)

    def _array(self, name: str, have: Mapping[str, Any]) -> Any:
        source = self.sources.get(name, name)
        if isinstance(source, str):
            return have[source]
        return jnp.stack([have[column] for column in source], axis=-1)

    def __call__(self, policy, ref, columns: Mapping[str, Any]) -> ObjectiveOutput:
        """The objective's output for a batch.

        Args:
            columns: data columns, and `extra_refs`, `running`, `uniform` where they are asked for.
        """
        for transform in self.transforms:
            policy, ref = transform.function(policy, ref)
        have = {"policy": policy, "ref": ref, **columns}
        arrays = {
            name: self._array(name, have)
            for name in (*self.required, *self.optional)
            if all(column in have for column in self._source(name))
        }
        out = self.function(**arrays, **self.hyperparameters)
        check_output(self.name, out, len(policy.count), self.needs)
        return out


def _all_floats(value: Any) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return all(isinstance(x, float) for x in values)


def group_kinds(parts: Sequence[Part]) -> tuple[str, ...]:
    """Kinds of groups on which every part is defined, in the order of `KINDS`."""
    return tuple(kind for kind in KINDS if all(kind in part.needs.groups for part in parts))


def asked_logps(parts: Sequence[Part]) -> tuple[str, ...]:
    """Optional fields of `Logps` that some part reads."""
    return tuple(sorted({name for part in parts for name in part.needs.logps}))


def check_columns(
    parts: Sequence[Part],
    have: Sequence[str],
    unread: Sequence[str] = (),
    of_adapter: Sequence[str] = (),
) -> tuple[str, ...]:
    """Names of the data columns that the objectives, and the adapter, will read.

    Args:
        have: the columns of the data that were asked for.
        unread: what else the rows hold, to be named in errors.
        of_adapter: the columns of `adapter.weight_columns`.
    Errors: InputError for a missing required column, with the list of columns that the data has.
    """
    missing = [
        f"{part.name} needs {column!r}"
        for part in parts
        for column in part.columns
        if column not in have
    ]
    missing += [
        f"adapter.weight_columns names {column!r}" for column in of_adapter if column not in have
    ]
    if missing:
        has = [*sorted(have), *unread]
        raise InputError(
            "data with every column that objectives and adapter ask for",
            "; ".join(missing) + f"; the data has: {', '.join(has) or 'no such columns'}",
            "add the column to the data, name another in the objective's `columns`, "
            "or choose another objective",
        )
    read = {column for part in parts for column in part.all_columns} | set(of_adapter)
    return tuple(sorted(read & set(have)))
