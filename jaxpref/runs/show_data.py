"""What training will see of the data, as `jaxpref data` prints it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from jaxpref.config import Config
from jaxpref.data.inspect import show
from jaxpref.data.loader import Loader
from jaxpref.data.memory import Given
from jaxpref.data.report import DataReport
from jaxpref.runs.build import build
from jaxpref.runs.feed import held_out_sets, make_loader, read_data, which_of, with_given
from jaxpref.runs.resume import with_stored
from jaxpref.types import EncodedGroup

_WIDTH = 100


@dataclass(frozen=True)
class DataSet:
    """Training or held-out data, read and planned."""

    name: str
    """`train`, `eval`, or `eval.NAME` of several held-out sets."""
    groups: Sequence[EncodedGroup]
    report: DataReport
    loader: Loader


@dataclass(frozen=True)
class ShownData:
    """An account of the data of a run: what was read and dropped, lengths, packing, one group."""

    sets: list[DataSet]
    tokenizer: Any

    def show(self, console: Console) -> None:
        """Prints it."""
        for one in self.sets:
            show(console, one.name, one.groups, one.report, one.loader, self.tokenizer)

    def _printed(self) -> Console:
        console = Console(width=_WIDTH, record=True, file=io.StringIO(), force_jupyter=False)
        self.show(console)
        return console

    def __repr__(self) -> str:
        return self._printed().export_text()

    def _repr_html_(self) -> str:
        page = "<pre style='white-space:pre-wrap'>{code}</pre>"
        return self._printed().export_html(inline_styles=True, code_format=page)


def show_data(config: Config, *, data: Given = None, eval: Given = None) -> ShownData:
    """Reads the data of a config as training does.

    Args:
        data, eval: as of `train`.
    Errors: InputError for data that cannot be trained on.
    """
    config = with_stored(config)
    pieces = with_given(build(config), data, eval)
    sets = []
    for name in ("train", *map(which_of, held_out_sets(pieces))):
        groups, report = read_data(pieces, name)
        loader = make_loader(pieces, groups, training=name == "train")
        sets.append(DataSet(name, groups, report, loader))
    return ShownData(sets, pieces.tokenizer)
