"""Figures of an evaluation as PNGs, one file per evaluation."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxpref.evaluation.bootstrap import Estimate
from jaxpref.evaluation.generations import Generations
from jaxpref.evaluation.preferences import Preferences
from jaxpref.runs.plots import BLUE, GREY, ORANGE, drawn
from jaxpref.storage.paths import as_path


def plot_preferences(preferences: Preferences, png: str | Path) -> Path | None:
    """Reliability, margins, margins against lengths, lengths.

    None, and no file, where the groups are not pairs with rewards.
    """
    if preferences.margin_B is None:
        return None
    with drawn(png, 2, 2) as axes:
        _reliability(axes[0, 0], preferences)
        _margins(axes[0, 1], preferences)
        _margins_by_length(axes[1, 0], preferences)
        _length_differences(axes[1, 1], preferences)
    return as_path(png)


def _reliability(axis: Any, preferences: Preferences) -> None:
    bins, estimate = preferences.reliability, preferences.report.estimates["calibration/ece"]
    chance = preferences.report.estimates["calibration/ece_by_chance"]
    level = preferences.report.about["bootstrap"]["level"]
    axis.plot([0.5, 1.0], [0.5, 1.0], "--", color=GREY, label="perfectly calibrated")
    x, y = np.array([[bin.confidence, bin.accuracy] for bin in bins]).T
    below = [bin.accuracy - bin.accuracy_low for bin in bins]
    above = [bin.accuracy_high - bin.accuracy for bin in bins]
    ends = np.array([below, above])
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


def _margins(axis: Any, preferences: Preferences) -> None:
    margin_B = preferences.margin_B
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
    logged = preferences.report.estimates  # an objective of one's own may log less
    if mean := logged.get("rewards/margins"):
        axis.axvline(mean.value, color="black", ls=":", label=f"mean {_shown(mean)}")
    axis.set_xlabel("reward margin, chosen less rejected (nats)")
    axis.set_ylabel("pairs")
    accuracy = logged.get("rewards/accuracies")
    axis.set_title(f"margins: accuracy {_shown(accuracy)}" if accuracy else "margins")
    axis.margins(y=0.35)  # room for the legend above the bars
    axis.legend(loc="best")


def _margins_by_length(axis: Any, preferences: Preferences) -> None:
    margin_B, difference_B = preferences.margin_B, preferences.length_difference_B
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
    correlation = preferences.report.estimates.get("lengths/margin_correlation")
    axis.set_title(f"margin and length: correlation {_shown(correlation)}")
    axis.legend(loc="best")


def _length_differences(axis: Any, preferences: Preferences) -> None:
    difference_B = preferences.length_difference_B
    axis.hist(difference_B, _edges(difference_B), color=GREY)
    axis.axvline(0, color="black", lw=0.8)
    mean = preferences.report.estimates["lengths/difference"]
    axis.axvline(mean.value, color="black", ls=":", label=f"mean {_shown(mean)}")
    axis.set_xlabel("length, chosen less rejected (tokens)")
    axis.set_ylabel("pairs")
    longer = preferences.report.estimates["lengths/chosen_longer"]
    axis.set_title(f"lengths: chosen is longer in {_shown(longer)}")
    axis.margins(y=0.25)
    axis.legend(loc="best")


def plot_generations(generations: Generations, png: str | Path) -> Path:
    """One row of axes per reward: its distribution, and beside it wins, ties and losses.

    Without another policy to compare with: the reward against the length.
    """
    with drawn(png, len(generations.rewards), 2) as axes:
        for (left, right), name in zip(axes, generations.rewards, strict=True):
            _distribution(left, generations, name)
            if generations.against:
                _wins(right, generations, name)
            else:
                _rewards_by_length(right, generations, name)
    return as_path(png)


def _distribution(axis: Any, generations: Generations, name: str) -> None:
    about, estimates = generations.report.about, generations.report.estimates
    filled = dict(histtype="stepfilled", color=BLUE, alpha=0.6)
    outlined = dict(histtype="step", color=ORANGE, ls="--")
    sides: list[tuple[str, str, np.ndarray, dict[str, Any]]] = [
        ("reward", about["policy"], generations.rewards[name], filled)
    ]
    if generations.against:
        sides.append(("reward_against", about["against"], generations.against[name], outlined))
    edges = _edges(np.concatenate([values for _, _, values, _ in sides]))
    for start, policy, values, style in sides:
        label = f"{_short(policy)}: mean {_shown(estimates[f'{start}/{name}'])}"
        axis.hist(values, edges, lw=1.8, label=label, **style)
    axis.set(xlabel=f"reward: {_short(name)}", ylabel="answers", title="rewards of the answers")
    axis.margins(y=0.35)
    axis.legend(loc="upper left")


def _wins(axis: Any, generations: Generations, name: str) -> None:
    test = next(row for row in generations.report.tables["sign_test"] if row["reward"] == name)
    kinds = (
        ("won", "wins", BLUE, ""),
        ("tied", "ties", GREY, "//"),
        ("lost", "losses", ORANGE, ".."),
    )
    left = 0
    for label, key, colour, hatch in kinds:
        share = test[key] / generations.report.about["prompts"]
        bar = axis.barh(
            [0], [share], left=left, color=colour, hatch=hatch, edgecolor="white", label=label
        )
        number = str(test[key]) if test[key] else ""
        box = dict(facecolor=colour, edgecolor="none", pad=1.5)
        axis.bar_label(bar, [number], label_type="center", color="white", weight="bold", bbox=box)
        left += share
    estimate = generations.report.estimates[f"win_rate/{name}"]
    x = estimate.value
    ends = None if estimate.low is None else [[x - estimate.low], [estimate.high - x]]
    axis.errorbar(
        [x], [-0.65], xerr=ends, fmt="D", color="black", capsize=4, label="win rate, ties half"
    )
    axis.axvline(0.5, color="black", ls="--", lw=0.8, label="half")
    against = _short(generations.report.about["against"])
    axis.set(xlim=(0, 1), ylim=(-1.0, 1.3), yticks=[], xlabel="share of prompts (numbers: prompts)")
    axis.set_title(f"against {against}\nwin rate {_shown(estimate)}, sign test p = {test['p']:.2g}")
    axis.legend(loc="upper center", ncols=3)


def _rewards_by_length(axis: Any, generations: Generations, name: str) -> None:
    lengths = [len(row["completion"]) for row in generations.rows]
    axis.plot(lengths, generations.rewards[name], "o", color=BLUE, ms=4, mew=0, alpha=0.6)
    estimate = generations.report.estimates.get(f"length_correlation/{name}")
    axis.set(xlabel="length of the answer (characters)", ylabel=f"reward: {_short(name)}")
    axis.set_title(f"reward and length: correlation {_shown(estimate)}")


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
    shift = 0.0
    if not zero and (x_B == np.round(x_B)).all():
        width, shift = np.ceil(width), 0.5
    multiples = np.arange(np.floor(low / width) - 1, np.ceil(high / width) + 3)
    edges = (multiples - shift) * width
    first, last = np.searchsorted(edges, low, "right") - 1, np.searchsorted(edges, high, "left")
    return edges[first : last + 1]


def _shown(estimate: Estimate | None) -> str:
    if estimate is None:
        return "undefined"
    if estimate.low is None:
        return f"{estimate.value:.2g}"
    return f"{estimate.value:.2g} [{estimate.low:.2g}, {estimate.high:.2g}]"
