"""Several processes must train the same run: settings, rows and plan, compared before they start.

Processes that differ hang in a collective, or train on with wrong gradients.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxpref.config import Config
from jaxpref.data.loader import Plan
from jaxpref.errors import InputError
from jaxpref.models.parameters import flatten
from jaxpref.runs.made_from import add_group
from jaxpref.settings import to_dict
from jaxpref.types import EncodedGroup

_MAY_DIFFER = ("log", "reference.cache_dir")
"""Sections and keys: what a process shows, and its own disk."""

_SHOWN = 5
"""Differences that an error names."""


def check_same_settings(config: Config) -> None:
    """Errors: InputError on every process where some have other settings, with keys and values."""
    settings = flatten(to_dict(config), ".")
    _check_same("settings", {key: x for key, x in settings.items() if not _may_differ(key)})


def check_same_plan(plan: Plan, resume_step: int | None) -> None:
    """Errors: InputError on every process where some have another plan of the steps.

    Args:
        resume_step: the checkpoint to go on from; None: a new run.
    """
    _check_same(
        "plan of the steps", flatten(asdict(plan), ".") | {"step to go on from": resume_step}
    )


def check_same_rows(what: str, groups: Sequence[EncodedGroup]) -> None:
    """Errors: InputError on every process where some have other rows, naming the first of them.

    Args:
        what: what the rows are for.
    """
    if jax.process_count() == 1:
        return
    own = [_digest(group) for group in groups]
    if _all_equal(_gathered(hashlib.sha256(b"".join(own)).digest())):
        return
    of_each = [_split(joined) for joined in _gathered_of_any_length(b"".join(own))]
    differing = [i for i, rows in enumerate(zip_longest(*of_each)) if not _all_equal(rows)]
    first, last = differing[0], differing[-1]
    there = groups[first] if first < len(groups) else None
    said = _gathered_of_any_length(_shown(there).encode())
    raise InputError(
        f"the same {what}, in the same order, on every process",
        f"{len(differing)} differ, from number {first + 1} to number {last + 1}; number "
        f"{first + 1} is "
        + "; ".join(f"on process {p}: {text.decode()}" for p, text in enumerate(said)),
        "give every host the same files",
    )


def _check_same(what: str, values: Mapping[str, Any]) -> None:
    if jax.process_count() == 1:
        return
    own = json.dumps(dict(values), sort_keys=True, default=str).encode()
    if _all_equal(_gathered(hashlib.sha256(own).digest())):
        return
    of_each = [json.loads(text) for text in _gathered_of_any_length(own)]
    differing = [key for key in of_each[0] if not _all_equal([one.get(key) for one in of_each])]
    lines = [
        f"{key}: " + ", ".join(f"{one.get(key)!r} on process {p}" for p, one in enumerate(of_each))
        for key in differing[:_SHOWN]
    ]
    if len(differing) > _SHOWN:
        lines.append(f"and {len(differing) - _SHOWN} more")
    raise InputError(
        f"the same {what} on every process",
        "; ".join(lines),
        "start every process with the same config file, overrides and version of jaxpref",
    )


def _may_differ(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in _MAY_DIFFER)


def _digest(group: EncodedGroup) -> bytes:
    """32 bytes of what is trained on: token ids and columns, and where draws start from."""
    digest = hashlib.sha256(str(group.row_id).encode())
    add_group(digest, group)
    return digest.digest()


def _shown(group: EncodedGroup | None) -> str:
    if group is None:
        return "none"
    tokens = [len(ids) for ids in (group.prompt_ids, *group.completion_ids)]
    columns = "".join(f", {name}={group.columns[name]}" for name in sorted(group.columns))
    digest = _digest(group).hex()[:8]
    return f"{group.where} ({' + '.join(map(str, tokens))} tokens{columns}; digest {digest})"


def _split(joined: bytes) -> list[bytes]:
    return [joined[i : i + 32] for i in range(0, len(joined), 32)]


def _all_equal(values: Sequence[Any]) -> bool:
    return all(value == values[0] for value in values)


def _gathered(own: bytes) -> list[bytes]:
    """The bytes of every process, all of one length."""
    # As words of 32 bits: jax narrows 64.
    words = np.frombuffer(own + b"\0" * (-len(own) % 4), "<u4")
    all_words = np.asarray(multihost_utils.process_allgather(words))
    return [row.astype("<u4").tobytes()[: len(own)] for row in all_words]


def _gathered_of_any_length(own: bytes) -> list[bytes]:
    lengths = [int.from_bytes(b, "little") for b in _gathered(len(own).to_bytes(4, "little"))]
    all_bytes = _gathered(own.ljust(max(lengths), b"\0"))
    return [b[:n] for b, n in zip(all_bytes, lengths, strict=True)]
