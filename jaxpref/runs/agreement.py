"""Several processes must have the same run: objective, rows and plan."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest

from jaxpref.data.loader import Plan
from jaxpref.errors import InputError
from jaxpref.models.parameters import flatten
from jaxpref.objectives import Part
from jaxpref.processes.agreement import all_equal, check_same
from jaxpref.processes.store import exchanged, process_count
from jaxpref.runs.made_from import add_group, of_objective
from jaxpref.types import EncodedGroup


def check_same_plan(plan: Plan, resume_step: int | None) -> None:
    """Errors: InputError on every process where some have another plan of the steps.

    Args:
        resume_step: the checkpoint to go on from; None: a new run.
    """
    check_same(
        "plan of the steps",
        flatten(asdict(plan), ".") | {"step to go on from": resume_step},
        "give every host the same data, and one `out` that all share",
    )


def check_same_objective(parts: Sequence[Part]) -> None:
    """Errors: InputError on every process where functions of the user's own differ, by name."""
    digests = {name: digest for name, (digest, _) in of_objective(parts).items()}
    check_same("objective (digests of its code)", digests, "copy the same code to every host")


def check_same_rows(what: str, groups: Sequence[EncodedGroup]) -> None:
    """Errors: InputError on every process where some have other rows, naming the first of them.

    Args:
        what: what the rows are for.
    """
    if process_count() == 1:
        return
    own = [_digest(group) for group in groups]
    if all_equal(exchanged(hashlib.sha256(b"".join(own)).digest())):
        return
    of_each = [_split(joined) for joined in exchanged(b"".join(own))]
    differing = [i for i, rows in enumerate(zip_longest(*of_each)) if not all_equal(rows)]
    first, last = differing[0], differing[-1]
    there = groups[first] if first < len(groups) else None
    said = exchanged(_shown(there).encode())
    raise InputError(
        f"the same {what}, in the same order, on every process",
        f"{len(differing)} differ, from number {first + 1} to number {last + 1}; number "
        f"{first + 1} is "
        + "; ".join(f"on process {p}: {text.decode()}" for p, text in enumerate(said)),
        "give every host the same files",
    )


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
