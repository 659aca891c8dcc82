"""Figures of an evaluation as PNGs, one file an evaluation."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxpref.evaluation.bootstrap import Estimate
from jaxpref.evaluation.generations import Generations
from jaxpref.evaluation.preferences import Preferences
from jaxpref.runs.plots import BLUE, GREY, ORANGE, drawn


def plot_preferences(found: Preferences, png: str | Path) -> Path | None:
    """Reliability, margins, margins against lengths, lengths; None where the groups are not pairs
    with rewards."""
    if found.margin_B is None:
        return None
    with drawn(png, 2, 2) as axes:
        _reliability(axes[0, 0], found)
        _margins(axes[0, 1], found)
        _margins_by_length(axes[1, 0], found)
        _length_differences(axes[1, 1], found)
    return Path(png)


def _reliability(axis: Any, found: Preferences) -> None:
    bins, estimate = found.reliability, found.report.estimates["calibration/ece"]
    chance = found.report.estimates["calibration/ece_by_chance"]
    level = found.report.about["bootstrap"]["level"]
    axis.plot([0.5, 1.0], [0.5, 1.0], "--", color=GREY, label="perfectly calibrated")
    x, y = np.array([[bin.confidence, bin.accuracy] for bin in bins]).T
    ends = np.array(
        [[bin.accuracy - bin.accuracy_low, bin.accuracy_high - bin.accuracy] for bin in bins]
    ).T
    label = f"pairs in a bin, {level:.0%} Wilson interval"
    axis.errorbar(x, y, yerr=np.maximum(ends, 0), fmt="o", color=BLUE, capsize=3, label=label)
    axis.set(xlim=(0.49, 1.01), ylim=(-0.09, 1.05))
    for bin in bins:
        place = dict(xytext=(0, 3), textcoords="offset points", ha="center", fontsize=7)
        axis.annotate(f"{bin.pairs}", (bin.confidence, -0.09), color=GREY, **place)
    axis.set_xlabel("confidence: sigmoid(|margin|)   (numbers: pairs in the bin)")
    axis.set_ylabel("accuracy (share of pairs)")
    axis.set_title(
        f"reliability: calibration error {_shown(estimate)}\n(by chance {_shown(chance)})"
    )
    axis.legend(loc="lower left", bbox_to_anchor=(0.0, 0.06))


def _margins(axis: Any, found: Preferences) -> None:
    margin_B = found.margin_B
    edges = _edges(margin_B, zero=True)
    wrong_B = margin_B <= 0
    axis.hist(
        [margin_B[~wrong_B], margin_B[wrong_B]],
        edges,
        stacked=True,
        color=[BLUE, ORANGE],
        label=[
            f"chosen has the higher reward ({(~wrong_B).sum()})",
            f"it has not, or a tie ({wrong_B.sum()})",
        ],
    )
    axis.axvline(0, color="black", lw=0.8)
    logged = found.report.estimates  # an objective of one's own may log less
    if mean := logged.get("rewards/margins"):
        axis.axvline(mean.value, color="black", ls=":", label=f"mean {_shown(mean)}")
    axis.set_xlabel("reward margin, chosen less rejected (nats)")
    axis.set_ylabel("pairs")
    accuracy = logged.get("rewards/accuracies")
    axis.set_title(f"margins: accuracy {_shown(accuracy)}" if accuracy else "margins")
    axis.margins(y=0.35)  # room for the legend above the bars
    axis.legend(loc="best")


def _margins_by_length(axis: Any, found: Preferences) -> None:
    margin_B, difference_B = found.margin_B, found.length_difference_B
    alpha = float(np.clip(200 / len(margin_B), 0.15, 0.8))
    kinds = (
        (False, BLUE, "o", "chosen has the higher reward"),
        (True, ORANGE, "^", "it has not, or a tie"),
    )
    for wrong, colour, marker, label in kinds:
        at_B = (margin_B <= 0) == wrong
        axis.plot(
            difference_B[at_B],
            margin_B[at_B],
            marker,
            color=colour,
            alpha=alpha,
            ms=4,
            mew=0,
            label=label,
        )
    axis.axhline(0, color="black", lw=0.8)
    axis.axvline(0, color="black", lw=0.8)
    axis.set_xlabel("length, chosen less rejected (tokens)")
    axis.set_ylabel("reward margin (nats)")
    correlation = found.report.estimates.get("lengths/margin_correlation")
    axis.set_title(
        f"margin and length: correlation {_shown(correlation) if correlation else 'undefined'}"
    )
    axis.legend(loc="best")


def _length_differences(axis: Any, found: Preferences) -> None:
    difference_B = found.length_difference_B
    axis.hist(difference_B, _edges(difference_B), color=GREY)
    axis.axvline(0, color="black", lw=0.8)
    mean = found.report.estimates["lengths/difference"]
    axis.axvline(mean.value, color="black", ls=":", label=f"mean {_shown(mean)}")
    axis.set_xlabel("length, chosen less rejected (tokens)")
    axis.set_ylabel("pairs")
    longer = found.report.estimates["lengths/chosen_longer"]
    axis.set_title(f"lengths: chosen is longer in {_shown(longer)}")
    axis.margins(y=0.25)
    axis.legend(loc="best")


def plot_generations(found: Generations, png: str | Path) -> Path:
    """A row for every reward: its distribution; beside it wins, ties and losses, or the reward
    against the length."""
    with drawn(png, len(found.rewards), 2) as axes:
        for row, name in zip(axes, found.rewards, strict=True):
            _distribution(row[0], found, name)
            (_wins if found.against else _rewards_by_length)(row[1], found, name)
    return Path(png)


def _distribution(axis: Any, found: Generations, name: str) -> None:
    estimates, sides = (
        found.report.estimates,
        [("reward", found.rewards[name], BLUE, found.report.about["policy"])],
    )
    if found.against:
        sides.append(("reward_against", found.against[name], ORANGE, found.report.about["against"]))
    edges = _edges(np.concatenate([values for _, values, _, _ in sides]))
    for start, values, colour, label in sides:
        label = f"{_short(label)}: mean {_shown(estimates[f'{start}/{name}'])}"
        filled = start == "reward"
        axis.hist(
            values,
            edges,
            histtype="stepfilled" if filled else "step",
            color=colour,
            lw=1.8,
            alpha=0.6 if filled else 1.0,
            ls="-" if filled else "--",
            label=label,
        )
    axis.set(xlabel=f"reward: {_short(name)}", ylabel="answers", title="rewards of the answers")
    axis.margins(y=0.35)
    axis.legend(loc="upper left")


def _wins(axis: Any, found: Generations, name: str) -> None:
    test = next(row for row in found.report.tables["sign_test"] if row["reward"] == name)
    left = 0
    for label, key, colour, hatch in (
        ("won", "wins", BLUE, ""),
        ("tied", "ties", GREY, "//"),
        ("lost", "losses", ORANGE, ".."),
    ):
        share = test[key] / found.report.about["prompts"]
        bar = axis.barh(
            [0], [share], left=left, color=colour, hatch=hatch, edgecolor="white", label=label
        )
        axis.bar_label(
            bar,
            [f"{test[key]}" if test[key] else ""],
            label_type="center",
            color="white",
            weight="bold",
            bbox=dict(facecolor=colour, edgecolor="none", pad=1.5),
        )
        left += share
    estimate = found.report.estimates[f"win_rate/{name}"]
    x = estimate.value
    ends = None if estimate.low is None else [[x - estimate.low], [estimate.high - x]]
    axis.errorbar(
        [x], [-0.65], xerr=ends, fmt="D", color="black", capsize=4, label="win rate, ties half"
    )
    axis.axvline(0.5, color="black", ls="--", lw=0.8, label="half")
    against = _short(found.report.about["against"])
    axis.set(xlim=(0, 1), ylim=(-1.0, 1.3), yticks=[], xlabel="share of prompts (numbers: prompts)")
    axis.set_title(f"against {against}\nwin rate {_shown(estimate)}, sign test p = {test['p']:.2g}")
    axis.legend(loc="upper center", ncols=3)


def _rewards_by_length(axis: Any, found: Generations, name: str) -> None:
    lengths = [len(row["completion"]) for row in found.rows]
    axis.plot(lengths, found.rewards[name], "o", color=BLUE, ms=4, mew=0, alpha=0.6)
    estimate = found.report.estimates.get(f"length_correlation/{name}")
    axis.set(xlabel="length of the answer (characters)", ylabel=f"reward: {_short(name)}")
    axis.set_title(
        f"reward and length: correlation {_shown(estimate) if estimate else 'undefined'}"
    )


def _short(name: str, most: int = 40) -> str:
    """Without folders, and without the middle of what is still long."""
    name = re.sub(r"\S+/(?=\S)", "", name)
    return name if len(name) <= most else f"{name[: most // 2 - 2]}...{name[1 - most // 2 :]}"


def _edges(x_B: np.ndarray, *, zero: bool = False) -> np.ndarray:
    """Ends of a histogram's bars, which are centred on the numbers where all are whole.

    Args:
        zero: 0 is an end, also of whole numbers, so that no bar mixes the two signs.
    """
    low, high = float(x_B.min()), float(x_B.max())
    if low == high:
        return np.array([low - 0.5, high + 0.5])
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    width = (high - low) / min(40, max(10, len(x_B) // 4))
    whole = not zero and bool((x_B == np.round(x_B)).all())
    if whole:
        width = np.ceil(width)
    edges = (np.arange(np.floor(low / width) - 1, np.ceil(high / width) + 3) - 0.5 * whole) * width
    first, last = np.searchsorted(edges, low, "right") - 1, np.searchsorted(edges, high, "left")
    return edges[first : last + 1]


def _shown(estimate: Estimate) -> str:
    if estimate.low is None:
        return f"{estimate.value:.2g}"
    return f"{estimate.value:.2g} [{estimate.low:.2g}, {estimate.high:.2g}]"
