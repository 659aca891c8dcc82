"""What training will see: lengths, data columns, packing, and one group in colours."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from jaxpref.data.dataset import common_columns
from jaxpref.data.kinds import completion_name
from jaxpref.data.pack import row_tokens
from jaxpref.data.report import DataReport
from jaxpref.text_tables import whole
from jaxpref.types import EncodedGroup
from jaxpref.wording import counted

if TYPE_CHECKING:  # the loader needs jax
    from jaxpref.data.loader import Loader, Plan

_MOST_SHOWN = 16
"""Equal tokens in a row."""
_RULE = 80
"""Characters of the line above a data set, at most: files and pipes count as wider."""
_COLOURS = ("green", "red", "yellow", "cyan", "magenta")


def show(
    console: Console,
    name: str,
    groups: Sequence[EncodedGroup],
    report: DataReport,
    loader: "Loader",
    tokenizer: Any,
) -> None:
    """Prints the account of one data set to `console`."""
    console.print(Rule(name), width=min(console.width, _RULE))
    console.print(str(report), highlight=False)
    console.print(f"columns for objectives: {_columns(groups)}", highlight=False)
    console.print(whole(_lengths(groups, report.kind)))
    console.print(_packing(groups, loader.plan), highlight=False)
    console.print(sample(groups[0], tokenizer, report.kind))


def _packing(groups: Sequence[EncodedGroup], plan: "Plan") -> str:
    shape = plan.shape
    unshared = sum(row_tokens(group, share_prefix=False) for group in groups)
    shared = sum(row_tokens(group, share_prefix=True) for group in groups)
    tiles = f", {counted(shape.tiles, 'tile')} of pictures" if shape.tiles else ""
    return (
        f"{counted(plan.steps, 'step')} of up to {counted(plan.micro_batches, 'micro-batch')} of "
        f"{counted(plan.micro_rows, 'row')} x {shape.length:,} tokens\n"
        f"a row: at most {counted(shape.groups, 'group')}{tiles} and "
        f"{counted(shape.loss_tokens, 'loss token')}\n"
        f"packing: {1 - plan.padding_fraction:.1%} of the row positions hold a token\n"
        f"prefix sharing: {shared:,} tokens instead of {unshared:,} ({shared / unshared:.1%})"
    )


def _columns(groups: Sequence[EncodedGroup]) -> str:
    """Names, with the shape of a group's numbers and, of labels, how many are 1."""
    shapes = {name: np.shape(groups[0].columns[name]) for name in common_columns(groups)}
    names = [name + (f" {list(shape)}" if shape else "") for name, shape in shapes.items()]
    if "label" in shapes:
        names.append(
            f"labels: {sum(g.columns['label'] > 0 for g in groups)} desirable of {len(groups)}"
        )
    return ", ".join(names) or "none"


def _lengths(groups: Sequence[EncodedGroup], kind: str) -> Table:
    table = Table("tokens", "min", "median", "mean", "95%", "max", title="lengths")
    lengths_of = {"prompt": [len(g.prompt_ids) for g in groups]}
    for k in range(max(len(g.completion_ids) for g in groups)):
        with_k = [len(g.completion_ids[k]) for g in groups if k < len(g.completion_ids)]
        lengths_of[completion_name(kind, k)] = with_k
    for name, lengths in lengths_of.items():
        values = np.array(lengths)
        table.add_row(
            name,
            str(values.min()),
            f"{np.median(values):.0f}",
            f"{values.mean():.1f}",
            f"{np.percentile(values, 95):.0f}",
            str(values.max()),
        )
    return table


def sample(group: EncodedGroup, tokenizer: Any, kind: str) -> Text:
    """One group as tokens: the prompt dim, each completion (in the loss) in a colour of its own."""
    text = Text(f"{group.where}\n")
    text.append(_tokens(group.prompt_ids, tokenizer), style="dim")
    for k, ids in enumerate(group.completion_ids):
        text.append(f"\n[{completion_name(kind, k)}: {len(ids)} loss tokens] ", style="bold")
        text.append(_tokens(ids, tokenizer), style=_COLOURS[k % len(_COLOURS)])
    return text


def _tokens(ids: np.ndarray, tokenizer: Any) -> str:
    """Token texts with boundaries shown, so that a merge across prompt and completion is seen.

    Those of pictures, one hundred times the same, are counted.
    """
    shown = []
    for i, same in groupby(ids.tolist()):
        text, count = tokenizer.decode([i]), len(list(same))
        shown += [f"{text} x {count}"] if count > _MOST_SHOWN else [text] * count
    return "|".join(shown)
