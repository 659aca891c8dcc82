"""Pairs with a label of every objective, in one file: what methods train on that ask for labels.

A pair of an objective's own is labelled by that one; a pair of the shared data by all objectives
that relabel those.  No reward is learned for it.
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxpref.conditioning.rows import ConditionReport, usable_pairs
from jaxpref.conditioning.weights import weight_draw, weighted_prompt
from jaxpref.data.dimensions import scores_of
from jaxpref.data.pictures.rows import as_column
from jaxpref.data.rewrite import Source, configured, write_lines
from jaxpref.errors import InputError
from jaxpref.pareto.config import BY_ADAPTER, SHARED, FrontConfig
from jaxpref.pareto.stages import Stages
from jaxpref.processes.together import first_does
from jaxpref.storage.paths import as_path
from jaxpref.types import Group

_LABEL, _WEIGHT = "label/", "w/"
"""Keys of a row are these before the objective's name."""


def label_columns(names: Sequence[str]) -> list[str]:
    """The columns of the objectives' labels: 1 for the first answer, -1 for the second, 0 none."""
    return [f"{_LABEL}{name}" for name in names]


def weight_columns(names: Sequence[str]) -> list[str]:
    """The columns of the objective weights of a row."""
    return [f"{_WEIGHT}{name}" for name in names]


def labelled_rows(
    source: Source, names: Sequence[str], *, owner: str | None = None, scored: Sequence[str] = ()
) -> Iterator[dict]:
    """Rows of pairs with a label of every objective.

    Args:
        source: pairs, or rows with `completions`, which give all their pairs.
        names: of all objectives.
        owner: whose pairs they are, in its order, best first; None: nobody's.
        scored: those that label the pairs by their scores.
    Errors: RowError for a row that cannot be used, as the source says.
    """
    for _, group, _ in usable_pairs(source, scored, ConditionReport()):
        kept = _kept(group)
        for pair in itertools.combinations(range(len(group.completions)), 2):
            labels = dict.fromkeys(names, 0.0) | {name: _sign(group, name, pair) for name in scored}
            if owner is not None:
                labels[owner] = 1.0
            if any(labels.values()):
                i, j = pair
                made = {"chosen": group.completions[i], "rejected": group.completions[j]}
                yield {**kept, **made, **_keyed(_LABEL, labels)}


def _kept(group: Group) -> dict[str, Any]:
    """What a row has beside its answers."""
    kept = {"prompt": group.prompt, **as_column(group.pictures)}
    if group.tools:
        kept["tools"] = group.tools
    if group.template_kwargs:
        kept["chat_template_kwargs"] = dict(group.template_kwargs)
    if "weight" in group.columns:
        kept["weight"] = group.columns["weight"]
    return kept


def _sign(group: Group, name: str, pair: tuple[int, int]) -> float:
    first, second = (scores_of(group, name)[k] for k in pair)
    return float(np.sign(first - second))


def conditioned_rows(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    *,
    passes: int,
    draw: Callable[[np.random.Generator], Sequence[float]],
    seed: int,
    told: bool,
) -> Iterator[dict]:
    """Labelled rows `passes` times, each time with weights drawn for it.

    A draw depends on seed, pass and row alone.  Labels are weighed so that the mean over the rows
    is the weighted sum of the objectives' mean losses, however many rows each of them labels.

    Args:
        rows: as `labelled_rows` gives them.
        draw: the weights of a row, as `weight_draw` gives it.
        told: the prompts say the weights.
    """
    counts = Counter(name for row in rows for name in names if row[f"{_LABEL}{name}"])
    for number in range(passes):
        for i, row in enumerate(rows):
            rng = np.random.default_rng((seed, number, i))
            weights = dict(zip(names, draw(rng), strict=True))
            sizes = {name: len(rows) / max(counts[name], 1) for name in names}
            labels = {name: row[f"{_LABEL}{name}"] * sizes[name] for name in names}
            prompt = weighted_prompt(row["prompt"], weights) if told else row["prompt"]
            yield {**row, "prompt": prompt, **_keyed(_LABEL, labels), **_keyed(_WEIGHT, weights)}


def check_preferences(
    front: FrontConfig, pools: Mapping[str, Mapping[str, Sequence[str]]]
) -> dict[str, Any]:
    """A stage that ends with an InputError for a reward that prefers no shared answer it labels.

    Training would find that out, or the measurements at its end.

    Args:
        pools: as of `write_labels`, `eval` too.
    """
    shared = pools.get(SHARED, {})
    for side, paths in shared.items():
        names = set(front.relabelled if side == "eval" else _training_on_own_labels(front))
        if not names:  # the rows may then be other than pairs
            continue
        source = configured(front.run.data, paths, side)
        for _, group, _ in usable_pairs(source, front.relabelled, ConditionReport()):
            names -= {name for name in names if len(set(scores_of(group, name))) > 1}
            if not names:
                break
        if names:
            raise _no_preference(names, f"pairs of data.{side}")
    return {}


def _training_on_own_labels(front: FrontConfig) -> list[str]:
    """Objectives that relabel the pairs of a run: of DPO, or of MODPO as its base."""
    bases = set(map(front.base, front.points)) if "modpo" in front.pareto.methods else set()
    return [name for name in front.relabelled if front.needs_single(name) or name in bases]


def _no_preference(names: Collection[str], pairs: str) -> InputError:
    return InputError(
        "a pair that every objective has a preference on",
        f"none for {', '.join(sorted(names))}: its reward is the same for both answers of all "
        f"{pairs}",
        "take other pairs, or another reward for it; choose another `out` for it",
    )


def write_labels(
    front: FrontConfig, pools: Mapping[str, Mapping[str, Sequence[str]]], stages: Stages
) -> str:
    """Writes the pairs of all pools with their labels, as a stage.

    Args:
        pools: pool of pairs -> `train` -> paths; the shared ones have the scores that label them.
    Returns: the file.
    Errors: InputError for an objective that labels no pair.
    """

    def rows() -> Iterator[dict]:
        unseen = set(front.names)
        for pool, paths in pools.items():
            source = configured(front.run.data, paths["train"], "train")
            owner, scored = (None, front.relabelled) if pool == SHARED else (pool, ())
            for row in labelled_rows(source, front.names, owner=owner, scored=scored):
                unseen -= {name for name in unseen if row[f"{_LABEL}{name}"]}
                yield row
        if unseen:
            raise _no_preference(unseen, "pairs")

    return _written(front, "labels", rows, stages)


def write_conditioned_rows(front: FrontConfig, method: str, labelled: str, stages: Stages) -> str:
    """Writes the rows of a run for all weights, as a stage.

    Args:
        labelled: the file that `write_labels` wrote.
    Returns: the file.
    """

    def rows() -> Iterator[dict]:
        text = as_path(labelled).read_text(encoding="utf-8")
        # A text may hold other characters that end lines, which JSON does not escape.
        lines = [json.loads(line) for line in text.split("\n") if line]
        points = [list(point.values()) for point in front.points]
        return conditioned_rows(
            lines,
            front.names,
            passes=_passes(front, len(lines)),
            draw=weight_draw(len(front.names), front.pareto.dirichlet, points),
            seed=front.run.train.seed,
            told=method not in BY_ADAPTER,
        )

    return _written(front, f"rows-{method}", rows, stages)


def _passes(front: FrontConfig, rows: int) -> int:
    """How often a run of this front goes over so many rows."""
    train = front.run.train
    if train.max_steps is None:
        return math.ceil(train.epochs)
    return math.ceil(train.max_steps * train.batch_size / rows)


def _written(
    front: FrontConfig, stage: str, rows: Callable[[], Iterator[dict]], stages: Stages
) -> str:
    """Writes rows in a stage of their own; the first process does."""
    to = as_path(front.run.out) / "data" / f"{stage}.jsonl"

    def work() -> dict[str, Any]:
        first_does(lambda: write_lines(to, rows()))
        return {"rows": str(to)}

    return stages(stage, work)["rows"]


def _keyed(key: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{key}{name}": value for name, value in values.items()}
