"""What must be the same on all processes, compared before anything is compiled.

Processes that differ hang in a collective, or compute something that nobody asked for.
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from jaxpref.errors import InputError
from jaxpref.processes.store import exchanged, process_count, store

_SHOWN = 5
"""Differences that an error names."""
_PACKAGES = ("jaxpref", "jax", "jaxlib", "libtpu")


def check_same(what: str, values: Mapping[str, Any], fix: str) -> None:
    """Errors: InputError on every process where some have other values, with names and values.

    Args:
        what: what the values are.
        values: must be JSON, or be told apart by their text.
        fix: what to do where they differ.
    """
    if process_count() == 1:
        return
    own = json.dumps(dict(values), sort_keys=True, default=str).encode()
    if all_equal(exchanged(hashlib.sha256(own).digest())):
        return
    of_each = [json.loads(text) for text in exchanged(own)]
    names = {name: None for one in of_each for name in one}
    differing = [name for name in names if not all_equal([one.get(name) for one in of_each])]
    lines = [
        f"{name}: "
        + ", ".join(f"{one.get(name)!r} on process {p}" for p, one in enumerate(of_each))
        for name in differing[:_SHOWN]
    ]
    if len(differing) > _SHOWN:
        lines.append(f"and {len(differing) - _SHOWN} more")
    raise InputError(f"the same {what} on every process", "; ".join(lines), fix)


def check_same_programs() -> None:
    """Errors: InputError where processes run other versions, or on other numbers of devices."""
    if process_count() > 1:  # before jax looks for devices, which may fail for other versions
        check_same("versions", _versions(), "install the same versions on every host")
    if jax.process_count() == 1:
        return
    store()  # there is none where jax found the others by itself
    devices = jax.local_devices()
    check_same(
        "devices",
        {"kind": devices[0].device_kind, "of the process": len(devices), "all": len(jax.devices())},
        "give every process as many devices of one kind",
    )


def all_equal(values: Sequence[Any]) -> bool:
    """Whether all values are the same one."""
    return all(value == values[0] for value in values)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    # Copies of the sources have one version, whatever has been changed in them.
    found["sources of jaxpref"] = _digest_of_sources()
    return found


def _digest_of_sources() -> str:
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]
