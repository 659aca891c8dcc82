"""What a run trains on and is evaluated on: read before the weights are, and planned after them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxpref.data.loader import Plan
from jaxpref.data.pack import Layout
from jaxpref.errors import InputError
from jaxpref.evaluation import Evaluator
from jaxpref.runs.build import Pieces
from jaxpref.runs.cached_reference import with_reference_logps
from jaxpref.runs.feed import Feed, LoaderFeed, make_loader, read_data
from jaxpref.runs.made_from import Digests, of_rows
from jaxpref.training.own_model import check_own_model
from jaxpref.types import EncodedGroup

_log = logging.getLogger(__name__)

Evaluate = Callable[[Any, Any, Any], dict[str, Any]]
"""(policy's parameters, the reference's, running statistics) -> metrics on held-out data."""


@dataclass(frozen=True)
class PlannedData:
    """The steps of a run, of which no weights are needed any more."""

    plan: Plan
    layout: Layout
    row_ids: Sequence[int]
    """In the order of the first epoch."""
    open_feed: Callable[[], Feed]
    first_groups: Callable[[], Sequence[EncodedGroup]]
    """Those of the first step, known once that step was given."""
    evaluator: Callable[[Callable | None, Any], Evaluate | None]
    """As `Evaluator` makes it of its last two arguments; None: there are no held-out data."""
    held_out: Sequence[EncodedGroup]
    """Groups of the held-out data, or prompts without answers."""


class TrainingData(Protocol):
    """Data that were read and checked."""

    kind: str
    """Of the groups that are trained on."""
    where: dict[int, str]
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
    """Rows of files, which are all there before the first step.

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
        self._held_out, held_out_report = None, None
        if config.data.eval:
            self._held_out, held_out_report = read_data(pieces, "eval")
            _log.info("held-out data: %s", held_out_report.summary())
            self._held_out_kind = held_out_report.kind
        self.kind = report.kind
        self.where = {group.row_id: group.where for group in self._groups}
        self.digests = {
            "data.train": of_rows(self._groups),
            "data.eval": of_rows(self._held_out or []),
        }
        self.account = f"{report}\n{held_out_report or ''}"

    def planned(self, params: Any) -> PlannedData:
        pieces, held_out = self._pieces, self._held_out
        if pieces.source.own is not None:
            check_own_model(pieces, params, self._groups)
        groups, _ = with_reference_logps(pieces, self._groups, params)
        loader = make_loader(pieces, groups, training=True)
        if held_out is not None:
            held_out, _ = with_reference_logps(pieces, held_out, params)

        def evaluator(make_step: Callable | None, numbers: Any) -> Evaluate | None:
            if held_out is None:
                return None
            return Evaluator(pieces, held_out, self._held_out_kind, make_step, numbers)

        return PlannedData(
            plan=loader.plan,
            layout=loader.layout,
            row_ids=[groups[i].row_id for i in loader.first_epoch()],
            open_feed=lambda: LoaderFeed(loader, pieces.mesh),
            first_groups=lambda: loader.groups_of(0),
            evaluator=evaluator,
            held_out=held_out or [],
        )
