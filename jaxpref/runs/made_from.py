"""What a run is made from, as digests that its checkpoints keep: it goes on from nothing else."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpref.errors import InputError
from jaxpref.models.parameters import LORA
from jaxpref.models.source import open_checkpoint
from jaxpref.objectives import Part
from jaxpref.processes.together import first_does
from jaxpref.runs.adapters import reference_adapter
from jaxpref.runs.build import Pieces, param_shapes
from jaxpref.runs.code_digest import code_digest
from jaxpref.runs.digests import placed_digest, weights_key
from jaxpref.runs.params import reference_source
from jaxpref.runs.program_digest import program_digest
from jaxpref.step.given_rule import GivenRule
from jaxpref.storage.paths import as_path
from jaxpref.types import EncodedGroup

Digests = dict[str, Any]
"""As JSON: config key -> digest, or digests by file or name."""


def of_rows(groups: Sequence[EncodedGroup]) -> list[list[Any]]:
    """[file, groups, digest of their tokens and columns in order] of every file, in order."""
    files: dict[str, Any] = {}
    for group in groups:
        file = group.where.rpartition(", row ")[0]
        count, digest = files.get(file, (0, hashlib.sha256()))
        add_group(digest, group)
        files[file] = count + 1, digest
    return [[file, count, digest.hexdigest()[:32]] for file, (count, digest) in files.items()]


def add_group(digest: Any, group: EncodedGroup) -> None:
    """Adds what is trained on of a group: token ids, columns and pictures."""
    texts = (group.prompt_ids, *group.completion_ids)
    digest.update(np.array([len(texts), *map(len, texts)], "<i8").tobytes())
    for ids in texts:
        digest.update(ids.astype("<i4").tobytes())
    for name, value in sorted(group.columns.items()):
        digest.update(f"{name} {np.asarray(value, float).tolist()}".encode())
    if group.pictures:
        digests = [picture.digest for picture in group.pictures]
        digest.update(f"pictures {digests} {group.other_pictures}".encode())


def of_order(row_ids: Sequence[int] | np.ndarray) -> str:
    """Of the row ids of the first epoch: they decide the other epochs, and what is drawn."""
    return hashlib.sha256(np.asarray(row_ids).astype("<i8").tobytes()).hexdigest()[:32]


def of_objective(parts: Sequence[Part]) -> Digests:
    """{part: [digest of its code and settings, Python whose byte code that is]}."""
    python = ".".join(map(str, sys.version_info[:2]))
    return {part.name: [code_digest(part), python] for part in parts}


def of_model(pieces: Pieces, params: Mapping[str, Any]) -> str:
    """Of the weights from which training starts, but for what is drawn or computed from them.

    Args:
        params: as `load_params` gives them.
    """
    drawn = LORA if pieces.config.adapter.path is None else None
    read = {name: tree for name, tree in params.items() if name != drawn}
    return placed_digest(read)


def of_own_model(pieces: Pieces) -> list[str] | None:
    """Of the program of a model of the user's own; None: it is the built-in decoder."""
    if pieces.source.own is None:
        return None
    model = pieces.model
    tokens = [jax.ShapeDtypeStruct((1, 8), np.int32)] * 3

    def forward(params, *inputs):
        return model.hidden(params, *inputs), model.head(params)

    return program_digest(forward, param_shapes(model), *tokens)


def of_given_rule(rule: GivenRule, optimizer: Any, schedule: Any, params: Any) -> Digests:
    """Of an optimizer and a schedule that were given in Python; None: the config's.

    Args:
        params: the trained ones.
    """
    digests: Digests = {"optimizer= of train": None, "schedule= of train": None}
    if rule.optimizer is not None:
        state = jax.eval_shape(optimizer.init, params)
        digests["optimizer= of train"] = program_digest(optimizer.update, params, state, params)
    if rule.schedule is not None:
        step = jax.ShapeDtypeStruct((), np.int32)
        digests["schedule= of train"] = program_digest(schedule, step)
    return digests


def of_references(pieces: Pieces, overlay: Any) -> Digests:
    """Of the references that are other weights than the model's.

    Args:
        overlay: as `reference_overlay` gives it; None: no reference runs.
    """
    digests: Digests = {}
    config, reference = pieces.config, pieces.config.reference
    dtype = config.model.compute_dtype
    if pieces.needs_reference:
        own_path, adapter = reference.path is not None, reference_adapter(config)
        if overlay is not None and (own_path or adapter):
            digests["reference"] = placed_digest(overlay)
        elif own_path:  # only its log-probs are in memory
            key = partial(weights_key, reference_source(pieces).path, dtype)
            digests["reference"] = first_does(key)
        elif adapter:
            digests["reference"] = first_does(partial(weights_key, as_path(adapter), dtype))
    for i, extra in enumerate(reference.extra):
        key = partial(weights_key, open_checkpoint(extra).path, dtype)
        digests[f"reference.extra[{i}]"] = first_does(key)
    return digests


# ---- the comparison


class MadeFrom:
    """What a run is made from, which must be what it was started with.

    Args:
        before: of the checkpoint from which it goes on; empty: a new run, or an older version's.
        run: its directory.
        step: that of the checkpoint.
    """

    def __init__(self, before: Digests, run: str | Path, step: int | None):
        self._before, self._run, self._step = before, run, step
        self.known: Digests = {}

    def add(self, more: Digests) -> None:
        """What is known by now.  Errors: InputError that names all of it that has changed."""
        changed: list[str] = []
        for key, now in more.items():
            before = self._before.get(key, now)
            if before != now:
                changed += _teller(key)(key, before, now)
        if changed:
            raise InputError(
                f"what {self._run} was started with, for it to go on from step {self._step}",
                "changed since: " + "; ".join(changed),
                "restore it, or choose another `out` for a new run",
            )
        self.known.update(more)


def _tell_weights(key: str, before: str, now: str) -> Iterator[str]:
    yield f"the weights of {key}"


def _tell_rows(key: str, before: list[list], now: list[list]) -> Iterator[str]:
    """Per file what became of its rows."""
    of_file, of_file_now = ({file: about for file, *about in side} for side in (before, now))
    for file in of_file | of_file_now:
        (count, digest), (count_now, digest_now) = (
            side.get(file, [0, ""]) for side in (of_file, of_file_now)
        )
        file = file or "the rows"  # in memory, or places that do not name their file
        if count != count_now:
            yield f"{key}: {file} gave {count} groups then, {count_now} now"
        elif digest != digest_now:
            same = f"{key}: {file} gave {count} groups then as now"
            yield f"{same}, but of other tokens, columns or order"
    if of_file == of_file_now:
        yield f"{key}: the order of the files"


def _tell_order(key: str, before: str, now: str) -> Iterator[str]:
    yield "the order in which the rows are trained on"


def _tell_objective(key: str, before: Digests, now: Digests) -> Iterator[str]:
    if before.keys() != now.keys():
        yield f"objective: {', '.join(before)} then, {', '.join(now)} now"
        return
    for name, (digest, python) in now.items():
        digest_before, python_before = before[name]
        if digest == digest_before:
            continue
        if python == python_before:
            yield f"objective: the code or the settings of {name}"
        else:
            yield f"objective: {name} was compiled by Python {python_before} then, {python} now"


def _tell_program(key: str, before: Any, now: Any) -> Iterator[str]:
    if before and now and before[1] != now[1]:
        yield f"{key}: traced by jax {before[1]} then, {now[1]} now"
    elif before and now:
        yield f"{key}: what it computes"
    else:
        yield f"{key}: {'given' if before else 'not given'} then, {'' if now else 'not '}given now"


def _teller(key: str) -> Callable[[str, Any, Any], Iterator[str]]:
    of_set = key.startswith("data.eval.")
    return _tell_rows if of_set else _TELL.get(key, _tell_weights)


def _tell_rewards(key: str, before: Digests, now: Digests) -> Iterator[str]:
    return (f"{key}: what {name} says" for name in now if before.get(name) != now[name])


_TELL: dict[str, Callable[[str, Any, Any], Iterator[str]]] = {
    "data.train": _tell_rows,
    "data.eval": _tell_rows,
    "order": _tell_order,
    "objective": _tell_objective,
    "model= of train": _tell_program,
    "optimizer= of train": _tell_program,
    "schedule= of train": _tell_program,
    "online.rewards": _tell_rewards,
}
