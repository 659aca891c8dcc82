"""Evaluation on held-out preferences: every statistic that the groups allow, with intervals.

What makes sense depends on the kind of groups.  Log-probs, KL estimates and lengths are given for
every *side*, a set of completions; rewards and what follows from them where the objective logs
rewards; calibration for pairs alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxpref.data.kinds import completion_name
from jaxpref.errors import InputError
from jaxpref.evaluation import calibration
from jaxpref.evaluation.bootstrap import (
    DEFAULT,
    Bootstrap,
    Estimate,
    correlation,
    estimates,
    mean,
    ratio,
    roc_area,
    units_of,
)
from jaxpref.evaluation.held_out import as_metrics
from jaxpref.evaluation.records import Records, gather
from jaxpref.evaluation.report import Report, split_defined
from jaxpref.objectives.contract import JUDGED, PAIRS
from jaxpref.rewards.scale import likelihood_of_preferences
from jaxpref.runs.build import Pieces, build
from jaxpref.runs.cached_reference import with_reference_logps
from jaxpref.runs.directory import OpenRun, load_run, open_run
from jaxpref.runs.feed import make_loader, read_data
from jaxpref.types import EncodedGroup

KL_NOTE = (
    "kl_k1 is the mean of r and kl_k3 of exp(-r) - 1 + r, r = log pi - log ref: Schulman's estimators of KL(pi || ref) "
    "(Approximating KL Divergence, 2020).  They estimate it on samples of pi.  Here they are means over the data's "
    "completions, so they tell how far the policy moved on these, and k1 may be negative.  Per answer r is summed over "
    "its tokens first; per token it is the token's own.  Where the policy moved away from completions exp(-r) is huge, "
    "and a few of them make up all of kl_k3: read kl_k1 there."
)
CALIBRATION_NOTE = (
    "calibration reads sigmoid(margin) as the probability that an answer is preferred.  Every row says `chosen`, so "
    "each pair is seen from both sides, each counting half; a tie counts as half right."
)


@dataclass(frozen=True)
class Preferences:
    """What `evaluate_preferences` found, and the arrays from which figures are drawn."""

    report: Report
    groups: list[dict[str, Any]]
    """Of every group: row id, place, and per completion tokens, log-probs and reward."""
    margin_B: np.ndarray | None
    """Reward of chosen less rejected, for pairs."""
    length_difference_B: np.ndarray | None
    """Tokens of chosen less rejected, for pairs."""
    reliability: list[calibration.Bin]


def evaluate_preferences(
    run: str | Path,
    *,
    step: str = "best",
    overrides: Sequence[str] = (),
    objective: Sequence[Any] | None = None,
    bootstrap: Bootstrap = DEFAULT,
    bins: int = calibration.BINS,
) -> Preferences:
    """Evaluates a run's checkpoint on its held-out data (or on `data.eval` of the overrides).

    Args:
        step: `best`, `latest` or a number.
        objective: as given to `train`, when it was.
        bootstrap: how intervals are made; prompts are resampled with all their groups.
        bins: of the reliability diagram and the calibration error.
    Errors: InputError as `train` raises it, for a run without checkpoints, and for options out of
        bounds.
    """
    calibration.check_bins(bins)
    pieces = build(load_run(run, overrides, objective), objective)
    groups, data = read_data(pieces, "eval")
    groups, _ = with_reference_logps(pieces, groups)
    opened = open_run(pieces, run, step)
    about = {
        "title": f"{run}, step {opened.step}, on {', '.join(data.paths)}: {len(groups)} groups ({data.kind})",
        "run": str(run),
        "step": opened.step,
        "data": list(data.paths),
        "kind": data.kind,
        "groups": len(groups),
    }
    return evaluate_groups(opened, groups, data.kind, about, bootstrap, bins)


def evaluate_groups(
    opened: OpenRun,
    groups: list[EncodedGroup],
    kind: str,
    about: Mapping[str, Any],
    bootstrap: Bootstrap,
    bins: int,
) -> Preferences:
    """The same of groups that were read already, with `about` them and the run in the report."""
    pieces = opened.pieces
    loader = make_loader(pieces, groups, training=False)
    scoring = replace(pieces.loss_spec(loader.layout, kind), also=("tokens",))
    sums, records = gather(
        scoring, loader, pieces.mesh, opened.params, opened.ref_params, opened.running
    )
    _check_finite(records, groups)
    view = View(kind, groups, records, pieces)
    about = {
        **about,
        "prompts": int(view.unit_B.max()) + 1,
        "bootstrap": asdict(bootstrap),
        "bins": bins,
    }
    return _summary(view, about, as_metrics(sums, pieces), bootstrap, bins)


def _check_finite(records: Records, groups: Sequence[EncodedGroup]) -> None:
    """Errors: InputError naming the first row whose log-probs are not finite numbers."""
    for whose, logps in (("policy", records.policy), ("reference", records.ref)):
        bad_B = np.zeros(len(groups), bool) if logps is None else ~np.isfinite(logps.sum).all(1)
        if bad_B.any():
            first = groups[int(bad_B.argmax())].where
            raise InputError(
                "finite log-probs",
                f"{first}: those of the {whose} are not; {bad_B.sum()} of {len(groups)} groups are like this",
                "choose an earlier checkpoint, or model.compute_dtype=float32",
            )


class View:
    """The records of an evaluation, as its statistics read them."""

    def __init__(self, kind: str, groups: Sequence[EncodedGroup], records: Records, pieces: Pieces):
        self.kind, self.groups, self.records, self.pieces = kind, groups, records, pieces
        self.unit_B = units_of([group.prompt_ids.tobytes() for group in groups])
        self.reward_BK = _rewards(kind, records.values["means"])
        self.label_B = (
            np.array([float(group.columns["label"]) for group in groups])
            if kind in JUDGED
            else None
        )
        self.sides = self._sides()
        ref = records.ref
        self.log_ratio_BK = None if ref is None else records.policy.sum - ref.sum

    def _sides(self) -> dict[str, np.ndarray]:
        """Name -> mask [B, K] of the completions that a statistic is about."""
        present_BK = self.records.policy.count > 0
        place_1K = np.arange(present_BK.shape[1])[None, :]
        if self.kind == "ranked":
            return {"best": present_BK & (place_1K == 0), "others": present_BK & (place_1K > 0)}
        first_BK = present_BK & (place_1K == 0)
        if self.label_B is not None:
            return {
                "desirable": first_BK & (self.label_B[:, None] == 1),
                "undesirable": first_BK & (self.label_B[:, None] == 0),
            }
        return {
            completion_name(self.kind, k): present_BK & (place_1K == k)
            for k in range(present_BK.shape[1])
        }

    @property
    def margin_B(self) -> np.ndarray | None:
        paired = self.kind in PAIRS and self.reward_BK is not None
        return self.reward_BK[:, 0] - self.reward_BK[:, 1] if paired else None

    @property
    def length_difference_B(self) -> np.ndarray | None:
        count_BK = self.records.policy.count
        return count_BK[:, 0] - count_BK[:, 1] if self.kind in PAIRS else None


def _rewards(kind: str, means: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray | None:
    """[B, K] rewards of the completions that the objective judges, from what it logs; None where it
    logs none."""
    if not {"rewards/chosen", "rewards/rejected"} <= means.keys() or kind not in (*PAIRS, *JUDGED):
        return None
    (chosen_B, chosen_weight_B), (rejected_B, rejected_weight_B) = (
        means["rewards/chosen"],
        means["rewards/rejected"],
    )
    if (
        kind in JUDGED
    ):  # logged with the label as weight, so one of the two is the reward and the other 0
        return (
            (chosen_B + rejected_B)[:, None]
            if (chosen_weight_B + rejected_weight_B == 1).all()
            else None
        )
    every = (chosen_weight_B == 1).all() and (rejected_weight_B == 1).all()
    return np.stack([chosen_B, rejected_B], axis=1) if every else None


# ---- statistics: functions of weights [W, B]


def _summary(
    view: View,
    about: Mapping[str, Any],
    metrics: Mapping[str, float],
    bootstrap: Bootstrap,
    bins: int,
) -> Preferences:
    """The report of an evaluation."""
    made = None if view.margin_B is None else calibration.predictions(view.margin_B, bins)

    def statistics(weight_WB: np.ndarray) -> dict[str, np.ndarray]:
        found = _metrics(weight_WB, view) | dict(_rewards_of(weight_WB, view))
        for side, mask_BK in view.sides.items():
            found |= _side(weight_WB, view, side, mask_BK)
        found |= dict(_lengths(weight_WB, view))
        return found | (calibration.statistics(weight_WB, view.margin_B, made) if made else {})

    found = estimates(statistics, view.unit_B, bootstrap)
    if made:
        found["calibration/ece_by_chance"] = calibration.ece_by_chance(made, bootstrap)
    found, undefined = split_defined(found, _UNDEFINED)
    reliability = calibration.reliability(made, bootstrap.level) if made else []
    report = Report(
        about=about,
        sections=_sections(found),
        metrics=metrics,
        tables={
            "lengths": _length_table(view),
            "reliability": [asdict(bin) for bin in reliability],
        },
        left_out=dict(_left_out(view)) | undefined,
        notes=list(_notes(view, bootstrap)),
    )
    return Preferences(
        report, list(_rows(view)), view.margin_B, view.length_difference_B, reliability
    )


def _metrics(weight_WB: np.ndarray, view: View) -> dict[str, np.ndarray]:
    """The metrics that training logs, as `step.finish_metrics` makes them of sums."""
    values, parts = view.records.values, view.pieces.parts
    loss = {
        part.name: sum(ratio(weight_WB, *term) for term in values["terms"][part.name])
        for part in parts
    }
    found = {"loss": sum(part.weight * loss[part.name] for part in parts)}
    found |= {f"loss/{name}": value for name, value in loss.items()} if len(parts) > 1 else {}
    return found | {name: ratio(weight_WB, *pair) for name, pair in values["means"].items()}


def _rewards_of(weight_WB: np.ndarray, view: View) -> Iterator[tuple[str, np.ndarray]]:
    if view.margin_B is not None:
        right_B = (view.margin_B > 0).astype(float)
        yield "rewards/ties", mean(weight_WB, (view.margin_B == 0).astype(float))
        longer_B, shorter_B = (
            (view.length_difference_B > 0) * 1.0,
            (view.length_difference_B < 0) * 1.0,
        )
        yield "rewards/accuracies_chosen_longer", ratio(weight_WB, right_B * longer_B, longer_B)
        yield "rewards/accuracies_chosen_shorter", ratio(weight_WB, right_B * shorter_B, shorter_B)
    elif view.label_B is not None and view.reward_BK is not None:
        yield "rewards/roc_area", roc_area(weight_WB, view.reward_BK[:, 0], view.label_B)


def _side(
    weight_WB: np.ndarray, view: View, side: str, mask_BK: np.ndarray
) -> dict[str, np.ndarray]:
    """Means over the completions of a side, and over their tokens."""
    policy, n_B = view.records.policy, mask_BK.sum(1).astype(float)
    of = lambda x_BK: np.where(mask_BK, x_BK, 0.0).sum(1)
    tokens_B = of(policy.count)
    found = {
        f"logps/{side}": ratio(weight_WB, of(policy.sum), n_B),
        f"logps_per_token/{side}": ratio(weight_WB, of(policy.sum), tokens_B),
        f"lengths/{side}": ratio(weight_WB, tokens_B, n_B),
    }
    if view.log_ratio_BK is not None:
        r_BK = view.log_ratio_BK
        with np.errstate(over="ignore"):  # infinite beyond 709 nats: left out, with that reason
            k3_BK = np.expm1(-r_BK) + r_BK
        found |= {
            f"kl_k1/{side}": ratio(weight_WB, of(r_BK), n_B),
            f"kl_k1_per_token/{side}": ratio(weight_WB, of(r_BK), tokens_B),
            f"kl_k3/{side}": ratio(weight_WB, of(k3_BK), n_B),
        }
    if view.records.k3 is not None:
        found[f"kl_k3_per_token/{side}"] = ratio(weight_WB, of(view.records.k3), tokens_B)
    return found


def _lengths(weight_WB: np.ndarray, view: View) -> Iterator[tuple[str, np.ndarray]]:
    difference_B = view.length_difference_B
    if difference_B is not None:
        yield "lengths/difference", mean(weight_WB, difference_B)
        yield "lengths/chosen_longer", mean(weight_WB, (difference_B > 0).astype(float))
    if view.margin_B is not None:
        yield "lengths/margin_correlation", correlation(weight_WB, view.margin_B, difference_B)


# ---- the report

_SECTIONS = {
    "loss": "objective",
    "rewards": "rewards",
    "logps": "log-probs",
    "kl_": "KL to the reference, on the data",
    "lengths": "lengths",
    "calibration": "calibration of the margins",
}
"""Start of a name -> title."""
_OTHERS = "further metrics"
_UNDEFINED = {
    "kl": "exp of minus a log-ratio overflows: the policy left the reference altogether on some completion",
    "lengths/margin_correlation": "margins or length differences are all equal",
    "rewards/roc_area": "needs desirable and undesirable groups",
}


def _sections(found: Mapping[str, Estimate]) -> dict[str, dict[str, Estimate]]:
    """By subject, in each in the order in which they were made."""
    title_of = lambda name: next(
        (title for start, title in _SECTIONS.items() if name.startswith(start)), _OTHERS
    )
    filled: dict[str, dict[str, Estimate]] = {title: {} for title in (*_SECTIONS.values(), _OTHERS)}
    for name, estimate in found.items():
        filled[title_of(name)][name] = estimate
    return {title: section for title, section in filled.items() if section}


def _left_out(view: View) -> Iterator[tuple[str, str]]:
    objective = _name(view)
    if view.log_ratio_BK is None:
        yield "kl", f"{objective} has no reference"
    elif view.records.k3 is None:
        yield (
            "kl_k3_per_token",
            "needs the reference's log-prob of every token; reference.mode=cache keeps sums alone",
        )
    if view.kind == "single":
        yield "rewards, calibration", "one answer a prompt and no label: nothing to compare"
    elif view.kind in JUDGED:
        if view.reward_BK is None:
            yield "rewards", f"{objective} logs no reward of every answer"
        yield (
            "calibration",
            "a reward is known up to a constant of the prompt, so one answer's is no probability",
        )
    elif view.kind == "ranked":
        yield (
            "calibration",
            "needs the margins of pairs; rewards/accuracies is the share of pairs in the right order",
        )
    elif view.margin_B is None:
        yield "rewards, calibration", f"{objective} logs no reward of every pair"


def _name(view: View) -> str:
    return " + ".join(part.name for part in view.pieces.parts)


def _notes(view: View, bootstrap: Bootstrap) -> Iterator[str]:
    yield (
        f"intervals: percentile bootstrap at {bootstrap.level:.0%}, {bootstrap.resamples} resamples of "
        f"{int(view.unit_B.max()) + 1} prompts with all their groups"
    )
    coupled = [part.name for part in view.pieces.parts if part.needs.coupled]
    if coupled:
        yield f"{coupled[0]} couples the groups of a batch: the intervals of its values take the other groups as given"
    if view.log_ratio_BK is not None:
        yield KL_NOTE
    if view.margin_B is not None:
        yield "rewards/accuracies counts a tie as wrong, as TRL does"
        yield CALIBRATION_NOTE
        if not likelihood_of_preferences(view.pieces.parts):
            yield (
                f"the loss of {_name(view)} is not the likelihood of preferences under sigmoid(margin), so nothing in "
                "training made this a probability"
            )


def _length_table(view: View) -> list[dict[str, Any]]:
    """Quantiles of the loss tokens of every side."""
    table = []
    for side, mask_BK in view.sides.items():
        tokens = view.records.policy.count[mask_BK]
        if tokens.size:
            low, quarter, median, three_quarters, high = map(
                float, np.quantile(tokens, [0, 0.25, 0.5, 0.75, 1])
            )
            table.append(
                {
                    "side": side,
                    "completions": int(tokens.size),
                    "least": low,
                    "quarter": quarter,
                    "median": median,
                    "three_quarters": three_quarters,
                    "most": high,
                }
            )
    return table


def _rows(view: View) -> Iterator[dict[str, Any]]:
    policy, ref, rewards = view.records.policy, view.records.ref, view.reward_BK
    for b, group in enumerate(view.groups):
        row: dict[str, Any] = {"row_id": group.row_id, "where": group.where}
        row |= {} if view.label_B is None else {"label": view.label_B[b]}
        for k in range(len(group.completion_ids)):
            answer = {"tokens": int(policy.count[b, k]), "logp": policy.sum[b, k]}
            answer |= {} if ref is None else {"ref_logp": ref.sum[b, k]}
            answer |= {} if rewards is None or k >= rewards.shape[1] else {"reward": rewards[b, k]}
            row[completion_name(view.kind, k)] = answer
        yield row
