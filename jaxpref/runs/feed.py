"""Data into a run: read, laid out in rows, planned as steps, put onto the mesh batch by batch."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from rich import get_console

from jaxpref.data.dataset import common_columns, load_groups
from jaxpref.data.encode import check_known_tokens
from jaxpref.data.kept_groups import KeptGroups
from jaxpref.data.loader import Loader, Step
from jaxpref.data.memory import Given, tables_in_memory
from jaxpref.data.order import check_steps
from jaxpref.data.pack import MASKS, UNIFORM, Layout
from jaxpref.data.report import DataReport
from jaxpref.data.sizes import sizes_of
from jaxpref.data.splits import part_of_side
from jaxpref.data.tables import Table
from jaxpref.errors import InputError
from jaxpref.fields import set_name
from jaxpref.models.spec import ModelSpec
from jaxpref.objectives import asked_logps, check_columns, group_kinds
from jaxpref.progress import progress
from jaxpref.runs.agreement import check_same_rows
from jaxpref.runs.build import Pieces
from jaxpref.sharding import batch_sharding, device_memory, micro_rows, place, replicated, row_ways
from jaxpref.step.batch_loss import REFERENCE_COLUMN
from jaxpref.step.state import TrainState
from jaxpref.types import Batch, EncodedGroup

EXTRA_COLUMN = "extra_refs"
"""Data column [R, G, K, O] of log-probs under the models of `reference.extra`."""


Fed = tuple[Step, Batch, jax.Array]
"""(a step, its arrays [T, R, ...] on the mesh, how many of the T micro-batches are in use)."""


def read_data(pieces: Pieces, which: str) -> tuple[Sequence[EncodedGroup], DataReport]:
    """Training or held-out data, encoded.

    Args:
        which: `train` or `eval`; of several held-out sets, `eval.NAME`.
    Errors: InputError for data that cannot be read, lack a column that an objective needs, or do
        not fit the model's vocabulary or positions; for rows beyond a device's memory, and more
        steps than can be planned; where hosts have other rows.
    """
    spec, side, paths = pieces.source.spec, which.partition(".")[0], paths_of(pieces, which)
    seed, kinds = pieces.config.train.seed, group_kinds(pieces.parts)
    columns = pieces.columns
    show = pieces.config.log.progress and jax.process_index() == 0
    with progress(get_console(), show=show) as watch:
        groups, report = load_groups(
            pieces.config.data,
            pieces.tokenizer,
            paths,
            side,
            kinds,
            seed,
            columns,
            watch,
            pieces.processor,
        )
    check_same_rows("training rows" if side == "train" else "held-out rows", groups)
    of_adapter = pieces.model.weight_columns
    check_columns(pieces.parts, common_columns(groups), sorted(report.unread), of_adapter)
    check_weights(groups, {name for part in pieces.parts for name in part.weight_columns})
    if not (isinstance(groups, KeptGroups) and groups.largest_token < spec.vocab):
        sequences = ((group.where, (group.prompt_ids, *group.completion_ids)) for group in groups)
        check_known_tokens(sequences, spec.vocab)
    check_size(pieces, groups, training=side == "train")
    return groups, report


def paths_of(pieces: Pieces, which: str) -> Sequence[str | Table]:
    """Where the rows of training or held-out data are; as of `read_data`.

    Errors: InputError where there are none.
    """
    side, _, name = which.partition(".")
    paths = pieces.config.data.train if side == "train" else held_out_sets(pieces).get(name)
    paths = pieces.given.get(which, paths)
    if not paths:
        raise _no_paths(pieces, which)
    return paths


def _no_paths(pieces: Pieces, which: str) -> InputError:
    if which == "eval" and (sets := held_out_sets(pieces)):
        return InputError(
            "one set of held-out data",
            f"several: {', '.join(sets)}",
            "name one of them, or its files: data.eval=[FILE]",
        )
    if name := which.partition(".")[2]:
        known = ", ".join(filter(None, held_out_sets(pieces))) or "none"
        got = f"{name!r}; there are {known}"
        return InputError("the name of a set of held-out data", got, "name one of these, or none")
    given = "eval" if which == "eval" else "data"
    return InputError(
        f"at least one path in data.{which}",
        "an empty list",
        f"set data.{which}=[FILE], or in Python give rows: {given}=rows",
    )


def held_out_sets(pieces: Pieces) -> Mapping[str, Sequence[str | Table]]:
    """Name -> what is read as that set of held-out data; of a single one the name is ""."""
    given = [key for key in pieces.given if key.partition(".")[0] == "eval"]
    if given:
        return {key.partition(".")[2]: pieces.given[key] for key in given}
    return pieces.config.data.eval_sets


def read_held_out(pieces: Pieces) -> dict[str, tuple[Sequence[EncodedGroup], DataReport]]:
    """Every set of held-out data by its name; errors as of `read_data`, and for none."""
    if not held_out_sets(pieces):
        raise _no_paths(pieces, "eval")
    return {name: read_data(pieces, which_of(name)) for name in held_out_sets(pieces)}


def which_of(name: str) -> str:
    """A set of held-out data, as `read_data` takes it."""
    return f"eval.{name}" if name else "eval"


def with_given(pieces: Pieces, data: Given, held_out: Given) -> Pieces:
    """The pieces of a run that reads what was given in Python, in place of its config's paths.

    Args:
        data, held_out: as of `data.memory.tables_in_memory`; None: the config's.  Several held-out
            sets are a dict, {name: rows}.
    Errors: as of `tables_in_memory` and `_check_names`.
    """
    sets = {"train": ("data", data), "eval": ("eval", held_out)}
    if type(held_out) is dict:
        _check_names(held_out)
        del sets["eval"]
        sets |= {which_of(name): (f"eval[{name!r}]", rows) for name, rows in held_out.items()}
    given = {
        which: tables_in_memory(
            rows, name, part_of_side(pieces.config.data, which.partition(".")[0])
        )
        for which, (name, rows) in sets.items()
        if rows is not None
    }
    return replace(pieces, given=given)


def _check_names(sets: Mapping[str, Given]) -> None:
    """Errors: InputError for no set, and for names that data.eval does not take either."""
    for name in sets:
        try:
            set_name(name)
        except (TypeError, ValueError) as error:
            raise InputError(
                "names of held-out sets that metrics can have",
                f"eval[{name!r}]: {error}",
                "rename it",
            ) from error
    if not sets:
        raise InputError(
            "a held-out set", "eval={}", "give {name: rows}, or leave `eval` out for data.eval"
        )


def check_size(pieces: Pieces, groups: Sequence[EncodedGroup], *, training: bool) -> None:
    """Sizes that no device has room for, and plans that never end, before weights are read.

    The least that a micro-batch needs is its hidden states; training keeps those before every
    layer.
    """
    train, spec = pieces.config.train, pieces.source.spec
    if training:
        check_steps(len(groups), train.batch_size, train.epochs, train.max_steps)
    tokens = _micro_rows(pieces) * row_layout(pieces, groups).row_length
    states = spec.layers if training else 1
    ways = row_ways(pieces.mesh) * pieces.config.mesh.context
    least = tokens // ways * states * spec.width * pieces.dtype.itemsize
    memory = device_memory(pieces.mesh)
    if memory is not None and least > memory:
        raise InputError(
            f"rows for which a device's {memory / 2**30:.3g} GiB of memory are enough",
            f"micro-batches of {tokens:,} tokens, whose hidden states alone are "
            f"{least / 2**30:,.1f} GiB on a device",
            "lower data.row_length (where it is null, data.max_length), data.length_buckets or "
            "train.micro_rows, or raise mesh.context",
        )


def _micro_rows(pieces: Pieces) -> int:
    """Errors: InputError where they do not divide among the devices, which are known by now."""
    asked, ways = pieces.config.train.micro_rows, row_ways(pieces.mesh)
    rows = micro_rows(asked, pieces.mesh)
    if rows % ways:
        raise InputError(
            f"train.micro_rows as a multiple of mesh.data * mesh.fsdp = {ways}",
            f"train.micro_rows={rows}",
            f"set it to {-(-rows // ways) * ways}, or to auto",
        )
    return rows


def check_weights(groups: Sequence[EncodedGroup], columns: Collection[str]) -> None:
    """Weights of groups in the loss are 0 or more, and not all 0.

    Args:
        columns: the data columns that are such weights.
    Errors: InputError for others.
    """
    for name in columns:
        weights = [group.columns[name] for group in groups if name in group.columns]
        for group, weight in zip(groups, weights, strict=False):
            if np.min(weight) < 0:
                raise InputError(
                    f"weights of 0 or more ({name})",
                    f"{group.where}: {weight}",
                    "exchange chosen and rejected where the preference is the other way round, or "
                    "write 0 to leave the row out of the loss",
                )
        if weights and not np.any(weights):
            raise InputError(
                f"a weight above 0 in some row ({name})",
                f"0 in all {len(weights)} groups, as {groups[0].where}",
                "mend the column, or remove it",
            )


def check_positions(groups: Sequence[EncodedGroup], spec: ModelSpec) -> None:
    """Every prompt with any one of its completions must fit the positions of the model.

    Packed rows may be longer: positions start again in every branch of a row.

    Errors: InputError for a sequence that is longer.
    """
    tokens_B = sizes_of(groups).longest_sequence_B()
    for i in np.flatnonzero(tokens_B > spec.longest_sequence)[:1]:
        raise InputError(
            f"prompt and completion within the model's {spec.longest_sequence} positions",
            f"{groups[i].where}: {tokens_B[i]} tokens",
            "shorten or remove the row, or set data.max_length to "
            f"{spec.longest_sequence} or less: data.truncation cuts or drops longer rows",
        )


def row_layout(pieces: Pieces, groups: Sequence[EncodedGroup]) -> Layout:
    """How groups become packed rows.

    A row's length is that of the config, or else the longest group's, rounded up so that every
    bucket is whole attention blocks.

    Errors: InputError for a sequence that the model has no positions for.
    """
    check_positions(groups, pieces.source.spec)
    data = pieces.config.data
    length = data.row_length
    if length is None:
        unit = pieces.config.row_unit
        longest = int(sizes_of(groups).row_tokens_B(data.share_prefix).max())
        length = -(-longest // unit) * unit
    return Layout(length, data.share_prefix, data.pack, data.length_buckets)


def make_loader(pieces: Pieces, groups: Sequence[EncodedGroup], *, training: bool) -> Loader:
    """Training: shuffled, by steps of the config.  Otherwise one pass in order."""
    config = pieces.config
    of_adapter = pieces.model.weight_columns
    columns = list(check_columns(pieces.parts, common_columns(groups), of_adapter=of_adapter))
    columns += [name for name in (REFERENCE_COLUMN, EXTRA_COLUMN) if name in groups[0].columns]
    if any(UNIFORM in (*part.required, *part.optional) for part in pieces.parts):
        columns.append(UNIFORM)
    asked = asked_logps(pieces.parts)
    return Loader(
        groups,
        batch_size=config.train.batch_size,
        micro_rows=_micro_rows(pieces),
        layout=row_layout(pieces, groups),
        columns=columns,
        masks=[name for name in asked if name in MASKS],
        loss_on_prompt="prompt" in asked,
        seed=config.train.seed if training and config.data.shuffle else None,
        epochs=config.train.epochs if training else 1,
        max_steps=config.train.max_steps if training else None,
        noise_alpha=config.train.neftune_alpha if training else None,
        processor=pieces.processor,
    )


def own_steps(loader: Loader, mesh: Mesh) -> Any:
    """The loader's iterator of steps, building the rows that this process's devices hold."""
    return loader.iterate(own_rows(loader.plan.micro_rows, mesh))


def own_rows(rows: int, mesh: Mesh) -> list[bool]:
    """Which rows of a micro-batch this process's devices hold."""
    owned = [False] * rows
    for (part,) in batch_sharding(mesh).addressable_devices_indices_map((rows,)).values():
        for r in range(*part.indices(rows)):
            owned[r] = True
    return owned


def batches(steps: Iterator[Step], mesh: Mesh) -> Iterator[Fed]:
    """Steps of a loader, each with what the compiled step takes of it, on the mesh."""
    return (on_mesh(step, mesh) for step in steps)


class Feed(Protocol):
    """What gives a run its steps, one after another, and can go on where it was."""

    def next(self, state: TrainState) -> Fed:
        """The next step, made from the state in which it is to be taken."""

    def get_state(self) -> Any:
        """The position behind the last step that was given, as JSON."""

    def set_state(self, position: Any) -> None:
        """Goes on from such a position; called before the first step, if at all."""


class LoaderFeed:
    """The steps of a loader, built ahead: data do not depend on the state."""

    def __init__(self, loader: Loader, mesh: Mesh):
        self._steps = own_steps(loader, mesh)
        self._batches = batches(self._steps, mesh)

    def next(self, state: TrainState) -> Fed:
        return next(self._batches)

    def get_state(self) -> Any:
        return self._steps.get_state()

    def set_state(self, position: Any) -> None:
        self._steps.set_state(position)


def on_mesh(step: Step, mesh: Mesh) -> Fed:
    """A step with what the compiled step takes of it."""
    return step, put_batch(step.batch, mesh), place(np.int32(step.micro_batches), replicated(mesh))


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Arrays [T, R, ...] onto the mesh, each process giving the rows that it holds."""
    sharding = batch_sharding(mesh, leading=1)
    return jax.tree.map(lambda x: place(x, sharding), batch)
