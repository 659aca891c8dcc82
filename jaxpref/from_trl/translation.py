"""A translation while it is made: the options that are left, and what has become of the others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxpref.from_trl.source import Unknown
from jaxpref.settings.other_trainers import NOT_NEEDED

_CALLED = "is Python: give it to jaxpref.train(config, "
_PYTHON = {
    "callbacks": f"{_CALLED}callbacks=[...]), which has jaxpref.EarlyStopping",
    "optimizers": f"{_CALLED}optimizer=..., schedule=...)",
    "compute_metrics": f"{_CALLED}callbacks=[...])",
    "data_collator": "not needed: rows are packed, see data.pack",
}
"""Arguments of trainers that no config can hold -> what to do instead."""


@dataclass
class Translation:
    """Settings under dotted keys, what is said beside them, and what has no counterpart."""

    title: str
    """What was translated, and by what."""
    settings: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    """Dotted key -> comment on its line."""
    left: list[tuple[str, Any, str]] = field(default_factory=list)
    """(option, value, what to do instead)."""
    nothing: list[str] = field(default_factory=list)
    """Options that were given and ask for nothing."""
    remarks: list[str] = field(default_factory=list)

    def set(self, key: str, value: Any, note: str = "") -> None:
        self.settings[key] = value
        if note:
            self.notes[key] = note


class Options:
    """Options, taken one after another; a value that only the running script knows is left out.

    Args:
        given: option -> value.
        made: what becomes of them.
        defaults: of those whose default matters.
    """

    def __init__(self, given: Mapping[str, Any], made: Translation, defaults: Mapping[str, Any]):
        self.made, self._defaults = made, defaults
        self._rest = {}
        for name, value in given.items():
            if isinstance(value, Unknown):
                unneeded = f"not needed: {NOT_NEEDED[name]}" if name in NOT_NEEDED else None
                by_hand = "is known when the script runs: set it by hand"
                made.left.append((name, value, _PYTHON.get(name) or unneeded or by_hand))
            else:
                self._rest[name] = value

    def take(self, name: str, default: Any = None) -> Any:
        value = self._rest.pop(name, None)
        return self._defaults.get(name, default) if value is None else value

    def has(self, name: str) -> bool:
        return self._rest.get(name) is not None

    def copy(self, name: str, key: str, convert: Callable[[Any], Any] | None = None) -> None:
        """An option that was given, under our key."""
        if self.has(name):
            value = self.take(name)
            self.made.set(key, convert(value) if convert else value)

    def leave(self, name: str, why: str) -> None:
        if self.has(name):
            self.made.left.append((name, self._rest.pop(name), why))

    def rest(self) -> dict[str, Any]:
        return self._rest
