"""Evaluation on held-out preferences: every statistic that the groups allow, with intervals.

What makes sense depends on the kind of groups.  Log-probs, KL estimates and lengths are given for
every *side*, a set of completions; rewards and what follows from them where the objective logs
rewards; calibration for pairs alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxpref.data.memory import Given
from jaxpref.errors import InputError
from jaxpref.evaluation import calibration
from jaxpref.evaluation.bootstrap import DEFAULT, Bootstrap, check_bootstrap, estimates
from jaxpref.evaluation.held_out import as_metrics
from jaxpref.evaluation.preference_report import (
    UNDEFINED,
    group_rows,
    left_out,
    length_table,
    notes,
    sections,
)
from jaxpref.evaluation.preference_statistics import Evaluated, all_statistics
from jaxpref.evaluation.records import Records, gather
from jaxpref.evaluation.report import Report, split_defined
from jaxpref.progress import Watch, unwatched
from jaxpref.runs.build import build
from jaxpref.runs.cached_reference import with_reference_logps
from jaxpref.runs.directory import OpenRun, load_run, open_run
from jaxpref.runs.feed import make_loader, read_data, which_of, with_given
from jaxpref.types import EncodedGroup


@dataclass(frozen=True)
class Preferences:
    """What `evaluate_preferences` measured, and the arrays from which figures are drawn."""

    report: Report
    groups: list[dict[str, Any]]
    """As `group_rows` makes them."""
    margin_B: np.ndarray | None
    """Reward of chosen less rejected, for pairs."""
    length_difference_B: np.ndarray | None
    """Tokens of chosen less rejected, for pairs."""
    reliability: list[calibration.Bin]


def evaluate_preferences(
    run: str | Path,
    *,
    step: str | int = "best",
    overrides: Sequence[str] = (),
    objective: Sequence[Any] | Callable | None = None,
    eval: Given = None,
    of_set: str = "",
    bootstrap: Bootstrap = DEFAULT,
    bins: int = calibration.BINS,
    watch: Watch = unwatched,
) -> Preferences:
    """Evaluates a run's checkpoint on its held-out data (or on `data.eval` of the overrides).

    Args:
        step: `best`, `latest` or a number.
        objective: as given to `train`, when it was.
        eval: as of `train`, in place of the paths.
        of_set: which of several sets of held-out data, by its name.
        bootstrap: how intervals are made; prompts are resampled with all their groups.
        bins: of the reliability diagram and the calibration error.
        watch: told of every batch.
    Errors: InputError as `train` raises it, for a run without checkpoints, and for options out of
        bounds.
    """
    calibration.check_bins(bins)
    check_bootstrap(bootstrap)
    pieces = build(load_run(run, overrides, objective), objective)
    pieces = with_given(pieces, None, eval)
    groups, data = read_data(pieces, which_of(of_set))
    groups, _ = with_reference_logps(pieces, groups)
    opened = open_run(pieces, run, step)
    files = of_set or ", ".join(data.paths)
    about = {
        "title": f"{run}, step {opened.step}, on {files}: {len(groups)} groups ({data.kind})",
        "run": str(run),
        "step": opened.step,
        "data": list(data.paths),
        **({"set": of_set} if of_set else {}),
        "kind": data.kind,
        "groups": len(groups),
    }
    return evaluate_groups(opened, groups, data.kind, about, bootstrap, bins, watch)


def evaluate_groups(
    opened: OpenRun,
    groups: Sequence[EncodedGroup],
    kind: str,
    about: Mapping[str, Any],
    bootstrap: Bootstrap,
    bins: int,
    watch: Watch = unwatched,
) -> Preferences:
    """The same of groups that were read already.

    Args:
        about: what the report says about the groups and the run.
    """
    pieces = opened.pieces
    loader = make_loader(pieces, groups, training=False)
    loss_spec = replace(pieces.loss_spec(loader.layout, kind), also=("tokens",))
    sums, records = gather(
        loss_spec, loader, pieces.mesh, opened.params, opened.ref_params, opened.running, watch
    )
    _check_finite(records, groups)
    evaluated = Evaluated(kind, groups, records, pieces)
    about = {
        **about,
        "prompts": evaluated.prompts,
        "bootstrap": asdict(bootstrap),
        "bins": bins,
    }
    return _summary(evaluated, about, as_metrics(sums, pieces), bootstrap, bins)


def _check_finite(records: Records, groups: Sequence[EncodedGroup]) -> None:
    """Errors: InputError naming the first row whose log-probs are not finite numbers."""
    for whose, logps in (("policy", records.policy), ("reference", records.ref)):
        if logps is None:
            continue
        bad_B = ~np.isfinite(logps.sum).all(1)
        if bad_B.any():
            first = groups[int(bad_B.argmax())].where
            raise InputError(
                "finite log-probs",
                f"{first}: those of the {whose} are not; "
                f"{bad_B.sum()} of {len(groups)} groups are like this",
                "choose an earlier checkpoint, or model.compute_dtype=float32",
            )


def _summary(
    evaluated: Evaluated,
    about: Mapping[str, Any],
    metrics: Mapping[str, float],
    bootstrap: Bootstrap,
    bins: int,
    watch: Watch = unwatched,
) -> Preferences:
    """The statistics with their intervals, and everything else that the report holds."""
    margin_B = evaluated.margin_B
    predictions = None if margin_B is None else calibration.predictions(margin_B, bins)

    def statistics(weight_WB: np.ndarray) -> dict[str, np.ndarray]:
        values = all_statistics(weight_WB, evaluated)
        if predictions is not None:
            values |= calibration.statistics(weight_WB, margin_B, predictions)
        return values

    estimated = estimates(statistics, evaluated.unit_B, bootstrap)
    reliability = []
    if predictions is not None:
        estimated["calibration/ece_by_chance"] = calibration.ece_by_chance(predictions, bootstrap)
        reliability = calibration.reliability(predictions, bootstrap.level)
    defined, undefined = split_defined(estimated, UNDEFINED)
    report = Report(
        about=about,
        sections=sections(defined),
        metrics=metrics,
        tables={
            "lengths": length_table(evaluated),
            "reliability": [asdict(bin) for bin in reliability],
        },
        left_out=dict(left_out(evaluated)) | undefined,
        notes=list(notes(evaluated, bootstrap)),
    )
    return Preferences(
        report, list(group_rows(evaluated)), margin_B, evaluated.length_difference_B, reliability
    )
