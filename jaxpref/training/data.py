"""What a run trains on and is evaluated on: read before the weights are, and planned after them."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Protocol

import numpy as np

from jaxpref.data.kept_groups import places_of, row_ids_of
from jaxpref.data.loader import Plan
from jaxpref.data.pack import Layout
from jaxpref.errors import InputError
from jaxpref.evaluation import Evaluator
from jaxpref.runs.build import Pieces
from jaxpref.runs.cached_reference import with_reference_logps
from jaxpref.runs.feed import (
    Feed,
    LoaderFeed,
    held_out_sets,
    make_loader,
    read_data,
    read_held_out,
    which_of,
)
from jaxpref.runs.made_from import Digests, of_rows
from jaxpref.training.own_model import check_own_model
from jaxpref.types import Batch, EncodedGroup

_log = logging.getLogger(__name__)

HeldOutSet = tuple[Sequence[EncodedGroup], str]
"""Groups of held-out data, and their kind."""
Evaluate = Callable[[Any, Any, Any], dict[str, Any]]
"""(policy's parameters, the reference's, running statistics) -> metrics on held-out data."""


@dataclass(frozen=True)
class PlannedData:
    """The steps of a run, of which no weights are needed any more."""

    plan: Plan
    layout: Layout
    row_ids: Sequence[int] | np.ndarray
    """In the order of the first epoch."""
    open_feed: Callable[[], Feed]
    first_groups: Callable[[], Sequence[EncodedGroup]]
    """Those of the first step, known once that step was given."""
    evaluator: Callable[[Callable | None, Any], Evaluate | None]
    """As `Evaluator` makes it of its last two arguments; None: there are no held-out data."""
    held_out: Callable[[], Iterable[EncodedGroup]]
    """Gives the groups of the held-out data, or prompts without answers."""
    first_batch: Callable[[], Batch] | None = None
    """Makes the arrays of the first step; None: they depend on the state."""
    planned_with: Callable[[Pieces], "PlannedData"] | None = None
    """The same data in micro-batches of other sizes; None: as of `first_batch`."""


class TrainingData(Protocol):
    """Data that were read and checked."""

    kind: str
    """Of the groups that are trained on."""
    where: Mapping[int, str]
    """Row id -> file and row."""
    digests: Digests
    account: str
    """What became of the rows, for people."""

    def planned(self, params: Any) -> PlannedData:
        """Their steps.

        Args:
            params: the policy from which training starts.
        """


class FileData:
    """Rows that are all there before the first step: of files, or given in Python.

    Errors: InputError for data that cannot be read, or that the objectives cannot use.
    """

    def __init__(self, pieces: Pieces):
        self._pieces, config = pieces, pieces.config
        if config.online.rewards:
            raise InputError(
                "a run on given answers",
                f"online.rewards={config.online.rewards}",
                "call jaxpref.train, or remove the section `online`",
            )
        self._groups, report = read_data(pieces, "train")
        _log.info("training data: %s", report.summary())
        self._held_out = read_held_out(pieces) if held_out_sets(pieces) else {}
        for name, (_, own) in self._held_out.items():
            _log.info("held-out data%s: %s", f" ({name})" if name else "", own.summary())
        self.kind = report.kind
        self.where: Mapping[int, str] = places_of(self._groups)
        self.digests: Digests = {"data.train": of_rows(self._groups)}
        for name, (groups, _) in self._held_out.items():
            self.digests[f"data.{which_of(name)}"] = of_rows(groups)
        reports = [report, *(own for _, own in self._held_out.values())]
        self.account = "\n".join(map(str, reports))

    def planned(self, params: Any) -> PlannedData:
        if self._pieces.source.own is not None:
            check_own_model(self._pieces, params, self._groups)
        with_reference = partial(with_reference_logps, self._pieces, params=params)
        groups, _ = with_reference(self._groups)
        held_out = {
            name: (with_reference(rows)[0], own.kind)
            for name, (rows, own) in self._held_out.items()
        }
        return _planned(self._pieces, groups, held_out)


def _planned(
    pieces: Pieces, groups: Sequence[EncodedGroup], held_out: Mapping[str, HeldOutSet]
) -> PlannedData:
    loader = make_loader(pieces, groups, training=True)

    def evaluator(make_step: Callable | None, numbers: Any) -> Evaluate | None:
        if not held_out:
            return None
        each = [
            Evaluator(pieces, rows, kind, make_step, numbers, name)
            for name, (rows, kind) in held_out.items()
        ]

        def evaluate(*policy: Any) -> dict[str, Any]:
            return {name: x for one in each for name, x in one(*policy).items()}

        return evaluate

    return PlannedData(
        plan=loader.plan,
        layout=loader.layout,
        row_ids=row_ids_of(groups)[loader.first_epoch],
        open_feed=lambda: LoaderFeed(loader, pieces.mesh),
        first_groups=lambda: loader.groups_of(0),
        evaluator=evaluator,
        held_out=lambda: chain.from_iterable(rows for rows, _ in held_out.values()),
        first_batch=lambda: next(loader.iterate()).batch,
        planned_with=lambda pieces: _planned(pieces, groups, held_out),
    )
